"""Softirqs, timers and interrupt handlers: how often each ran, how long, and on top of whom.

From the tracepoints of ``irq:`` and ``timer:`` (include/trace/events/irq.h, timer.h). They nest: a
timer runs in the softirq ``TIMER``, and a handler of a device may interrupt either.
"""

import struct
from collections.abc import Iterator

from msgspec import Struct

from whybox.kernel.bpf.objects import Object, Spec
from whybox.kernel.host import c_string

SPEC = Spec(
    name="softirq",
    programs=(("on_softirq",), ("on_softirq_end",)),
    optional=(
        *("on_timer", "on_timer_end", "on_hrtimer", "on_hrtimer_end"),
        *("on_irq", "on_irq_end"),
    ),
    falls_back="the counts of /proc/softirqs and the CPU time of /proc/stat",
)

#: By their numbers (include/linux/interrupt.h; unchanged since Linux 4.2).
VECTORS = (
    *("HI", "TIMER", "NET_TX", "NET_RX", "BLOCK", "IRQ_POLL", "TASKLET", "SCHED", "HRTIMER"),
    "RCU",
)

#: ``enum kind`` of the programs.
KINDS = ("softirq", "timer", "hrtimer", "irq")

#: Places in what a container lost, after those of the softirqs.
LOST_TO_HRTIMERS, LOST_TO_IRQS = 14, 15

_PLACES, BUCKETS = 16, 32
_HELD = struct.Struct(f"=5Q{BUCKETS}I")
_TAKEN = struct.Struct("=QQQ")
_CALLEE = struct.Struct("=QII")
_SUMS = struct.Struct("=10Q16s")
_SLOW = struct.Struct("=QQQIIIIIII16s16s4x")


class Held(Struct, frozen=True, kw_only=True):
    """One softirq on one CPU."""

    vector: int
    cpu: int
    count: int
    sum_ns: int
    longest_ns: int
    thread_count: int
    """Of those, run by ``ksoftirqd``, since there were too many to run them at once."""
    thread_ns: int
    buckets: tuple[int, ...]
    """``buckets[n]``: those of 2^n to 2^(n+1) µs; the first, everything below 2 µs."""


class Taken(Struct, frozen=True, kw_only=True):
    """What a container's tasks were interrupted by."""

    by: int
    """A softirq's number, ``LOST_TO_HRTIMERS`` or ``LOST_TO_IRQS``."""
    count: int
    sum_ns: int
    longest_ns: int


class Callee(Struct, frozen=True, kw_only=True):
    """A timer's function, or the handler of an interrupt; on all CPUs, since it was attached."""

    kind: str
    function: int
    """Its address; 0 of an interrupt."""
    number: int
    """Of the interrupt."""
    name: str
    """Of the interrupt's handler, as in ``/proc/interrupts``."""
    count: int
    sum_ns: int
    longest_ns: int
    several: bool
    """Whether more than one timer has this function."""
    gaps: int
    gap_sum_ns: int
    gap_least_ns: int
    gap_most_ns: int
    """From one expiry to the next, of the timer with this function that was seen first."""


class Slow(Struct, frozen=True, kw_only=True):
    """A single one that was long."""

    at_ns: int
    """When it began, of the monotonic clock."""
    took_ns: int
    kind: str
    function: int
    number: int
    """A softirq's or an interrupt's."""
    name: str
    cpu: int
    slot: int
    """Whose task it interrupted; 0: nobody's."""
    pid: int
    tid: int
    comm: str
    """The task that the CPU had."""
    ksoftirqd: bool


def vector(number: int) -> str:
    """The name of a softirq, as in ``/proc/softirqs``.

    >>> vector(3), vector(12)
    ('NET_RX', 'softirq 12')
    """
    return VECTORS[number] if number < len(VECTORS) else f"softirq {number}"


def held(object: Object) -> Iterator[Held]:
    """Every softirq that ran, on each CPU that it ran on."""
    for number in range(_PLACES):
        for cpu, raw in enumerate(object.map("softirqs").per_cpu(struct.pack("=I", number))):
            count, sum_ns, longest_ns, in_thread, thread_ns, *buckets = _HELD.unpack(raw)
            if count:
                yield Held(
                    vector=number,
                    cpu=cpu,
                    count=count,
                    sum_ns=sum_ns,
                    longest_ns=longest_ns,
                    thread_count=in_thread,
                    thread_ns=thread_ns,
                    buckets=tuple(buckets),
                )


def taken(object: Object, slot: int) -> Iterator[Taken]:
    """What interrupted the tasks of the container in that slot."""
    for by in range(_PLACES):
        parts = object.map("taken").per_cpu(struct.pack("=I", slot * _PLACES + by))
        rows = [_TAKEN.unpack(raw) for raw in parts]
        if any(row[0] for row in rows):
            yield Taken(
                by=by,
                count=sum(row[0] for row in rows),
                sum_ns=sum(row[1] for row in rows),
                longest_ns=max(row[2] for row in rows),
            )


def callees(object: Object) -> Iterator[Callee]:
    """What was called, in no order."""
    return (callee(key, value) for key, value in object.map("callees").items())


def callee(key: bytes, value: bytes) -> Callee:
    """One entry of the map."""
    function, kind, number = _CALLEE.unpack(key)
    count, sum_ns, longest, _, _, several, gaps, total, least, most, name = _SUMS.unpack(value)
    return Callee(
        kind=KINDS[kind],
        function=function,
        number=number,
        name=c_string(name),
        count=count,
        sum_ns=sum_ns,
        longest_ns=longest,
        several=bool(several),
        gaps=gaps,
        gap_sum_ns=total,
        gap_least_ns=least,
        gap_most_ns=most,
    )


def slow(raw: bytes) -> Slow:
    """One event of the ring."""
    at, took, function, kind, number, cpu, slot, pid, tid, thread, comm, name = _SLOW.unpack(raw)
    return Slow(
        at_ns=at,
        took_ns=took,
        kind=KINDS[kind],
        function=function,
        number=number,
        name=c_string(name),
        cpu=cpu,
        slot=slot,
        pid=pid,
        tid=tid,
        comm=c_string(comm),
        ksoftirqd=bool(thread),
    )
