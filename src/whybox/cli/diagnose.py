"""``whybox diagnose``: say why a container is slow, stuck, killed or cut off."""

import argparse
import sys
import time
from collections.abc import Callable

from whybox.cli import FOUND, NOTHING, OK, USAGE, Failure, choices
from whybox.cli.run import terminal_columns
from whybox.diagnose import diagnose, judge
from whybox.kernel import dns, netsysctl
from whybox.kernel.host import Host, printable
from whybox.model import AnyCase, Report, Severity

#: Which case answers a question that a person asks by an option.
ANSWERS = {"sysctl": "network/sysctl_not_inherited", "lookup": "network/name_unresolved"}


def options(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.add_argument("target", nargs="*", help="a name, an id, pid://1, cgroup:///x, self, …")
    parser.add_argument("--all", action="store_true", help="every container of this machine")
    choices.add_window(parser)
    choices.add_cases(parser)
    choices.add_output(parser, "text", "json", "md")
    parser.add_argument(
        "--fail-on",
        choices=[s.value for s in Severity],
        help="exit with 1 when something at least this severe is found",
    )
    parser.add_argument(
        "--to",
        type=choices.endpoint,
        metavar="HOST:PORT",
        help="try this TCP port from the container, and walk the way there hop by hop",
    )
    parser.add_argument(
        "--picture", metavar="FILE", help="also draw the way that --to walked (SVG)"
    )
    parser.add_argument("--from", dest="file", help="judge what whybox capture kept in this file")
    parser.add_argument(
        "--sysctl",
        metavar="KEY",
        help="explain one network parameter, such as net.core.somaxconn, and nothing else",
    )
    parser.add_argument(
        "--lookup",
        metavar="NAME",
        help="ask the container's nameservers for this name, and tell what they say",
    )
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="show all at length, clear cases too"
    )


def run(arguments: argparse.Namespace) -> int:
    """Diagnose, print, and tell by the exit status whether to worry."""
    if arguments.file and arguments.to:
        raise Failure("--to tries something now: it cannot be said with --from", USAGE)
    if arguments.picture and not (arguments.to or arguments.file):
        raise Failure("--picture draws a way: say --to HOST:PORT", USAGE)
    if not arguments.file:
        choices.whom(arguments.target, everything=arguments.all)
    elif arguments.target or arguments.all:
        raise Failure("--from judges what is in the file: name no container beside it", USAGE)
    asked = _asked(arguments)
    # A question of its own is answered by its own case, and at length.
    arguments.verbose |= bool(asked)
    cases = choices.chosen(arguments.area, [*arguments.case, *map(ANSWERS.__getitem__, asked)])
    report = _recorded(arguments, cases) if arguments.file else _live(arguments, cases, asked)
    print(_shown(report, arguments))
    if arguments.picture:
        _draw(report, arguments.picture, arguments.to)
    return _status(report, arguments.fail_on)


def _draw(report: Report, path: str, to: tuple[str, int] | None) -> None:
    from whybox.views import path_svg

    walked = [(d.target.name, f) for d in report.targets for f in d.findings if f.hops]
    if not walked:
        choices.note("no way was walked, so nothing was drawn")
        return
    name, finding = walked[0]
    title = f"{name}: {finding.case}"
    if to is not None:
        title = f"{name} → {to[0]}:{to[1]}"
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(path_svg.svg(finding.hops, title))
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}") from None


def _recorded(arguments: argparse.Namespace, cases: dict[str, AnyCase]) -> Report:
    from whybox.record import capture

    try:
        kept = capture.read(arguments.file, cases)
    except capture.RecordingError as error:
        raise Failure(str(error)) from None
    return _said(judge(kept.window, cases), kept.host)


def _asked(arguments: argparse.Namespace) -> dict[str, str]:
    """The questions that only one case answers, each with what it is about."""
    asked = {word: vars(arguments)[word] for word in ANSWERS if vars(arguments)[word] is not None}
    if asked and arguments.file:
        raise Failure(f"--{next(iter(asked))} asks a running container, not a file", USAGE)
    if "sysctl" in asked and netsysctl.key(asked["sysctl"]) is None:
        word = printable(asked["sysctl"])
        raise Failure(f"{word!r} is no network parameter such as net.core.somaxconn", USAGE)
    if "lookup" in asked and not dns.is_name(asked["lookup"]):
        raise Failure(f"{printable(asked['lookup'])!r} cannot be a name of a host", USAGE)
    return asked


def _live(
    arguments: argparse.Namespace, cases: dict[str, AnyCase], asked: dict[str, str]
) -> Report:
    to = choices.address(arguments.to)
    host = Host(window_seconds=arguments.window, asked=asked, to=to)
    targets = choices.resolved(host, arguments.target, everything=arguments.all)
    if not targets:
        raise Failure("no container is running here")
    return _said(diagnose(host, targets, cases, wait=waiting()), host)


def _said(report: Report, host: Host) -> Report:
    """Its cures in the words of each target's runtime."""
    if not any(found.cures for one in report.targets for found in one.findings):
        return report  # most often, and then nobody needs to know those words
    from whybox.runtimes.commands import with_commands

    return with_commands(report, host)


def waiting() -> Callable[[float], None]:
    """Wait for the window; on a terminal, say so."""
    if not sys.stderr.isatty():
        return time.sleep

    def wait(seconds: float) -> None:
        if seconds >= 1:
            print(f"watching for {seconds:g} s …", end="\r", file=sys.stderr, flush=True)
        time.sleep(seconds)
        if seconds >= 1:
            print(" " * 40, end="\r", file=sys.stderr, flush=True)

    return wait


def _shown(report: Report, arguments: argparse.Namespace) -> str:
    if arguments.output == "json":
        from whybox.views import json

        return json.report(report)
    if arguments.output == "md":
        from whybox.views import markdown

        return markdown.report(report)
    from whybox.views import text

    width = terminal_columns()
    style = text.Style(colour=choices.colour(sys.stdout.isatty()), width=min(width, 120))
    return text.report(report, style, verbose=arguments.verbose)


def _status(report: Report, fail_on: str | None) -> int:
    from whybox.model import Verdict

    findings = [f for d in report.targets for f in d.findings]
    worst = report.worst()
    if fail_on is not None and worst is not None and worst.rank >= Severity(fail_on).rank:
        return FOUND
    if findings and all(f.verdict is Verdict.UNKNOWN for f in findings):
        return NOTHING
    return OK
