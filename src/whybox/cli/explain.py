"""``whybox explain``: one case, told from the kernel up."""

import argparse
import sys

from whybox import cases
from whybox.cli import OK, USAGE, Failure, choices


def options(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.add_argument("case", help="such as cpu/throttled")
    choices.add_output(parser, "text", "md", "json")


def run(arguments: argparse.Namespace) -> int:
    """Print the case's own page."""
    name = arguments.case
    if name not in cases.names():
        close = [known for known in cases.names() if name in known]
        hint = f": did you mean {', '.join(close)}?" if close else ": see whybox cases"
        raise Failure(f"there is no case {name!r}{hint}", USAGE)
    with open(cases.readme(name), encoding="utf-8") as file:
        page = file.read()
    _print(name, page, arguments.output)
    return OK


def _print(name: str, page: str, output: str) -> None:
    if output == "json":
        from whybox.views import json

        case = cases.load(name)
        print(json.data({"case": name, "title": case.title, "page": page}))
    elif output == "text" and sys.stdout.isatty():
        from rich.console import Console
        from rich.markdown import Markdown

        plain = not choices.colour(stream_is_terminal=True)
        Console(no_color=plain, width=None).print(Markdown(page))
    else:
        print(page, end="")
