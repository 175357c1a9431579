"""A container's slow writes to files, and where in the kernel each spent its time.

From entry to exit of write(2), fsync(2) and their kin on a file or a block device. Waits are told
by stacks, reclaim by its tracepoints, the wait for a CPU by the kernel's own note of when the task
was put on a run queue; what is left of the call's time it was running.
"""

import struct
from collections.abc import Iterator
from contextlib import contextmanager

from msgspec import Struct

from whybox.kernel import syscalltable
from whybox.kernel.bpf.objects import Object, Spec, loaded
from whybox.kernel.host import Host, c_string
from whybox.kernel.sensors.hot import Stacks
from whybox.kernel.sensors.kept import Kept

SPEC = Spec(
    name="writes",
    programs=(("on_enter",), ("on_exit",), ("on_switch",)),
    optional=("on_group_begin", "on_group_end", "on_direct_begin", "on_direct_end"),
    falls_back="how long its tasks wait for IO and memory, without which call and where",
)

KINDS = ("buffered write", "synced write", "sync")
#: The calls; the number is what the programs know them by.
CALLS = {
    **dict.fromkeys(["write", "pwrite64", "writev", "pwritev", "pwritev2"], 1),
    **dict.fromkeys(["fsync", "fdatasync"], 2),
}
PLACES, BUCKETS = 8, 32
_MOST_CALLS = 512
MOST_KEPT = 20_000

_INDEX, _LENGTH, _TID = struct.Struct("=I"), struct.Struct("=Q"), struct.Struct("=I")
_WRITING = struct.Struct("=7Q4IiI16s")
_PLACE = struct.Struct("=QiI")
_TOLD = struct.Struct("=QQII")
_WHICH, _LENGTHS = struct.Struct("=II"), struct.Struct(f"=QQ{BUCKETS}I")


class Place(Struct, frozen=True, kw_only=True):
    """Where it slept, by the number of the stack (negative: none was taken), and how long."""

    stack: int
    ns: int


class Call(Struct, frozen=True, kw_only=True):
    """One slow call."""

    slot: int
    tid: int
    pid: int
    comm: str
    call: str
    kind: str
    """Of ``KINDS``."""
    inode: int
    began_ns: int
    """Of the monotonic clock."""
    took_ns: int
    """Of one that is not over: so far."""
    over: bool
    reclaim_ns: int
    cpu_ns: int
    """Ready to run, without a CPU."""
    other_ns: int
    """Asleep in places for which there was no room."""
    places: tuple[Place, ...]


class Begun(Struct, frozen=True, kw_only=True):
    """A call that had begun, and sleeps, when the sensor was attached."""

    tid: int
    pid: int
    comm: str
    call: str
    kind: str
    stack: int
    """A number below all errors, for whoever asks to know it again."""


class Lengths(Struct, frozen=True, kw_only=True):
    """How long all calls of one kind took, the slow ones too."""

    kind: str
    count: int
    sum_ns: int
    buckets: tuple[int, ...]
    """``[n]``: 2^n to 2^(n+1) µs; the first, everything below 2 µs."""


def before(slower_ns: int) -> dict[str, list[tuple[bytes, bytes]]]:
    """What the maps hold before anything runs."""
    numbers = ((syscalltable.number(name), kind) for name, kind in CALLS.items())
    known = [(n, kind) for n, kind in numbers if n is not None and n < _MOST_CALLS]
    return {
        "calls": [(_INDEX.pack(number), _INDEX.pack(kind)) for number, kind in known],
        "slower": [(_INDEX.pack(0), _LENGTH.pack(slower_ns))],
    }


@contextmanager
def attached(host: Host, slower_ns: int) -> Iterator[Kept[Call]]:
    """The sensor, with nobody in its scope; raises ``Refused`` with the reason."""
    with loaded(host, SPEC, before=before(slower_ns)) as object:
        yield Kept(object, told, MOST_KEPT)


def told(raw: bytes) -> Call:
    """Decode ``struct told``."""
    at_ns, took_ns, tid, _ = _TOLD.unpack_from(raw)
    return _call(raw[_TOLD.size :], tid, at_ns - took_ns, took_ns)


def _call(raw: bytes, tid: int, began_ns: int, took_ns: int) -> Call:
    """Decode ``struct writing``."""
    _, _, _, reclaim_ns, cpu_ns, other_ns, inode, *rest = _WRITING.unpack_from(raw)
    slot, number, kind, pid, _, _, comm = rest
    ends = (_PLACE.unpack_from(raw, _WRITING.size + n * _PLACE.size) for n in range(PLACES))
    return Call(
        slot=slot,
        tid=tid,
        pid=pid,
        comm=c_string(comm),
        call=syscalltable.name(number),
        kind=KINDS[min(kind, len(KINDS) - 1)],
        inode=inode,
        began_ns=began_ns,
        took_ns=took_ns,
        over=True,
        reclaim_ns=reclaim_ns,
        cpu_ns=cpu_ns,
        other_ns=other_ns,
        places=tuple(Place(stack=where, ns=ns) for ns, where, count in ends if count),
    )


def under_way(object: Object, now_ns: int, slower_ns: int) -> Iterator[Call]:
    """Calls that are slow and not over yet, with what they have waited so far."""
    for key, raw in object.map("writing").items():
        began_ns, off_ns, reclaim_at_ns = struct.unpack_from("=QQQ", raw)
        if not began_ns or now_ns - began_ns < slower_ns:
            continue
        call = _call(raw, _TID.unpack(key)[0], began_ns, now_ns - began_ns)
        yield _so_far(call, raw, now_ns, off_ns, reclaim_at_ns)


def _so_far(call: Call, raw: bytes, now_ns: int, off_ns: int, reclaim_at_ns: int) -> Call:
    stack, preempted = _WRITING.unpack_from(raw)[11:13]
    reclaim, cpu, places = call.reclaim_ns, call.cpu_ns, call.places
    if reclaim_at_ns:
        reclaim += max(now_ns - reclaim_at_ns, 0)
    elif off_ns and preempted:
        cpu += max(now_ns - off_ns, 0)
    elif off_ns:
        places = (*places, Place(stack=stack, ns=max(now_ns - off_ns, 0)))
    return Call(
        slot=call.slot,
        tid=call.tid,
        pid=call.pid,
        comm=call.comm,
        call=call.call,
        kind=call.kind,
        inode=call.inode,
        began_ns=call.began_ns,
        took_ns=call.took_ns,
        over=False,
        reclaim_ns=reclaim,
        cpu_ns=cpu,
        other_ns=call.other_ns,
        places=places,
    )


def begin(object: Object, begun: Begun, slot: int, now_ns: int) -> None:
    """Take a call to have begun now, unless the programs have seen it begin."""
    key = _TID.pack(begun.tid)
    if object.map("writing").get(key) is not None:
        return
    number, kind = syscalltable.number(begun.call) or 0, KINDS.index(begun.kind)
    head = (now_ns, now_ns, 0, 0, 0, 0, 0, slot, number, kind, begun.pid, begun.stack, 0)
    packed = _WRITING.pack(*head, begun.comm.encode("utf-8", "surrogateescape")[:15])
    object.map("writing").set(key, packed.ljust(_WRITING.size + PLACES * _PLACE.size, b"\0"))


def forget(object: Object, tid: int) -> None:
    """Take it back."""
    object.map("writing").delete(_TID.pack(tid))


def lengths(object: Object, slot: int) -> tuple[Lengths, ...]:
    """How long all calls of one container took, by kind."""
    found = []
    for key, raw in object.map("lengths").items():
        whose, kind = _WHICH.unpack(key)
        if whose == slot:
            count, sum_ns, *buckets = _LENGTHS.unpack(raw[: _LENGTHS.size])
            name = KINDS[min(kind, len(KINDS) - 1)]
            found.append(Lengths(kind=name, count=count, sum_ns=sum_ns, buckets=tuple(buckets)))
    return tuple(found)


def stacks(object: Object) -> Stacks:
    """The stacks of sleeping calls."""
    return Stacks(object.map("stacks"))
