"""Who holds the softirqs and timers, and how long; and whom of it the container paid for.

Softirqs belong to no container, so there are two answers: what ran on the host, and what of it ran
on top of the container's tasks, who were late for as long.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import NamedTuple

from msgspec import Struct

from whybox.kernel.bpf.objects import Cost, Object, Refused, loaded
from whybox.kernel.host import Host
from whybox.kernel.sensors import softirq as sensor
from whybox.kernel.sensors.softirq import Callee, Held, Slow, Taken
from whybox.kernel.symbols import SYMBOLS, KernelSymbols
from whybox.kernel.target import Target
from whybox.trace.question import Options, Question, Session
from whybox.trace.session import ObjectSession

#: A softirq or timer of this length is worth a line: a task that waits for the CPU notices.
SLOW_NS = 2_000_000

#: So many timers and handlers are named.
MOST_NAMED = 20

#: A timer is regular when its gaps differ by no more than this part of their mean.
_REGULAR = 0.05
_FEWEST_GAPS = 2

_ZERO = struct.pack("=I", 0)


class Long(Struct, frozen=True, kw_only=True, tag="long"):
    """A single softirq, timer or handler that was long."""

    at_ns: int
    """When it began, of the monotonic clock."""
    took_ns: int
    what: str
    """``softirq NET_RX``, ``timer estimation_timer``, ``irq 42 (virtio3-tx)``."""
    cpu: int
    on_target: bool
    """Whether it interrupted a task of the container."""
    pid: int
    comm: str
    """The task that the CPU had."""


class OnCpu(Struct, frozen=True, kw_only=True):
    """One softirq on one CPU."""

    cpu: int
    count: int
    sum_ns: int | None
    longest_ns: int | None


class Vector(Struct, frozen=True, kw_only=True):
    """One softirq, on the whole host; its times are ``None`` where only counts are known."""

    name: str
    count: int
    sum_ns: int | None
    longest_ns: int | None
    in_ksoftirqd: int | None
    """Of those, run by the thread: there were too many to run them at once."""
    ksoftirqd_ns: int | None
    buckets: tuple[int, ...]
    """``buckets[n]``: those of 2^n to 2^(n+1) µs; the first, everything below 2 µs."""
    cpus: tuple[OnCpu, ...]


class Interrupted(Struct, frozen=True, kw_only=True):
    """What the container's tasks were interrupted by."""

    by: str
    count: int
    sum_ns: int
    longest_ns: int


class Called(Struct, frozen=True, kw_only=True):
    """A timer's function or an interrupt's handler, on the whole host."""

    kind: str
    """``timer`` (in the softirq TIMER), ``hrtimer`` or ``irq``."""
    name: str
    module: str | None
    """Whose function it is; ``None``: the kernel's own."""
    count: int
    sum_ns: int
    longest_ns: int
    period_ns: int | None
    """Of a timer that expires regularly; ``None``: it does not."""
    several: bool = False
    """Whether more than one timer has this function; the period is then each one's."""


class Answer(Struct, frozen=True, kw_only=True):
    """Softirqs, timers and interrupts; the costliest first."""

    vectors: tuple[Vector, ...]
    called: tuple[Called, ...]
    more_called: int
    """Timers and handlers that are not in ``called``: those that cost least."""
    softirq_ns: int | None
    """All softirqs on all CPUs; from ``/proc/stat`` where they were not measured one by one."""
    interrupted: tuple[Interrupted, ...] | None
    """``None``: not known."""
    interrupted_ns: int | None


class _Session(ObjectSession):
    def __init__(self, host: Host, target: Target, object: Object, notes: Sequence[str]) -> None:
        super().__init__(host, target, object, notes)
        self._ring = object.ring()
        self._symbols = KernelSymbols(host)

    def events(self) -> Sequence[Struct]:
        return [long(sensor.slow(raw), self.slot, self._symbols) for raw in self._ring.read()]

    def answer(self) -> Answer:
        return answered(
            sensor.held(self.object),
            sensor.taken(self.object, self.slot),
            sensor.callees(self.object),
            self._symbols,
        )


def long(event: Slow, slot: int, symbols: KernelSymbols) -> Long:
    """One event, with names."""
    if event.kind == "softirq":
        what = sensor.vector(event.number)
        what = f"softirq {what}" + (" in ksoftirqd" if event.ksoftirqd else "")
    elif event.kind == "irq":
        what = f"irq {event.number} ({event.name})"
    else:
        what = f"{event.kind} {symbols.frame(event.function).name}"
    return Long(
        at_ns=event.at_ns,
        took_ns=event.took_ns,
        what=what,
        cpu=event.cpu,
        on_target=event.slot == slot,
        pid=event.pid,
        comm=event.comm,
    )


def answered(
    held: Iterable[Held],
    taken: Iterable[Taken],
    callees: Iterable[Callee],
    symbols: KernelSymbols,
) -> Answer:
    """What the programs counted, as an answer."""
    vectors = sorted(_vectors(held), key=lambda v: -(v.sum_ns or 0))
    called = sorted((_called(c, symbols) for c in callees), key=lambda c: -c.sum_ns)
    interrupted = sorted((_interrupted(t) for t in taken), key=lambda i: -i.sum_ns)
    return Answer(
        vectors=tuple(vectors),
        called=tuple(called[:MOST_NAMED]),
        more_called=max(0, len(called) - MOST_NAMED),
        softirq_ns=sum(v.sum_ns or 0 for v in vectors),
        interrupted=tuple(interrupted),
        interrupted_ns=sum(i.sum_ns for i in interrupted),
    )


def _vectors(held: Iterable[Held]) -> Iterator[Vector]:
    by_number: dict[int, list[Held]] = {}
    for one in held:
        by_number.setdefault(one.vector, []).append(one)
    for number, parts in by_number.items():
        columns = zip(*(part.buckets for part in parts), strict=True)
        yield Vector(
            name=sensor.vector(number),
            count=sum(part.count for part in parts),
            sum_ns=sum(part.sum_ns for part in parts),
            longest_ns=max(part.longest_ns for part in parts),
            in_ksoftirqd=sum(part.thread_count for part in parts),
            ksoftirqd_ns=sum(part.thread_ns for part in parts),
            buckets=tuple(sum(column) for column in columns),
            cpus=tuple(
                OnCpu(cpu=p.cpu, count=p.count, sum_ns=p.sum_ns, longest_ns=p.longest_ns)
                for p in parts
            ),
        )


def _called(one: Callee, symbols: KernelSymbols) -> Called:
    if one.kind == "irq":
        name, module = f"{one.number} ({one.name})", None
    else:
        frame = symbols.frame(one.function)
        name, module = frame.name, None if frame.file == "kernel" else frame.file
    return Called(
        kind=one.kind,
        name=name,
        module=module,
        count=one.count,
        sum_ns=one.sum_ns,
        longest_ns=one.longest_ns,
        period_ns=period_ns(one),
        several=one.several,
    )


def period_ns(one: Callee) -> int | None:
    """How often a timer expires, if it does so regularly."""
    if one.gaps < _FEWEST_GAPS:
        return None
    mean = one.gap_sum_ns / one.gaps
    if one.gap_most_ns - one.gap_least_ns > _REGULAR * mean:
        return None
    return round(mean)


def _interrupted(one: Taken) -> Interrupted:
    others = {sensor.LOST_TO_HRTIMERS: "hrtimers", sensor.LOST_TO_IRQS: "device interrupts"}
    return Interrupted(
        by=others.get(one.by) or sensor.vector(one.by),
        count=one.count,
        sum_ns=one.sum_ns,
        longest_ns=one.longest_ns,
    )


#: ``{("NET_RX", 0): 17}``.
Counts = Mapping[tuple[str, int], int]


def counts(text: str) -> Counts:
    r"""Parse ``/proc/softirqs``: by name and CPU.

    >>> counts("   CPU0 CPU1\n NET_RX:  7  9\n")
    {('NET_RX', 0): 7, ('NET_RX', 1): 9}
    """
    head, _, rows = text.partition("\n")
    cpus = [int(word.removeprefix("CPU")) for word in head.split()]
    found: dict[tuple[str, int], int] = {}
    for row in rows.splitlines():
        name, _, numbers = row.strip().partition(":")
        for cpu, number in zip(cpus, numbers.split(), strict=False):
            found[name, cpu] = int(number)
    return found


def softirq_ticks(text: str) -> int:
    r"""Of ``/proc/stat``: the time that all CPUs spent in softirqs, in clock ticks.

    >>> softirq_ticks("cpu  1 2 3 4 5 6 77 0\ncpu0 1 2 3 4 5 6 77 0\n")
    77
    """
    return int(text.split("\n", 1)[0].split()[7])


class _Snapshot(NamedTuple):
    counts: Counts
    ticks: int


class _Counts:
    """Without programs: what the kernel counts by itself, for the whole host."""

    attached = ("/proc/softirqs", "/proc/stat")

    def __init__(self, host: Host, reason: str) -> None:
        self._host = host
        self.notes = (f"{reason}; instead: {sensor.SPEC.falls_back}",)
        self._before = self._read()

    def events(self) -> Sequence[Struct]:
        return ()

    def answer(self) -> Answer:
        self._host.next_moment()
        now = self._read()
        vectors = sorted(counted(self._before.counts, now.counts), key=lambda v: -v.count)
        return Answer(
            vectors=tuple(vectors),
            called=(),
            more_called=0,
            softirq_ns=(now.ticks - self._before.ticks) * _tick_ns(),
            interrupted=None,
            interrupted_ns=None,
        )

    def lost(self) -> int:
        return 0

    def cost(self) -> Cost | None:
        return None

    def adopt(self, target: Target) -> None:
        pass  # the host is the same

    def _read(self) -> _Snapshot:
        stat = self._host.text("/proc/stat")
        return _Snapshot(counts(self._host.text("/proc/softirqs")), softirq_ticks(stat))


def counted(before: Counts, now: Counts) -> Iterator[Vector]:
    """The softirqs between two readings, without their lengths."""
    names = dict.fromkeys(name for name, _ in now)
    for name in names:
        cpus = tuple(
            OnCpu(cpu=cpu, count=gain, sum_ns=None, longest_ns=None)
            for (whose, cpu), count in now.items()
            if whose == name and (gain := count - before.get((name, cpu), 0)) > 0
        )
        if cpus:
            yield Vector(
                name=name,
                count=sum(one.count for one in cpus),
                sum_ns=None,
                longest_ns=None,
                in_ksoftirqd=None,
                ksoftirqd_ns=None,
                buckets=(),
                cpus=cpus,
            )


def _tick_ns() -> int:
    import os

    return 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def _notes(object: Object, symbols_hidden: bool) -> Iterator[str]:
    if object.choice.left:
        lacks = ", ".join(dict.fromkeys(object.choice.left.values()))
        yield f"this kernel has {lacks}, so what those would tell is missing"
    if symbols_hidden:
        yield "the kernel hides its addresses (kernel.kptr_restrict), so timers have no names"


def _hidden(host: Host) -> bool:
    """Whether the kernel tells no addresses (``kernel.kptr_restrict``): all are then 0."""
    try:
        with open(host.path(SYMBOLS), encoding="ascii", errors="replace") as file:
            # Those of per-CPU data come first on some kernels, and may be 0 anyway.
            code = (
                line for line in islice(file, _MOST_DATA_FIRST) if line.split(" ", 2)[1] in "tT"
            )
            return not next(code, "0").split(" ", 1)[0].strip("0")
    except OSError:
        return True


_MOST_DATA_FIRST = 20_000


@contextmanager
def _open(host: Host, target: Target, options: Options) -> Iterator[Session]:
    slower_ns = SLOW_NS if options.slower_ns is None else max(options.slower_ns, 1)
    before = {"slower": [(_ZERO, struct.pack("=Q", slower_ns))]}
    with ExitStack() as stack:
        try:
            object = stack.enter_context(loaded(host, sensor.SPEC, before=before, stats=True))
        except Refused as refusal:
            yield _Counts(host, str(refusal.strerror))
            return
        yield _Session(host, target, object, tuple(_notes(object, _hidden(host))))


QUESTION = Question(open=_open, events=(Long,), answer=Answer)
