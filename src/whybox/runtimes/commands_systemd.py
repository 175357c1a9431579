"""Changes in systemd's words: properties of a unit (systemd.resource-control(5))."""

from typing import assert_never

from whybox.change import (
    CpuBurst,
    CpuQuota,
    MemoryLimit,
    RunAsUser,
    Volume,
    WithInit,
    WithUserNamespace,
)
from whybox.kernel.host import Host
from whybox.kernel.target import Target
from whybox.runtimes import commands_kernel
from whybox.runtimes.commands_docker import Setting
from whybox.runtimes.shell import line


def commands(target: Target, change: Setting, host: Host) -> tuple[str, ...]:
    """``set-property`` changes a running unit; the rest is edited, and comes with a restart."""
    match change:
        case CpuQuota(cores=cores):
            # An empty value is no quota.
            return _property(target, f"CPUQuota={'' if cores is None else f'{cores * 100:g}%'}")
        case MemoryLimit():
            return _property(target, f"MemoryMax={change.bytes}")
        case CpuBurst():
            return commands_kernel.limit(target, change, host)
        case RunAsUser():
            return _edited(target, f"User={change.uid} Group={change.gid}")
        case WithUserNamespace():
            return _edited(target, "PrivateUsers=yes")
        case WithInit() | Volume():
            return ()  # systemd is its init, and its files lie on no image
        case _:
            assert_never(change)


def _property(target: Target, setting: str) -> tuple[str, ...]:
    return (line("systemctl", "set-property", unit(target), setting),)


def _edited(target: Target, settings: str) -> tuple[str, ...]:
    return (f"{line('systemctl', 'edit', unit(target))}  # [Service] {settings}",)


def unit(target: Target) -> str:
    """The unit's name: the last part of its group's path."""
    return target.id.rstrip("/").rpartition("/")[2]
