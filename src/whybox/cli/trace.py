"""``whybox trace``: open the kernel, for one container and for some time."""

import argparse
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from types import FrameType
from typing import IO

from whybox import trace
from whybox.cli import OK, USAGE, Failure, choices
from whybox.kernel.host import Host
from whybox.kernel.target import Target
from whybox.trace.question import Answered, Options, Question, Told


def options(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.add_argument("question", nargs="?", help="one of: " + ", ".join(trace.QUESTIONS))
    parser.add_argument("target", nargs="?", help="as in whybox diagnose")
    parser.add_argument(
        "--for",
        dest="seconds",
        type=choices.seconds,
        default=choices.seconds("10s"),
        metavar="TIME",
        help="how long: 10s, 500ms, 1m (default 10s)",
    )
    parser.add_argument(
        "--wait",
        type=choices.seconds,
        default=0.0,
        metavar="TIME",
        help="wait so long for a container that is not there yet",
    )
    parser.add_argument(
        "-o", "--output", default="text", help="text, json, or a picture that the question has"
    )
    parser.add_argument("-f", "--file", help="write to this file instead of standard output")
    parser.add_argument(
        "--frequency", type=int, default=199, metavar="HZ", help="hot: samples a second (199)"
    )
    parser.add_argument(
        "--slower", type=choices.seconds, metavar="TIME", help="tell single events from here on"
    )
    parser.add_argument("--function", metavar="NAME", help="functions: which")
    parser.add_argument("--depth", type=int, metavar="N", help="functions: what it calls, N deep")
    parser.add_argument("--list", metavar="PATTERN", help="functions: which there are, and stop")


def run(arguments: argparse.Namespace) -> int:
    """Ask, and tell as it comes."""
    if arguments.question is None:
        return _questions()
    if arguments.question not in trace.QUESTIONS:
        raise Failure(f"there is no question {arguments.question!r}: see whybox trace", USAGE)
    if arguments.list is not None:
        return _functions(arguments)
    if not 1 <= arguments.frequency <= 10_000:
        raise Failure("--frequency is from 1 to 10000 samples a second", USAGE)
    question = trace.load(arguments.question)
    options = _options(arguments, question)
    if arguments.target is None:
        raise Failure(f"name a container: whybox trace {arguments.question} NAME", USAGE)
    _ask(arguments, question, options)
    return OK


def _questions() -> int:
    for name, answers in trace.QUESTIONS.items():
        print(f"  {name:<14}{answers}")
    print("\nask one: whybox trace QUESTION TARGET --for 10s")
    return OK


def _functions(arguments: argparse.Namespace) -> int:
    if arguments.question != "functions":
        raise Failure("--list goes with functions", USAGE)
    from whybox.trace.functions import listed

    for name in listed(Host(), arguments.list):
        print(name)
    return OK


def _options(arguments: argparse.Namespace, question: Question) -> Options:
    from whybox.views import trace as views

    forms = ("text", "json", *views.pictures(arguments.question))
    if arguments.output not in forms:
        raise Failure(
            f"{arguments.question} has no {arguments.output!r}: {', '.join(forms)}", USAGE
        )
    options = Options(
        frequency_hz=arguments.frequency,
        slower_ns=None if arguments.slower is None else round(arguments.slower * 1e9),
        function=arguments.function,
        depth=arguments.depth,
    )
    if (wrong := question.check(options)) is not None:
        raise Failure(wrong, USAGE)
    return options


def _ask(arguments: argparse.Namespace, question: Question, options: Options) -> None:
    from whybox.trace.ask import ask

    host = Host(window_seconds=arguments.seconds)
    target = _awaited(host, arguments.target, arguments.wait)
    with _opened(arguments.file) as file, _stopped_by_signals() as stop:
        for told in ask(
            host,
            arguments.question,
            question,
            target,
            options,
            seconds=arguments.seconds,
            again=lambda: _found(Host(), arguments.target),
            stop=stop,
        ):
            _tell(arguments.question, target.name, arguments.output, told, file)


@contextmanager
def _stopped_by_signals() -> Iterator[Event]:
    """Ctrl-C and SIGTERM ask for the answer so far; a second one insists."""
    stop, before = Event(), {}

    def asked(number: int, frame: FrameType | None) -> None:
        stop.set()
        signal.signal(number, signal.default_int_handler)

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, asked)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _awaited(host: Host, word: str, seconds: float) -> Target:
    import time

    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and _found(host, word) is None:
        time.sleep(0.1)
        host.next_moment()
    [target] = choices.resolved(host, (word,), everything=False)
    if not target.alive:
        raise Failure(f"{target.name} is not running, so there is nothing to trace")
    return target


def _found(host: Host, word: str) -> Target | None:
    from whybox.runtimes import resolve

    try:
        found = resolve.resolve(host, (word,)).targets
    except (resolve.TargetError, OSError):
        return None
    return found[0] if len(found) == 1 and found[0].alive else None


@contextmanager
def _opened(name: str | None) -> Iterator[IO[str]]:
    if name is None:
        yield sys.stdout
        return
    try:
        file = open(name, "w", encoding="utf-8")  # noqa: SIM115 -- closed below
    except OSError as error:
        raise Failure(f"{name} could not be written: {error.strerror}") from None
    with file:
        yield file


def _tell(question: str, name: str, output: str, told: Told, file: IO[str]) -> None:
    from whybox.views import trace as views

    if output == "json":
        import msgspec

        file.write(msgspec.json.encode(told).decode() + os.linesep)
    elif output == "text":
        file.write("".join(f"{line}\n" for line in views.text(question, told)))
    elif isinstance(told, Answered):
        file.write(views.pictures(question)[output](told.answer, f"{question} of {name}"))
    else:
        # What is told besides must not stand in the picture.
        for line in views.text(question, told):
            if line:
                print(line, file=sys.stderr)
    file.flush()
