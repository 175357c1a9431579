"""Kills that the group's counters tell of, where the log says nothing."""

from whybox.kernel.casualties import Level
from whybox.model import Certainty, Cure, Finding, RuledOut, Safety, Severity, Verdict

from .words import WAY_OUT, Observation, counters, likely_clear, mib, raised, times

_WHOSE = Cure(advice=f"Find out whose memory ran out: {WAY_OUT}.", safety=Safety.INSPECT)


def counted(seen: Observation) -> Finding | None:
    """Kills that were counted in this window, or before at a limit that is still in force."""
    level = seen.level(seen.path)
    if level is None or not level.memory.oom_kill or (seen.kills and not seen.fresh):
        return None
    # A group that others share or had before counts their kills as well.
    theirs = seen.runtime == "process" or (not seen.fresh and seen.log.covers(seen.start_usec))
    if theirs and not seen.given_once:
        return None
    mine, v1 = seen.blamed is level, level.memory.version == 1
    if not seen.fresh and level.never_full and (mine or (v1 and seen.blamed is None)):
        return _raised_unseen(level, seen)
    return _blamed(seen.blamed, seen)


def _raised_unseen(level: Level, seen: Observation) -> Finding:
    return likely_clear(
        f"Nothing in it was OOM-killed in this window; {times(seen.times)} before, but it never "
        f"held more than {mib(level.memory.peak_bytes)} of the "
        f"{mib(level.memory.limit_bytes)} it may hold now: its limit was raised since, or it "
        f"was not the reason ({_silent(seen)}).",
        counters(seen),
    )


def _blamed(level: Level | None, seen: Observation) -> Finding:
    when = "in this window" if seen.fresh else "since its group was made"
    above = "it was an ancestor's limit or the host's memory that ran out, not its own"
    whose, cures = (above, (_WHOSE,)) if level is None else this(level, seen)
    only = "oom_kill counts the OOM killer's victims alone"
    return Finding(
        verdict=Verdict.FOUND,
        certainty=Certainty.LIKELY,
        severity=Severity.CRITICAL if seen.fresh else Severity.WARNING,
        summary=(
            f"It was OOM-killed {times(seen.fresh or seen.times)} {when}: {whose}; who was killed "
            f"is not known ({_silent(seen)})."
        ),
        evidence=counters(seen),
        ruled_out=(RuledOut("a kill from outside (stop, kill -9)", only),),
        cures=cures,
    )


def this(level: Level, seen: Observation) -> tuple[str, tuple[Cure, ...]]:
    now = level.memory
    who = "its own limit" if now.path == seen.path else f"the limit of its parent {now.path}"
    limit = f" of {mib(now.limit_bytes)}" if now.limit_bytes is not None else ""
    return f"{who}{limit} was reached", raised(now.path, now.limit_bytes, now.peak_bytes, seen)


def _silent(seen: Observation) -> str:
    """Why the log says nothing of a kill that was counted, and why nobody saw it."""
    unseen = f"; {seen.unwatched}" if seen.fresh and seen.unwatched else ""
    if seen.log.reason is not None:
        return seen.log.reason + unseen
    if not (seen.fresh or seen.log.covers(seen.start_usec)):
        return "the kernel log does not reach back that far"
    return f"the kernel writes only ten reports in five seconds in full{unseen}"
