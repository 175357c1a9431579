"""A container's block IO by device: held back by a limit, waiting in queues, in the device.

A container's is what its tasks submit, and what threads of the kernel submit for its block-IO
group: written-back pages on v2, and what a throttle has held back. On v1 written-back pages are
charged to the root (admin-guide/cgroup-v1/blkio-controller.rst), and so belong to nobody.
"""

import struct
from collections.abc import Iterator

from msgspec import Struct

from whybox.kernel import cgroup
from whybox.kernel.bpf.objects import Object, Spec
from whybox.kernel.cgroup import Group
from whybox.kernel.host import Host, c_string
from whybox.kernel.target import Target

EXACT = ("on_throttle", "on_throttle_before")
SPEC = Spec(
    name="disk",
    programs=(
        ("on_queue",),
        ("on_issue",),
        ("on_complete",),
        (*EXACT, "on_timer"),
    ),
    optional=("on_remap", "on_expire", "after_expire"),
    falls_back="the sums that the kernel keeps of each group and device, without lengths",
)

KINDS = ("read", "write", "flush", "discard", "other")
LATENCIES, SIZES = 32, 24
_DEVICE = struct.Struct("=IIII")
_TOTALS = struct.Struct(f"=8Q{LATENCIES}I{LATENCIES}I{SIZES}I")
_SLOW = struct.Struct("=QQQQQIIIIIIiI16s")
_ID, _SLOT = struct.Struct("=Q"), struct.Struct("=I")
#: ``struct flight`` begins with ``struct birth``: three times, then the slot.
_FLIGHT_SLOT_AT = 24

#: Of the files that list devices no more lines than these are read.
MOST_DEVICES = 256


#: Functions of the throttle, in the order of the sensor's map.
_FUNCTIONS = (b"throtl_pending_timer_fn", b"blk_throtl_dispatch_work_fn")


def before(host: Host, slower_ns: int) -> dict[str, list[tuple[bytes, bytes]]]:
    """What the maps hold before anything runs."""
    try:
        # Not through the host, which would keep ten megabytes.
        with open(host.path("/proc/kallsyms"), "rb") as file:
            said = file.read()
    except OSError:
        said = b""
    return {
        "slower": [(_SLOT.pack(0), _ID.pack(slower_ns))],
        "functions": [
            (_SLOT.pack(nth), _ID.pack(address(said, name))) for nth, name in enumerate(_FUNCTIONS)
        ],
    }


def address(symbols: bytes, name: bytes) -> int:
    r"""Where a function is, by the text of ``/proc/kallsyms``; 0: it is not there.

    >>> address(b"ffff1000 T a\nffff2000 t b_c [module]\nffff3000 t c\n", b"c")
    4294914048
    """
    at = symbols.find(b" " + name + b"\n")
    if at < 0:
        return 0
    line = symbols[symbols.rfind(b"\n", 0, at) + 1 : at]
    return int(line.split(b" ")[0], 16)


class Totals(Struct, frozen=True, kw_only=True):
    """The IO of one kind on one device."""

    slot: int
    """0: of all others; of them only ``count`` and ``bytes`` are known."""
    device: tuple[int, int]
    """Major and minor."""
    kind: str
    count: int
    bytes: int
    throttled_ns: int
    """Held back by blk-throttle, before the block layer saw it."""
    queued_ns: int
    """In the block layer until it was issued: quality of service, the scheduler, a full queue."""
    device_ns: int
    longest_ns: int
    """From submission to completion."""
    throttled: int
    """How many were held back."""
    errors: int
    device_buckets: tuple[int, ...]
    """``[n]``: in the device for 2^n to 2^(n+1) µs; the first, everything below 2 µs."""
    wait_buckets: tuple[int, ...]
    """Before that."""
    size_buckets: tuple[int, ...]
    """``[n]``: 2^n to 2^(n+1) times 512 bytes."""


class SlowIo(Struct, frozen=True, kw_only=True):
    """One IO that took long."""

    at_ns: int
    """When it was completed, of the monotonic clock."""
    slot: int
    device: tuple[int, int]
    kind: str
    bytes: int
    sector: int
    throttled_ns: int
    queued_ns: int
    device_ns: int
    error: int
    """0: none. Of newer kernels a block status, of older ones an errno."""
    pid: int
    """Who submitted it; a thread of the kernel may have done so for the container."""
    comm: str


def totals(object: Object) -> Iterator[Totals]:
    """All sums so far, in no order."""
    for key, value in object.map("totals").items():
        yield decoded(key, value)


def unfinished(object: Object, slot: int) -> int:
    """How many IOs of a container were issued, and not seen to end.

    They are in the device, or their end was hidden: what interrupts a task that no program may see
    is seen by none either (measured on a 6.18 that hides its machine's own agent).
    """
    flights = object.map("flights").items()
    return sum(_SLOT.unpack_from(value, _FLIGHT_SLOT_AT)[0] == slot for _, value in flights)


def decoded(key: bytes, value: bytes) -> Totals:
    """Decode ``struct device`` and ``struct totals``."""
    slot, major, minor, kind = _DEVICE.unpack(key)
    row = _TOTALS.unpack(value[: _TOTALS.size])
    buckets = row[8:]
    return Totals(
        slot=slot,
        device=(major, minor),
        kind=KINDS[min(kind, len(KINDS) - 1)],
        count=row[0],
        bytes=row[1],
        throttled_ns=row[2],
        queued_ns=row[3],
        device_ns=row[4],
        longest_ns=row[5],
        throttled=row[6],
        errors=row[7],
        device_buckets=buckets[:LATENCIES],
        wait_buckets=buckets[LATENCIES : 2 * LATENCIES],
        size_buckets=buckets[2 * LATENCIES :],
    )


def slow(raw: bytes) -> SlowIo:
    """Decode ``struct slow``."""
    at, throttled, queued, device, sector, *rest = _SLOW.unpack(raw[: _SLOW.size])
    slot, major, minor, kind, size, pid, error, _, comm = rest
    return SlowIo(
        at_ns=at,
        slot=slot,
        device=(major, minor),
        kind=KINDS[min(kind, len(KINDS) - 1)],
        bytes=size,
        sector=sector,
        throttled_ns=throttled,
        queued_ns=queued,
        device_ns=device,
        error=error,
        pid=pid,
        comm=c_string(comm),
    )


def watch_group(host: Host, object: Object, target: Target, slot: int) -> None:
    """Count what threads of the kernel submit for a container's block-IO group as its own."""
    group = io_group(host, target)
    if group is not None:
        object.map("groups").set(_ID.pack(host.inode(group.directory)), _SLOT.pack(slot))


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
    what: str
    """``write bytes``, ``read IOs``, …: so many a second."""
    value: int


#: The files of v1, and the keys of ``io.max`` on v2.
_V1 = {
    "read bytes": "blkio.throttle.read_bps_device",
    "write bytes": "blkio.throttle.write_bps_device",
    "read IOs": "blkio.throttle.read_iops_device",
    "write IOs": "blkio.throttle.write_iops_device",
}
_V2 = {"rbps": "read bytes", "wbps": "write bytes", "riops": "read IOs", "wiops": "write IOs"}


def limits(host: Host, target: Target) -> tuple[Limit, ...]:
    """The limits of its group and of every group above it, as far as they can be read."""
    group = io_group(host, target)
    if group is None:
        return ()
    return tuple(limit for one in group.lineage() for limit in _limits(host, one))


def _limits(host: Host, group: Group) -> Iterator[Limit]:
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


class Done(Struct, frozen=True, kw_only=True):
    """IO of one kind on one device, as the kernel counts it without being asked."""

    device: tuple[int, int]
    kind: str
    count: int
    bytes: int


def done_by(host: Host, target: Target) -> tuple[Done, ...]:
    """What its group has done since it was made."""
    group = io_group(host, target)
    if group is None:
        return ()
    if group.version == 2:
        return tuple(io_stat(host.optional_text(group.file("io.stat")) or ""))
    size = host.optional_text(group.file("blkio.throttle.io_service_bytes_recursive")) or ""
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


def device_name(host: Host, device: tuple[int, int]) -> str | None:
    """Such as ``sda``; ``None``: the kernel has no such device now."""
    major, minor = device
    said = host.optional_text(f"/sys/dev/block/{major}:{minor}/uevent")
    for line in (said or "").splitlines():
        if line.startswith("DEVNAME="):
            return line.removeprefix("DEVNAME=")
    return None
