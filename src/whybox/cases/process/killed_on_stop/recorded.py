"""What the engine recorded of a container that is dead."""

from whybox.kernel import signals, stoprecord
from whybox.kernel.stoprecord import Record
from whybox.kernel.target import Exit
from whybox.model import (
    Certainty,
    Cure,
    Evidence,
    Finding,
    RuledOut,
    Safety,
    Severity,
    Verdict,
    clear,
    unknown,
)

from .remedies import slow

_NEXT = (
    "start it again and watch the next stop (whybox diagnose … --window 20s, and docker stop "
    "meanwhile)"
)


def recorded(exit: Exit | None, stop_signal: int) -> Finding:
    """By the signals that its engine sent; whom the kernel killed leaves no record."""
    if exit is None:
        return unknown(f"It is dead, and nobody recorded how it ended: {_NEXT}.")
    said = stoprecord.record(exit)
    evidence = (Evidence(f"{exit.source} and events", " · ".join(exit.events[-6:]) or "no events"),)
    if said.timed_out:
        return _timed_out(said, evidence)
    if said.killed and said.asked is None:
        return _outright(said, stop_signal, evidence)
    if said.oom and said.status == 137:
        return clear("It was out of memory, and no stop: see memory/oom_killed.", evidence=evidence)
    if not said.whole:
        return _no_events(said, evidence)
    return _not_by_engine(said, evidence)


def _timed_out(said: Record, evidence: tuple[Evidence, ...]) -> Finding:
    name = signals.name(said.asked or signals.TERM)
    gap = "" if said.gap_seconds is None else f"{said.gap_seconds:.1f} s "
    who = "Its engine stopped it" if said.stopped else "Somebody killed it twice (docker kill)"
    return Finding(
        verdict=Verdict.FOUND,
        certainty=Certainty.CONFIRMED if said.stopped else Certainty.LIKELY,
        severity=Severity.WARNING,
        summary=(
            f"{who}: {gap}after {name} it had not ended and was sent SIGKILL, which killed "
            "everybody in it. Whether it never heard the signal or was slow nothing recorded."
        ),
        evidence=evidence,
        ruled_out=(
            RuledOut("docker kill, rm -f", f"{name} was sent first"),
            RuledOut("the OOM killer", "the engine sent the SIGKILL itself"),
            RuledOut("a kill by somebody else", "the engine sent the SIGKILL itself"),
        ),
        cures=(_hear(), *slow(said.gap_seconds or 10.0, name)),
    )


def _hear() -> Cure:
    return Cure(
        advice=(
            "First see whether it hears the signal at all: start it again and ask whybox diagnose "
            "… --case process/pid1_ignores_signals. If it does not, time is no cure."
        ),
        safety=Safety.INSPECT,
    )


def _outright(said: Record, stop_signal: int, evidence: tuple[Evidence, ...]) -> Finding:
    if stop_signal == signals.KILL:
        return clear("Its stop signal is SIGKILL, so nothing in it is asked.", evidence=evidence)
    how = "stopped with SIGKILL at once" if said.stopped else "killed outright (docker kill, rm -f)"
    return clear(f"It was {how}: its engine had not asked it to end before.", evidence=evidence)


def _no_events(said: Record, evidence: tuple[Evidence, ...]) -> Finding:
    if said.status == 137:
        says = (
            "Status 137 may be a stop whose time ran out, docker kill, the OOM killer, somebody's "
            "kill -9 or its own, and its engine has no events of it any more"
        )
        return unknown(f"{says}: {_NEXT}.", evidence=evidence)
    return unknown(_others(said), evidence=evidence)


def _others(said: Record) -> str:
    status = "" if said.status is None else f" with status {said.status}"
    return (
        f"Its first process ended by itself{status}; whether others were killed with it leaves no "
        f"record: {_NEXT}."
    )


def _not_by_engine(said: Record, evidence: tuple[Evidence, ...]) -> Finding:
    if said.asked is not None:
        name = signals.name(said.asked)
        after = "" if said.gap_seconds is None else f" {said.gap_seconds:.1f} s"
        return unknown(
            f"Stopped by {name}, it ended{after} later. {_others(said)}", evidence=evidence
        )
    if said.status == 137:
        return clear(
            "Nobody stopped it: its engine sent it nothing, so status 137 is somebody's kill -9 on "
            "the host, or its own.",
            evidence=evidence,
        )
    status = "" if said.status is None else f", with status {said.status}"
    return clear(
        f"Nobody stopped it: its first process ended by itself{status}.", evidence=evidence
    )
