"""Out of CPU quota, not out of CPU: ``nr_throttled`` over one window, here or at an ancestor."""

from msgspec import Struct

from whybox.change import CpuBurst, CpuQuota
from whybox.kernel import cpu, cpudemand
from whybox.kernel.cpu import Max, Stat
from whybox.kernel.cpudemand import Demand
from whybox.kernel.host import Host
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

from . import enough
from .enough import Peaks

#: Stopped in fewer of its periods than this, or for less of the time, nobody notices.
LEAST_SHARE_OF_PERIODS = 0.05
LEAST_SHARE_OF_TIME = 0.02
#: One stop is a moment and not a state, unless it is as long as this share of the window.
LONG_SHARE_OF_TIME = 0.1


class Level(Struct, frozen=True, kw_only=True):
    """One group on the way from the container up to the root."""

    path: str
    limit: Max | None
    before: Stat | None
    after: Stat | None


class Observation(Struct, frozen=True, kw_only=True):
    """The container's group first, then its ancestors."""

    elapsed_ns: int
    levels: tuple[Level, ...]
    used_usec: int | None
    demand: Demand | None
    cpus: int
    local_file: str | None = None
    local_stopped_usec: int | None = None
    """How long its own run queues stood still, whoever's quota it was; newer kernels tell."""


def observe(host: Host, target: Target) -> Watch[Observation]:
    """Read every group on the way up, before and after."""
    group = target.group(host, "cpu")
    if group is None:
        raise OSError("the cpu control group of it cannot be seen from here")
    acct = target.group(host, "cpuacct") or group
    groups = tuple(group.lineage())
    started = host.monotonic_ns()
    before = [cpu.stat(host, g) for g in groups]
    used, local = cpu.usage_usec(host, acct), cpu.local_stopped_usec(host, group)
    threads = cpudemand.sample(host, group)
    yield
    after = [cpu.stat(host, g) for g in groups]
    elapsed_ns = host.monotonic_ns() - started
    return Observation(
        elapsed_ns=elapsed_ns,
        levels=tuple(
            Level(path=g.path, limit=cpu.max_(host, g), before=b, after=a)
            for g, b, a in zip(groups, before, after, strict=True)
        ),
        used_usec=_difference(used, cpu.usage_usec(host, acct)),
        demand=cpudemand.demand(threads, cpudemand.sample(host, group), elapsed_ns),
        cpus=cpu.online(host),
        local_file=None if local is None else group.file("cpu.stat.local"),
        local_stopped_usec=_difference(local, cpu.local_stopped_usec(host, group)),
    )


def _difference(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else after - before


class Throttling(Struct, frozen=True, kw_only=True):
    """One level's difference over the window."""

    level: Level
    own: bool
    periods: int
    throttled: int
    stopped_usec: int
    quota_usec: int
    period_usec: int

    @property
    def cores(self) -> float:
        """The quota as a number of CPUs."""
        return self.quota_usec / self.period_usec


def judge(seen: Observation) -> Finding:
    """Found where a quota stopped it in this window, long enough to matter."""
    limited = [t for t in _throttlings(seen) if t is not None]
    if not limited:
        return clear("No CPU quota, here or above it.")
    longest = max(limited, key=lambda t: t.period_usec)
    if seen.elapsed_ns < 2_000 * longest.period_usec:
        return unknown(
            f"a window of {seen.elapsed_ns / 1e9:.1f} s is too short to see throttling: "
            "ask with --window 2s"
        )
    worst = max(limited, key=lambda t: t.stopped_usec)
    if not _matters(worst, seen):
        return clear(_harmless(worst, seen), evidence=_evidence(worst))
    return _found(worst, seen)


def _throttlings(seen: Observation) -> list[Throttling | None]:
    return [_throttling(level, own=level is seen.levels[0]) for level in seen.levels]


def _throttling(level: Level, *, own: bool) -> Throttling | None:
    limit, before, after = level.limit, level.before, level.after
    if limit is None or limit.quota_usec is None or before is None or after is None:
        return None
    return Throttling(
        level=level,
        own=own,
        periods=after.nr_periods - before.nr_periods,
        throttled=after.nr_throttled - before.nr_throttled,
        stopped_usec=after.throttled_usec - before.throttled_usec,
        quota_usec=limit.quota_usec,
        period_usec=limit.period_usec,
    )


def _matters(worst: Throttling, seen: Observation) -> bool:
    if worst.throttled <= 0 or worst.periods <= 0:
        return False
    often = worst.throttled / worst.periods >= LEAST_SHARE_OF_PERIODS
    least = LEAST_SHARE_OF_TIME if worst.throttled > 1 else LONG_SHARE_OF_TIME
    long = worst.stopped_usec * 1000 >= least * seen.elapsed_ns
    return often and long and (worst.own or _hurts(seen))


def _hurts(seen: Observation) -> bool:
    """An ancestor may be stopped for what a neighbour used: that hurts only who wanted to run."""
    if seen.local_stopped_usec is not None:
        return seen.local_stopped_usec * 1000 >= LEAST_SHARE_OF_TIME * seen.elapsed_ns
    return _wanted_cores(seen) >= 0.01


def _wanted_cores(seen: Observation) -> float:
    used = (seen.used_usec or 0) * 1000
    wanted = used if seen.demand is None else seen.demand.run_ns + seen.demand.run_delay_ns
    return max(used, wanted) / seen.elapsed_ns


def _used_cores(seen: Observation) -> float:
    return (seen.used_usec or 0) * 1000 / seen.elapsed_ns


def _harmless(worst: Throttling, seen: Observation) -> str:
    where = "its quota" if worst.own else f"the quota of {worst.level.path}"
    if worst.throttled and not worst.own and not _hurts(seen):
        return f"The quota of {worst.level.path} is used up by others; it wanted no CPU itself."
    return (
        f"Stopped in {worst.throttled} of {worst.periods} periods by {where} of "
        f"{worst.cores:.2f} cores: {worst.stopped_usec / 1000:.0f} ms in all."
    )


def _found(worst: Throttling, seen: Observation) -> Finding:
    share = worst.throttled / worst.periods
    seconds = seen.elapsed_ns / 1e9
    whose = "" if worst.own else f" of its parent {worst.level.path}"
    return Finding(
        verdict=Verdict.FOUND,
        certainty=Certainty.CONFIRMED,
        severity=Severity.CRITICAL if share >= 0.5 else Severity.WARNING,
        summary=(
            f"It ran out of the CPU quota{whose}, not of CPU: stopped in {worst.throttled} of "
            f"{worst.periods} periods, {worst.stopped_usec / 1e6:.2f} s of waiting in these "
            f"{seconds:.1f} s, while it used {_used_cores(seen):.2f} of the {worst.cores:.2f} "
            "cores allowed."
        ),
        evidence=(*_evidence(worst), *_local_evidence(worst, seen)),
        ruled_out=_ruled_out(worst, seen),
        cures=_cures(worst, seen),
    )


def _evidence(worst: Throttling) -> tuple[Evidence, ...]:
    stat, limit = worst.level.after, worst.level.limit
    if stat is None or limit is None:
        return ()
    return (
        Evidence(
            stat.file,
            f"nr_periods +{worst.periods}, nr_throttled +{worst.throttled}, "
            f"throttled +{worst.stopped_usec} us",
        ),
        Evidence(
            limit.file,
            f"{worst.quota_usec} us of every {worst.period_usec} us = {worst.cores:.2f} cores",
        ),
    )


def _local_evidence(worst: Throttling, seen: Observation) -> tuple[Evidence, ...]:
    """Of an ancestor's stops, what this container had of them."""
    if worst.own or seen.local_file is None or seen.local_stopped_usec is None:
        return ()
    said = f"throttled +{seen.local_stopped_usec} us: so long its own tasks were kept from running"
    return (Evidence(seen.local_file, said),)


def _ruled_out(worst: Throttling, seen: Observation) -> tuple[RuledOut, ...]:
    other = [t for t in _throttlings(seen) if t is not None and t.level is not worst.level]
    return (
        RuledOut(
            "cpu/starved",
            "contention for CPUs throttles nothing: nr_throttled moves only when a quota is spent",
        ),
        RuledOut(
            "another group's quota",
            "none of the other groups on the way to the root has one"
            if not other
            else "; ".join(f"{t.level.path}: stopped in {t.throttled} periods" for t in other),
        ),
        RuledOut(
            "throttling in the past",
            f"counted over this window only, {worst.throttled} of {worst.periods} periods",
        ),
    )


def _cures(worst: Throttling, seen: Observation) -> tuple[Cure, ...]:
    bursty = _used_cores(seen) < 0.8 * worst.cores
    peaks = _peaks(worst, seen) if bursty else None
    cores = _enough(worst, seen, peaks)
    raise_quota = Cure(
        advice=f"Allow {cores:g} cores. {_asked(worst, seen, peaks, bursty=bursty)} "
        "Or run fewer threads at once than the quota pays for.",
        change=CpuQuota(cores, cgroup=None if worst.own else worst.level.path),
        safety=Safety.LOW_RISK,
    )
    limit = worst.level.limit
    if not bursty or not worst.own or limit is None or limit.burst_usec is None:
        return (raise_quota,)
    savings = worst.quota_usec if peaks is None else peaks.burst_usec
    if savings > worst.quota_usec:
        return (raise_quota,)  # the kernel lets nobody save more than one quota
    return (raise_quota, _save(savings, peaks))


def _asked(worst: Throttling, seen: Observation, peaks: Peaks | None, *, bursty: bool) -> str:
    if peaks is not None:
        return (
            f"On average it uses only {_used_cores(seen):.2f}, but each of its peaks takes about "
            f"{peaks.work_usec / 1000:.0f} ms of CPU, where a period pays for "
            f"{worst.quota_usec / 1000:.0f} ms."
        )
    if bursty:
        return (
            f"On average it uses only {_used_cores(seen):.2f}; it is its peaks that hit the quota "
            "of one period."
        )
    wanted = _wanted_cores(seen)
    return f"It asked for {wanted:.2f}, {wanted / worst.cores:.1f} times what it may use."


def _save(burst_usec: int, peaks: Peaks | None) -> Cure:
    lacks = "" if peaks is None else f" ({burst_usec / 1000:.0f} ms: what a peak lacks and more)"
    return Cure(
        advice=f"Or let it save unused quota for its peaks{lacks}, at the same average.",
        change=CpuBurst(burst_usec),
        safety=Safety.LOW_RISK,
    )


def _peaks(worst: Throttling, seen: Observation) -> Peaks | None:
    # What the neighbours under the same quota used is not known here.
    if not worst.own:
        return None
    return enough.peaks(
        periods=worst.periods,
        throttled=worst.throttled,
        used_usec=seen.used_usec or 0,
        quota_usec=worst.quota_usec,
        period_usec=worst.period_usec,
        wide=_wide(seen),
    )


def _wide(seen: Observation) -> int:
    """On how many CPUs at once it works."""
    # Threads that came and went left no account: they may have had all of them.
    return min(_active(seen) or seen.cpus, seen.cpus)


def _active(seen: Observation) -> int:
    """Its threads that ran or waited; 0: none that is still there."""
    return 0 if seen.demand is None else seen.demand.active_threads


def _enough(worst: Throttling, seen: Observation, peaks: Peaks | None) -> float:
    """Cores with which it would not have been stopped, in tenths, at most what there is."""
    active = _active(seen)
    # Threads that came and went left no account, but each CPU that was stopped had one waiting.
    stopped = worst.stopped_usec * 1000 / seen.elapsed_ns
    wanted = max(_wanted_cores(seen), stopped + (_used_cores(seen) if worst.own else worst.cores))
    # Demand over the window hides the peaks, in which all active threads want to run at once.
    peak = max(wanted * 1.15, float(active))
    if peaks is not None:
        peak = min(peak, peaks.cores) if active else peaks.cores
    return min(enough.tenths(max(peak, worst.cores * 1.2)), float(seen.cpus))


CASE = Case(
    title="Out of CPU quota, not out of CPU",
    question="Why is it slow although the CPU looks idle?",
    question_zh="怎么限制容器的 CPU 使用?为什么被限流?",
    lesson="05",
    needs=(living, own_group("cpu")),
    observation=Observation,
    observe=observe,
    judge=judge,
    explains=("cpu/starved",),
)
