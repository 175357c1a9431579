"""How a trace is shown: for each question a module that puts its events and its answer in words.

``event(event)`` is one line of text, ``answer(answer)`` the lines at the end; where people look
rather than read, ``pictures`` names functions that draw the answer.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

from whybox.kernel.host import printable
from whybox.trace.question import Answered, Begin, End, Happened, Noted, Told
from whybox.views.histogram import duration

#: What draws an answer, under a title.
Picture = Callable[[Any, str], str]


def view(question: str) -> ModuleType:
    """The module that shows a question."""
    return import_module(f"whybox.views.trace.{question}")


def pictures(question: str) -> Mapping[str, Picture]:
    """The other forms that an answer has, such as ``svg``."""
    found: Mapping[str, Picture] = getattr(view(question), "PICTURES", {})
    return found


def text(question: str, told: Told) -> list[str]:
    """One thing that is told, as lines; nothing in them can harm a terminal."""
    match told:
        case Begin():
            lines = [_begin(told), *(f"  but: {note}" for note in told.notes)]
        case Happened():
            lines = [view(question).event(told.event)]
        case Noted():
            lines = [f"— {told.says}"]
        case Answered():
            lines = ["", *view(question).answer(told.answer)]
        case End():
            lines = ["", _end(told)]
        case _:
            raise TypeError(told)
    return [printable(line) for line in lines]


def _begin(begin: Begin) -> str:
    what = ", ".join(dict.fromkeys(begin.attached)) or "nothing"
    return f"{begin.question} of {begin.target} for {begin.seconds:g} s, attached: {what}"


def _end(end: End) -> str:
    programs = "not counted by this kernel"
    if end.programs is not None:
        each = end.programs.run_ns / max(end.programs.runs, 1)
        programs = (
            f"{duration(end.programs.run_ns)} CPU in {end.programs.runs} runs of its programs"
            f" ({each:.0f} ns each)"
        )
    lost = f"{end.lost} events were lost" if end.lost else "no event was lost"
    return f"{end.seconds:.1f} s, cost: {programs}, {end.cpu_ms:.0f} ms CPU of whybox; {lost}"
