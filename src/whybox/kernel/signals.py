"""Signals: their names, and who sent which to whom (the tracepoint ``signal:signal_generate``).

>>> number("SIGQUIT"), number("term"), number("15"), number("RTMIN+3"), number("nonsense")
(3, 15, 15, 37, None)
>>> name(15), name(37), has(0x4000, 15)
('SIGTERM', 'SIGRTMIN+3', True)
"""

import re
import signal as standard
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from enum import IntEnum

from msgspec import Struct

from whybox.kernel.host import Host
from whybox.kernel.tracefs import Recorder, attempt
from whybox.kernel.tracetext import Event

INT = int(standard.SIGINT)
KILL = int(standard.SIGKILL)
TERM = int(standard.SIGTERM)
CHLD = int(standard.SIGCHLD)

#: ``code`` of a signal by tkill(2), which raise(3) uses (include/uapi/asm-generic/siginfo.h).
SI_TKILL = -6

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

_ENGINE_KILL = re.compile(r"\bkill\b.*\bsignal=(\S+)")
_REAL_TIME = re.compile(r"RT(MIN|MAX)(?:([+-]\d{1,2}))?")


class Result(IntEnum):
    """What became of a signal (include/trace/events/signal.h)."""

    DELIVERED = 0
    IGNORED = 1
    ALREADY_PENDING = 2


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


class Watched(Struct, frozen=True, kw_only=True):
    """The signals of one window, or why they could not be watched."""

    reason: str | None = None
    recorder: Recorder | None = None

    def sent_to(self, pid: int) -> tuple[Sent, ...]:
        """What was sent to one process so far, oldest first."""
        if self.recorder is None:
            return ()
        wanted = str(pid)
        found = [_sent(e) for e in self.recorder.read() if e.fields.get("pid") == wanted]
        return tuple(sorted(found, key=lambda s: s.seconds))

    @property
    def complete(self) -> bool:
        """Whether nothing was lost."""
        return self.recorder is not None and self.recorder.complete


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
def watch(host: Host) -> Iterator[Watched]:
    """The signals of this window, shared by everybody who watches them."""
    if host.window_seconds <= 0:
        yield Watched(reason="nothing can be sent in a window of no length")
        return
    with host.sensor(SENSOR, lambda: attempt(host, [POINT], {POINT: _WANTED})) as recording:
        yield Watched(reason=recording.reason, recorder=recording.recorder)


def _sent(event: Event) -> Sent:
    said = event.fields
    return Sent(
        signal=int(said["sig"]),
        pid=int(said["pid"]),
        result=int(said["res"]),
        code=int(said["code"]),
        seconds=event.seconds,
        sender_pid=event.pid,
        sender=event.comm,
    )
