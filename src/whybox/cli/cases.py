"""``whybox cases``: the catalogue."""

import argparse
import os
import sys
import time
from collections.abc import Mapping
from typing import Literal

from msgspec import Struct

from whybox import cases
from whybox.cli import OK, choices
from whybox.lab import proofs
from whybox.lab.proofs import Outcome
from whybox.lab.prove import load
from whybox.model import AnyCase, ago


class Made(Struct, frozen=True, kw_only=True):
    """What its lab makes."""

    ways: int
    """In which it makes the trouble."""
    look_alikes: int


class Proved(Struct, frozen=True, kw_only=True):
    """What came of its last proof on this machine's kernel."""

    state: Literal["proved", "not proved", "cannot here", "not run"]
    says: str = ""
    at: float | None = None
    """Seconds since 1970."""
    version: str | None = None
    """Of the whybox that proved it."""


class Entry(Struct, frozen=True, kw_only=True):
    """One case, as the catalogue lists it."""

    case: str
    title: str
    question: str
    question_zh: str
    lesson: str
    explains: tuple[str, ...]
    lab: Made
    proof: Proved


def options(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    choices.add_cases(parser)
    choices.add_output(parser, "text", "json")


def run(arguments: argparse.Namespace) -> int:
    """List them."""
    known = proofs.here()
    chosen = choices.chosen(arguments.area, arguments.case)
    entries = [_entry(name, case, known) for name, case in chosen.items()]
    if arguments.output == "json":
        from whybox.views import json

        print(json.data(entries))
        return OK
    from whybox.views import table

    table.show(
        ("case", "lesson", "question", "lab", "proof"),
        [_row(entry) for entry in entries],
        colour=choices.colour(sys.stdout.isatty()),
    )
    many = len(cases.names())
    kernel = os.uname().release
    choices.note(f"{many} cases; proof: on Linux {kernel}; whybox explain CASE tells one whole")
    return OK


def _entry(name: str, case: AnyCase, known: Mapping[str, Outcome]) -> Entry:
    lab = load(name)
    return Entry(
        case=name,
        title=case.title,
        question=case.question,
        question_zh=case.question_zh,
        lesson=case.lesson,
        explains=case.explains,
        lab=Made(ways=1 + len(lab.variants), look_alikes=len(lab.look_alikes)),
        proof=_proved(known.get(name)),
    )


def _proved(outcome: Outcome | None) -> Proved:
    if outcome is None:
        return Proved(state="not run")
    said = outcome.says
    return Proved(state=outcome.state, says=said, at=outcome.at, version=outcome.version)


def _row(entry: Entry) -> tuple[str, ...]:
    question = entry.question_zh if _reads_chinese() else entry.question
    lab = f"{entry.lab.ways} ways, {entry.lab.look_alikes} look-alikes"
    return entry.case, entry.lesson, question, lab, _state(entry.proof)


def _state(proof: Proved) -> str:
    """
    >>> _state(Proved(state="not run"))
    'not run'
    """
    if proof.at is None:
        return proof.state
    return f"{proof.state}, {ago(time.time() - proof.at)} ago"


def _reads_chinese() -> bool:
    """As the locale says it, the most particular first (locale(7))."""
    said = (os.environ.get(name) for name in ("LC_ALL", "LC_MESSAGES", "LANG"))
    return next((word for word in said if word), "").startswith("zh")
