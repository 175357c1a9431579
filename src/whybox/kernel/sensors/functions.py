"""How long one function of the kernel takes: a kprobe where it begins, a kretprobe where it ends.

The function is chosen when a trace begins, so the object is loaded without being attached.
"""

import struct
import sys
from collections.abc import Iterator

from msgspec import Struct

from whybox.kernel.bpf.objects import Object, Spec
from whybox.kernel.host import c_string

SPEC = Spec(
    name="functions",
    programs=(("on_enter",), ("on_return",)),
    falls_back="the tracepoints that are nearest by name, for the user to choose from",
)

BUCKETS = 40
_CALLS = struct.Struct(f"=8Q{BUCKETS}Q")
_CALLER = struct.Struct("=II")
_BY_CALLER = struct.Struct("=QQQ16s")

#: ``struct task_calls`` and its ``struct call``; bit 0 of a place: its return will not be seen.
_INSIDE, _CALL = struct.Struct("=II"), struct.Struct("=QQ")
_UNWATCHED = 1

#: What the kernel puts in place of a return address (arch/x86/kernel/kprobes/core.c, and
#: arch/x86/kernel/rethook.c since it is shared with others).
TRAMPOLINES = ("arch_rethook_trampoline", "__kretprobe_trampoline", "kretprobe_trampoline")


class Calls(Struct, frozen=True, kw_only=True):
    """The calls of one container."""

    entered: int
    count: int
    """Those that returned, and were seen to."""
    sum_ns: int
    longest_ns: int
    nested: int
    """Of those, the ones made from within another one: the function calls itself."""
    outer_ns: int
    """The sum without the nested ones."""
    unpaired: int
    """Calls whose return was not seen: the kernel had no room left to watch for it."""
    untold: int
    """Calls that were not followed since too many were open at once."""
    buckets: tuple[int, ...]
    """``buckets[n]``: calls of 2^n to 2^(n+1) ns."""


class Caller(Struct, frozen=True, kw_only=True):
    """The calls of one process."""

    pid: int
    comm: str
    count: int
    sum_ns: int
    longest_ns: int


def attach(object: Object, function: str, trampoline: int = 0) -> None:
    """Watch a function from now on; raises OSError where the kernel refuses.

    With the address of the ``trampoline`` it is known at once which returns will not be seen.
    """
    object.map("trampoline").set(struct.pack("=I", 0), struct.pack("=Q", trampoline))
    # Of several probes on one place the newest is run first (kernel/kprobes.c, ``add_new_kprobe``):
    # the program at the begin is to see what the one at the return has put there.
    object.attach_kprobe("on_enter", function)
    object.attach_kprobe("on_return", function, on_return=True)


def calls(object: Object, slot: int) -> Calls:
    """The calls of the container in that slot, on all CPUs."""
    return summed(object.map("calls").per_cpu(struct.pack("=I", slot)))


def summed(parts: tuple[bytes, ...]) -> Calls:
    """What all CPUs have counted, as one."""
    rows = [_CALLS.unpack(raw) for raw in parts]
    entered, count, sum_ns, _, nested, outer_ns, unpaired, untold, *buckets = (
        sum(column) for column in zip(*rows, strict=True)
    )
    return Calls(
        entered=entered,
        count=count,
        sum_ns=sum_ns,
        longest_ns=max(row[3] for row in rows),
        nested=nested,
        outer_ns=outer_ns,
        unpaired=unpaired,
        untold=untold,
        buckets=tuple(buckets),
    )


class Open(Struct, frozen=True, kw_only=True):
    """A thread that has begun calls and not ended them, as far as was seen."""

    tid: int
    watched: int
    unwatched: int
    """Calls whose end will not be seen: they may be over."""


def open_calls(object: Object, slot: int) -> Iterator[Open]:
    """Who is in the function. A thread that has ended may be among them."""
    for key, value in object.map("inside").items():
        if _INSIDE.unpack_from(value)[0] == slot:
            yield opened(int.from_bytes(key, sys.byteorder), value)


def opened(tid: int, value: bytes) -> Open:
    """One entry of the map."""
    _, depth = _INSIDE.unpack_from(value)
    places = [place for _, place in _CALL.iter_unpack(value[_INSIDE.size :])][:depth]
    unwatched = sum(place & _UNWATCHED for place in places)
    return Open(tid=tid, watched=len(places) - unwatched, unwatched=unwatched)


def callers(object: Object, slot: int) -> Iterator[Caller]:
    """The processes that called it, in no order."""
    for key, value in object.map("callers").items():
        whose, pid = _CALLER.unpack(key)
        if whose == slot:
            count, sum_ns, longest_ns, comm = _BY_CALLER.unpack(value[: _BY_CALLER.size])
            yield Caller(
                pid=pid,
                comm=c_string(comm),
                count=count,
                sum_ns=sum_ns,
                longest_ns=longest_ns,
            )
