"""The loop of every trace: attach, tell what happens, answer, say what it cost."""

import time
from collections.abc import Callable, Iterator
from threading import Event

from whybox.kernel.host import Host
from whybox.kernel.target import Target, still_there
from whybox.trace.question import (
    Answered,
    Begin,
    End,
    Happened,
    Noted,
    Options,
    Question,
    Session,
    Told,
)

#: How often events are taken out of the kernel's buffers.
POLL_SECONDS = 0.1

#: A container that ended is waited for so long: an engine may be starting it anew.
PATIENCE_SECONDS = 3.0

#: How often it is looked whether the container is still the same.
LOOK_SECONDS = 0.5

#: Where the container is now, or ``None``; asked when the one that was traced is gone.
Again = Callable[[], Target | None]


def ask(
    host: Host,
    name: str,
    question: Question,
    target: Target,
    options: Options,
    *,
    seconds: float,
    again: Again = lambda: None,
    stop: Event | None = None,
) -> Iterator[Told]:
    """Ask, and tell it line by line. ``stop`` ends the asking, not the telling: whoever presses
    Ctrl-C wants to see what was found so far.

    Raises OSError with a sentence where the question cannot be asked here.
    """
    spent = time.process_time_ns()
    with question.open(host, target, options) as session:
        yield Begin(
            question=name,
            target=target.name,
            seconds=seconds,
            attached=tuple(session.attached),
            notes=tuple(session.notes),
        )
        began = time.monotonic()
        follower = _Follower(host, target, question, session, again)
        yield from _watched(session, follower, seconds, stop or Event())
        took = time.monotonic() - began
        if stop is not None and stop.is_set():
            yield Noted(says=f"interrupted after {took:.1f} s")
        yield from (Happened(event=event) for event in session.events())
        yield Answered(answer=session.answer())
        yield End(
            seconds=took,
            cpu_ms=(time.process_time_ns() - spent) / 1e6,
            programs=session.cost(),
            lost=session.lost(),
        )


def _watched(
    session: Session, follower: "_Follower", seconds: float, stop: Event
) -> Iterator[Told]:
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0 and not (follower.over or stop.is_set()):
        stop.wait(min(POLL_SECONDS, left))
        yield from (Happened(event=event) for event in session.events())
        yield from (Noted(says=says) for says in follower.look())


class _Follower:
    """Keeps an eye on the container: it may end, and be started anew under the same name."""

    def __init__(
        self, host: Host, target: Target, question: Question, session: Session, again: Again
    ) -> None:
        self.over = False
        self._host, self._target = host, target
        self._question, self._session, self._again = question, session, again
        self._began = self._looked = time.monotonic()
        self._ended: float | None = None

    def look(self) -> Iterator[str]:
        """What became of it since the last look."""
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        self._host.next_moment()
        if self._ended is None:
            if still_there(self._host, self._target):
                return
            self._ended = now
            yield f"it ended {now - self._began:.1f} s after the trace began"
        if self._question.adopts and (new := self._again()) is not None and new.alive:
            self._session.adopt(new)
            self._target, self._ended = new, None
            yield "it was started anew, and is traced on"
        elif not self._question.adopts or now - self._ended > PATIENCE_SECONDS:
            self.over = True
