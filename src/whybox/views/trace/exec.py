"""Commands as lines, and counted."""

import os.path
import shlex
from collections.abc import Iterator

from whybox.trace.exec import Answer, Command, Exit, Kind
from whybox.views.histogram import duration

#: So many commands and failures are named.
MOST_NAMED = 20


def event(event: Command | Exit) -> str:
    """One command, or how one ended."""
    at = f"{event.at_ns / 1e9:.6f}"
    if isinstance(event, Exit):
        lasted = duration(event.lasted_ns)
        return f"{at} {event.name} {event.pid} ended with status {event.status} after {lasted}"
    return f"{at} {_who(event)} → {event.pid}: {line(event)}{_result(event)}"


def _who(one: Command) -> str:
    user = f"uid {one.uid}" if one.uid == one.euid else f"uid {one.uid} (acts as {one.euid})"
    outside = "" if one.inside else " from outside, by"
    return f"{user}{outside} {one.parent_comm} {one.parent_pid}"


def _result(one: Command) -> str:
    if one.runtime:
        return "  (the runtime's own step)"
    if one.error is None:
        return ""
    searched = f", the last of {one.tried} places" if one.tried > 1 else ""
    return f"  FAILED: {one.error}{searched}"


def line(one: Command) -> str:
    """The command line as one would type it; the file too where it is called otherwise."""
    if not one.arguments or not one.arguments[0]:
        return one.path
    same = os.path.basename(one.path) == os.path.basename(one.arguments[0])
    words = (one.path, *one.arguments[1:]) if same else one.arguments
    more = " …" if one.cut else ""
    return shlex.join(words) + more + ("" if same else f"  (of {one.path})")


def answer(answer: Answer) -> list[str]:
    """The counts."""
    return [*_counts(answer), *_storms(answer), *_failures(answer), answer.invisible]


def _counts(answer: Answer) -> Iterator[str]:
    if not answer.executed:
        yield "no command was executed in it"
        return
    runtime = f", {answer.by_runtime} of them the runtime's own steps" if answer.by_runtime else ""
    yield (
        f"{answer.executed} commands were executed, {answer.from_outside} came in from outside"
        f"{runtime}"
    )
    for kind in answer.commands[:MOST_NAMED]:
        yield f"  {kind.count:>6} {kind.name}, mostly by {kind.starter}{_ended(kind)}"
    others = sum(kind.count for kind in answer.commands[MOST_NAMED:]) + answer.other
    if others:
        yield f"  {others:>6} of other names"


def _ended(kind: Kind) -> str:
    if not kind.ended:
        return ""
    mean = duration(kind.lasted_ns / kind.ended)
    bad = f", {kind.bad} with a status other than 0" if kind.bad else ""
    return f"; {kind.ended} ended, after {mean} on average{bad}"


def _storms(answer: Answer) -> Iterator[str]:
    for kind in answer.storms[:MOST_NAMED]:
        yield (
            f"a storm: {kind.most_per_second} times within one second {kind.name}, started by "
            f"{kind.starter}"
        )


def _failures(answer: Answer) -> Iterator[str]:
    if answer.failed:
        yield f"{answer.failed} could not be executed:"
    for failure in answer.failures[:MOST_NAMED]:
        yield f"  {failure.count:>6} {failure.name}: {failure.error}"
