"""What ends the waiting for CPUs: a weight where the two meet, more CPUs, or less of others."""

from whybox.change import CpuSet, CpuWeight, InProgram
from whybox.kernel import cpuset
from whybox.kernel.cpucontention import Contention
from whybox.kernel.cpurivals import Rival
from whybox.kernel.cpuweight import as_shares
from whybox.model import Cure, Safety

from .observation import Observation, could_go_elsewhere, main_rival, rivals

#: With so many times the weight of the others it waits for 3 % of what it wants.
ENOUGH_WEIGHT = 32


def against_others(seen: Observation, it: Contention) -> tuple[Cure, ...]:
    """The first that is a change is sufficient."""
    top = main_rival(seen, it)
    cures = [wider(seen, it)] if could_go_elsewhere(seen, it) else []
    meet = None if top is None or top.realtime else top.contest
    if meet is not None and meet.own is not None and meet.rival is not None:
        cures.append(_heavier(seen, it, meet.level))
    if top is not None:
        cures.append(_without(it, top))
    elsewhere = "Move it to a machine with more room, or move others away from its CPUs."
    return tuple(cures) or (Cure(advice=elsewhere, safety=Safety.INSPECT),)


def wider(seen: Observation, it: Contention) -> Cure:
    """More CPUs, from whoever keeps it to those few: its group, or its program."""
    every = cpuset.listed(one.cpu for one in seen.cpus)
    if seen.group_cpus is not None and set(it.cpus) < set(seen.group_cpus):
        return Cure(
            advice=(
                f"Its cpuset allows CPU {cpuset.listed(seen.group_cpus)}: the program itself keeps "
                f"to {cpuset.listed(it.cpus)} (taskset, sched_setaffinity), and must not."
            ),
            change=InProgram("do not pin its threads to so few CPUs"),
            safety=Safety.LOW_RISK,
        )
    return Cure(
        advice=f"Let it run on CPU {every} instead of {cpuset.listed(it.cpus)} alone.",
        change=CpuSet(every),
        safety=Safety.LOW_RISK,
    )


def fewer(it: Contention) -> Cure:
    """No more threads than CPUs."""
    return Cure(
        advice=f"Or run no more busy threads at once than its CPUs, which are {len(it.cpus)}.",
        safety=Safety.LOW_RISK,
    )


def another_machine() -> Cure:
    """Nobody on this machine can help."""
    return Cure(
        advice="Ask for a machine whose CPUs are not shared out twice, or move it to one.",
        safety=Safety.INSPECT,
    )


def _heavier(seen: Observation, it: Contention, level: str) -> Cure:
    meets = [r.contest for r in rivals(seen, it) if r.contest and r.contest.level == level]
    # A group's weight is shared out over its CPUs, a task brings all of it to one.
    parallel = min(it.threads, len(it.cpus))
    theirs = sum((m.rival or 0) * (1 if m.rival_file else parallel) for m in meets)
    shares = as_shares(1 << (ENOUGH_WEIGHT * theirs - 1).bit_length(), meets[0].version)
    own = seen.group == level
    whose = "its weight" if own else f"the weight of {level}"
    file = "shares" if meets[0].version == 1 else "shares (cpu.weight is made of them)"
    return Cure(
        advice=(
            f"Raise {whose} to {shares} {file}, at least {ENOUGH_WEIGHT} times what the others "
            f"there bring ({theirs} in all): weights count among siblings alone, and this is where "
            "they meet."
        ),
        change=CpuWeight(shares, cgroup=None if own else level),
        safety=Safety.LOW_RISK,
    )


def _without(it: Contention, top: Rival) -> Cure:
    left = max(top.used_ns - it.by_others_ns, 0) / it.elapsed_ns
    if top.realtime:
        how = "give it ordinary scheduling (chrt --other), or CPUs of its own (cpuset)"
    elif left >= 0.1:
        how = f"limit it to {left:.1f} cores, or move it to other CPUs or another machine"
    else:
        how = "move it to other CPUs or another machine: there is not enough here for both"
    return Cure(advice=f"Or see to {top.name}: {how}.", safety=Safety.INSPECT)
