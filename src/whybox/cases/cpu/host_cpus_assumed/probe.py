"""A program sized for the machine's CPUs where it may use fewer: more at once than is paid for."""

import math
import re

from msgspec import Struct

from whybox.change import CpuQuota, InProgram
from whybox.kernel import cpu, cpustops, cpuwait, teams
from whybox.kernel.cpustops import Stops
from whybox.kernel.cpuwait import Thread
from whybox.kernel.host import Host
from whybox.kernel.sizing import RUNTIMES
from whybox.kernel.target import Target
from whybox.kernel.teams import Team
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

#: A team that wants this share of the window each never rests.
STEADY = 0.8

#: Of fewer than this, it may be chance that they are as many as the CPUs.
NO_CHANCE = 4

#: Waiting that is felt: of the window, and of what was to be done (as ``cpu/starved`` has it).
LEAST_SHARE_OF_WINDOW, LEAST_SHARE_OF_WORK = 0.05, 0.10

#: From here on Go reads the quota itself, and runs two threads at least (go1.25 release notes).
GO_KNOWS, GO_LEAST = (1, 25), 2

#: Whose workers end within a window: what is gone was theirs.
COME_AND_GO = frozenset(("make", "ninja"))

#: The JVM reads it too, and whoever asks for parallel work helps its pool (ForkJoinPool).
JVM_MORE = 1


class Observation(Struct, frozen=True, kw_only=True):
    """What a quota did, and who wanted to run at once."""

    elapsed_ns: int
    group: str
    """Its path in the tree of the cpu controller."""
    levels: tuple[Stops, ...]
    threads: tuple[Thread, ...]
    teams: tuple[Team, ...]
    """Looked for only where there is less than the machine."""
    used_ns: int | None
    online: int
    allowed: int | None
    """How many CPUs its cpuset and its own affinity leave it."""


def observe(host: Host, target: Target) -> Watch[Observation]:
    """Look for teams only where a quota stopped it, or it may use some of the CPUs alone."""
    group = target.group(host, "cpu")
    if group is None:
        raise OSError("the cpu control group of it cannot be seen from here")
    groups = tuple(group.lineage())
    acct = target.group(host, "cpuacct") or group
    started = host.monotonic_ns()
    stats, threads = [cpu.stat(host, g) for g in groups], cpuwait.look(host, group)
    used = cpu.usage_usec(host, acct)
    yield
    now = cpuwait.look(host, group)
    elapsed_ns = host.monotonic_ns() - started
    levels = cpustops.between(host, groups, stats)
    busy = cpuwait.threads(host, threads, now, elapsed_ns)
    online, allowed = cpu.online(host), _allowed(busy)
    less = (allowed or online) < online or any(one.throttled > 0 for one in levels)
    used_now = cpu.usage_usec(host, acct)
    return Observation(
        elapsed_ns=elapsed_ns,
        group=group.path,
        levels=levels,
        threads=busy,
        teams=teams.teams(host, busy, now.times) if less else (),
        used_ns=None if used is None or used_now is None else (used_now - used) * 1000,
        online=online,
        allowed=allowed,
    )


def _allowed(threads: tuple[Thread, ...]) -> int | None:
    sets = [one.cpus for one in threads if one.cpus]
    return len({cpu for cpus in sets for cpu in cpus}) if sets else None


class Room(Struct, frozen=True, kw_only=True):
    """What it may use, and what that did to it."""

    cores: float
    stops: Stops | None
    """``None``: it is its cpuset that is small."""

    @property
    def threads(self) -> int:
        """So many at once may use it."""
        return math.ceil(round(self.cores, 3))


def judge(seen: Observation) -> Finding:
    """Found where as many as the machine has CPUs ran at once, in less, and paid for it."""
    longest = max((one.period_usec for one in seen.levels), default=0)
    if seen.elapsed_ns < 2_000 * longest:
        return unknown(
            f"a window of {seen.elapsed_ns / 1e9:.1f} s is too short to see throttling: "
            "ask with --window 2s"
        )
    room = _room(seen)
    if room is None:
        return clear(_unhurt(seen))
    if not seen.teams:
        return clear("It is short of CPU, and none of its threads was busy for long enough to ask.")
    for team in sorted(seen.teams, key=lambda team: team.leader.runtime is None):
        if _assumes(seen, room, team):
            return _found(seen, room, team)
    return clear(_alone(seen, room))


def _room(seen: Observation) -> Room | None:
    """The quota that hurts, or the cpuset on which its threads wait for each other."""
    hurting = [one for one in seen.levels if one.cores is not None and one.matters(seen.elapsed_ns)]
    worst = max(hurting, key=lambda one: one.stopped_usec, default=None)
    if worst is not None and worst.cores is not None:
        return Room(cores=worst.cores, stops=worst)
    waited = _waited_ns(seen)
    wanted = waited + _ran_ns(seen)
    felt = waited >= max(LEAST_SHARE_OF_WINDOW * seen.elapsed_ns, LEAST_SHARE_OF_WORK * wanted)
    if seen.allowed is None or seen.allowed >= seen.online or not felt:
        return None
    return Room(cores=float(seen.allowed), stops=None)


def _assumes(seen: Observation, room: Room, team: Team) -> bool:
    """Whether its size is the machine's and not the container's, and that is what costs."""
    if team.size <= room.threads or team.size < seen.online or not _is_most(seen, team):
        return False
    if team.leader.runtime is not None:
        return not _knows_quotas(room, team)
    # Nobody told why there are so many: only their number speaks.
    if room.stops is None or team.size not in (seen.online, 2 * seen.online):
        return False
    if team.processes:
        return team.size == seen.online >= NO_CHANCE
    return _steady(seen, team) or team.size >= NO_CHANCE


def _is_most(seen: Observation, team: Team) -> bool:
    """Whether half of what the container wants is such teams': else fewer of them help little."""
    alike = [
        one.wanted_ns
        for one in seen.teams
        if (one.processes, one.leader.runtime) == (team.processes, team.leader.runtime)
    ]
    there = _ran_ns(seen) + _waited_ns(seen)
    gone = max((seen.used_ns or 0) - _ran_ns(seen), 0)
    wanted = there if team.leader.runtime in COME_AND_GO else there + gone
    return 2 * sum(alike) >= wanted


def _ran_ns(seen: Observation) -> int:
    return sum(one.run_ns for one in seen.threads)


def _waited_ns(seen: Observation) -> int:
    return sum(one.wait_ns for one in seen.threads)


def _knows_quotas(room: Room, team: Team) -> bool:
    """Whether its runtime read the quota, and these are as many as it makes of it."""
    if team.leader.setting is not None or room.stops is None:
        return False
    if team.leader.runtime == "JVM":
        return team.size <= room.threads + JVM_MORE
    version = re.match(r"go(\d+)\.(\d+)", team.leader.version or "")
    knows = version is not None and (int(version[1]), int(version[2])) >= GO_KNOWS
    return knows and team.size <= max(GO_LEAST, room.threads)


def _steady(seen: Observation, team: Team) -> bool:
    return team.wanted_ns >= STEADY * seen.elapsed_ns * team.size


def _unhurt(seen: Observation) -> str:
    quotas = [one.cores for one in seen.levels if one.cores is not None]
    if not quotas and (seen.allowed is None or seen.allowed >= seen.online):
        return f"No quota and no cpuset: the machine's {seen.online} CPUs are its own to assume."
    few = f"{min(quotas):.2f} cores" if quotas else f"{seen.allowed} of {seen.online} CPUs"
    return f"Busy threads: {len(seen.threads)}, which were not kept waiting for want of {few}."


def _alone(seen: Observation, room: Room) -> str:
    team = seen.teams[0]
    what = "processes alike" if team.processes else f"threads of {team.leader.comm}"
    return (
        f"It is short of CPU, but not for the machine's {seen.online} CPUs: {team.size} "
        f"{what} at once at most, where {room.cores:.2f} cores are paid for, and nothing shows "
        "that CPUs were counted for that."
    )


def _found(seen: Observation, room: Room, team: Team) -> Finding:
    half = room.stops is not None and 2 * room.stops.throttled >= room.stops.periods
    return Finding(
        verdict=Verdict.FOUND,
        certainty=Certainty.LIKELY if team.leader.runtime is None else Certainty.CONFIRMED,
        severity=Severity.CRITICAL if half else Severity.WARNING,
        summary=_summary(seen, room, team),
        evidence=_evidence(seen, room, team),
        ruled_out=_ruled_out(seen, room, team),
        cures=_cures(seen, room, team),
    )


def _summary(seen: Observation, room: Room, team: Team) -> str:
    leader = team.leader
    kind = "processes" if team.processes else "threads"
    who = f"{leader.comm} (pid {leader.pid})"
    runtime = "" if leader.runtime is None else f", {leader.version or leader.runtime},"
    where = f"its quota pays for {room.cores:.2f}" if room.stops else f"it may use {room.cores:.0f}"
    if room.stops is not None and room.stops.path != seen.group:
        where = f"the quota of {room.stops.path} pays for {room.cores:.2f}"
    return (
        f"Sized for the machine and not for the container: {team.size} {kind} of {who}{runtime} "
        f"want to run at once on {seen.online} CPUs, where {where}; {_price(seen, room)}."
    )


def _price(seen: Observation, room: Room) -> str:
    if room.stops is None:
        waited = _waited_ns(seen) / 1e9
        return f"they waited {waited:.2f} s for each other in these {seen.elapsed_ns / 1e9:.1f} s"
    return f"together they were stopped in {room.stops.throttled} of {room.stops.periods} periods"


def _evidence(seen: Observation, room: Room, team: Team) -> tuple[Evidence, ...]:
    leader, stops = team.leader, room.stops
    said = [
        Evidence(
            f"/proc/{leader.pid}/task/*/schedstat"
            if not team.processes
            else f"children of {leader.pid}: /proc/PID/schedstat",
            f"{team.size} ran or waited for {team.wanted_ns / 1e9:.2f} s in all, "
            f"{team.wanted_ns / seen.elapsed_ns:.1f} at any moment",
        ),
        Evidence("/sys/devices/system/cpu/online", f"{seen.online} CPUs"),
    ]
    if stops is not None:
        moved = f"nr_periods +{stops.periods}, nr_throttled +{stops.throttled}"
        said.append(Evidence(stops.file, f"{moved}; quota of {room.cores:.2f} cores"))
    else:
        said.append(Evidence(f"/proc/{leader.pid}/status", f"{seen.allowed} CPUs in Cpus_allowed"))
    if leader.runtime is not None:
        said.append(Evidence(*_split(leader.why)))
        variable = RUNTIMES[leader.runtime].variable
        unset = "left to the runtime" if variable is None else f"no {variable}: left to the runtime"
        said.append(Evidence(f"/proc/{leader.pid}/environ, cmdline", leader.setting or unset))
    return tuple(said)


def _split(why: str) -> tuple[str, str]:
    source, _, says = why.partition(": ")
    return source, says


def _ruled_out(seen: Observation, room: Room, team: Team) -> tuple[RuledOut, ...]:
    more = f"{team.size} at once, where {room.threads} could use it"
    hurt = "only counted because nr_throttled moved" if room.stops else "they wait for each other"
    return (
        RuledOut("one busy thread that wants more than its quota", more),
        RuledOut("many threads that harm nobody", f"{_price(seen, room)}: {hurt}"),
    )


def _cures(seen: Observation, room: Room, team: Team) -> tuple[Cure, ...]:
    fits = max(math.floor(round(room.cores, 3)), 1)
    fewer = _fewer(team, fits)
    if room.stops is None:
        return (fewer,)
    whole = CpuQuota(
        float(min(team.size, seen.online)),
        cgroup=None if room.stops.path == seen.group else room.stops.path,
    )
    more = Cure(
        advice=f"Allow what it was sized for: {whole.cores:g} cores.",
        change=whole,
        safety=Safety.LOW_RISK,
    )
    # One that never rests wants a whole CPU: below that no number of threads is small enough.
    return (more, fewer) if room.cores < 1 and _steady(seen, team) else (fewer, more)


def _fewer(team: Team, fits: int) -> Cure:
    runtime = RUNTIMES.get(team.leader.runtime or "")
    how = "its number of threads" if runtime is None else runtime.knob.format(n=fits)
    kind = "processes" if team.processes else "threads"
    return Cure(
        advice=f"Let it run {fits} of these {kind} at once instead of {team.size}: {how}.",
        change=InProgram(f"run no more than {fits} of these {kind} at once: {how}"),
        safety=Safety.LOW_RISK,
    )


CASE = Case(
    title="Sized for the machine and not for the container",
    question="Why does my program think it has the whole machine?",
    question_zh="如何正确地拿到容器 CPU 的开销?",
    lesson="06",
    needs=(living, own_group("cpu")),
    observation=Observation,
    observe=observe,
    judge=judge,
    explains=("cpu/throttled", "cpu/starved"),
)
