"""How long a function of the kernel takes, and what it calls."""

from collections.abc import Iterator, Sequence

from whybox.trace.calltree import Call
from whybox.trace.functions import Answer
from whybox.views import histogram_svg
from whybox.views.histogram import duration, lines, powers

#: Lines of a tree. What is left out is told where it belongs.
MOST_BELOW_ONE, MOST_LINES = 12, 120

#: What takes less than this part of the whole is left out of a tree.
LEAST_SHARE = 0.002


def answer(answer: Answer) -> list[str]:
    """The sums, the histogram, who called, and the tree."""
    if not answer.calls:
        return [f"no task of it called {answer.function}{_open(answer)}", *_missed(answer)]
    shown = [f"{answer.function}: {_sums(answer)}{_open(answer)}"]
    labels = powers(1, len(answer.buckets))
    shown += [f"  {line}" for line in lines(answer.buckets, labels)]
    if answer.nested:
        shown.append(
            f"{answer.nested} of them from within another one;"
            f" without those it took {duration(answer.outer_ns)}"
        )
    shown += _missed(answer)
    shown.append("who called it:")
    shown += [
        f"  {duration(c.sum_ns):>8} in {c.count:>7}, {duration(c.longest_ns):>8} at most"
        f"  {c.comm}, pid {c.pid}"
        for c in answer.callers
    ]
    if answer.tree:
        shown += ["what it calls, with the time that each took and what of it was its own:"]
        shown += tree(answer.tree)
    return shown


def _sums(answer: Answer) -> str:
    mean = duration(answer.sum_ns / answer.calls)
    return (
        f"{answer.calls} calls, {duration(answer.sum_ns)} in all, {mean} on average,"
        f" {duration(answer.longest_ns)} at most"
    )


def _open(answer: Answer) -> str:
    if not answer.open:
        return ""
    return f"; {answer.open} {'is' if answer.open == 1 else 'are'} in it now"


def _missed(answer: Answer) -> Iterator[str]:
    if answer.missed:
        yield (
            f"{answer.missed} calls more began and could not be followed to their end (the kernel"
            " watches only so many at once): they are in no number"
        )


def tree(roots: Sequence[Call]) -> list[str]:
    """A drawn tree, at most ``MOST_LINES`` long."""
    whole = max(sum(call.total_ns for call in roots), 1)
    drawn: list[str] = [f"  {'total':>8} {'self':>8} {'calls':>8}"]
    for call in roots:
        drawn += _branch(call, "", "", whole)
    if len(drawn) > MOST_LINES:
        left = len(drawn) - MOST_LINES
        drawn = [*drawn[:MOST_LINES], f"  and {left} lines more: see -o json"]
    return drawn


def _branch(call: Call, first: str, rest: str, whole: int) -> Iterator[str]:
    yield (
        f"  {duration(call.total_ns):>8} {duration(call.self_ns):>8} {call.calls:>8}"
        f"  {first}{call.name}"
    )
    worth = [one for one in call.calls_to if one.total_ns >= LEAST_SHARE * whole]
    shown = worth[:MOST_BELOW_ONE]
    left = call.calls_to[len(shown) :]
    for n, below in enumerate(shown):
        last = n == len(shown) - 1 and not left
        stem, gap = ("└─ ", "   ") if last else ("├─ ", "│  ")
        yield from _branch(below, rest + stem, rest + gap, whole)
    if left:
        yield (
            f"  {duration(sum(c.total_ns for c in left)):>8} {'':>8}"
            f" {sum(c.calls for c in left):>8}  {rest}└─ … {len(left)} more"
        )


def svg(answer: Answer, title: str) -> str:
    """The lengths of its calls."""
    return histogram_svg.svg(
        answer.buckets,
        powers(1, len(answer.buckets)),
        f"{title}: {answer.function}",
        subtitle=_sums(answer) if answer.calls else "never called",
        across="how long a call took",
        up="calls",
    )


PICTURES = {"svg": svg}
