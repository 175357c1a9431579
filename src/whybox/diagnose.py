"""The loop: start every watch, wait one window, judge.

All cases of all targets share the window: 33 cases cost one wait, not 33, and see the same moment.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from msgspec import Struct

from whybox import __version__
from whybox.kernel.host import Host, ParseError
from whybox.kernel.target import Target, still_there
from whybox.model import (
    AnyCase,
    Cost,
    Diagnosis,
    Finding,
    Report,
    Seen,
    Watch,
    unknown,
    with_consequences,
)

Cases = Mapping[str, AnyCase]


class Window(Struct, frozen=True, kw_only=True):
    """What all cases saw of all targets in one window."""

    seconds: float
    """As measured."""
    cost: Cost
    targets: tuple[tuple[Target, tuple[Seen, ...]], ...]


def diagnose(
    host: Host,
    targets: Iterable[Target],
    cases: Cases,
    *,
    wait: Callable[[float], None] = time.sleep,
) -> Report:
    """Watch the targets for ``host.window_seconds`` and judge what was seen."""
    return judge(observe(host, targets, cases, wait=wait), cases)


def observe(
    host: Host,
    targets: Iterable[Target],
    cases: Cases,
    *,
    wait: Callable[[float], None] = time.sleep,
) -> Window:
    """All the I/O: one window, seen by every case. On Ctrl-C every watch is closed."""
    spent, reads = time.process_time_ns(), host.reads
    with _watching(host, targets, cases) as watches:
        began = time.monotonic()
        if any(target.alive for target, _ in watches):
            wait(host.window_seconds)  # the dead do nothing that could be watched
        host.next_moment()
        seconds = time.monotonic() - began
        seen = [(target, _finished(host, target, mine, cases)) for target, mine in watches]
    cost = Cost(cpu_ms=(time.process_time_ns() - spent) / 1e6, reads=host.reads - reads)
    return Window(seconds=seconds, cost=cost, targets=tuple(seen))


class _Started(Struct, frozen=True, kw_only=True):
    """A watch that waits for the window to end, or why there is none."""

    case: str
    watch: Any = None
    reason: str | None = None


@contextmanager
def _watching(
    host: Host, targets: Iterable[Target], cases: Cases
) -> Iterator[list[tuple[Target, list[_Started]]]]:
    host.next_moment()
    watches: list[tuple[Target, list[_Started]]] = []
    try:
        for target in targets:
            mine: list[_Started] = []
            watches.append((target, mine))
            for name, case in cases.items():
                mine.append(_start(host, target, name, case))
        yield watches
    finally:
        # Closing a generator runs its ``finally``: sensors are detached on every way out.
        for _, started in watches:
            for one in started:
                if one.watch is not None:
                    one.watch.close()


def _start(host: Host, target: Target, name: str, case: AnyCase) -> _Started:
    for need in case.needs:
        if (reason := need(host, target)) is not None:
            return _Started(case=name, reason=reason)
    watch: Watch[Any] = case.observe(host, target)
    try:
        next(watch)
    except (OSError, ParseError) as error:
        return _Started(case=name, reason=_explained(error))
    except StopIteration:
        raise RuntimeError(f"{name}: its observe returned without the yield") from None
    return _Started(case=name, watch=watch)


def _finished(
    host: Host, target: Target, started: Iterable[_Started], cases: Cases
) -> tuple[Seen, ...]:
    # Counters of a container that restarted belong to another group: subtracting them says nothing.
    gone = target.alive and not still_there(host, target)
    return tuple(
        Seen(case=one.case, reason="it ended or restarted within the window")
        if gone and one.watch is not None and not cases[one.case].outlives
        else _finish(one)
        for one in started
    )


def _finish(started: _Started) -> Seen:
    if started.watch is None:
        return Seen(case=started.case, reason=started.reason)
    try:
        next(started.watch)
    except StopIteration as end:
        return Seen(case=started.case, observation=end.value)
    except (OSError, ParseError) as error:
        return Seen(case=started.case, reason=_explained(error))
    raise RuntimeError(f"{started.case}: its observe yielded twice")


def _explained(error: OSError | ParseError) -> str:
    """An error as a reason: what was asked and how the kernel refused."""
    if isinstance(error, ParseError):
        return str(error)
    file = f"{error.filename}: " if error.filename else ""
    return f"{file}{error.strerror or error}"


def judge(window: Window, cases: Cases) -> Report:
    """All the thinking: the same on a recording as on what was seen just now."""
    return Report(
        version=__version__,
        window_seconds=window.seconds,
        cost=window.cost,
        targets=tuple(
            Diagnosis(target=target, findings=_judged(seen, cases))
            for target, seen in window.targets
        ),
    )


def _judged(seen: Iterable[Seen], cases: Cases) -> tuple[Finding, ...]:
    findings = tuple(_verdict(one, cases[one.case]) for one in seen if one.case in cases)
    return with_consequences(findings, dict(cases))


def _verdict(seen: Seen, case: AnyCase) -> Finding:
    finding = unknown(seen.reason) if seen.reason is not None else case.judge(seen.observation)
    return finding.of(seen.case)
