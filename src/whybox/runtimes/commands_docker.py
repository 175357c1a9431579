"""Changes in Docker's and podman's words, which are the same."""

import re
from typing import TypeAlias, assert_never

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
from whybox.runtimes.shell import line, quoted

Making: TypeAlias = WithInit | RunAsUser | WithUserNamespace | Volume
Setting: TypeAlias = commands_kernel.Limit | Making


def commands(target: Target, change: Setting, host: Host) -> tuple[str, ...]:
    """``docker update`` where it has the option, else the kernel's file, else a new container."""
    match change:
        case CpuQuota(cores=None) | CpuBurst():
            # There is no option for a burst, and --cpus 0 means: leave it as it is.
            return commands_kernel.limit(target, change, host)
        case CpuQuota(cores=cores):
            return (line(target.runtime, "update", "--cpus", f"{cores:g}", target.short_id),)
        case MemoryLimit():
            return (_memory(target, change.bytes, host),)
        case WithInit() | RunAsUser() | WithUserNamespace() | Volume():
            return (_made_anew(target, change),)
        case _:
            assert_never(change)


def _memory(target: Target, size: int, host: Host) -> str:
    """The sum with swap must be named too: Docker refuses a memory limit above the old sum."""
    group = target.group(host, "memory")
    readable = group is not None and host.exists(group.directory)
    swap = commands_kernel.swap_bytes(host, group) if group is not None and readable else 0
    both = "-1" if swap is None else _size(size + swap)
    sizes = ("--memory", _size(size), "--memory-swap", both)
    return line(target.runtime, "update", *sizes, target.short_id)


def _size(size: int) -> str:
    """Docker's units are powers of 1024."""
    for shift, unit in ((20, "m"), (10, "k")):
        if size % (1 << shift) == 0:
            return f"{size >> shift}{unit}"
    return f"{size}b"


def _made_anew(target: Target, change: Making) -> str:
    match change:
        case WithInit():
            return _run(target, "--init")
        case RunAsUser():
            return _run(target, "--user", f"{change.uid}:{change.gid}")
        case WithUserNamespace():
            # Docker maps for all its containers or for none.
            podman = target.runtime == "podman"
            return _run(target, "--userns=auto") if podman else "dockerd --userns-remap=default …"
        case Volume():
            return _run(target, "-v", f"{_volume(target, change.path)}:{change.path}")
        case _:
            assert_never(change)


def _run(target: Target, *options: str) -> str:
    """The dots stand for the options it has already; pasted as they are, they are refused."""
    image = "IMAGE" if target.image is None else quoted(target.image)
    return f"{line(target.runtime, 'run', *options)} … --name {quoted(target.name)} {image}"


def _volume(target: Target, path: str) -> str:
    return re.sub(r"[^a-zA-Z0-9_.-]+", "-", f"{target.name}{path}").strip("-.")
