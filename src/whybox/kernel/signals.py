"""Signals: their names, and who sent which to whom (the tracepoint ``signal:signal_generate``).

They are watched by a BPF sensor, which tells only the container's own; where there is none, by the
same tracepoint as text.

>>> number("SIGQUIT"), number("term"), number("15"), number("RTMIN+3"), number("nonsense")
(3, 15, 15, 37, None)
>>> name(15), name(37), has(0x4000, 15)
('SIGTERM', 'SIGRTMIN+3', True)
"""

import re
import signal as standard
from collections.abc import Container, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from enum import IntEnum
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct

from whybox.kernel.host import Host
from whybox.kernel.target import Target

if TYPE_CHECKING:
    from whybox.kernel.sensors.signals import Signals
    from whybox.kernel.tracefs import Attempt, Recorder
    from whybox.kernel.tracetext import Event

INT = int(standard.SIGINT)
KILL = int(standard.SIGKILL)
TERM = int(standard.SIGTERM)
CHLD = int(standard.SIGCHLD)

#: ``code`` of a signal by tkill(2), which raise(3) uses (include/uapi/asm-generic/siginfo.h).
SI_TKILL = -6

#: … of one by the kernel itself.
SI_KERNEL = 128

#: As libc counts them: the kernel's first two real-time signals are libc's own (signal(7)).
RTMIN = int(standard.SIGRTMIN)
RTMAX = int(standard.SIGRTMAX)

#: The sensor's name in ``Host.sensor``: all cases and targets share one.
SENSOR = "signals"
POINT = "signal/signal_generate"

#: Not recorded, since nobody stops a container with them and some programs send thousands a
#: second: children's ends, timers, profilers, Go's pre-emption (SIGURG).
NOISE = (
    int(standard.SIGCHLD),
    int(standard.SIGALRM),
    int(standard.SIGVTALRM),
    int(standard.SIGPROF),
    int(standard.SIGURG),
)
_WANTED = " && ".join(f"sig != {number}" for number in NOISE)
_UNWANTED = sum(1 << number - 1 for number in NOISE)

_ENGINE_KILL = re.compile(r"\bkill\b.*\bsignal=(\S+)")
_REAL_TIME = re.compile(r"RT(MIN|MAX)(?:([+-]\d{1,2}))?")


class Result(IntEnum):
    """What became of a signal (include/trace/events/signal.h)."""

    DELIVERED = 0
    IGNORED = 1
    ALREADY_PENDING = 2
    OVERFLOW = 3
    """A real-time signal for which there was no room; its sender was told (EAGAIN)."""
    LOST = 4
    """… and its sender was not."""


class Sent(Struct, frozen=True, kw_only=True):
    """One signal that somebody sent."""

    signal: int
    pid: int
    """Whom to, by the host's pid."""
    result: int
    code: int
    """0: ``kill``; -6: ``tkill``; 128: the kernel itself."""
    seconds: float
    """Of the monotonic clock."""
    sender_pid: int
    sender: str
    """What the sender calls itself."""
    comm: str = ""
    """What the one whom it is for calls itself."""

    @property
    def by_itself(self) -> bool:
        """Whether a program sent it to itself; ``raise`` is a tkill, from whichever thread."""
        return self.sender_pid == self.pid or self.code == SI_TKILL


class Tally(Struct, frozen=True, kw_only=True):
    """Signals of one kind that met one fate."""

    signal: int
    result: int
    count: int
    senders: tuple[str, ...]
    """A few of those who sent them, as ``name-pid``."""


class Source(Protocol):
    """Where the signals of a window come from."""

    def sent(self) -> tuple[Sent, ...]:
        """All so far, in no order."""

    @property
    def complete(self) -> bool:
        """Whether nothing was lost."""


class Watched(Struct, frozen=True, kw_only=True):
    """The signals of one window, or why they could not be watched."""

    reason: str | None = None
    source: Source | None = None

    def sent_to(self, pid: int) -> tuple[Sent, ...]:
        """What was sent to one process so far, oldest first."""
        if self.source is None:
            return ()
        found = [sent for sent in self.source.sent() if sent.pid == pid]
        return tuple(sorted(found, key=lambda s: s.seconds))

    @property
    def complete(self) -> bool:
        """Whether nothing was lost."""
        return self.source is not None and self.source.complete


def number(name: str) -> int | None:
    """The number of a signal as engines write it; ``None``: there is no such signal."""
    word = name.strip().upper().removeprefix("SIG")
    if word.isascii() and word.isdigit():
        return int(word) if 1 <= int(word) <= RTMAX else None
    if real_time := _REAL_TIME.fullmatch(word):
        value = (RTMIN if real_time[1] == "MIN" else RTMAX) + int(real_time[2] or 0)
        return value if RTMIN <= value <= RTMAX else None
    known = standard.Signals.__members__.get(f"SIG{word}")
    return None if known is None else int(known)


def name(number: int) -> str:
    """The name of a signal, as ``kill -l`` has it."""
    if RTMIN < number <= RTMAX:
        return f"SIGRTMIN+{number - RTMIN}"
    try:
        return standard.Signals(number).name
    except ValueError:
        return f"signal {number}"


def has(mask: int, number: int) -> bool:
    """Whether a mask of ``/proc/PID/status`` has the signal: bit 0 is signal 1."""
    return bool(mask >> (number - 1) & 1)


def tallied(sent: Iterable[Sent], wanted: Container[int]) -> tuple[Tally, ...]:
    """Count them by signal and result."""
    kinds: dict[tuple[int, int], list[Sent]] = {}
    for one in sent:
        if one.signal in wanted:
            kinds.setdefault((one.signal, one.result), []).append(one)
    return tuple(
        Tally(
            signal=signal,
            result=result,
            count=len(found),
            senders=tuple(dict.fromkeys(f"{s.sender}-{s.sender_pid}" for s in found))[:3],
        )
        for (signal, result), found in kinds.items()
    )


def engine_sent(events: Iterable[str], wanted: Container[int | None]) -> bool:
    """Whether an engine's events tell that it sent such a signal since the container began."""
    told = False
    for event in events:
        if kill := _ENGINE_KILL.search(event):
            told = told or number(kill[1]) in wanted
        elif event.split(" ")[0] in ("start", "restart", "die"):
            told = False  # that was an earlier life
    return told


@contextmanager
def watch(host: Host, target: Target) -> Iterator[Watched]:
    """The signals of this window to a container, by a sensor that all who watch share."""
    if host.window_seconds <= 0:
        yield Watched(reason="nothing can be sent in a window of no length")
        return
    with ExitStack() as stack:
        yield _sensed(host, target, stack) or _printed(host, stack)


def _sensed(host: Host, target: Target, stack: ExitStack) -> Watched | None:
    from whybox.kernel.sensors import signals as sensor  # loads libbpf: only for a window

    try:
        attached = stack.enter_context(
            host.sensor(SENSOR, lambda: sensor.attached(host, _UNWANTED))
        )
        slot = attached.scope.add(host, target)
    except OSError:
        return None  # the text of the same tracepoint is asked instead
    return Watched(source=_Sensor(attached, slot))


def _printed(host: Host, stack: ExitStack) -> Watched:
    from whybox.kernel.tracefs import attempt  # only for a window, and without BPF

    def attach() -> "AbstractContextManager[Attempt]":
        return attempt(host, [POINT], {POINT: _WANTED})

    recording: Attempt = stack.enter_context(host.sensor(f"{SENSOR} as text", attach))
    recorder = recording.recorder
    return Watched(reason=recording.reason, source=None if recorder is None else _Text(recorder))


class _Sensor:
    """By the BPF sensor: one container's."""

    def __init__(self, attached: "Signals", slot: int) -> None:
        self._attached, self._slot = attached, slot

    def sent(self) -> tuple[Sent, ...]:
        return tuple(
            Sent(
                signal=one.signal,
                pid=one.to_pid,
                result=one.result,
                code=one.code,
                seconds=one.at_ns / 1e9,
                sender_pid=one.from_pid,
                sender=one.from_comm,
                comm=one.to_comm,
            )
            for one in self._attached.all()
            if one.slot == self._slot
        )

    @property
    def complete(self) -> bool:
        return self._attached.lost == 0


class _Text:
    """By the tracepoint's text: the whole host's."""

    def __init__(self, recorder: "Recorder") -> None:
        self._recorder = recorder

    def sent(self) -> tuple[Sent, ...]:
        return tuple(_sent(event) for event in self._recorder.read() if "pid" in event.fields)

    @property
    def complete(self) -> bool:
        return self._recorder.complete


def _sent(event: "Event") -> Sent:
    said = event.fields
    return Sent(
        signal=int(said["sig"]),
        pid=int(said["pid"]),
        result=int(said["res"]),
        code=int(said["code"]),
        seconds=event.seconds,
        sender_pid=event.pid,
        sender=event.comm,
        comm=said.get("comm", ""),
    )
