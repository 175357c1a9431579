"""A question asked of the running kernel: what asking it takes, and what comes back.

Asking opens a ``Session``, which is attached as long as it is open: it gives events as they
happen and, at any time, the answer so far. All that comes back are frozen structs, so that text,
JSON and pictures show the same.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from msgspec import Struct

from whybox.kernel.bpf.objects import Cost
from whybox.kernel.host import Host
from whybox.kernel.target import Target


class Options(Struct, frozen=True, kw_only=True):
    """What may be asked for besides the container; each question heeds its own."""

    frequency_hz: int = 199
    """``hot``: samples a second on each CPU. Odd, so that no periodic work is always met or
    always missed."""
    slower_ns: int | None = None
    """``files``, ``disk``, ``reclaim``, ``blocked``, ``softirq``, ``syscalls``: single events are
    told from this length on; ``None``: what the question takes for slow."""
    function: str | None = None
    """``functions``: which."""
    depth: int | None = None
    """``functions``: tell what it calls, so many levels deep; ``None``: how long it takes."""


class Session(Protocol):
    """One question being asked. Made by ``Question.open``, detached when that is left."""

    @property
    def attached(self) -> Sequence[str]:
        """What was attached, as ``tp_btf/sched_switch``."""

    @property
    def notes(self) -> Sequence[str]:
        """What it cannot see here and why, a sentence each; empty where it sees everything."""

    def events(self) -> Sequence[Struct]:
        """What has happened since the last call, oldest first; empty where only sums are kept."""

    def answer(self) -> Struct:
        """The answer so far."""

    def lost(self) -> int:
        """How many events were lost so far: they are in no event, and may miss in the answer."""

    def cost(self) -> Cost | None:
        """What the kernel's programs cost so far; ``None``: the kernel does not count it."""

    def adopt(self, target: Target) -> None:
        """Watch this one as well: the container has been started anew."""


Opened = AbstractContextManager[Session]


class Question(Struct, frozen=True, kw_only=True):
    """One question."""

    open: Callable[[Host, Target, Options], Opened]
    """Attach. Raises ``Refused`` or another OSError, whose text is a sentence, where this kernel
    lets the question not be asked."""
    events: tuple[type[Struct], ...] = ()
    """The types of its events."""
    answer: type[Struct]
    adopts: bool = True
    """Whether a container that is started anew can be followed."""
    check: Callable[[Options], str | None] = lambda _: None
    """What is wrong with the options, or ``None``."""


class Told(Struct, frozen=True, kw_only=True, tag_field="kind"):
    """One line of what is told of a trace; of ``-o json``, one line of the stream."""


class Begin(Told, frozen=True, kw_only=True, tag="begin"):
    """The first line."""

    schema: str = "whybox.trace/1"
    question: str
    target: str
    seconds: float
    """As asked for."""
    attached: tuple[str, ...]
    notes: tuple[str, ...]


class Happened(Told, frozen=True, kw_only=True, tag="event"):
    """One event."""

    event: Any


class Noted(Told, frozen=True, kw_only=True, tag="note"):
    """What became of the container meanwhile."""

    says: str


class Answered(Told, frozen=True, kw_only=True, tag="answer"):
    """The answer."""

    answer: Any


class End(Told, frozen=True, kw_only=True, tag="end"):
    """The last line: what it cost."""

    seconds: float
    """As measured."""
    cpu_ms: float
    """Of whybox itself."""
    programs: Cost | None
    """Of what it attached."""
    lost: int
