"""``whybox capture``: keep the observations of one window, to be judged later or elsewhere."""

import argparse

from whybox.cli import OK, Failure, choices
from whybox.cli.diagnose import waiting
from whybox.diagnose import Window, judge, observe
from whybox.kernel.host import Host
from whybox.model import AnyCase


def options(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.add_argument("target", nargs="*", help="as in whybox diagnose")
    parser.add_argument("--all", action="store_true", help="every container of this machine")
    parser.add_argument("-f", "--file", required=True, help="where to keep it")
    choices.add_window(parser)
    choices.add_cases(parser)


def run(arguments: argparse.Namespace) -> int:
    """Watch, keep, and say how to judge it."""
    from whybox.record import capture

    choices.whom(arguments.target, everything=arguments.all)
    cases = choices.chosen(arguments.area, arguments.case)
    host = Host(window_seconds=arguments.window)
    targets = choices.resolved(host, arguments.target, everything=arguments.all)
    window = observe(host, targets, cases, wait=waiting())
    try:
        size = capture.write(arguments.file, window, _layout(window, cases))
    except OSError as error:
        raise Failure(f"{arguments.file} could not be written: {error.strerror}") from None
    choices.note(f"kept {size} bytes; judge them by: whybox diagnose --from {arguments.file}")
    return OK


def _layout(window: Window, cases: dict[str, AnyCase]) -> dict[str, bytes]:
    """The kernel files that the commands of its cures depend on."""
    from whybox.runtimes.commands import with_commands

    host = Host()
    host.optional_text("/proc/self/mountinfo")
    with_commands(judge(window, cases), host)
    return host.said()
