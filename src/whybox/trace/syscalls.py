"""Counts, errors and latency by system call; and for each denial, what denied it."""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from msgspec import Struct

from whybox.kernel import capability, syscalltable
from whybox.kernel.bpf.objects import Cost, Object, loaded
from whybox.kernel.host import Host
from whybox.kernel.sensors import checks
from whybox.kernel.sensors import syscalls as sensor
from whybox.kernel.sensors.meter import Meter
from whybox.kernel.sensors.syscalls import Kind, Refusal
from whybox.kernel.symbols import KernelSymbols
from whybox.kernel.target import Target
from whybox.trace.denial import By, Denial, called, certain, hint, judged, merged, outcome
from whybox.trace.question import Options, Question
from whybox.trace.session import ObjectSession

#: So many denials are told in the answer, the most frequent ones.
MOST_DENIALS = 200


class Failure(Struct, frozen=True, kw_only=True):
    """Calls that failed alike."""

    errno: str
    count: int


class Call(Struct, frozen=True, kw_only=True):
    """One system call: all that returned. What seccomp refused is none of them."""

    syscall: str
    calls: int
    errors: int
    sum_ns: int
    mean_ns: int
    longest_ns: int
    p99_ns: int
    """Estimated from the buckets, of which each spans a factor of two."""
    buckets: tuple[int, ...]
    """``buckets[n]``: calls of 2^(n+6) to 2^(n+7) ns; the first, everything below 128 ns."""
    failures: tuple[Failure, ...]
    """The most frequent first."""


class Unfinished(Struct, frozen=True, kw_only=True):
    """Calls that have not returned."""

    syscall: str
    tasks: int
    longest_ns: int
    """So far."""


class Answer(Struct, frozen=True, kw_only=True):
    """All calls of the container's tasks."""

    calls: int
    errors: int
    sum_ns: int
    syscalls: tuple[Call, ...]
    """The one that took longest in all first."""
    denials: tuple[Denial, ...]
    """The most frequent first."""
    other_denials: int
    """Calls denied in ways that are beyond the first two hundred."""
    unfinished: tuple[Unfinished, ...]


class Denied(Struct, frozen=True, kw_only=True, tag="denied"):
    """One call that was denied; of a process that is denied one again and again, three a second."""

    at_ns: int
    """Of the monotonic clock."""
    pid: int
    tid: int
    comm: str
    syscall: str
    outcome: str
    by: By
    capabilities: tuple[str, ...]


class Slow(Struct, frozen=True, kw_only=True, tag="slow"):
    """One call that took as long as was asked for."""

    at_ns: int
    took_ns: int
    pid: int
    tid: int
    comm: str
    syscall: str
    result: int
    """What it returned."""
    errno: str | None
    """With what it failed, if it did."""


def percentile(buckets: Sequence[int], share: float, longest_ns: int) -> int:
    """The length that this share of the calls did not exceed, as far as buckets can tell.

    >>> percentile([0, 0, 100], 0.5, 400), percentile([0, 0, 100], 0.99, 300)
    (384, 300)
    """
    wanted = share * sum(buckets)
    passed = 0
    for nth, count in enumerate(buckets):
        if count and passed + count >= wanted:
            top = 1 << nth + sensor.FIRST_POWER + 1
            bottom = top >> 1 if nth else 0
            return min(int(bottom + (top - bottom) * (wanted - passed) / count), longest_ns)
        passed += count
    return longest_ns


class _Session(ObjectSession):
    """Sums are kept by the kernel; denials and slow calls are told as they happen."""

    def __init__(
        self, host: Host, target: Target, object: Object, notes: Sequence[str] = ()
    ) -> None:
        super().__init__(host, target, object, notes)
        checks.begin_epoch(object)
        self._meter = Meter(object, checks.runs)
        self._ring = object.ring()
        self._symbols = KernelSymbols(host)
        self._paths: dict[int, tuple[str, ...]] = {}

    def adopt(self, target: Target) -> None:
        super().adopt(target)
        checks.begin_epoch(self.object)

    def cost(self) -> Cost | None:
        return self._meter.cost()

    def events(self) -> Sequence[Denied | Slow]:
        self._meter.tick()
        return [self._event(sensor.told(raw)) for raw in self._ring.read()]

    def answer(self) -> Answer:
        denials = merged(self._denials())
        calls = tuple(summed(sensor.calls(self.object), sensor.failures(self.object)))
        return Answer(
            calls=sum(call.calls for call in calls),
            errors=sum(call.errors for call in calls),
            sum_ns=sum(call.sum_ns for call in calls),
            syscalls=calls,
            denials=tuple(denials[:MOST_DENIALS]),
            other_denials=sum(denial.count for denial in denials[MOST_DENIALS:]),
            unfinished=tuple(unfinished(sensor.running(self.object), time.monotonic_ns())),
        )

    def _event(self, one: sensor.Told) -> Denied | Slow:
        name = called(one.how.number, one.how.compat)
        if one.how.kind is Kind.SLOW:
            return Slow(
                at_ns=one.at_ns,
                took_ns=one.took_ns,
                pid=one.pid,
                tid=one.tid,
                comm=one.comm,
                syscall=name,
                result=one.result,
                errno=syscalltable.error_name(one.how.errno) if one.how.errno else None,
            )
        by, wanted = self._judged(one.how, sure=one.how.kind is not Kind.DOUBTED)
        return Denied(
            at_ns=one.at_ns,
            pid=one.pid,
            tid=one.tid,
            comm=one.comm,
            syscall=name,
            outcome=outcome(one.how),
            by=by,
            capabilities=capability.names(wanted),
        )

    def _judged(self, how: Refusal, *, sure: bool) -> tuple[By, int]:
        return judged(how, memory=checks.is_memory(self._path(how.stack)), sure=sure)

    def _denials(self) -> Iterator[Denial]:
        found = tuple(sensor.refused(self.object))
        surely = certain(found, self._missed(), sensor.failures(self.object))
        for one, sure in surely:
            by, wanted = self._judged(one.how, sure=sure)
            path = self._path(one.how.stack) if wanted else ()
            yield Denial(
                syscall=called(one.how.number, one.how.compat),
                outcome=outcome(one.how),
                by=by,
                capabilities=capability.names(wanted),
                count=one.count,
                comm=one.comm,
                pid=one.pid,
                site=path[0] if path else None,
                hint=hint(one.how, by, wanted),
            )

    def _missed(self) -> bool:
        cost = self.cost()
        return cost is None or cost.missed > 0

    def _path(self, stack: int | None) -> tuple[str, ...]:
        if stack is None:
            return ()
        if stack not in self._paths:
            addresses = checks.stack(self.object, stack)
            self._paths[stack] = checks.path(self._symbols, addresses)
        return self._paths[stack]


def summed(
    calls: Iterable[sensor.Call], failures: Iterable[tuple[int, bool, int, int]]
) -> list[Call]:
    """Every call with its failures, the one that took longest in all first."""
    by_call: Mapping[tuple[int, bool], list[Failure]] = defaultdict(list)
    for number, compat, error, count in failures:
        by_call[number, compat].append(Failure(errno=syscalltable.error_name(error), count=count))
    told = [_summed(call, by_call[call.number, call.compat]) for call in calls]
    return sorted(told, key=lambda call: (-call.sum_ns, call.syscall))


def _summed(call: sensor.Call, failures: Iterable[Failure]) -> Call:
    return Call(
        syscall=called(call.number, call.compat),
        calls=call.count,
        errors=call.errors,
        sum_ns=call.sum_ns,
        mean_ns=call.sum_ns // call.count,
        longest_ns=call.longest_ns,
        p99_ns=percentile(call.buckets, 0.99, call.longest_ns),
        buckets=call.buckets,
        failures=tuple(sorted(failures, key=lambda f: (-f.count, f.errno))),
    )


def unfinished(running: Iterable[sensor.Running], now_ns: int) -> list[Unfinished]:
    """By call, the one in which somebody has been longest first."""
    ages: Mapping[str, list[int]] = defaultdict(list)
    for one in running:
        ages[called(one.number, one.compat)].append(now_ns - one.began_ns)
    told = [
        Unfinished(syscall=name, tasks=len(all), longest_ns=max(all)) for name, all in ages.items()
    ]
    return sorted(told, key=lambda one: (-one.longest_ns, one.syscall))


@contextmanager
def _open(host: Host, target: Target, options: Options) -> Iterator[_Session]:
    before = {"slower": [sensor.limit(options.slower_ns)]}
    with loaded(host, sensor.SPEC, before=before) as object:
        yield _Session(host, target, object, notes(object.choice.taken, object.choice.left))


def notes(taken: Iterable[str], left: Mapping[str, str]) -> list[str]:
    """What is not seen here."""
    if {"on_check", "on_check_end"} & set(taken):
        return []
    reasons = " and ".join(dict.fromkeys(left[n] for n in ("on_check", "on_check_end")))
    return [f"for want of which capability a call is denied is not told: this kernel has {reasons}"]


QUESTION = Question(open=_open, events=(Denied, Slow), answer=Answer)
