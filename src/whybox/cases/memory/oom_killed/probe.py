"""Killed by the OOM killer: the victim was in this container, and whose memory had run out.

Told by the kernel log and by a sensor on ``oom:mark_victim``, then by the group's counters, then by
the engine's record; never by an exit status of 137, which every SIGKILL leaves.
"""

import math

from whybox.change import InProgram, MemoryLimit
from whybox.kernel import casualties, kmsg, oomkill
from whybox.kernel.casualties import Casualties, Level, within
from whybox.kernel.host import Host
from whybox.kernel.oomkill import OomKill
from whybox.kernel.target import Exit, Target
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
    ago,
    clear,
    unknown,
)

Observation = Casualties

_MIB = 1 << 20
#: A kill of longer ago than an hour hurts nobody at this moment.
RECENT_USEC = 3600 * 1_000_000
#: How much more was wanted than the limit, nothing tells; twice is often enough.
ENOUGH = 2
STEP_BYTES = 64 * _MIB

_MARK = "tracepoint oom:mark_victim"
_WAY_OUT = "ask as root on the host, where the kernel log can be read"
_LESS = (
    "Make it want less: cap heap, workers and caches below the limit, count what it writes to "
    "tmpfs and /dev/shm as well, or find the leak."
)
_WHOSE = Cure(advice=f"Find out whose memory ran out: {_WAY_OUT}.", safety=Safety.INSPECT)
_CAP = Cure(advice=_LESS, change=InProgram(_LESS), safety=Safety.INSPECT)


def observe(host: Host, target: Target) -> Watch[Observation]:
    """Watch the kills; read the counters before and after, and the kernel log once, at the end."""
    if target.alive and target.runtime != "self" and casualties.path_of(target) in (None, "/"):
        raise OSError("it has no memory control group of its own")
    before = casualties.lineage(host, target.group(host, "memory"))
    with kmsg.mark(host) as mark, oomkill.watch(host, target) as witness:
        yield
        new_seq = mark.first_after()
        return casualties.tally(host, target, before, new_seq, witness)


def judge(seen: Observation) -> Finding:
    """Found where a kill stands: in this window, or at a limit that was not raised since."""
    last = seen.last()
    if last is not None:
        return _found(last, seen)
    counted = _counted(seen)
    if counted is not None:
        return counted
    if seen.ended:
        return _dead(seen)
    return _past(seen.kills[-1], seen) if seen.kills else _nothing(seen)


# What the log says, or the sensor saw.


def _found(kill: OomKill, seen: Observation) -> Finding:
    age = seen.age_usec(kill)
    hurts = seen.ended or age is None or age < RECENT_USEC
    group = " Its memory.oom.group had the whole group killed with it." if kill.oom_group else ""
    return Finding(
        verdict=Verdict.FOUND,
        severity=Severity.CRITICAL if hurts else Severity.WARNING,
        summary=(
            f"{_victim(kill, seen)} was OOM-killed{_when(kill, seen)}: "
            f"{_whose(kill, seen)}{_held(kill)}{_trigger(kill)}.{group}"
        ),
        evidence=_evidence(kill, seen),
        ruled_out=_ruled_out(kill),
        cures=_cures(kill, seen),
    )


def _victim(kill: OomKill, seen: Observation) -> str:
    first = ", its first process," if kill.victim_pid == seen.init_pid else ""
    return f"{kill.victim_comm} (pid {kill.victim_pid}){first}"


def _when(kill: OomKill, seen: Observation) -> str:
    age = seen.age_usec(kill)
    many = f" (killed {seen.times} times in all)" if seen.times > 1 else ""
    if seen.in_window(kill):
        return f" in this window{many}"
    return many if age is None else f" {ago(age / 1e6)} ago{many}"


def _whose(kill: OomKill, seen: Observation) -> str:
    if kill.global_oom:
        where = "" if kill.constraint in (None, "NONE") else " on the NUMA nodes it may use"
        hog = kill.largest
        most = f"; {hog.comm} (pid {hog.pid}) held most, {_mib(hog.rss_bytes)}" if hog else ""
        return f"the host itself ran out of memory{where}, no limit of the container was met{most}"
    what, bytes = "memory limit", kill.limit_bytes
    if kill.by_swap:
        what, bytes = "limit of memory and swap together", kill.swap_limit_bytes
    limit = what if bytes is None else f"{what} of {_mib(bytes)}"
    if kill.oom_memcg is None:
        return "its own memory limit was reached or a parent's (the log has no full report of it)"
    if not seen.is_own(kill.oom_memcg):
        return f"its parent {kill.oom_memcg} reached the {limit}, the container not its own"
    if kill.oom_memcg != seen.path and within(kill.oom_memcg or "", seen.path):
        return f"a group inside of it, {kill.oom_memcg}, reached its {limit}"
    return f"the container reached its own {limit}"


def _held(kill: OomKill) -> str:
    parts = (
        (kill.held_anon_bytes, "anonymous"),
        (kill.held_shmem_bytes, "tmpfs and shared memory"),
        (kill.held_file_bytes, "page cache"),
    )
    said = [f"{_mib(size)} {what}" for size, what in parts if (size or 0) > _MIB // 10]
    return f", holding {', '.join(said)}" if said else ""


def _trigger(kill: OomKill) -> str:
    pid = "" if kill.trigger_pid is None else f" (pid {kill.trigger_pid})"
    return f", when {kill.trigger_comm}{pid} asked for more" if kill.another_asked else ""


def _mib(size: int | None) -> str:
    if size is None:
        return "an unknown amount"
    return f"{size / _MIB:.0f} MiB" if size >= 10 * _MIB else f"{size / _MIB:.1f} MiB"


def _evidence(kill: OomKill, seen: Observation) -> tuple[Evidence, ...]:
    logged = [Evidence(seen.log.source, line) for line in kill.said] if kill.logged else []
    marked = [Evidence(_MARK, kill.marked)] if kill.witnessed else []
    return (*logged, *marked, *_counters(seen))


def _counters(seen: Observation) -> tuple[Evidence, ...]:
    own = seen.own
    if own is None or own.oom_kill is None:
        return ()
    events = "" if own.oom is None else f", oom {own.oom}"
    return (Evidence(own.events_file, f"oom_kill {own.oom_kill} (+{seen.fresh}){events}"),)


def _ruled_out(kill: OomKill) -> tuple[RuledOut, ...]:
    says = "the kernel log names" if kill.logged else "the kernel marked"
    victim = f"{says} pid {kill.victim_pid} as the OOM killer's victim"
    outside = RuledOut("a kill from outside (stop, kill -9)", f"{victim}; others leave no trace")
    if kill.global_oom:
        met = "the log says global_oom: no limit was met" if kill.logged else "no group was full"
        return outside, RuledOut("its own limit", met)
    full = "it says Memory cgroup out of memory" if kill.logged else "a group's limit was reached"
    host = RuledOut("a host out of memory", full)
    if not kill.another_asked:
        return outside, host
    asked = f"{kill.trigger_comm} asked for more; the victim is whose oom_score was highest"
    return outside, host, RuledOut("the victim as the one to blame", asked)


def _cures(kill: OomKill, seen: Observation) -> tuple[Cure, ...]:
    if kill.global_oom:
        return (_for_the_host(kill),)
    path = kill.oom_memcg or seen.path
    level = seen.level(path)
    now = None if level is None else level.memory
    limit = kill.limit_bytes or (None if now is None else now.limit_bytes)
    return _raise(path, limit, None if now is None else now.peak_bytes, seen)


def _raise(
    path: str | None, limit: int | None, peak: int | None, seen: Observation
) -> tuple[Cure, ...]:
    wanted = max(ENOUGH * (limit or 0), (peak or 0) * 5 // 4)
    enough = math.ceil(wanted / STEP_BYTES) * STEP_BYTES
    if limit is None or enough > (seen.total_bytes or enough):
        return (_CAP,)  # more than the machine has
    inner = path != seen.path and within(path or "", seen.path)
    advice = (
        f"Allow {_mib(enough)}. The kernel does not tell how much more it wanted than "
        f"{_mib(limit)}: watch the peak under the same load, and leave it a margin."
    )
    change = MemoryLimit(enough, cgroup=path if inner or not seen.is_own(path) else None)
    return Cure(advice=advice, change=change, safety=Safety.LOW_RISK), _CAP


def _for_the_host(kill: OomKill) -> Cure:
    hog = "" if kill.largest is None else f", above all {kill.largest.comm}"
    advice = (
        f"The host promises more memory than it has: limit what uses most{hog}, move something to "
        "another host, or reserve memory for this container (memory.min or memory.low; in "
        "Kubernetes a request equal to the limit)."
    )
    return Cure(advice=advice, change=InProgram(advice), safety=Safety.MUTATING)


# What the counters say, where the log says nothing.


def _counted(seen: Observation) -> Finding | None:
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
    return _likely_clear(
        f"Nothing in it was OOM-killed in this window; {_times(seen.times)} before, but it never "
        f"held more than {_mib(level.memory.peak_bytes)} of the "
        f"{_mib(level.memory.limit_bytes)} it may hold now: its limit was raised since, or it "
        f"was not the reason ({_silent(seen)}).",
        _counters(seen),
    )


def _blamed(level: Level | None, seen: Observation) -> Finding:
    when = "in this window" if seen.fresh else "since its group was made"
    above = "it was an ancestor's limit or the host's memory that ran out, not its own"
    whose, cures = (above, (_WHOSE,)) if level is None else _this(level, seen)
    only = "oom_kill counts the OOM killer's victims alone"
    return Finding(
        verdict=Verdict.FOUND,
        certainty=Certainty.LIKELY,
        severity=Severity.CRITICAL if seen.fresh else Severity.WARNING,
        summary=(
            f"It was OOM-killed {_times(seen.fresh or seen.times)} {when}: {whose}; who was killed "
            f"is not known ({_silent(seen)})."
        ),
        evidence=_counters(seen),
        ruled_out=(RuledOut("a kill from outside (stop, kill -9)", only),),
        cures=cures,
    )


def _this(level: Level, seen: Observation) -> tuple[str, tuple[Cure, ...]]:
    now = level.memory
    who = "its own limit" if now.path == seen.path else f"the limit of its parent {now.path}"
    limit = f" of {_mib(now.limit_bytes)}" if now.limit_bytes is not None else ""
    return f"{who}{limit} was reached", _raise(now.path, now.limit_bytes, now.peak_bytes, seen)


def _silent(seen: Observation) -> str:
    """Why the log says nothing of a kill that was counted, and why nobody saw it."""
    unseen = f"; {seen.unwatched}" if seen.fresh and seen.unwatched else ""
    if seen.log.reason is not None:
        return seen.log.reason + unseen
    if not (seen.fresh or seen.log.covers(seen.start_usec)):
        return "the kernel log does not reach back that far"
    return f"the kernel writes only ten reports in five seconds in full{unseen}"


def _past(kill: OomKill, seen: Observation) -> Finding:
    level, age = seen.level(kill.oom_memcg), seen.age_usec(kill)
    now = None if level is None else level.memory.limit_bytes
    last = "" if age is None else f", last {ago(age / 1e6)} ago"
    at = "" if kill.limit_bytes is None else f" at a limit of {_mib(kill.limit_bytes)}"
    whose = "the limit" if seen.is_own(kill.oom_memcg) else f"the limit of {kill.oom_memcg}"
    swap = " with more swap" if now is not None and now == kill.limit_bytes else ""
    is_now = "was lifted" if now is None else f"is {_mib(now)} now{swap}"
    return clear(
        f"It was OOM-killed {_times(seen.times)}{last}{at}; {whose} {is_now} and nothing was "
        "killed since.",
        evidence=_evidence(kill, seen),
    )


def _times(n: int) -> str:
    return "once" if n == 1 else f"{n} times"


def _nothing(seen: Observation) -> Finding:
    own = seen.own
    if own is None or own.oom_kill != 0:
        if seen.log.covers(seen.start_usec) and not seen.nameless:
            return clear("Nothing in it was OOM-killed since it began.", evidence=_no_line(seen))
        return unknown(f"Whether anything in it was OOM-killed cannot be told: {_blind(seen)}.")
    room = "."
    if own.under_oom and own.kill_disabled:
        room = "; at its limit it waits, as the OOM killer is switched off for it (under_oom 1)."
    elif own.current_bytes is not None and own.limit_bytes is not None:
        full = own.current_bytes > 0.9 * own.limit_bytes
        cache = ", which page cache alone can bring about" if full else ""
        room = f"; it holds {_mib(own.current_bytes)} of {_mib(own.limit_bytes)}{cache}."
    return clear(f"Nothing in it was OOM-killed{room}", evidence=_counters(seen))


def _no_line(seen: Observation) -> tuple[Evidence, ...]:
    return (Evidence(seen.log.source, f"no oom-kill line with task_memcg={seen.path or seen.id}"),)


def _blind(seen: Observation) -> str:
    if seen.log.reason is not None:
        return f"{seen.log.reason}; {_WAY_OUT}"
    if seen.nameless:
        return f"of {seen.nameless} kills the kernel log does not say whose (too many at once)"
    return "the kernel log does not reach back that far; keep it, with journald or syslog"


def _likely_clear(summary: str, evidence: tuple[Evidence, ...] = ()) -> Finding:
    return Finding(
        verdict=Verdict.CLEAR, certainty=Certainty.LIKELY, summary=summary, evidence=evidence
    )


def _dead(seen: Observation) -> Finding:
    ended = _ended(seen.exit)
    if seen.kills:
        ended += f" An earlier run of it was OOM-killed {_times(len(seen.kills))}."
    unharmed = seen.own is not None and seen.own.oom_kill == 0
    if seen.nameless and not unharmed:
        return _recorded(seen, ended)
    if seen.log.covers(seen.start_usec) or (unharmed and seen.log.covers(seen.end_usec)):
        said = f"Nothing in it was OOM-killed: the kernel log names no victim.{ended}"
        return clear(said, evidence=_no_line(seen))
    if seen.log.covers(seen.end_usec):
        said = f"It did not end by an OOM kill: the kernel log names no victim.{ended}"
        return _likely_clear(said, _no_line(seen))
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
        return _likely_clear(
            "Its engine saw no out of memory at its limit (OOMKilled=false); the host's or a "
            f"parent's it would not see, and {_blind(seen)}.{ended}",
            evidence,
        )
    why = "its engine saw it out of memory but stopped it itself, and " if flag else ""
    said = f"Whether it was OOM-killed cannot be told: {why}{_blind(seen)}.{ended}"
    return unknown(said, evidence=evidence)


def _flagged(seen: Observation, evidence: tuple[Evidence, ...], ended: str) -> Finding:
    level = seen.level(seen.path)
    return Finding(
        verdict=Verdict.FOUND,
        certainty=Certainty.LIKELY,
        severity=Severity.CRITICAL,
        summary=(
            "Its engine saw it, or a process in it, run out of memory at its limit "
            f"(OOMKilled=true); {_blind(seen)}.{ended}"
        ),
        evidence=evidence,
        cures=(_CAP,) if level is None else _this(level, seen)[1],
    )


CASE = Case(
    title="Killed by the OOM killer",
    question="Why was my container killed?",
    question_zh="为什么我的容器被杀掉了?",
    lesson="08",
    observation=Observation,
    observe=observe,
    judge=judge,
    outlives=True,
)
