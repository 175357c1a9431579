"""``whybox lab``: make a trouble on purpose in a disposable container."""

import argparse
import os
import sys
from collections.abc import Callable

from whybox import cases
from whybox.cli import FOUND, OK, USAGE, Failure, choices
from whybox.diagnose import diagnose
from whybox.kernel.host import Host
from whybox.lab.box import Box
from whybox.lab.cure import change_of, new_box, treated
from whybox.lab.lab import Lab
from whybox.lab.prove import impossible, load
from whybox.lab.residue import left_behind, traces
from whybox.model import AnyCase, Finding, Report, Verdict

_NOTHING = "nothing of it is left: no group, mount, interface or process"


def options(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="list|run|shell")
    listing = verbs.add_parser("list", help="list the labs and whether they can run here")
    choices.add_output(listing, "text", "json")
    for verb, does in (
        ("run", "make the trouble, diagnose it, apply the cure, diagnose again"),
        ("shell", "make the trouble and open a shell in the container"),
    ):
        one = verbs.add_parser(verb, help=does)
        one.add_argument("case", help="such as cpu/throttled")
        one.add_argument("--i-mean-it", action="store_true", help="even if it can harm the machine")


def run(arguments: argparse.Namespace) -> int:
    """One of its verbs."""
    if arguments.verb == "list":
        return _list(arguments.output)
    if arguments.case not in cases.names():
        raise Failure(f"there is no case {arguments.case!r}: see whybox lab list", USAGE)
    if os.geteuid() != 0:
        raise Failure("a lab makes namespaces and control groups: run it as root")
    lab = load(arguments.case)
    reason = impossible(lab, Host(), may_break_kernel=arguments.i_mean_it)
    if reason is not None:
        raise Failure(f"{arguments.case} cannot be made here: {reason}")
    return _VERBS[arguments.verb](arguments.case, lab)


def _list(output: str) -> int:
    host = Host()
    rows = []
    for name in cases.names():
        lab = load(name)
        reason = impossible(lab, host, may_break_kernel=False)
        rows.append((name, lab.breaks.value, reason, tuple(lab.look_alikes), tuple(lab.variants)))
    if output == "json":
        from whybox.views import json

        keys = ("case", "breaks", "impossible", "look_alikes", "variants")
        print(json.data([dict(zip(keys, row, strict=True)) for row in rows]))
        return OK
    from whybox.views import table

    table.show(
        ("lab", "breaks", "can run here", "look-alikes"),
        [(n, b, "✓" if why is None else f"? {why}", ", ".join(a)) for n, b, why, a, _ in rows],
        colour=choices.colour(sys.stdout.isatty()),
    )
    return OK


def _run(name: str, lab: Lab) -> int:
    case, before = {name: cases.load(name)}, traces()
    _headline(f"1. Make it happen: {case[name].title}, in a box of our own")
    with new_box(name) as box:
        lab.reproduce(box)
        found = _diagnosed(box, lab, case)
        change = change_of(found)
        if found.verdict is not Verdict.FOUND or change is None:
            raise Failure(f"{name} was not found in its own lab: see whybox prove {name}", FOUND)
        _headline(f"2. Apply the cure that was printed: {change}")
        with treated(name, lab, box, change) as cured:
            after = _diagnosed(cured, lab, case)
    left = left_behind(before)
    _headline(f"3. The box is gone; {'of it is left: ' + ', '.join(left) if left else _NOTHING}")
    return OK if after.verdict is Verdict.CLEAR and not left else FOUND


def _diagnosed(box: Box, lab: Lab, case: dict[str, AnyCase]) -> Finding:
    from whybox.runtimes.commands import with_commands

    host = Host(window_seconds=lab.window_seconds)
    report = with_commands(diagnose(host, [box.target()], case), host)
    _show(report)
    return report.targets[0].findings[0]


def _show(report: Report) -> None:
    from whybox.views import text

    style = text.Style(colour=choices.colour(sys.stdout.isatty()))
    print(text.report(report, style, verbose=True))


def _headline(words: str) -> None:
    print(f"\n── {words}\n", flush=True)


def _shell(name: str, lab: Lab) -> int:
    with new_box(name) as box:
        lab.reproduce(box)
        choices.note(f"{name} is happening in here; from outside: whybox diagnose {box.name}")
        return box.shell((os.environ.get("SHELL", "/bin/sh"),))


_VERBS: dict[str, Callable[[str, Lab], int]] = {"run": _run, "shell": _shell}
