"""``whybox cases``: the catalogue."""

import argparse
import sys

from msgspec import Struct

from whybox import cases
from whybox.cli import OK, choices


class Entry(Struct, frozen=True, kw_only=True):
    """One case, as the catalogue lists it."""

    case: str
    title: str
    question: str
    question_zh: str
    lesson: str
    explains: tuple[str, ...]


def options(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    choices.add_cases(parser)
    choices.add_output(parser, "text", "json")


def run(arguments: argparse.Namespace) -> int:
    """List them."""
    entries = [
        Entry(
            case=name,
            title=case.title,
            question=case.question,
            question_zh=case.question_zh,
            lesson=case.lesson,
            explains=case.explains,
        )
        for name, case in choices.chosen(arguments.area, arguments.case).items()
    ]
    if arguments.output == "json":
        from whybox.views import json

        print(json.data(entries))
        return OK
    from whybox.views import table

    table.show(
        ("case", "lesson", "question", "问题"),
        [(e.case, e.lesson, e.question, e.question_zh) for e in entries],
        colour=choices.colour(sys.stdout.isatty()),
    )
    choices.note(f"{len(cases.names())} cases; whybox explain CASE tells one whole")
    return OK
