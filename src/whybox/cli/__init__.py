"""The command line: the only place that parses argv, prints and exits.

Start-up is a feature: nothing is imported here that ``whybox --version`` does not need.
"""

import gc
import os
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


#: Commands that only look and print: nothing is left behind that the interpreter's end must see to.
_ONLY_LOOK = frozenset({"diagnose", "ps", "inspect", "explain", "cases", "check", "schema"})


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit status. As the whole program (without ``argv``) it may not return.

    A fifth of a short diagnosis would be the collector of cycles, of which importing makes many
    and frees none, and the interpreter's end, which takes everything apart.
    """
    if argv is not None:
        return _run(argv)
    gc.set_threshold(50_000, 20, 100)
    status = _run(sys.argv[1:])
    if sys.argv[1:2] and sys.argv[1] in _ONLY_LOOK:
        _leave(status)
    return status


def _leave(status: int) -> None:
    """End the program here, unless something is still to be written, which Python then tells of."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        return
    os._exit(status)


def _run(words: list[str]) -> int:
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
