"""Killed on stop: who sent the SIGKILL, to whom, and how long after it was asked to end.

Three hands send it: the engine after its grace period, the kernel when PID 1 has ended before the
others, the OOM killer. The first two are this case (``ended``); the third is
``memory/oom_killed``. Before a stop it tells what one would do (``foretold``), after it what the
engine recorded (``recorded``); never by an exit status of 137, which says nothing of who it was.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from whybox.kernel import forced, freezer, memory, signals, stopping, zombie
from whybox.kernel.disposition import disposition, disposition_of
from whybox.kernel.host import Host
from whybox.kernel.pids import pids
from whybox.kernel.signals import Watched
from whybox.kernel.target import Target
from whybox.kernel.task import TaskId
from whybox.model import Case, Finding, Watch

from .ended import ended
from .foretold import foretold
from .observation import Observation
from .recorded import recorded


def observe(host: Host, target: Target) -> Watch[Observation]:
    """Who is there and could end in order, before; every signal, in between."""
    began, stop, init = host.monotonic_ns(), stopping.stop_signal(target), target.init
    before = None if init is None else _Before(host, target, init, stop)
    with _watching(host, target) as watched:
        yield
        prospect = None if before is None else before.prospect(host)
        after = None if init is None else disposition_of(host, init, stop)
        inside = () if prospect is None else prospect.inside
        sent = () if init is None else forced.relevant(watched, init, inside, stop)
    return Observation(
        elapsed_ns=host.monotonic_ns() - began,
        stop_signal=stop,
        prospect=prospect,
        after=after,
        frozen=freezer.frozen(host, target) if target.alive else None,
        sent=sent,
        unwatched=watched.reason,
        oom_kills=0 if before is None else max(0, _oom_kills(host, target) - before.oom_kills),
        zombies=() if before is None else before.zombies,
        engine_asked=_engine_asked(target, stop),
        exit=target.exit,
    )


class _Before:
    """A living container at the beginning of the window."""

    def __init__(self, host: Host, target: Target, init: TaskId, stop: int) -> None:
        self.target, self.init, self.stop = target, init, stop
        self.look = disposition(host, init.pid, stop)
        self.first = stopping.first(host, init.pid)
        self.members = stopping.members(host, target, stop)
        self.zombies = _zombies(host, target)
        self.oom_kills = _oom_kills(host, target)

    def prospect(self, host: Host) -> stopping.Prospect:
        """What a stop would do, by both looks at its first process."""
        after = disposition_of(host, self.init, self.stop)
        looks = (self.look,) if after is None or after.ended else (self.look, after)
        return stopping.prospect(host, self.target, self.init, looks, self.members, self.first)


@contextmanager
def _watching(host: Host, target: Target) -> Iterator[Watched]:
    if not target.alive:
        yield Watched(reason="it was dead already")
        return
    with signals.watch(host, target) as watched:
        yield watched


def _zombies(host: Host, target: Target) -> tuple[int, ...]:
    """Looked for only where the count says that there are some."""
    group = target.group(host, "pids")
    counted = None if group is None else pids(host, group)
    if counted is None or counted.current <= counted.listed:
        return ()
    return tuple(one.id.pid for one in zombie.look(host, target).zombies)


def _oom_kills(host: Host, target: Target) -> int:
    group = target.group(host, "memory")
    try:
        return 0 if group is None else memory.memory(host, group).oom_kill or 0
    except OSError:
        return 0  # it was removed with its last process


def _engine_asked(target: Target, stop: int) -> bool:
    events = () if target.exit is None else target.exit.events
    return signals.engine_sent(events, (stop, *forced.ENDING))


def judge(seen: Observation) -> Finding:
    """What was seen to happen first; then what the engine recorded, or what a stop would do."""
    prospect = seen.prospect
    if prospect is None:
        return recorded(seen.exit, seen.stop_signal)
    got = [one for one in seen.asks(prospect) if one.result != signals.Result.IGNORED]
    return ended(seen, prospect) or foretold(
        prospect, frozen=seen.frozen, ending=got[0] if got else None
    )


CASE = Case(
    title="Processes are killed on stop",
    question="Why were my processes force-killed on stop?",
    question_zh="为什么我在容器中的进程被强制杀死了?",
    lesson="04",
    observation=Observation,
    observe=observe,
    judge=judge,
    outlives=True,
)
