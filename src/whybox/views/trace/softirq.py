"""Softirqs, timers and interrupts, and whom they interrupted."""

from collections.abc import Iterator

from whybox.trace.softirq import Answer, Called, Interrupted, Long, Vector
from whybox.views import histogram_svg
from whybox.views.histogram import duration, lines, powers

#: A histogram is drawn of the softirqs that took the most time.
MOST_DRAWN = 2


def event(event: Long) -> str:
    """One that was long."""
    whom = "the container's" if event.on_target else "on top of"
    task = f"{whom} {event.comm}, pid {event.pid}" if event.pid else "on top of nobody"
    return (
        f"{event.at_ns / 1e9:.6f} {duration(event.took_ns):>8} {event.what}"
        f" on CPU {event.cpu}, {task}"
    )


def answer(answer: Answer) -> list[str]:
    """The host first, then the container."""
    if not answer.vectors:
        return ["no softirq ran"]
    shown = [_first(answer), *_table(answer.vectors)]
    for vector in answer.vectors[:MOST_DRAWN]:
        if vector.buckets and vector.sum_ns:
            shown.append(f"{vector.name}, how long each took:")
            labels = powers(1000, len(vector.buckets))
            shown += [f"  {line}" for line in lines(vector.buckets, labels)]
    shown += _called(answer)
    shown += _container(answer)
    return shown


def _first(answer: Answer) -> str:
    count = sum(vector.count for vector in answer.vectors)
    first = answer.vectors[0]
    spent = "" if answer.softirq_ns is None else f", {duration(answer.softirq_ns)} of CPU in all"
    if not first.sum_ns or not answer.softirq_ns:
        return f"{count} softirqs on this host{spent}"
    share = first.sum_ns / answer.softirq_ns
    return f"{count} softirqs on this host{spent}, {share:.0%} of it in {first.name}"


def _table(vectors: tuple[Vector, ...]) -> Iterator[str]:
    for one in vectors:
        if one.sum_ns is None or one.longest_ns is None:
            yield f"  {one.name:<9} {one.count:>8}{_cpus(one)}"
            continue
        thread = (
            f", {one.in_ksoftirqd} of them ({duration(one.ksoftirqd_ns or 0)}) in ksoftirqd"
            if one.in_ksoftirqd
            else ""
        )
        yield (
            f"  {one.name:<9} {one.count:>8} took {duration(one.sum_ns):>8},"
            f" {duration(one.sum_ns / one.count):>8} on average,"
            f" {duration(one.longest_ns):>8} at most{thread}{_cpus(one)}"
        )


def _cpus(one: Vector) -> str:
    """Where it ran, the busiest CPU first; a machine may have hundreds."""
    if len(one.cpus) == 1:
        return f"; all on CPU {one.cpus[0].cpu}"
    by_count = sorted(one.cpus, key=lambda c: -c.count)
    named = ", ".join(f"CPU {c.cpu} {c.count / one.count:.0%}" for c in by_count[:4])
    more = f" and {len(by_count) - 4} more" if len(by_count) > 4 else ""
    return f"; {named}{more}"


def _called(answer: Answer) -> Iterator[str]:
    if answer.called:
        yield "timers (in TIMER and by the clock itself) and handlers of devices, by their cost:"
    yield from (f"  {_callee(one)}" for one in answer.called)
    if answer.more_called:
        yield f"  and {answer.more_called} more that cost less"


def _callee(one: Called) -> str:
    whose = "" if one.module is None else f" [{one.module}]"
    each = "each of several " if one.several else ""
    every = "" if one.period_ns is None else f", {each}every {period(one.period_ns)}"
    return (
        f"{duration(one.sum_ns):>8} in {one.count:>6}, {duration(one.longest_ns):>8} at most"
        f"  {one.kind} {one.name}{whose}{every}"
    )


def period(ns: int) -> str:
    """A regular interval: its second digit counts.

    >>> period(2_003_999_000), period(4_000_100)
    ('2.00 s', '4.0 ms')
    """
    return f"{ns / 1e9:.2f} s" if ns >= 1_000_000_000 else f"{ns / 1e6:.1f} ms"


def _container(answer: Answer) -> Iterator[str]:
    if answer.interrupted is None or answer.interrupted_ns is None:
        yield "how much of it interrupted the container's tasks is not known"
        return
    if not answer.interrupted:
        yield "none of it interrupted a task of the container"
        return
    yield f"of all that, on top of the container's tasks: {duration(answer.interrupted_ns)}"
    yield from (f"  {_loss(one)}" for one in answer.interrupted)


def _loss(one: Interrupted) -> str:
    return (
        f"{duration(one.sum_ns):>8} in {one.count:>6},"
        f" {duration(one.longest_ns):>8} at most  {one.by}"
    )


def svg(answer: Answer, title: str) -> str:
    """The lengths of the softirq that took the most time."""
    vector = next((v for v in answer.vectors if v.buckets), None)
    buckets = () if vector is None else vector.buckets
    name = "" if vector is None else f": {vector.name}, {vector.count:,} on the whole host"
    return histogram_svg.svg(
        buckets,
        powers(1000, len(buckets)),
        f"{title}{name}",
        across="how long each took",
        up="softirqs",
    )


PICTURES = {"svg": svg}
