"""Where tasks wait."""

from collections.abc import Sequence

from whybox.trace.blocked import HOWS, Answer, Now, Site, Wait
from whybox.views import flame
from whybox.views.histogram import duration

_MOST_SHOWN = 12
_MOST_FRAMES = 5


def event(event: Wait) -> str:
    """One long wait in D."""
    least = "at least " if event.at_least else ""
    return (
        f"{event.at_ns / 1e9:.6f} {event.comm} {event.tid} was stuck in D for"
        f" {least}{duration(event.waited_ns)}: {_path(event.frames)}"
    )


def answer(answer: Answer) -> list[str]:
    """By places, D first; then what waits now."""
    stuck = [site for site in answer.sites if site.how == "D"]
    others = [site for site in answer.sites if site.how != "D"]
    return [
        *_sites("stuck in D (uninterruptible)", stuck),
        *_sites("sleeping or stopped", others),
        *_now(answer),
        *_rest(answer),
    ]


def _sites(title: str, sites: Sequence[Site]) -> list[str]:
    if not sites:
        return [f"{title}: nobody was"]
    whole = sum(site.wait_ns for site in sites)
    lines = [f"{title}: {duration(whole)} of tasks in all"]
    for site in sites[:_MOST_SHOWN]:
        going_on = f", {site.unfinished} of them going on" if site.unfinished else ""
        who = ", ".join(site.processes)
        lines.append(
            f"  {duration(site.wait_ns):>7}  {site.site}  {_counted(site.waits, 'wait')}{going_on}"
            f" of {_counted(site.tasks, 'task')} ({who}), the longest {duration(site.longest_ns)}"
        )
        if len(site.frames) > 1:
            lines.append(f"           {_path(site.frames)}")
    if len(sites) > _MOST_SHOWN:
        lines.append(f"  and {len(sites) - _MOST_SHOWN} more places")
    return lines


def _now(answer: Answer) -> list[str]:
    """Those in D one by one; of the others, where they sleep is told above."""
    shown = [one for one in answer.now if one.how != "S"]
    asleep = len(answer.now) - len(shown) + answer.now_more
    lines = [f"now: {_counted(len(shown), 'task')} stuck or stopped, {asleep} asleep"]
    for one in shown[:_MOST_SHOWN]:
        lines.append(
            f"  {one.comm} {one.tid}, {HOWS[one.how]} for {_for(one)}: {_path(one.frames)}"
        )
    return lines


def _for(one: Now) -> str:
    if one.waited_ns is None:
        return "a time that was not watched"
    least = "at least " if one.at_least else ""
    # Since before the trace: the kernel knows when the task was last given a CPU.
    last = "" if one.not_on_cpu_ns is None else f", last on a CPU {duration(one.not_on_cpu_ns)} ago"
    return f"{least}{duration(one.waited_ns)}{last if one.at_least else ''}"


def _rest(answer: Answer) -> list[str]:
    lines = []
    if answer.brief_waits:
        lines.append(
            f"besides, {answer.brief_waits} waits shorter than 10 us, {duration(answer.brief_ns)}"
            " in all"
        )
    if answer.crowded_waits:
        lines.append(
            f"besides, {answer.crowded_waits} waits in too many places to be told apart,"
            f" {duration(answer.crowded_ns)} in all"
        )
    return lines


def _path(frames: Sequence[str]) -> str:
    return " < ".join(frames[:_MOST_FRAMES])


def _counted(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def _time(weight: int) -> str:
    return duration(weight * 1000)


_UNIT = flame.Unit(
    speedscope="microseconds",
    shown=_time,
    hues=((HOWS["D"], 0.0), (HOWS["T"], 0.8), (HOWS["S"], 0.42)),
)


def _svg(answer: Answer, title: str) -> str:
    return flame.svg(answer.stacks, title, _UNIT)


def _html(answer: Answer, title: str) -> str:
    return flame.html(answer.stacks, title, _UNIT)


def _collapsed(answer: Answer, title: str) -> str:
    return flame.collapsed(answer.stacks)


def _speedscope(answer: Answer, title: str) -> str:
    return flame.speedscope(answer.stacks, title, _UNIT)


PICTURES = {"svg": _svg, "html": _html, "collapsed": _collapsed, "speedscope": _speedscope}
