"""Out of pids: a limit of tasks, here or above, refuses forks; and what the tasks are."""

import math

from msgspec import Struct

from whybox.change import InProgram, PidsLimit
from whybox.kernel import crowd, forkrefusal, pidslevels, rlimits
from whybox.kernel.cgroup import Group
from whybox.kernel.crowd import Crowd
from whybox.kernel.forkrefusal import Refusal
from whybox.kernel.host import Host
from whybox.kernel.pidslevels import ABOVE, OWN, Level, Share
from whybox.kernel.rlimits import MachineTasks, UserTasks
from whybox.kernel.target import Target, processes
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
from whybox.needs import own_group

#: A machine with so large a share of the tasks that it can have refuses forks to anybody.
FULL_MACHINE = 0.98


class Observation(Struct, frozen=True, kw_only=True):
    """Every group with a count of tasks, and who is in the one that is short of them."""

    elapsed_ns: int
    levels: tuple[Level, ...]
    """The container's own first, then those above, then those inside."""
    crowd: Crowd | None = None
    """Of the group whose limit refuses forks."""
    shares: tuple[Share, ...] = ()
    """Of the same, where it is one above."""
    users: tuple[UserTasks, ...] = ()
    machine: MachineTasks | None = None
    log: Refusal | None = None
    """For a container that has ended: its counters are gone with it."""

    @property
    def own(self) -> Level | None:
        """The container's own group."""
        return next((level for level in self.levels if level.place == OWN), None)

    @property
    def mine(self) -> list[Level]:
        """The container's own group and those inside."""
        return [level for level in self.levels if level.place != ABOVE]


def _own_group_or_log(host: Host, target: Target) -> str | None:
    return own_group("pids")(host, target) if target.alive else None


def observe(host: Host, target: Target) -> Watch[Observation]:
    """Every counter before and after; who is there only where something is short."""
    group = target.group(host, "pids") if target.alive else None
    started = host.monotonic_ns()
    before = {} if group is None else pidslevels.counts(host, group)
    yield
    elapsed_ns = host.monotonic_ns() - started
    if group is None:
        log = forkrefusal.refusal(host, target)
        return Observation(elapsed_ns=elapsed_ns, levels=(), log=log)
    levels = pidslevels.levels(group, before, pidslevels.counts(host, group))
    found, shares = _looked_into(host, group, levels)
    return Observation(
        elapsed_ns=elapsed_ns,
        levels=levels,
        crowd=found,
        shares=shares,
        users=() if found else rlimits.users(host, processes(host, target)),
        machine=rlimits.machine(host),
    )


def _looked_into(
    host: Host, group: Group, levels: tuple[Level, ...]
) -> tuple[Crowd | None, tuple[Share, ...]]:
    short = pidslevels.short(levels)
    if short is None:
        return None, ()
    where = pidslevels.located(group, short.after)
    shares = pidslevels.shares(host, where) if short.place == ABOVE else ()
    return crowd.crowd(host, where, short.after.current), shares


def judge(seen: Observation) -> Finding:
    """Found where forks are refused now: counted in this window, or before and still no room."""
    if seen.log is not None:
        return _dead(seen.log)
    short = pidslevels.short(seen.levels)
    if short is not None:
        return _found(short, seen)
    return _by_user(seen) or _by_machine(seen) or _clear(seen)


def _dead(log: Refusal) -> Finding:
    if log.line is None and log.covers:
        return clear("The kernel log tells of no fork in it that a limit of tasks refused.")
    if log.line is None:
        reason = log.reason or "the kernel log does not reach back that far"
        return unknown(f"It has ended, and its counters are gone with it; {reason}.")
    when = "" if log.age_seconds is None else f" {ago(log.age_seconds)} ago"
    look = "Ask while it runs: then the limit is known, and what its tasks are."
    return Finding(
        verdict=Verdict.FOUND,
        certainty=Certainty.LIKELY,
        severity=Severity.WARNING,
        summary=(
            f"A limit of tasks refused a fork in it{when}, at least once; whether it ended of that "
            "is not told."
        ),
        evidence=(Evidence(log.source, log.line),),
        cures=(Cure(advice=look, safety=Safety.INSPECT),),
    )


def _by_user(seen: Observation) -> Finding | None:
    """A limit that refuses forks too, and of which the kernel keeps no count."""
    user = next((user for user in seen.users if user.tasks >= user.limit), None)
    if user is None:
        return None
    return unknown(
        f"No control group refused a fork, but uid {user.uid} has {user.tasks} of the "
        f"{user.limit} tasks that RLIMIT_NPROC leaves it, over all containers with that uid. The "
        "next fork is refused, and the kernel does not count that: raise it (docker run --ulimit "
        "nproc=…), or give the container a uid of its own.",
        evidence=(Evidence(f"/proc/{user.pid}/limits", f"{rlimits.PROCESSES} {user.limit}"),),
    )


def _by_machine(seen: Observation) -> Finding | None:
    machine = seen.machine
    if machine is None or machine.limit is None or machine.tasks < FULL_MACHINE * machine.limit:
        return None
    return unknown(
        f"No control group refused a fork, but the machine has {machine.tasks} of the "
        f"{machine.limit} tasks it can have (kernel.pid_max {machine.pid_max}, kernel.threads-max "
        f"{machine.threads_max}): it may refuse forks to everybody, and does not count that.",
        evidence=(Evidence("/proc/loadavg", f"{machine.tasks} tasks"),),
    )


def _clear(seen: Observation) -> Finding:
    past = sum(one.after.refused or 0 for one in seen.mine)
    before = f" {_times(past)} one was refused since it began." if past else ""
    least = min(pidslevels.limited(seen.levels), key=lambda one: one.room, default=None)
    if least is None:
        evidence = tuple(_count(one) for one in seen.mine[:1])
        return clear(f"No limit of tasks, here or above it.{before}", evidence=evidence)
    taken = f"{least.after.current} of {least.after.limit} tasks{_whose(least)} are taken"
    if least.after.full:
        says = f"All taken, and no fork of it was refused: {taken}; the next will be."
        return clear(says, evidence=(_count(least),))
    says = f"No fork was refused in this window: {taken}.{before}"
    return clear(says, evidence=(_count(least),))


def _whose(level: Level) -> str:
    if level.place == OWN:
        return ""
    return f" of {'its parent' if level.place == ABOVE else 'the group in it'} {level.after.path}"


def _times(n: int) -> str:
    return "once" if n == 1 else f"{n} times"


def _count(level: Level) -> Evidence:
    now = level.after
    peak = "" if now.peak is None else f", pids.peak {now.peak}"
    limit = "max" if now.limit is None else now.limit
    file = f"{now.directory}/pids.current"
    return Evidence(file, f"{now.current}; pids.max {limit}{peak}")


def _found(short: Level, seen: Observation) -> Finding:
    fresh, total = pidslevels.refused(short, seen.levels)
    # Where the limit's group counts it, who was refused may be somebody else below it.
    sure = short.place != ABOVE or not short.after.at_the_limit
    return Finding(
        verdict=Verdict.FOUND,
        certainty=Certainty.CONFIRMED if sure else Certainty.LIKELY,
        severity=Severity.CRITICAL if short.after.full else Severity.WARNING,
        summary=_summary(short, seen, fresh, total),
        evidence=_evidence(short, seen),
        ruled_out=_ruled_out(short, seen),
        cures=_cures(short, seen, fresh or total),
    )


def _summary(short: Level, seen: Observation, fresh: int, total: int) -> str:
    limit, seconds = short.after.limit, seen.elapsed_ns / 1e9
    whose = "its own limit" if short.place == OWN else f"the limit{_whose(short)}"
    when = f"{_times(fresh)} in these {seconds:.1f} s" if fresh else _times(total)
    taken = f"{short.after.current} of {limit} are taken"
    if not short.after.full:
        taken += " now, so it comes and goes"
    by = _by(short, seen)
    return f"Out of pids: a fork was refused {when} by {whose} of {limit} tasks; {taken}{by}."


def _by(short: Level, seen: Observation) -> str:
    """What they are."""
    they = seen.crowd
    if they is None:
        return ""
    if _others_fill(short, seen):
        return _by_others(seen)
    if they.of_zombies:
        return f", {they.zombies} by zombies that were not waited for"
    if they.of_threads and they.largest is not None:
        process = f"{they.largest.comm} (pid {they.largest.pid})"
        return f", {they.largest_threads} by the threads of {process}"
    return _by_kind(they)


def _by_kind(they: Crowd) -> str:
    if they.of_kind < 2:
        return ""
    says = f", {they.of_kind} by processes called {they.kind}"
    if they.multiplies:
        return f"{says}, which starts itself again and again: a fork bomb"
    made = they.parent
    return (
        says if made is None else f"{says}, {they.of_parent} made by {made.comm} (pid {made.pid})"
    )


def _others_fill(short: Level, seen: Observation) -> bool:
    """A limit that it shares is filled by others."""
    own = seen.own
    return short.place == ABOVE and own is not None and 2 * own.after.current < short.after.current


def _by_others(seen: Observation) -> str:
    own = seen.own
    if own is None:
        return ""
    path = f"{own.after.path}/"
    others = [share for share in seen.shares if not path.startswith(f"{share.path}/")]
    most = f" and {others[0].current} by its neighbour {others[0].path}" if others else ""
    return f", only {own.after.current} by it{most}"


def _evidence(short: Level, seen: Observation) -> tuple[Evidence, ...]:
    counted = [short] if short.after.at_the_limit else [o for o in seen.mine if o.after.refused]
    they = seen.crowd
    events = [
        Evidence(one.after.events_file, f"max {one.after.refused} (+{one.fresh} in this window)")
        for one in counted[:3]
    ]
    if they is None:
        return (*events, _count(short))
    lists = f"{short.after.directory}/cgroup.procs"
    says = f"processes here and below: {they.processes}, their threads: {they.threads}"
    return (*events, _count(short), Evidence(lists, f"{says}, zombies: {they.zombies}"))


def _ruled_out(short: Level, seen: Observation) -> tuple[RuledOut, ...]:
    nproc = "RLIMIT_NPROC and kernel.pid_max refuse forks as well, but not in pids.events"
    found = [RuledOut("another limit with the same EAGAIN", nproc)]
    they = seen.crowd
    if they is not None and (_others_fill(short, seen) or not they.of_zombies):
        says = f"{they.zombies} of these {they.tasks} tasks are zombies"
        found.append(RuledOut("process/zombies", says))
    others = [one.after for one in pidslevels.limited(seen.levels) if one is not short]
    says = "; ".join(f"{one.path}: {one.current} of {one.limit}" for one in others[:3])
    return (*found, RuledOut("another group's limit", says or "no other group has one"))


def _cures(short: Level, seen: Observation, refused: int) -> tuple[Cure, ...]:
    they, more = seen.crowd, _raise(short, seen, refused)
    if they is None or _others_fill(short, seen):
        return (more,)
    if they.of_zombies:
        return (_wait(they),)
    if they.multiplies and not they.of_threads:
        return (_defuse(they),)
    accrued = they.accrued_seconds
    return (more,) if accrued is None else (_stop_leak(accrued), more)


def _in_program(advice: str, safety: Safety = Safety.LOW_RISK) -> Cure:
    return Cure(advice=advice, change=InProgram(advice), safety=safety)


def _wait(they: Crowd) -> Cure:
    return _in_program(
        "Let whoever has children wait for them, or run the program under an init: "
        "process/zombies says who. A larger limit only takes longer to fill."
    )


def _defuse(they: Crowd) -> Cure:
    return _in_program(
        "Leave the limit as it is, it keeps the bomb from the host. Stop the container (or freeze "
        f"it, and then kill all of {they.kind}), and mend what starts it.",
        Safety.DESTRUCTIVE,
    )


def _stop_leak(seconds: float) -> Cure:
    return _in_program(
        f"They came one by one over {ago(seconds)}, and all of them are still there: that looks "
        "like a leak. Let the program end what it is done with, and bound its pool; a larger "
        "limit only takes longer to fill."
    )


def _raise(short: Level, seen: Observation, refused: int) -> Cure:
    """Room for the most it had and for what it was refused, as far as that can be one wish each."""
    limit = short.after.limit or 0
    most = max(limit, short.after.current, short.after.peak or 0)
    enough = math.ceil((most + min(refused, 3 * limit)) * 1.25 / 10) * 10
    again = ", who tries again being counted again" if refused > limit else ""
    above = [one.after for one in pidslevels.limited(seen.levels) if one.place == ABOVE]
    also = "".join(
        f" {one.path} above it must allow as many, and allows {one.limit}."
        for one in above
        if one.path != short.after.path and (one.limit or 0) < enough
    )
    return Cure(
        advice=(
            f"Allow {enough} tasks: it had {most} at most and was refused {refused}{again}. If "
            "their number grows for ever, bound the pool or end what is done instead, as a larger "
            f"limit only takes longer to fill.{also}"
        ),
        change=PidsLimit(enough, cgroup=None if short.place == OWN else short.after.path),
        safety=Safety.LOW_RISK,
    )


CASE = Case(
    title="Out of pids: a limit of tasks refuses forks",
    question="Why can't my container fork?",
    question_zh="为什么容器里无法创建新进程?",
    lesson="03",
    needs=(_own_group_or_log,),
    observation=Observation,
    observe=observe,
    judge=judge,
)
