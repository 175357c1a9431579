"""Changes in the kernel's own words: a control group's file, an interface of a namespace."""

from typing import TypeAlias, assert_never

from whybox import settings
from whybox.change import (
    AddAddress,
    CpuQuota,
    DefaultRoute,
    EmptyFile,
    FilterRule,
    HostSysctl,
    IpForward,
    JoinBridge,
    LinkMtu,
    LinkUp,
    MemoryLimit,
    NoQueue,
    OfNetwork,
    OpenFiles,
    ProjectQuota,
    SwapLimit,
    Sysctl,
    ThawFilesystem,
)
from whybox.kernel import cgroup, cpu
from whybox.kernel.cgroup import Group
from whybox.kernel.host import Host, ParseError
from whybox.kernel.target import Target
from whybox.runtimes.shell import line, write

Limit: TypeAlias = CpuQuota | MemoryLimit | settings.Setting
Machine: TypeAlias = HostSysctl | ThawFilesystem | EmptyFile | ProjectQuota

#: The kernel's default (Documentation/scheduler/sched-bwc.rst).
_PERIOD_USEC = 100_000
#: v1 says "no limit" as the largest number of whole pages.
_UNLIMITED_V1 = 1 << 62


def limit(target: Target, change: Limit, host: Host) -> tuple[str, ...]:
    """Lines that write the group's files; none where the group cannot be seen from here."""
    above = getattr(change, "cgroup", None)
    paths = target.cgroups if above is None else dict.fromkeys(target.cgroups, above)
    group = cgroup.group(host, paths, _controller(change))
    if group is None or group.path == "/" or not host.exists(group.directory):
        return ()
    match change:
        case CpuQuota():
            return (_quota(host, group, change.cores),)
        case MemoryLimit():
            return _memory(host, group, change.bytes)
        case SwapLimit() if group.version == 1:
            return _swap(host, group, change.bytes)
        case _:
            files = settings.files(change, group.version)
            return tuple(write(file.value, group.file(file.name)) for file in files)


def machine(change: Machine) -> tuple[str, ...]:
    """Lines for what belongs to nobody alone."""
    match change:
        case HostSysctl(key=key, value=value):
            return (line("sysctl", "-w", f"{key}={value}"),)
        case ThawFilesystem(mountpoint=path):
            return (line("fsfreeze", "--unfreeze", path),)
        case EmptyFile(path=path):
            return (line("truncate", "--size", "0", path),)
        case ProjectQuota():
            return (_project_quota(change),)
        case _:
            assert_never(change)


def _project_quota(change: ProjectQuota) -> str:
    if change.fstype == "xfs":
        sizes = [f"bhard={change.bytes}"] if change.bytes is not None else []
        counts = [f"ihard={change.files}"] if change.files is not None else []
        limit = " ".join(("limit", "-p", *sizes, *counts, str(change.id)))
        return line("xfs_quota", "-x", "-c", limit, change.mountpoint)
    # In blocks of 1 KiB; 0 is no limit, so that what is not raised must be named again.
    blocks = "0" if change.bytes is None else str(-(-change.bytes // 1024))
    files = "0" if change.files is None else str(change.files)
    return line("setquota", "-P", str(change.id), "0", blocks, "0", files, change.mountpoint)


def sysctl(target: Target, change: Sysctl) -> tuple[str, ...]:
    """For the namespaces that it has now: a new container's begin with the defaults."""
    if target.init is None or target.runtime == "self":
        return ()
    kind = "-n" if change.key.startswith("net.") else "-i"
    enter = ("nsenter", "-t", str(target.init.pid), kind)
    return (line(*enter, "sysctl", "-w", *(f"{key}={value}" for key, value in change.pairs)),)


def open_files(target: Target, change: OpenFiles) -> tuple[str, ...]:
    """For the process that is there now; what it has started already keeps what it has."""
    if target.init is None or target.runtime == "self":
        return ()
    limit = f"--nofile={change.limit}:{change.limit}"
    return (line("prlimit", "--pid", str(target.init.pid), limit),)


def _controller(change: Limit) -> str:
    match change:
        case CpuQuota():
            return "cpu"
        case MemoryLimit():
            return "memory"
        case _:
            return settings.controller(change)


def _swap(host: Host, group: Group, size: int | None) -> tuple[str, ...]:
    """v1 knows the sum of memory and swap alone."""
    memory = host.optional_number(group.file("memory.limit_in_bytes"))
    unlimited = size is None or memory is None or memory >= _UNLIMITED_V1
    both = -1 if unlimited else (memory or 0) + (size or 0)
    return (write(both, group.file("memory.memsw.limit_in_bytes")),)


def _quota(host: Host, group: Group, cores: float | None) -> str:
    name, unlimited = ("cpu.cfs_quota_us", "-1") if group.version == 1 else ("cpu.max", "max")
    quota = unlimited if cores is None else round(cores * _period_usec(host, group))
    return write(quota, group.file(name))  # cpu.max keeps its period where only a quota is written


def _period_usec(host: Host, group: Group) -> int:
    try:
        said = cpu.max_(host, group)
    except ParseError:
        said = None
    return _PERIOD_USEC if said is None else said.period_usec


def _memory(host: Host, group: Group, size: int) -> tuple[str, ...]:
    if group.version == 2:
        return (write(size, group.file("memory.max")),)
    raised = write(size, group.file("memory.limit_in_bytes"))
    swap = swap_bytes(host, group)
    both = group.file("memory.memsw.limit_in_bytes")
    if swap is None or size + swap <= (host.optional_number(both) or 0):
        return (raised,)
    # v1 refuses a memory limit above that of memory and swap: the sum is raised first.
    return (write(size + swap, both), raised)


def swap_bytes(host: Host, group: Group) -> int | None:
    """How much swap the group may use besides its memory; ``None``: unlimited or not known."""
    try:
        if group.version == 2:
            return host.optional_number(group.file("memory.swap.max"))
        both = host.optional_number(group.file("memory.memsw.limit_in_bytes"))
        alone = host.optional_number(group.file("memory.limit_in_bytes"))
    except ParseError:
        return None
    if both is None or alone is None or both >= _UNLIMITED_V1:
        return None
    return both - alone


def network(target: Target, change: OfNetwork) -> tuple[str, ...]:
    """Lines for the interfaces, within the target's network namespace or at the host's end."""
    match change:
        case LinkUp(interface=name):
            up = _at(target, change.in_container, "ip", "link", "set", name, "up")
            return up + _default_route(target, name, change.gateway)
        case AddAddress(interface=name):
            added = _inside(target, "address", "add", change.address, "dev", name)
            return added + _default_route(target, name, change.gateway)
        case DefaultRoute():
            return _default_route(target, change.interface, change.gateway)
        case JoinBridge():
            return (line("ip", "link", "set", change.interface, "master", change.bridge),)
        case LinkMtu(interface=name, bytes=size):
            return _at(target, change.in_container, "ip", "link", "set", name, "mtu", str(size))
        case NoQueue(interface=name):
            return _at(target, change.in_container, "tc", "qdisc", "del", "dev", name, "root")
        case IpForward():
            return (line("sysctl", "-w", "net.ipv4.ip_forward=1"),)
        case FilterRule():
            return _at(target, change.in_container, *_words(change))
        case _:
            assert_never(change)


#: What makes a table of nftables that looks like one of iptables, by its family.
_COMPAT = {"ip": "iptables", "ip6": "ip6tables", "bridge": "ebtables"}


def _words(change: FilterRule) -> tuple[str, ...]:
    """In the language of the tool that made the rule."""
    kind, *rest = change.table.split()
    chain, table = change.chain, rest[-1]
    tool = "iptables-legacy" if kind == "iptables" else _COMPAT.get(rest[0])
    if kind == "iptables" or (tool is not None and chain.isupper()):
        done = ("-D", chain, str(change.number)) if change.number else ("-P", chain, "ACCEPT")
        return (tool or kind, "-t", table, *done)
    if change.number:
        return ("nft", "delete", "rule", *rest, chain, "handle", str(change.handle))
    return ("nft", "chain", *rest, chain, "{ policy accept; }")


def _default_route(target: Target, interface: str, gateway: str | None) -> tuple[str, ...]:
    """What the kernel drops with an interface's link or address; nothing without a gateway."""
    if gateway is None:
        return ()
    return _inside(target, "route", "replace", "default", "via", gateway, "dev", interface)


def _inside(target: Target, *words: str) -> tuple[str, ...]:
    return _entered(target, "ip", *words)


def _at(target: Target, in_container: bool, *words: str) -> tuple[str, ...]:
    """In its network namespace, or at the host's end."""
    return _entered(target, *words) if in_container else (line(*words),)


def _entered(target: Target, *words: str) -> tuple[str, ...]:
    if target.runtime == "self":
        return (line(*words),)
    if target.init is None:
        return ()
    return (line("nsenter", "-t", str(target.init.pid), "-n", *words),)
