"""Asking a question in a test: the trace runs in a thread, the workload in the test."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from msgspec import Struct

from tests.live.conftest import require
from whybox import trace
from whybox.kernel.bpf import ability
from whybox.kernel.bpf.objects import Cost
from whybox.kernel.host import Host
from whybox.kernel.target import Target
from whybox.trace.ask import ask
from whybox.trace.question import Answered, Begin, End, Happened, Options

_E = TypeVar("_E")

#: Emulated, everything takes longer (vm/README.md): what a test waits for at most.
PATIENCE_SECONDS = 60.0


class Trace:
    """One asked question: stop it by leaving ``asked``, then look at what it told."""

    def __init__(self) -> None:
        self.begin: Begin | None = None
        self.happened: list[Any] = []
        self.answer: Any = None
        self.end: End | None = None
        self.error: BaseException | None = None
        self._attached, self._stop = threading.Event(), threading.Event()

    @property
    def programs(self) -> Cost:
        """What the programs cost."""
        assert self.end is not None
        assert self.end.programs is not None
        return self.end.programs

    @property
    def dropped(self) -> int:
        """Events that were lost for want of room.

        Besides, 7.3 leaves a program out now and then: while it runs on that CPU for a task that
        was preempted (measured). No test can help that; it is counted as lost, and told.
        """
        assert self.end is not None
        return self.end.lost - (0 if self.end.programs is None else self.end.programs.missed)

    def of(self, kind: type[_E]) -> list[_E]:
        """The events of one type."""
        return [event for event in self.happened if isinstance(event, kind)]

    def run(self, name: str, target: Target, options: Options) -> None:
        """In the thread."""
        try:
            for told in ask(
                Host(window_seconds=PATIENCE_SECONDS),
                name,
                trace.load(name),
                target,
                options,
                seconds=PATIENCE_SECONDS,
                stop=self._stop,
            ):
                self._hear(told)
        except BaseException as error:  # noqa: BLE001 -- told to the test
            self.error = error
        self._attached.set()

    def until_attached(self) -> None:
        """Wait until everything that happens now is seen."""
        assert self._attached.wait(PATIENCE_SECONDS)
        if self.error is not None:
            raise self.error

    def stop(self) -> None:
        """As Ctrl-C does."""
        self._stop.set()

    def _hear(self, told: Struct) -> None:
        match told:
            case Begin():
                self.begin = told
                self._attached.set()
            case Happened():
                self.happened.append(told.event)
            case Answered():
                self.answer = told.answer
            case End():
                self.end = told


@contextmanager
def asked(name: str, target: Target, options: Options | None = None) -> Iterator[Trace]:
    """Ask a question around what the test does; after it the trace holds all that was told."""
    require(ability.why_not(Host()))
    one = Trace()
    thread = threading.Thread(target=one.run, args=(name, target, options or Options()))
    thread.start()
    try:
        one.until_attached()
        yield one
        time.sleep(0.3)  # what was done last is on its way
    finally:
        one.stop()
        thread.join()
    if one.error is not None:
        raise one.error


def kernel_at_least(major: int, minor: int) -> bool:
    """Whether the running kernel is that new: for numbers that a kernel change moved, no more."""
    parts = os.uname().release.split(".")
    return (int(parts[0]), int(parts[1].split("-")[0])) >= (major, minor)
