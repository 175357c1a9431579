"""Changes in systemd's words: properties of a unit (systemd.resource-control(5))."""

from typing import assert_never

from whybox import settings
from whybox.change import (
    CpuBurst,
    CpuQuota,
    CpuSet,
    CpuWeight,
    HugepageLimit,
    IoLimit,
    LayerLimit,
    LogLimit,
    MemoryHigh,
    MemoryLimit,
    Nameservers,
    OpenFiles,
    PidsLimit,
    RunAsUser,
    ShmSize,
    StopTimeout,
    SwapLimit,
    Swappiness,
    Sysctl,
    Unpause,
    Volume,
    VolumeLimit,
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
        case CpuBurst() | Swappiness() | HugepageLimit():
            return commands_kernel.limit(target, change, host)
        case CpuQuota() | MemoryLimit() | CpuWeight() | CpuSet():
            return _property(target, _limit(change))
        case MemoryHigh() | SwapLimit() | PidsLimit():
            return _property(target, _limit(change))
        case IoLimit():
            return _property(target, _io(change))
        case Unpause():
            return (line("systemctl", "thaw", unit(target)),)
        case Sysctl():
            return commands_kernel.sysctl(target, change)
        case LogLimit() | LayerLimit() | VolumeLimit():
            return ()  # the journal's, and no layer
        case WithInit() | Volume() | ShmSize() | Nameservers():
            return ()  # systemd is its init, and its files lie on no image
        case _:
            return _edited(target, _service(change))


def _limit(
    change: CpuQuota | MemoryLimit | CpuWeight | CpuSet | MemoryHigh | SwapLimit | PidsLimit,
) -> str:
    match change:
        case CpuQuota(cores=cores):
            # An empty value is no quota.
            return f"CPUQuota={'' if cores is None else f'{cores * 100:g}%'}"
        case MemoryLimit():
            return f"MemoryMax={change.bytes}"
        case CpuWeight():
            file = settings.file(change, 2)
            return f"CPUWeight={'' if file is None else file.value}"
        case CpuSet(cpus=cpus):
            return f"AllowedCPUs={cpus}"
        case MemoryHigh(bytes=size):
            return f"MemoryHigh={'infinity' if size is None else size}"
        case SwapLimit(bytes=size):
            return f"MemorySwapMax={'infinity' if size is None else size}"
        case PidsLimit(limit=limit):
            return f"TasksMax={'infinity' if limit is None else limit}"
        case _:
            assert_never(change)


def _io(change: IoLimit) -> str:
    """Such as ``IOWriteBandwidthMax=/dev/block/8:0 infinity``."""
    way, unit = change.what.split()
    kind = "Bandwidth" if unit == "bytes" else "IOPS"
    value = "infinity" if change.value is None else change.value
    return f"IO{way.capitalize()}{kind}Max=/dev/block/{change.device} {value}"


def _service(change: RunAsUser | WithUserNamespace | OpenFiles | StopTimeout) -> str:
    match change:
        case RunAsUser():
            return f"User={change.uid} Group={change.gid}"
        case WithUserNamespace():
            return "PrivateUsers=yes"
        case OpenFiles(limit=limit):
            return f"LimitNOFILE={limit}"
        case StopTimeout(seconds=seconds):
            return f"TimeoutStopSec={seconds}"
        case _:
            assert_never(change)


def _property(target: Target, setting: str) -> tuple[str, ...]:
    return (line("systemctl", "set-property", unit(target), setting),)


def _edited(target: Target, settings: str) -> tuple[str, ...]:
    return (f"{line('systemctl', 'edit', unit(target))}  # [Service] {settings}",)


def edited(target: Target, settings: str) -> tuple[str, ...]:
    """Settings of the service that come with a restart."""
    return _edited(target, settings)


def unit(target: Target) -> str:
    """The unit's name: the last part of its group's path."""
    return target.id.rstrip("/").rpartition("/")[2]
