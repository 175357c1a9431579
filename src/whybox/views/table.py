"""Rows and columns for people: ``rich`` draws them, and is imported only here."""

import sys
from collections.abc import Sequence
from typing import TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from whybox.kernel.host import printable

#: Wide enough that nothing is cut in a pipe; a terminal's own width is taken where there is one.
PIPE_WIDTH = 200


def show(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    colour: bool,
    stream: TextIO | None = None,
) -> None:
    """Print a table; cells are text from anywhere, so none of it is taken for markup."""
    out = sys.stdout if stream is None else stream
    console = Console(
        file=out,
        no_color=not colour,
        highlight=False,
        width=None if out.isatty() else PIPE_WIDTH,
    )
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(_cell(text) for text in row))
    console.print(table)


def _cell(text: str) -> Text:
    shown = Text(printable(text))
    mark = {"✓": "green", "✗": "bold red", "!": "yellow", "?": "dim"}.get(text[:1])
    if mark is not None:
        shown.stylize(mark, 0, 1)
    return shown
