"""The command line: the only place that parses argv, prints and exits.

Start-up is a feature: nothing is imported here that ``whybox --version`` does not need.
"""

import sys

#: Every command and what it does, in one line each. Its module is ``whybox.cli.<name>``.
COMMANDS = {
    "diagnose": "say why a container is slow, stuck, killed or cut off",
    "ps": "list all containers with one glance of their health",
    "inspect": "show what a container is made of",
    "explain": "explain one case: what happens in the kernel, and the cure",
    "cases": "list all cases",
    "check": "show what this kernel and these rights let whybox see",
    "lab": "make a trouble on purpose in a disposable container",
    "trace": "open the kernel: ask one question of it about a container",
    "prove": "prove every case on this very kernel",
    "capture": "keep the observations of one window in a file",
    "schema": "print the JSON schema of a report",
}

OK, FOUND, USAGE, NOTHING, BUG, INTERRUPTED = 0, 1, 2, 3, 70, 130


class Failure(Exception):
    """An expected failure: one sentence with the way out, and the exit status."""

    def __init__(self, sentence: str, status: int = NOTHING) -> None:
        super().__init__(sentence)
        self.status = status


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit status."""
    words = sys.argv[1:] if argv is None else argv
    if words in (["--version"], ["-V"]):
        from whybox import __version__

        print(f"whybox {__version__}")
        return OK
    if not words or words[0] in ("-h", "--help", "help"):
        print(_usage())
        return OK if words else USAGE
    if words[0] not in COMMANDS:
        return _complain(f"there is no command {words[0]!r}: see whybox --help", USAGE)
    from whybox.cli.run import guarded

    return guarded(words[0], words[1:])


def _usage() -> str:
    lines = [f"  {name:<10}{does}" for name, does in COMMANDS.items()]
    return "\n".join(
        (
            'whybox answers "why is my container …?" on Linux.',
            "",
            "usage: whybox COMMAND [OPTION…]",
            "",
            *lines,
            "",
            "Each command has its own --help. Start with: whybox diagnose NAME",
        )
    )


def _complain(sentence: str, status: int) -> int:
    print(f"whybox: {sentence}", file=sys.stderr)
    return status
