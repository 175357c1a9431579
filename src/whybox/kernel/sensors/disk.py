"""A container's block IO by device: held back by a limit, waiting in queues, in the device.

A container's is what its tasks submit, and what threads of the kernel submit for its block-IO
group: written-back pages on v2, and what a throttle has held back. On v1 written-back pages are
charged to the root (admin-guide/cgroup-v1/blkio-controller.rst), and so belong to nobody.
"""

import struct
from collections.abc import Iterator
from contextlib import contextmanager

from msgspec import Struct

from whybox.kernel.blockio import io_group
from whybox.kernel.bpf.objects import Object, Spec, loaded
from whybox.kernel.host import Host, c_string
from whybox.kernel.sensors.kept import Kept
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


@contextmanager
def attached(host: Host, slower_ns: int, most: int = 4000) -> "Iterator[Kept[SlowIo]]":
    """The sensor for cases: sums for whomever is put into its scope, single IOs that were slow.

    Raises ``Refused`` with the reason.
    """
    with loaded(host, SPEC, before=before(host, slower_ns)) as object:
        yield Kept(object, slow, most)


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
