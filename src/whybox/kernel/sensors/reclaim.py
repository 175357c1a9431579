"""How long a container's tasks are held up for memory, and by what.

From the tracepoints around direct reclaim (mm/vmscan.c), compaction (mm/compaction.c) and the
pauses for dirty pages (mm/page-writeback.c): sums for each container and process, and single stalls
from a length on.
"""

import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import IntEnum

from msgspec import Struct

from whybox.kernel.bpf.objects import Object, Spec, loaded
from whybox.kernel.host import Host, c_string
from whybox.kernel.sensors.exec import is_inside
from whybox.kernel.target import Target
from whybox.kernel.tracefs import Recorder
from whybox.kernel.tracetext import Event

SPEC = Spec(
    name="reclaim",
    programs=(("on_direct_begin",), ("on_direct_end",)),
    optional=(
        *("on_group_begin", "on_group_end", "on_compaction_begin", "on_compaction_end"),
        *("on_throttled", "on_dirty"),
    ),
    falls_back="the same tracepoints as text, and the counters of the control groups",
)


class Kind(IntEnum):
    """What held a task up."""

    DIRECT = 0
    """The machine, or a node of it, was short of free pages."""
    GROUP = 1
    """A control group was at its limit."""
    DIRTY = 2
    """Too much was not yet written to disk."""
    COMPACT = 3
    """The free pages lay too far apart."""
    THROTTLED = 4
    """Reclaim waited for others: this is a part of the first two."""


#: Which programs see which kind, as far as a kernel may lack them.
SEEN_BY = {
    Kind.GROUP: "on_group_begin",
    Kind.DIRTY: "on_dirty",
    Kind.COMPACT: "on_compaction_begin",
    Kind.THROTTLED: "on_throttled",
}

#: What stands in for the sensor where there is no BPF.
POINTS = {
    "vmscan/mm_vmscan_direct_reclaim_begin": Kind.DIRECT,
    "vmscan/mm_vmscan_direct_reclaim_end": Kind.DIRECT,
    "vmscan/mm_vmscan_memcg_reclaim_begin": Kind.GROUP,
    "vmscan/mm_vmscan_memcg_reclaim_end": Kind.GROUP,
    "writeback/balance_dirty_pages": Kind.DIRTY,
}
_KIND_OF = {place.rpartition("/")[2]: kind for place, kind in POINTS.items()}
_MOST_BEGUN = 16_384

BUCKETS = 32
_KINDS = 8
_STALLS = struct.Struct(f"=QQQQ{BUCKETS}I")
_WHO = struct.Struct("=III")
_SHARE = struct.Struct("=QQQQ16s")
_STALL = struct.Struct("=QQQIIIIII16s32s")


class Sums(Struct, frozen=True, kw_only=True):
    """All stalls of one kind."""

    count: int = 0
    sum_ns: int = 0
    longest_ns: int = 0
    pages: int = 0
    """That were freed meanwhile."""
    buckets: tuple[int, ...] = (0,) * BUCKETS
    """``buckets[n]``: stalls of 2^n to 2^(n+1) µs; the first, everything below 2 µs."""


class Share(Struct, frozen=True, kw_only=True):
    """The stalls of one kind of one process."""

    kind: Kind
    pid: int
    comm: str
    count: int
    sum_ns: int
    longest_ns: int
    pages: int


class Stall(Struct, frozen=True, kw_only=True):
    """One stall."""

    at_ns: int
    """Its end, of the monotonic clock; of a pause for dirty pages, its beginning."""
    slot: int
    kind: Kind
    pid: int
    tid: int
    comm: str
    lasted_ns: int
    pages: int
    order: int
    """2^order pages in a row were wanted."""
    gfp: int
    """How they were wanted (include/linux/gfp_types.h)."""
    device: str
    """Of a pause for dirty pages: what is written to, as ``254:0``."""


@contextmanager
def attached(host: Host, slower_ns: int) -> Iterator[Object]:
    """The sensor, which tells single stalls from that length on. Raises ``Refused``."""
    before = {"slower": [(struct.pack("=I", 0), struct.pack("=Q", slower_ns))]}
    with loaded(host, SPEC, before=before, stats=True) as object:
        yield object


def sums(object: Object, slot: int) -> dict[Kind, Sums]:
    """The sums of the container in that slot, on all CPUs."""
    table = object.map("stalls")
    return {kind: _added(table.per_cpu(struct.pack("=I", slot * _KINDS + kind))) for kind in Kind}


def _added(raw: Iterable[bytes]) -> Sums:
    rows = [_STALLS.unpack(one) for one in raw]
    return Sums(
        count=sum(row[0] for row in rows),
        sum_ns=sum(row[1] for row in rows),
        longest_ns=max(row[2] for row in rows),
        pages=sum(row[3] for row in rows),
        buckets=tuple(sum(column) for column in zip(*(row[4:] for row in rows), strict=True)),
    )


def shares(object: Object, slot: int) -> Iterator[Share]:
    """The processes of the container in that slot, in no order."""
    for key, value in object.map("shares").items():
        whose, kind, pid = _WHO.unpack(key)
        if whose == slot:
            count, sum_ns, longest_ns, pages, comm = _SHARE.unpack(value[: _SHARE.size])
            yield Share(
                kind=Kind(kind),
                pid=pid,
                comm=c_string(comm),
                count=count,
                sum_ns=sum_ns,
                longest_ns=longest_ns,
                pages=pages,
            )


def stall(raw: bytes) -> Stall:
    """Decode ``struct stall``."""
    at, lasted, pages, slot, kind, pid, tid, order, gfp, comm, device = _STALL.unpack_from(raw)
    return Stall(
        at_ns=at,
        slot=slot,
        kind=Kind(kind),
        pid=pid,
        tid=tid,
        comm=c_string(comm),
        lasted_ns=lasted,
        pages=pages,
        order=order,
        gfp=gfp,
        device=c_string(device),
    )


class Printed:
    """The stalls of one container by the tracepoints' text, which is of the whole host."""

    def __init__(self, host: Host, target: Target, recorder: Recorder) -> None:
        self.target = target
        self._host, self._recorder = host, recorder
        self._told = self._gone = 0
        self._begun: dict[tuple[int, Kind], Event] = {}

    @property
    def lost(self) -> int:
        """How many are missing, as far as that is known."""
        return self._recorder.lost + self._gone

    def read(self) -> Iterator[Stall]:
        """Those since the last call."""
        new = self._recorder.read()[self._told :]
        self._told += len(new)
        self._host.next_moment()
        for event in sorted(new, key=lambda e: e.seconds):
            one = self._stall(event)
            if one is not None and self._is_ours(one.tid):
                yield one

    def _stall(self, event: Event) -> Stall | None:
        kind = _KIND_OF[event.name]
        if kind is Kind.DIRTY:
            pause_ms = int(event.fields.get("pause", 0))
            return _stall_of(event, kind, pause_ms * 1_000_000) if pause_ms > 0 else None
        if event.name.endswith("_begin"):
            if len(self._begun) < _MOST_BEGUN:
                self._begun[event.pid, kind] = event
            return None
        began = self._begun.pop((event.pid, kind), None)
        if began is None:
            return None
        return _stall_of(event, kind, int((event.seconds - began.seconds) * 1e9), began)

    def _is_ours(self, tid: int) -> bool:
        try:
            return is_inside(self._host, self.target, tid)
        except OSError:
            self._gone += 1
            return False


def _stall_of(event: Event, kind: Kind, lasted_ns: int, began: Event | None = None) -> Stall:
    said = {} if began is None else began.fields
    return Stall(
        at_ns=int(event.seconds * 1e9),
        slot=1,
        kind=kind,
        pid=event.pid,
        tid=event.pid,
        comm=event.comm,
        lasted_ns=lasted_ns,
        pages=int(event.fields.get("nr_reclaimed", 0)),
        order=int(said.get("order", 0)),
        gfp=0,
        device="",
    )
