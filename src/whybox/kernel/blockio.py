"""Block IO by device, as the kernel counts and limits it for each group without being asked.

v1 has a file for each limit (``blkio.throttle.*``), v2 has ``io.max`` and ``io.stat``.
"""

from collections.abc import Iterator
from typing import Literal, TypeAlias

from msgspec import Struct

from whybox.kernel import cgroup
from whybox.kernel.cgroup import Group
from whybox.kernel.host import Host
from whybox.kernel.target import Target

#: What can be limited: so many of them a second.
What: TypeAlias = Literal["read bytes", "write bytes", "read IOs", "write IOs"]

#: Of the files that list devices no more lines than these are read.
MOST_DEVICES = 256


def io_group(host: Host, target: Target) -> Group | None:
    """Its own group in the tree where block IO is controlled; ``None``: it has none."""
    if target.runtime == "process":
        return None
    group = cgroup.group(host, target.cgroups, "blkio")
    if group is None or group.path == "/" or not host.exists(group.directory):
        return None
    return group


class Limit(Struct, frozen=True, kw_only=True):
    """One limit on one device."""

    device: tuple[int, int]
    file: str
    """Where it is set."""
    what: What
    value: int


#: The files of v1, and the keys of ``io.max`` on v2.
_V1: dict[What, str] = {
    "read bytes": "blkio.throttle.read_bps_device",
    "write bytes": "blkio.throttle.write_bps_device",
    "read IOs": "blkio.throttle.read_iops_device",
    "write IOs": "blkio.throttle.write_iops_device",
}
_V2: dict[str, What] = {
    "rbps": "read bytes",
    "wbps": "write bytes",
    "riops": "read IOs",
    "wiops": "write IOs",
}


def limits(host: Host, target: Target) -> tuple[Limit, ...]:
    """The limits of its group and of every group above it, as far as they can be read."""
    group = io_group(host, target)
    if group is None:
        return ()
    return tuple(limit for one in group.lineage() for limit in limits_of(host, one))


def hidden(host: Host, group: Group) -> str | None:
    """A file with its limits that is there and may not be read; ``None``: all may be."""
    names = ("io.max",) if group.version == 2 else tuple(_V1.values())
    for file in map(group.file, names):
        if host.exists(file) and host.optional_text(file) is None:
            return file
    return None


def limits_of(host: Host, group: Group) -> Iterator[Limit]:
    """The limits of one group."""
    if group.version == 2:
        file = group.file("io.max")
        yield from io_max(file, host.optional_text(file) or "")
        return
    for what, name in _V1.items():
        file = group.file(name)
        for device, value in _by_device(host.optional_text(file) or ""):
            if value.isdigit():
                yield Limit(device=device, file=file, what=what, value=int(value))


def io_max(file: str, text: str) -> Iterator[Limit]:
    """Parse ``io.max``.

    >>> [(l.device, l.what, l.value) for l in io_max("io.max", "254:0 rbps=max wbps=10485760")]
    [((254, 0), 'write bytes', 10485760)]
    """
    for device, said in _by_device(text):
        for word in said.split():
            key, _, value = word.partition("=")
            if key in _V2 and value.isdigit():
                yield Limit(device=device, file=file, what=_V2[key], value=int(value))


def _by_device(text: str) -> Iterator[tuple[tuple[int, int], str]]:
    """Lines that begin with a device.

    >>> list(_by_device("8:0 Read 5\\nTotal 5"))
    [((8, 0), 'Read 5')]
    """
    for line in text.splitlines()[:MOST_DEVICES]:
        name, _, rest = line.partition(" ")
        major, _, minor = name.partition(":")
        if major.isdigit() and minor.isdigit():
            yield (int(major), int(minor)), rest.strip()


#: Where it is counted, by the version of the tree.
STAT = {1: "blkio.throttle.io_service_bytes_recursive", 2: "io.stat"}


class Done(Struct, frozen=True, kw_only=True):
    """IO of one kind on one device, as the kernel counts it without being asked."""

    device: tuple[int, int]
    kind: str
    count: int
    bytes: int


def done_by(host: Host, target: Target) -> tuple[Done, ...]:
    """What its group has done since it was made."""
    group = io_group(host, target)
    return () if group is None else done_in(host, group)


def done_in(host: Host, group: Group) -> tuple[Done, ...]:
    """What a group and those below it have done since it was made."""
    if group.version == 2:
        return tuple(io_stat(host.optional_text(group.file(STAT[2])) or ""))
    size = host.optional_text(group.file(STAT[1])) or ""
    count = host.optional_text(group.file("blkio.throttle.io_serviced_recursive")) or ""
    return tuple(service(size, count))


def io_stat(text: str) -> Iterator[Done]:
    """Parse ``io.stat``.

    >>> [(d.kind, d.count, d.bytes) for d in io_stat("8:0 rbytes=8 wbytes=9 rios=1 wios=2")]
    [('read', 1, 8), ('write', 2, 9)]
    """
    for device, said in _by_device(text):
        pairs = (word.partition("=") for word in said.split())
        values = {key: int(value) for key, _, value in pairs if value.isdigit()}
        for kind, letter in (("read", "r"), ("write", "w"), ("discard", "d")):
            count, size = values.get(f"{letter}ios", 0), values.get(f"{letter}bytes", 0)
            if count or size:
                yield Done(device=device, kind=kind, count=count, bytes=size)


def service(size: str, count: str) -> Iterator[Done]:
    """Parse ``blkio.throttle.io_service_bytes`` and ``…io_serviced``.

    >>> [(d.kind, d.count, d.bytes) for d in service("8:0 Write 9\\nTotal 9", "8:0 Write 2")]
    [('write', 2, 9)]
    """
    counts = dict(_service(count))
    for (device, kind), value in _service(size):
        if value or counts.get((device, kind)):
            yield Done(device=device, kind=kind, count=counts.get((device, kind), 0), bytes=value)


def _service(text: str) -> Iterator[tuple[tuple[tuple[int, int], str], int]]:
    for device, said in _by_device(text):
        kind, _, value = said.partition(" ")
        if kind in ("Read", "Write", "Discard") and value.isdigit():
            yield (device, kind.lower()), int(value)


def done_on(host: Host) -> tuple[Done, ...]:
    """What everybody has done on each whole device since the machine was started."""
    return tuple(diskstats(host.optional_text("/proc/diskstats") or ""))


def diskstats(text: str) -> Iterator[Done]:
    """Parse ``/proc/diskstats`` (admin-guide/iostats.rst).

    >>> [(d.kind, d.count, d.bytes) for d in diskstats("8 0 sda 2 0 8 1 3 0 16 1 0 0 0")]
    [('read', 2, 4096), ('write', 3, 8192)]
    """
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 11 and all(word.isdigit() for word in (*words[:2], *words[3:11])):
            device = (int(words[0]), int(words[1]))
            for kind, at in (("read", 3), ("write", 7)):
                count, size = int(words[at]), int(words[at + 2]) * 512
                yield Done(device=device, kind=kind, count=count, bytes=size)


def writing(host: Host) -> tuple[str, ...]:
    """Disks that have writes in flight at this moment (block/stat.rst, ``inflight``).

    What a limit holds back is not among them: it is not a request of the disk's yet
    (block/blk-throttle.c).
    """
    try:
        names = host.names("/sys/block")
    except OSError:
        return ()
    return tuple(name for name in names if _in_flight(host, name))


def _in_flight(host: Host, name: str) -> bool:
    said = (host.optional_text(f"/sys/block/{name}/inflight") or "").split()
    return len(said) == 2 and said[1] != "0"


def device_name(host: Host, device: tuple[int, int]) -> str | None:
    """Such as ``sda``; ``None``: the kernel has no such device now."""
    major, minor = device
    said = host.optional_text(f"/sys/dev/block/{major}:{minor}/uevent")
    for line in (said or "").splitlines():
        if line.startswith("DEVNAME="):
            return line.removeprefix("DEVNAME=")
    return None
