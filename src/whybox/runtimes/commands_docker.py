"""Changes in Docker's and podman's words, which are the same."""

import re
from typing import TypeAlias, assert_never

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
from whybox.kernel import memory
from whybox.kernel.host import Host
from whybox.kernel.target import Target
from whybox.runtimes import commands_kernel
from whybox.runtimes.shell import line, quoted

Making: TypeAlias = (
    WithInit
    | RunAsUser
    | WithUserNamespace
    | Volume
    | OpenFiles
    | ShmSize
    | StopTimeout
    | Sysctl
    | Nameservers
)
#: What keeps a container from filling a disk.
DiskLimit: TypeAlias = LogLimit | LayerLimit | VolumeLimit
Setting: TypeAlias = commands_kernel.Limit | Making | DiskLimit


def commands(target: Target, change: Setting, host: Host) -> tuple[str, ...]:
    """``docker update`` where it has the option, else the kernel's file, else a new container."""
    match change:
        case CpuQuota(cores=None) | CpuBurst() | MemoryHigh() | Swappiness() | HugepageLimit():
            # There is no option for these in `update`, and --cpus 0 means: leave it as it is.
            return commands_kernel.limit(target, change, host)
        case IoLimit():
            return commands_kernel.limit(target, change, host)
        case CpuQuota() | CpuWeight() | CpuSet() | PidsLimit():
            return (line(target.runtime, "update", *_option(change), target.short_id),)
        case MemoryLimit():
            return (_memory(target, change.bytes, host),)
        case SwapLimit():
            return (_swap(target, change.bytes, host),)
        case Unpause():
            return (line(target.runtime, "unpause", target.short_id),)
        case Sysctl(at_start=False) if target.alive:
            return commands_kernel.sysctl(target, change)
        case LogLimit() | LayerLimit() | VolumeLimit():
            return _bounded(target, change)
        case Nameservers() if target.alive:
            return (_without(target, change.drop),)
        case _:
            return (_made_anew(target, change),)


def _option(change: CpuQuota | CpuWeight | CpuSet | PidsLimit) -> tuple[str, str]:
    match change:
        case CpuQuota(cores=cores):
            return "--cpus", f"{cores or 0:g}"
        case CpuWeight(shares=shares):
            return "--cpu-shares", str(shares)
        case CpuSet(cpus=cpus):
            return "--cpuset-cpus", cpus
        case PidsLimit(limit=limit):
            return "--pids-limit", str(-1 if limit is None else limit)
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


def _swap(target: Target, size: int | None, host: Host) -> str:
    """Docker's word is the sum, and it wants memory named beside it."""
    group = target.group(host, "memory")
    limit = None if group is None else memory.memory(host, group).limit_bytes
    if size is None or limit is None:
        return line(target.runtime, "update", "--memory-swap", "-1", target.short_id)
    sizes = ("--memory", _size(limit), "--memory-swap", _size(limit + size))
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
        case OpenFiles(limit=limit):
            return _run(target, "--ulimit", f"nofile={limit}:{limit}")
        case ShmSize():
            return _run(target, "--shm-size", _size(change.bytes))
        case StopTimeout():
            return _run(target, "--stop-timeout", str(change.seconds))
        case Sysctl():
            settings = (("--sysctl", f"{key}={value}") for key, value in change.pairs)
            return _run(target, *(word for setting in settings for word in setting))
        case Nameservers(use=use):
            return _run(target, *(word for address in use for word in ("--dns", address)))
        case _:
            assert_never(change)


def _bounded(target: Target, change: DiskLimit) -> tuple[str, ...]:
    match change:
        case LogLimit():
            # podman keeps one file.
            many = () if target.runtime == "podman" else ("--log-opt", f"max-file={change.files}")
            return (_run(target, "--log-opt", f"max-size={_size(change.bytes)}", *many),)
        case LayerLimit(quota=True):
            return (_run(target, "--storage-opt", f"size={_size(change.bytes)}"),)
        case LayerLimit():
            bounded = f"{change.directory}:size={_size(change.bytes)}"
            return (_run(target, "--tmpfs", bounded),)
        case VolumeLimit():
            return ()  # an emptyDir is Kubernetes'
        case _:
            assert_never(change)


def _without(target: Target, nameservers: tuple[str, ...]) -> str:
    """The file that is mounted at /etc/resolv.conf, written in place: another file is not seen."""
    path = line(target.runtime, "inspect", "-f", "{{.ResolvConfPath}}", target.short_id)
    lines = "".join(f"/^nameserver {re.escape(one)}$/d;" for one in nameservers)
    kept = f'{line("sed", lines)} "$f"'
    return f"""f=$({path}) && kept=$({kept}) && printf '%s\\n' "$kept" >"$f\""""


def _run(target: Target, *options: str) -> str:
    """The dots stand for the options it has already; pasted as they are, they are refused."""
    image = "IMAGE" if target.image is None else quoted(target.image)
    return f"{line(target.runtime, 'run', *options)} … --name {quoted(target.name)} {image}"


def run(target: Target, *options: str) -> str:
    """A new container with these options besides those that it has."""
    return _run(target, *options)


def _volume(target: Target, path: str) -> str:
    return re.sub(r"[^a-zA-Z0-9_.-]+", "-", f"{target.name}{path}").strip("-.")
