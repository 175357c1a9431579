"""Running one command: every way it can end becomes one sentence and an exit status."""

import argparse
import os
import signal
import sys
from importlib import import_module
from types import FrameType, ModuleType, TracebackType
from typing import NoReturn

from whybox.cli import BUG, COMMANDS, INTERRUPTED, OK, USAGE, Failure
from whybox.kernel.host import printable


def terminal_columns(unknown: int = 110) -> int:
    """How wide the terminal is, as ``shutil`` tells it, whose import takes 3 ms."""
    said = os.environ.get("COLUMNS", "")
    if said.isdecimal() and int(said) > 0:
        return int(said)
    if sys.__stdout__ is None:
        return unknown
    try:
        return os.get_terminal_size(sys.__stdout__.fileno()).columns or unknown
    except (ValueError, OSError):
        return unknown  # closed, or no terminal


class Help(argparse.HelpFormatter):
    """Help as wide as the terminal: one is made for each option, and imports ``shutil`` to ask."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=terminal_columns(80) - 2)


class Parser(argparse.ArgumentParser):
    """A parser whose complaint is one sentence."""

    def error(self, message: str) -> NoReturn:
        raise Failure(f"{printable(message)}: see {self.prog} --help", USAGE)


def guarded(command: str, words: list[str]) -> int:
    """Run a command, and end it well whatever happens."""
    signal.signal(signal.SIGTERM, _terminated)
    try:
        status = _run(import_module(f"whybox.cli.{command}"), command, words)
        sys.stdout.flush()
        return status
    except Failure as failure:
        return _say(str(failure), failure.status)
    except BrokenPipeError:
        # The reader (``head``) has seen enough; the interpreter must not complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        return _say("interrupted", INTERRUPTED)
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        return _say(f"{name}{error.strerror or error}", Failure("").status)
    except Exception as error:  # noqa: BLE001 -- the outermost place: a bug is told as one
        return _say(_bug(error), BUG)


def _run(module: ModuleType, command: str, words: list[str]) -> int:
    parser = Parser(prog=f"whybox {command}", description=COMMANDS[command], formatter_class=Help)
    module.options(parser)
    try:
        arguments = parser.parse_args(words)
    except SystemExit as end:  # --help
        return int(end.code or 0)
    status: int = module.run(arguments)
    return status


def _terminated(signum: int, frame: FrameType | None) -> NoReturn:
    """SIGTERM ends it as Ctrl-C does: what is attached is detached on the way out."""
    raise KeyboardInterrupt


def _bug(error: Exception) -> str:
    if os.environ.get("WHYBOX_DEBUG"):
        raise error
    where = _innermost(error.__traceback__)
    kind = type(error).__name__
    return f"a bug in whybox: {kind}: {error} ({where}); WHYBOX_DEBUG=1 shows the whole trace"


def _innermost(trace: TracebackType | None) -> str:
    where = "?"
    while trace is not None:
        code = trace.tb_frame.f_code
        where = f"{os.path.basename(code.co_filename)}:{trace.tb_lineno}"
        trace = trace.tb_next
    return where


def _say(sentence: str, status: int) -> int:
    print(f"whybox: {printable(sentence)}", file=sys.stderr)
    return status
