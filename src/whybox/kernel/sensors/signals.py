"""Who sent which signal to a container's tasks, and what the kernel did with it.

From ``signal:signal_generate`` (include/trace/events/signal.h), which every signal passes: those
that are dropped as well, which no mask and no counter tells of.
"""

import struct
from collections.abc import Iterator
from contextlib import contextmanager

from msgspec import Struct

from whybox.kernel.bpf.objects import Spec, loaded
from whybox.kernel.host import Host, c_string
from whybox.kernel.sensors.kept import Kept

SPEC = Spec(
    name="signals",
    programs=(("on_generate",),),
    falls_back="the same tracepoint as text, through a tracing instance of its own",
)

_SENT = struct.Struct("=QIiiiIIIII16s16s")
_MASK, _ZERO = struct.Struct("=Q"), struct.pack("=I", 0)

#: So many are kept for those who share a sensor; more are counted as lost.
MOST_KEPT = 50_000


class Generated(Struct, frozen=True, kw_only=True):
    """One signal."""

    at_ns: int
    """Of the monotonic clock."""
    slot: int
    """Whose: the slot of the container in the sensor's scope."""
    signal: int
    code: int
    """0: ``kill``; -6: ``tkill``; 128: the kernel itself."""
    result: int
    """``Result`` of ``kernel.signals``."""
    group: bool
    """For the whole process, not for one thread."""
    to_pid: int
    """The process by the host's pid."""
    to_tid: int
    to_comm: str
    from_pid: int
    from_tid: int
    from_comm: str


Signals = Kept[Generated]


@contextmanager
def attached(host: Host, unwanted: int = 0, *, stats: bool = False) -> Iterator[Signals]:
    """The sensor, without the signals of the mask ``unwanted`` (bit 0 is signal 1). Nobody is in
    its scope yet. Raises ``Refused``."""
    before = {"unwanted": [(_ZERO, _MASK.pack(unwanted))]}
    with loaded(host, SPEC, before=before, stats=stats) as object:
        yield Signals(object, generated, MOST_KEPT)


def generated(raw: bytes) -> Generated:
    """Decode ``struct sent``."""
    at, slot, signal, code, result, *who, to_comm, from_comm = _SENT.unpack(raw[: _SENT.size])
    to_tid, to_pid, from_tid, from_pid, group = who
    return Generated(
        at_ns=at,
        slot=slot,
        signal=signal,
        code=code,
        result=result,
        group=bool(group),
        to_pid=to_pid,
        to_tid=to_tid,
        to_comm=c_string(to_comm),
        from_pid=from_pid,
        from_tid=from_tid,
        from_comm=c_string(from_comm),
    )
