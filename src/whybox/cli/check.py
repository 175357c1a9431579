"""``whybox check``: what this kernel and these rights let whybox see."""

import argparse
import os
import sys

from msgspec import Struct

from whybox.cli import OK, choices
from whybox.kernel.host import Host
from whybox.sight import Sight, sights


class Check(Struct, frozen=True, kw_only=True):
    """The machine, and what can be seen of it."""

    kernel: str
    sights: tuple[Sight, ...]


def options(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    choices.add_output(parser, "text", "json")


def run(arguments: argparse.Namespace) -> int:
    """Look, and say each gap with its reason."""
    seen = Check(kernel=os.uname().release, sights=sights(Host()))
    if arguments.output == "json":
        from whybox.views import json

        print(json.data(seen))
        return OK
    from whybox.views import table

    print(f"Linux {seen.kernel}")
    table.show(
        ("", "what", "how", "lets whybox see"),
        [("✓" if s.gap is None else "✗", s.what, s.gap or s.says, s.lets) for s in seen.sights],
        colour=choices.colour(sys.stdout.isatty()),
    )
    return OK
