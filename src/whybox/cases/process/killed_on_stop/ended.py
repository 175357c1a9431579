"""A window in which the container ended: who killed whom, and how long after asking."""

from collections.abc import Collection, Iterable, Sequence

from whybox.kernel import forced, signals, stopping
from whybox.kernel.disposition import Hearing
from whybox.kernel.forced import By, Kill
from whybox.kernel.signals import Result, Sent
from whybox.kernel.stopping import Prospect
from whybox.model import Cure, Evidence, Finding, RuledOut, Severity, Verdict, clear, unknown

from . import remedies
from .observation import Observation

_POINT = "tracepoint signal:signal_generate"
_WORDS = {0: "delivered", 1: "ignored", 2: "already pending"}
#: So many signals are told one by one.
_TOLD = 8

_Why = tuple[str, tuple[Cure, ...]]


def ended(seen: Observation, prospect: Prospect) -> Finding | None:
    """What was seen of its end; ``None``: it has not ended, and nobody has killed it."""
    kills = seen.kills(prospect)
    kill = next((one for one in kills if one.pid == prospect.init.pid), None)
    if kill is not None:
        return _killed(seen, prospect, kill, kills)
    return _by_itself(seen, prospect, kills) if seen.ended else None


# Its first process was killed.


def _killed(seen: Observation, prospect: Prospect, kill: Kill, kills: Sequence[Kill]) -> Finding:
    evidence = _evidence(seen, prospect)
    if kill.by is By.OOM:
        return clear(
            "Its first process was killed by the OOM killer, not by a stop: see memory/oom_killed.",
            evidence=evidence,
        )
    if seen.stop_signal == signals.KILL:
        return clear("Its stop signal is SIGKILL, so nothing in it is asked.", evidence=evidence)
    if kill.asked is None and not seen.engine_asked:
        return clear(
            f"It was killed outright by {_sender(kill)}, which had not asked it to end before: "
            "docker kill, rm -f or kill -9, and no stop whose time ran out.",
            evidence=evidence,
        )
    return _timed_out(seen, prospect, kill, kills)


def _timed_out(seen: Observation, prospect: Prospect, kill: Kill, kills: Sequence[Kill]) -> Finding:
    why, cures = _why_not_in_time(seen, prospect, kill, {one.pid for one in kills})
    others = [one for one in kills if one.by in (By.NAMESPACE, By.OUTSIDE) and one is not kill]
    with_it = f"; {_people(others)} went with it" if others else ""
    first = f"PID {prospect.nspid} ({prospect.first.comm})"
    return Finding(
        verdict=Verdict.FOUND,
        severity=Severity.WARNING,
        summary=f"{_after(seen, kill)} {_sender(kill)} killed {first}: {why}{with_it}.",
        evidence=_evidence(seen, prospect),
        ruled_out=(
            RuledOut("the OOM killer", f"SIGKILL had code {kill.code}; the kernel's own has 128"),
            RuledOut("docker kill, rm -f, kill -9", "it was asked to end before"),
            RuledOut("the end of its pid namespace", "it is the first process that was killed"),
        ),
        cures=cures,
    )


def _after(seen: Observation, kill: Kill) -> str:
    if kill.asked is None or kill.after_seconds is None:
        return f"Sent {signals.name(seen.stop_signal)} before this window, it had not ended, and"
    return f"{kill.after_seconds:.1f} s after {signals.name(kill.asked.signal)}"


def _why_not_in_time(
    seen: Observation, prospect: Prospect, kill: Kill, killed: Collection[int]
) -> _Why:
    name = signals.name(seen.stop_signal if kill.asked is None else kill.asked.signal)
    halted = prospect.looks[0].state in ("T", "t") or forced.halted(seen.sent, kill.pid)
    if halted or (seen.frozen and not seen.ended):
        state = "stopped (State T)" if halted else "paused"
        return f"it was {state}, so {name} had to wait", remedies.go_on(prospect)
    ignored = kill.asked is not None and kill.asked.result == Result.IGNORED
    if ignored or prospect.hearing.deaf:
        return _deaf(prospect, name), remedies.deaf(prospect)
    if not seen.ended and seen.after is not None:
        where = seen.after.leader.wait_channel or "the kernel"
        return f"it is held up in {where}, where no signal reaches it", remedies.unblock()
    child = stopping.foreground(prospect) if prospect.first.shell else None
    if child is not None and child.id.pid in killed:
        says = f"a shell's trap for {name} runs only when its foreground command ends"
        return f"{says}, here {child.named}", remedies.background(prospect, child)
    given = kill.after_seconds or max(prospect.grace_seconds, 0)
    says = f"it got {name} (res=0), which has a handler, and was not done in time"
    return says, remedies.slow(given, name)


def _deaf(prospect: Prospect, name: str) -> str:
    return {
        Hearing.IGNORED: f"it has set {name} to be ignored",
        Hearing.BLOCKED: f"it blocks {name} and nothing reads it",
    }.get(prospect.hearing, f"it has no handler for {name}, which the kernel drops for PID 1")


# Its first process ended by itself, and others were there still.


def _by_itself(seen: Observation, prospect: Prospect, kills: Sequence[Kill]) -> Finding:
    if seen.unwatched is not None:
        return unknown(
            "It ended within the window, and whom that killed nobody could watch: "
            f"{seen.unwatched}."
        )
    asks = seen.asks(prospect)
    eaten = [one for one in kills if one.by is By.OOM]
    if eaten and not asks:
        return clear(
            f"Nobody stopped it: the OOM killer killed {_people(eaten)}, and {prospect.first.comm} "
            "ended then by itself: see memory/oom_killed.",
            evidence=_evidence(seen, prospect),
        )
    hands = (By.NAMESPACE, By.OUTSIDE, *((By.FIRST,) if asks else ()))
    entered = {one.id.pid for one in prospect.members if one.entered}
    lost = [one for one in kills if one.by in hands and one.pid not in entered]
    if lost:
        return _left_behind(seen, prospect, lost, asks)
    visitors = [one for one in kills if one.pid in entered]
    whom = f" but {_people(visitors)}, started from outside," if visitors else ""
    says = f"{_asked_by(asks)}{prospect.first.comm} ended by itself, and nobody{whom} was killed."
    return clear(says, evidence=_evidence(seen, prospect))


def _asked_by(asks: Sequence[Sent]) -> str:
    return f"Sent {signals.name(asks[0].signal)} by {asks[0].sender}, " if asks else ""


def _left_behind(
    seen: Observation, prospect: Prospect, lost: Sequence[Kill], asks: Sequence[Sent]
) -> Finding:
    handling = {one.id.pid for one in prospect.members if one.handles}
    told = [one for one in lost if one.asked is not None]
    able = [one for one in lost if one.pid in handling or one.asked is not None]
    oom = f"oom_kill +{seen.oom_kills}"
    return Finding(
        verdict=Verdict.FOUND,
        severity=Severity.WARNING if able else Severity.INFO,
        summary=(
            f"{_asked_by(asks)}PID {prospect.nspid} ({prospect.first.comm}) ended by itself, and "
            f"{_who_killed(lost)}: {_lost(seen, prospect, lost, told, able)}."
        ),
        evidence=_evidence(seen, prospect),
        ruled_out=(
            RuledOut("a grace period that ran out", f"nobody killed PID {prospect.nspid}"),
            RuledOut("the OOM killer", f"{oom}; {_sender(lost[0])} sent it, code {lost[0].code}"),
        ),
        cures=remedies.forward(prospect, seen.told_alone(prospect)),
    )


def _who_killed(lost: Sequence[Kill]) -> str:
    by = lost[0].by
    if by is By.NAMESPACE:
        return f"the kernel killed {_people(lost)} with its pid namespace"
    if by is By.FIRST:
        return f"had killed {_people(lost)} itself"
    return f"{_sender(lost[0])} killed {_people(lost)} that {_were(lost)} left"


def _lost(
    seen: Observation,
    prospect: Prospect,
    lost: Sequence[Kill],
    told: Sequence[Kill],
    able: Sequence[Kill],
) -> str:
    name = signals.name(seen.stop_signal)
    if told:
        after = max(one.after_seconds or 0.0 for one in told)
        length = f"{after:.1f} s" if after >= 0.1 else f"{after * 1000:.1f} ms"
        return f"{_count(told, lost)} had been sent {name}, but nobody waited more than {length}"
    if able:
        alone = seen.told_alone(prospect)
        passed = "nobody had passed it on" if alone is None else f"only {alone.named} had been told"
        return f"{_count(able, lost)} could handle {name}, and {passed}"
    return f"none of them handles {name}, which would have ended them as abruptly"


def _count(some: Sequence[Kill], of: Sequence[Kill]) -> str:
    if len(some) == len(of):
        return "it" if len(of) == 1 else "they"
    return f"{len(some)} of them"


def _were(some: Sequence[Kill]) -> str:
    return "was" if len(some) == 1 else "were"


def _people(some: Iterable[Kill]) -> str:
    found = list(some)
    named = ", ".join(f"{one.comm or 'pid'} {one.pid}" for one in found[:3])
    more = ", …" if len(found) > 3 else ""
    return f"{len(found)} process{'' if len(found) == 1 else 'es'} ({named}{more})"


def _sender(kill: Kill) -> str:
    return f"{kill.sender} (pid {kill.sender_pid})"


def _evidence(seen: Observation, prospect: Prospect) -> tuple[Evidence, ...]:
    first = next(iter(seen.sent), None)
    lines = [
        f"+{one.seconds - first.seconds:.4f} s sig={one.signal} code={one.code} pid={one.pid} "
        f"({one.comm}) res={one.result} ({_WORDS.get(one.result, 'lost')}), "
        f"from {one.sender}-{one.sender_pid}"
        for one in seen.sent[:_TOLD]
        if first is not None
    ]
    more = len(seen.sent) - _TOLD
    told = [*lines, *([f"… and {more} more"] if more > 0 else [])]
    handle = ", ".join(str(one.id.pid) for one in prospect.members[:10] if one.handles)
    masks = [Evidence("/proc/PID/status before", f"SigCgt or SigBlk has the stop signal: {handle}")]
    return (*(Evidence(_POINT, line) for line in told), *(masks if handle else []))
