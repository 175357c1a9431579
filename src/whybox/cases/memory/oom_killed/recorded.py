"""How a container ended that nobody was seen to kill: by the log, else by its engine's record."""

from whybox.kernel.target import Exit
from whybox.model import Certainty, Evidence, Finding, Severity, Verdict, clear, unknown

from .counted import this
from .words import CAP, Observation, blind, likely_clear, no_line, times


def dead(seen: Observation) -> Finding:
    ended = _ended(seen.exit)
    if seen.kills:
        ended += f" An earlier run of it was OOM-killed {times(len(seen.kills))}."
    unharmed = seen.own is not None and seen.own.oom_kill == 0
    if seen.nameless and not unharmed:
        return _recorded(seen, ended)
    if seen.log.covers(seen.start_usec) or (unharmed and seen.log.covers(seen.end_usec)):
        said = f"Nothing in it was OOM-killed: the kernel log names no victim.{ended}"
        return clear(said, evidence=no_line(seen))
    if seen.log.covers(seen.end_usec):
        said = f"It did not end by an OOM kill: the kernel log names no victim.{ended}"
        return likely_clear(said, no_line(seen))
    return _recorded(seen, ended)


def _ended(exit: Exit | None) -> str:
    code = None if exit is None else exit.exit_code
    if code == 137:
        return " Status 137 is any SIGKILL's (a stop, kill -9), or the program's own."
    return "" if code is None else f" It ended with status {code}."


def _recorded(seen: Observation, ended: str) -> Finding:
    """What the engine's record settles where the log does not."""
    exit = seen.exit
    flag = None if exit is None else exit.oom_killed
    evidence = () if exit is None else (Evidence(exit.source, f"OOMKilled={flag}"),)
    waited = seen.own is not None and seen.own.kill_disabled
    if flag and not waited and not seen.stopped_by_engine:
        return _flagged(seen, evidence, ended)
    # Podman 4 does not set it on v1 (measured).
    if flag is False and seen.runtime != "podman":
        return likely_clear(
            "Its engine saw no out of memory at its limit (OOMKilled=false); the host's or a "
            f"parent's it would not see, and {blind(seen)}.{ended}",
            evidence,
        )
    why = "its engine saw it out of memory but stopped it itself, and " if flag else ""
    said = f"Whether it was OOM-killed cannot be told: {why}{blind(seen)}.{ended}"
    return unknown(said, evidence=evidence)


def _flagged(seen: Observation, evidence: tuple[Evidence, ...], ended: str) -> Finding:
    level = seen.level(seen.path)
    return Finding(
        verdict=Verdict.FOUND,
        certainty=Certainty.LIKELY,
        severity=Severity.CRITICAL,
        summary=(
            "Its engine saw it, or a process in it, run out of memory at its limit "
            f"(OOMKilled=true); {blind(seen)}.{ended}"
        ),
        evidence=evidence,
        cures=(CAP,) if level is None else this(level, seen)[1],
    )
