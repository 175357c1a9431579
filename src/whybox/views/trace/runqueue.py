"""Waits for a CPU, as a histogram."""

from whybox.trace.runqueue import Answer
from whybox.views import histogram_svg
from whybox.views.histogram import duration, lines, powers


def answer(answer: Answer) -> list[str]:
    """The histogram, and who ran meanwhile."""
    if not answer.waits:
        return ["none of its tasks had to be switched to: it slept, or ran without a break"]
    mean = answer.wait_ns / answer.waits
    longest = "" if answer.longest_ns is None else f", {duration(answer.longest_ns)} at most"
    shown = [
        f"{answer.waits} waits for a CPU, {duration(answer.wait_ns)} in all,"
        f" {duration(mean)} on average{longest}",
        *(f"  {line}" for line in lines(answer.buckets, powers(1000, len(answer.buckets)))),
    ]
    if answer.behind:
        shown.append("of those from 100 us on, who left the CPU to it:")
    shown += [
        f"  {duration(n.wait_ns):>8} in {n.waits:>6} waits  {n.who}, pid {n.pid}"
        for n in answer.behind
    ]
    return shown


def _svg(answer: Answer, title: str) -> str:
    labels = powers(1000, len(answer.buckets))
    subtitle = f"{answer.waits} waits for a CPU, {duration(answer.wait_ns)} in all"
    return histogram_svg.svg(answer.buckets, labels, title, subtitle=subtitle)


PICTURES = {"svg": _svg}
