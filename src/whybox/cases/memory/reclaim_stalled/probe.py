"""Made to wait for memory: above memory.high, in reclaim at a limit, or stopped without a killer.

Decided by what the tasks wait for (PSI, and where they sleep) together with the limit that was met
in this window; never by ``memory.events`` alone, which a harmless page cache moves as well.
"""

import math

from whybox.change import InProgram, MemoryHigh, MemoryLimit
from whybox.kernel import blocked, memorystall
from whybox.kernel.host import Host
from whybox.kernel.memorystall import LEAST_WAIT, Level, Stall
from whybox.kernel.squeeze import PAGE_BYTES
from whybox.kernel.target import Target
from whybox.model import (
    Case,
    Certainty,
    Cure,
    Evidence,
    Finding,
    RuledOut,
    Safety,
    Severity,
    Verdict,
    Watch,
    clear,
    unknown,
)
from whybox.needs import living, own_group

from .words import (
    evidence,
    harmless,
    high_evidence,
    it,
    level_evidence,
    mib,
    percent,
    room,
    ruled_out,
    sleeper_evidence,
    stat_evidence,
    tasks,
    unused,
    waits,
    whose,
    why_slow,
)

CRITICAL_WAIT = 0.5
#: In a shorter window one wait looks like a state.
SHORTEST_SECONDS = 0.5
STEP_BYTES = 8 << 20


def observe(host: Host, target: Target) -> Watch[Stall]:
    """Read the counters of every group on the way up, before and after; see who sleeps where."""
    began = memorystall.begin(host, target)
    with blocked.watching(host, target) as watch:
        yield
        watch.end()
        return memorystall.end(host, target, began, watch)


def judge(seen: Stall) -> Finding:
    """Found where tasks were made to wait for memory that could not be freed fast enough."""
    stopped = seen.stopped()
    if stopped is not None:
        return _found_stopped(seen, stopped)
    if seen.squeeze.seconds < SHORTEST_SECONDS:
        return _at_a_glance(seen)
    slowed = seen.slowed()
    if slowed is not None:
        return _found_slowed(seen, slowed)
    if seen.pressing is not None and seen.much_again:
        return _for_what_comes_back(seen)
    if seen.waited is None and seen.pressing is not None and not seen.sleepers:
        return unknown(
            "Its limit is met, but how long its tasks wait for memory is not told here (no "
            "memory.pressure of its own): ask on the host; psi=1 on the kernel's command line."
        )
    told = seen.waited is None and seen.asleep("reclaim")
    if (seen.waited or 0.0) < LEAST_WAIT and not told:
        return clear(harmless(seen), evidence=evidence(seen))
    return _waiting(seen)


def _at_a_glance(seen: Stall) -> Finding:
    if seen.over is None and seen.pressing is None:
        return clear(room(seen))
    return unknown(
        "A limit of it is met; whether its tasks wait for that takes a window to see: ask with "
        "--window 2s."
    )


def _for_what_comes_back(seen: Stall) -> Finding:
    squeezed = seen.squeeze
    file = (squeezed.refault_file or 0) >= (squeezed.refault_anon or 0)
    case = "memory/page_cache_thrashing" if file else "memory/swapping"
    return clear(
        f"What its tasks wait for ({percent(seen.waited)} of the time) is what was pushed out and "
        f"had to come back, {mib(seen.again_bytes)}: see {case}.",
        evidence=evidence(seen),
    )


def _waiting(seen: Stall) -> Finding:
    """Its tasks wait, and not for memory.high: what for?"""
    if seen.squeeze.oom_kills:
        return clear(
            "Its tasks waited for memory until some of it was freed by the OOM killer: see "
            "memory/oom_killed.",
            evidence=evidence(seen),
        )
    if seen.pressing is not None:
        return _found_reclaiming(seen, seen.pressing)
    if seen.squeeze.host_reclaimed:
        return _found_host(seen)
    return unknown(
        f"Its tasks waited {percent(seen.waited)} of the time for memory, and no limit that can "
        "be seen from here was met: ask on the host.",
        evidence=evidence(seen),
    )


# Found.


def _found_stopped(seen: Stall, level: Level) -> Finding:
    asleep = seen.asleep("oom")
    return Finding(
        verdict=Verdict.FOUND,
        certainty=Certainty.CONFIRMED if asleep else Certainty.LIKELY,
        severity=Severity.CRITICAL,
        summary=(
            f"It stands still at the memory limit of {mib(level.limit_bytes)}{whose(seen, level)}"
            f": nothing more can be freed, and the OOM killer is switched off for it, so "
            f"{tasks(asleep)} until somebody gives it memory."
        ),
        evidence=(
            Evidence(level.events_file, "oom_kill_disable 1, under_oom 1"),
            *level_evidence(level),
            *sleeper_evidence(asleep),
        ),
        ruled_out=(
            RuledOut("memory/oom_killed", "nobody was killed: that is what is switched off"),
            RuledOut("cpu/throttled", "the tasks are in D, not in R"),
        ),
        cures=(
            _raise_limit(seen, level),
            Cure(
                advice=(
                    "Or let the OOM killer act (docker run without --oom-kill-disable; echo 0 > "
                    "memory.oom_control): then a process dies instead of all standing still."
                ),
                safety=Safety.DESTRUCTIVE,
            ),
        ),
    )


def _found_slowed(seen: Stall, level: Level) -> Finding:
    held, high = level.after.current_bytes or 0, level.high_bytes or 1
    over = f", {percent(held / high - 1)} more than that" if held > high else ""
    return Finding(
        verdict=Verdict.FOUND,
        certainty=Certainty.CONFIRMED,
        severity=_severity(seen),
        summary=(
            f"The kernel slows it down on purpose: memory.high{whose(seen, level)} is "
            f"{mib(high)}, {it(seen, level)} {mib(held)}{over}, and too little of it can be "
            f"given up; {waits(seen)}{unused(level)}."
        ),
        evidence=(*high_evidence(level), *evidence(seen), *sleeper_evidence(seen.sleepers)),
        ruled_out=ruled_out(seen),
        cures=_cures_of_high(seen, level),
    )


def _severity(seen: Stall) -> Severity:
    waited = seen.waited
    return Severity.CRITICAL if waited is None or waited >= CRITICAL_WAIT else Severity.WARNING


def _found_reclaiming(seen: Stall, level: Level) -> Finding:
    squeezed = seen.squeeze
    limit = level.limit_bytes if level.high_bytes is None else level.high_bytes
    return Finding(
        verdict=Verdict.FOUND,
        certainty=Certainty.CONFIRMED if seen.asleep("reclaim") else Certainty.LIKELY,
        severity=_severity(seen),
        summary=(
            f"At the limit of {mib(limit)}{whose(seen, level)} its tasks must free memory "
            f"themselves before they get any: they waited {percent(seen.waited)} of these "
            f"{squeezed.seconds:.1f} s for it, {why_slow(seen, level)}."
        ),
        evidence=(
            *level_evidence(level),
            *evidence(seen),
            *stat_evidence(squeezed.now),
            *sleeper_evidence(seen.sleepers),
        ),
        ruled_out=ruled_out(seen),
        cures=_cures_of_reclaim(seen, level),
    )


def _found_host(seen: Stall) -> Finding:
    pages = seen.squeeze.host_reclaimed or 0
    return Finding(
        verdict=Verdict.FOUND,
        certainty=Certainty.LIKELY,
        severity=_severity(seen),
        summary=(
            f"The host itself is short of memory, and no limit of the container is met: its tasks "
            f"waited {percent(seen.waited)} of these {seen.squeeze.seconds:.1f} s while it "
            f"reclaimed {mib(pages * PAGE_BYTES)}."
        ),
        evidence=(*evidence(seen), Evidence("/proc/vmstat", f"pgsteal_* +{pages} pages")),
        ruled_out=ruled_out(seen),
        cures=(
            Cure(
                advice=(
                    "Free memory of the host, or keep some for this container (memory.low, a "
                    "memory request): whybox diagnose --all tells who else is pressed."
                ),
                safety=Safety.INSPECT,
            ),
        ),
    )


# The cure: more memory, by a number.


def _wanted(seen: Stall, held: int) -> int:
    """Twice what it holds, or what it grows to in a minute: how much it wants nobody knows yet."""
    own = seen.own
    grown = (own.after.current_bytes or 0) - (own.before.current_bytes or 0)
    minute = held + max(grown, 0) * 60 / seen.squeeze.seconds
    wanted = max(2.0 * held, min(minute, 4.0 * held))
    return math.ceil(wanted / STEP_BYTES) * STEP_BYTES


def _cures_of_high(seen: Stall, level: Level) -> tuple[Cure, ...]:
    wanted = None
    if level.limit_bytes is not None:
        # What it wants in the end cannot be seen while it is slowed down.
        advice = (
            f"Take memory.high away: the limit of {mib(level.limit_bytes)} is there all the same."
        )
    else:
        wanted = _wanted(seen, level.after.current_bytes or level.high_bytes or 0)
        advice = (
            f"Raise memory.high to {mib(wanted)}: how much it wants in the end cannot be seen "
            "while it is slowed down, so look again."
        )
    cgroup = None if level is seen.own else level.path
    return (
        Cure(advice=advice, change=MemoryHigh(wanted, cgroup=cgroup), safety=Safety.LOW_RISK),
        Cure(
            advice=(
                "Or let the program hold less (a smaller heap, fewer workers, a cache with a "
                "bound). memory.high is a brake for what can shrink; it does not end a leak."
            ),
            safety=Safety.INSPECT,
        ),
    )


def _raise_limit(seen: Stall, level: Level) -> Cure:
    wanted = _wanted(seen, max(level.limit_bytes or 0, level.after.current_bytes or 0))
    return Cure(
        advice=f"Allow {mib(wanted)}; how much it wants in the end is not known yet: look again.",
        change=MemoryLimit(wanted, cgroup=None if level is seen.own else level.path),
        safety=Safety.LOW_RISK,
    )


def _cures_of_reclaim(seen: Stall, level: Level) -> tuple[Cure, ...]:
    if seen.dirty(level):
        write = (
            "Write to the disk as you go (fdatasync or sync_file_range every few MiB, or "
            "O_DIRECT), so that what is written can be given up at once"
        )
        more = (
            "Or give it a faster disk. On v2 the writer itself is held back before its limit is "
            "full of dirty pages (balance_dirty_pages by group); v1 knows only the host's "
            "vm.dirty_bytes."
        )
        return (
            Cure(advice=f"{write}.", change=InProgram(write), safety=Safety.LOW_RISK),
            Cure(advice=more, safety=Safety.INSPECT),
        )
    if level.high_bytes is not None:
        return _cures_of_high(seen, level)
    return (_raise_limit(seen, level),)


CASE = Case(
    title="Slowed down or stopped for memory that cannot be freed",
    question="Why does it crawl below its limit?",
    question_zh="为什么内存没到上限却越来越慢?",
    lesson="10",
    needs=(living, own_group("memory")),
    observation=Stall,
    observe=observe,
    judge=judge,
    explains=("cpu/blocked_in_kernel", "storage/write_stalled"),
)
