"""Options that several commands share, and how their words become values."""

import argparse
import os
import re
import socket
import sys
from collections.abc import Sequence

from whybox import cases
from whybox.cli import USAGE, Failure
from whybox.kernel.host import Host, printable
from whybox.kernel.target import Target
from whybox.model import AnyCase

_UNITS = {"us": 1e-6, "ms": 0.001, "s": 1.0, "m": 60.0, "": 1.0}
LONGEST_WINDOW_SECONDS = 3600.0


def seconds(text: str) -> float:
    """A duration such as ``5s``, ``500ms`` or ``1m``; a bare number is seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(us|ms|s|m|)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration such as 5s, 500ms or 1m")
    value = float(match[1]) * _UNITS[match[2]]
    if value > LONGEST_WINDOW_SECONDS:
        raise argparse.ArgumentTypeError("a window is at most one hour")
    return value


def endpoint(text: str) -> tuple[str, int]:
    """``HOST:PORT``; an IPv6 address stands in brackets."""
    name, _, port = text.rpartition(":")
    name = name.removeprefix("[").removesuffix("]")
    if not name or not port.isascii() or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise argparse.ArgumentTypeError(f"{text!r} is no HOST:PORT such as 10.0.0.7:5432")
    return name, int(port)


def address(to: tuple[str, int] | None) -> tuple[str, int] | None:
    """The same with an address, which this machine's own resolver knows."""
    if to is None:
        return None
    try:
        found = socket.getaddrinfo(*to, type=socket.SOCK_STREAM)
    except OSError as error:
        raise Failure(f"{to[0]}: {error.strerror}; give its address instead") from None
    return str(found[0][4][0]), to[1]


def add_window(parser: argparse.ArgumentParser, default: str = "5s") -> None:
    """``--window``."""
    parser.add_argument(
        "--window",
        type=seconds,
        default=seconds(default),
        metavar="TIME",
        help=f"how long to watch: 5s, 500ms, 1m, 0s (default {default})",
    )


def add_output(parser: argparse.ArgumentParser, *kinds: str) -> None:
    """``-o``."""
    parser.add_argument(
        "-o", "--output", choices=kinds, default=kinds[0], help=f"default {kinds[0]}"
    )


def add_cases(parser: argparse.ArgumentParser) -> None:
    """``--area`` and ``--case``."""
    parser.add_argument("--area", metavar="AREA,…", help=f"only these: {', '.join(cases.AREAS)}")
    parser.add_argument(
        "--case", action="append", default=[], metavar="CASE", help="only this case; repeatable"
    )


def chosen(areas: str | None, named: Sequence[str]) -> dict[str, AnyCase]:
    """The cases that the options ask for, loaded."""
    for area in (areas or "").split(",") if areas else ():
        if area not in cases.AREAS:
            raise Failure(f"there is no area {area!r}: {', '.join(cases.AREAS)}", USAGE)
    for name in named:
        if name not in cases.names():
            raise Failure(f"there is no case {name!r}: see whybox cases", USAGE)
    wanted = tuple(named) or tuple(
        name
        for name in cases.names()
        if areas is None or name.partition("/")[0] in areas.split(",")
    )
    return {name: cases.load(name) for name in wanted}


def note(sentence: str) -> None:
    """Something for the person, not for the pipe."""
    print(f"whybox: {printable(sentence)}", file=sys.stderr)


def whom(words: Sequence[str], *, everything: bool) -> None:
    """Refuse, before anything is done, words that name nobody or everybody and somebody."""
    if everything == bool(words):
        raise Failure("name a container, or say --all: see whybox ps", USAGE)


def resolved(host: Host, words: Sequence[str], *, everything: bool) -> tuple[Target, ...]:
    """The targets that the words name."""
    from whybox.runtimes import resolve

    try:
        found = resolve.everything(host) if everything else resolve.resolve(host, words)
    except resolve.TargetError as error:
        raise Failure(str(error)) from None
    for sentence in found.notes:
        note(sentence)
    return found.targets


def colour(stream_is_terminal: bool) -> bool:
    """Whether to use colour: on a terminal only, and never against ``NO_COLOR``."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return stream_is_terminal and not plain
