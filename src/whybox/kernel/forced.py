"""Who killed whom: the SIGKILLs of one window, each with whose it was and what came before it.

An exit status of 137 tells none of that. The tracepoint ``signal:signal_generate`` does: the
engine's kill has code 0 and comes from outside; the kernel's have code 128 (SI_KERNEL), and the
task in whose context they were sent tells the end of a pid namespace (its own PID 1, which is
exiting) from the OOM killer (whoever asked for memory). All measured.
"""

from collections.abc import Collection, Iterable
from enum import StrEnum

from msgspec import Struct

from whybox.kernel import signals
from whybox.kernel.signals import Result, Sent, Watched
from whybox.kernel.task import TaskId

#: Signals that mean "end" besides the container's own stop signal.
ENDING = (signals.TERM, signals.INT, signals.number("QUIT") or 3)
_STOP = (signals.number("STOP") or 19, signals.number("TSTP") or 20)
_CONT = signals.number("CONT") or 18

#: No more signals of one window than these are kept, the oldest.
MOST = 400

_REACHED = (Result.DELIVERED, Result.ALREADY_PENDING)


class By(StrEnum):
    """Whose SIGKILL it was."""

    NAMESPACE = "namespace"
    """The kernel's, since PID 1 ended and its pid namespace with it."""
    OOM = "oom"
    """The kernel's, out of memory."""
    OUTSIDE = "outside"
    """The engine's, or somebody's on the host."""
    FIRST = "first"
    """The container's own first process'."""
    INSIDE = "inside"
    """Another process' of the container."""


class Kill(Struct, frozen=True, kw_only=True):
    """One process that was killed, by the first SIGKILL that reached it."""

    pid: int
    comm: str
    by: By
    seconds: float
    sender: str
    sender_pid: int
    code: int
    asked: Sent | None = None
    """What the same sender, or PID 1, had told it to end with before."""

    @property
    def after_seconds(self) -> float | None:
        """How long after it was asked to end."""
        return None if self.asked is None else self.seconds - self.asked.seconds


def relevant(
    watched: Watched, init: TaskId, inside: Collection[int], stop: int
) -> tuple[Sent, ...]:
    """What was sent to the container's processes that has to do with their end, oldest first.

    The text of the tracepoint tells of the whole host: its own are the processes that were there,
    and whom its PID 1 sent something.
    """
    if watched.source is None:
        return ()
    wanted = {stop, *ENDING, *_STOP, _CONT, signals.KILL}
    own = {init.pid, *inside}
    found = [
        sent
        for sent in watched.source.sent()
        if sent.signal in wanted and (sent.pid in own or sent.sender_pid in own)
    ]
    return tuple(sorted(found, key=lambda sent: sent.seconds)[:MOST])


def kills(
    sent: Iterable[Sent],
    init: TaskId,
    inside: Collection[int],
    *,
    first_ended: bool,
    oom_kills: int = 0,
    zombies: Collection[int] = (),
) -> tuple[Kill, ...]:
    """Every process that was killed, oldest first. ``zombies`` had ended before."""
    found: dict[int, Kill] = {}
    known, left = {init.pid, *inside}, oom_kills
    told: list[Sent] = []
    for one in sent:
        if one.signal != signals.KILL:
            told.append(one)
            continue
        if one.result not in _REACHED or one.pid in found or one.pid in zombies:
            continue
        by = _by(one, init, known, first_ended=first_ended, oom=left > 0)
        left -= by is By.OOM
        found[one.pid] = _kill(one, by, asked(told, one, init))
    return tuple(found.values())


def _by(one: Sent, init: TaskId, known: Collection[int], *, first_ended: bool, oom: bool) -> By:
    if one.code == signals.SI_KERNEL:
        # PID 1 may be the one who asked for memory too; then the counter tells.
        zap = first_ended and one.sender_pid == init.pid and one.pid != init.pid and not oom
        return By.NAMESPACE if zap else By.OOM
    if one.sender_pid == init.pid:
        return By.FIRST
    return By.INSIDE if one.sender_pid in known else By.OUTSIDE


def _kill(one: Sent, by: By, asked: Sent | None) -> Kill:
    return Kill(
        pid=one.pid,
        comm=one.comm,
        by=by,
        seconds=one.seconds,
        sender=one.sender,
        sender_pid=one.sender_pid,
        code=one.code,
        asked=asked,
    )


def asked(told: Iterable[Sent], kill: Sent, init: TaskId) -> Sent | None:
    """Who told the process to end before it was killed: the same, or its PID 1.

    An engine is a new process each time (``runc kill``), so it is known by its name.
    """
    for one in told:
        if one.pid != kill.pid or one.signal in (*_STOP, _CONT):
            continue
        passed_on = one.sender_pid == init.pid and kill.pid != init.pid
        if passed_on or one.sender == kill.sender:
            return one
    return None


def asks(
    sent: Iterable[Sent], init: TaskId, inside: Collection[int], stop: int
) -> tuple[Sent, ...]:
    """The stop signals that came to the first process from outside."""
    wanted, own = {stop, *ENDING} - {signals.KILL}, {init.pid, *inside}
    return tuple(
        one
        for one in sent
        if one.signal in wanted and one.pid == init.pid and one.sender_pid not in own
    )


def halted(sent: Iterable[Sent], pid: int) -> bool:
    """Whether it was stopped (SIGSTOP) in the window and not continued."""
    last = None
    for one in sent:
        if one.pid == pid and one.signal in (*_STOP, _CONT) and one.result in _REACHED:
            last = one.signal
    return last in _STOP
