"""Waiting for a CPU without being limited: run-queue wait that no quota explains, and for whom."""

from whybox.kernel import (
    cgroup,
    cpu,
    cpucensus,
    cpurivals,
    cpuset,
    cpustat,
    cpustops,
    cpuwait,
    pressure,
)
from whybox.kernel.cpucontention import Contention
from whybox.kernel.cpurivals import Rival
from whybox.kernel.host import Host
from whybox.kernel.namespace import INITIAL
from whybox.kernel.target import Target
from whybox.model import Case, Certainty, Finding, Severity, Verdict, Watch, clear, unknown
from whybox.needs import living, own_group

from . import evidence, remedies
from .observation import (
    Observation,
    contended,
    cores,
    could_go_elsewhere,
    for_it,
    idle_ns,
    limited,
    main_rival,
    matters,
    mostly_interrupts,
    stolen,
    taken,
    wanting,
)

#: A shorter window is one wait or none.
SHORTEST_NS = 500_000_000

#: Losing this share of a CPU to the hypervisor is felt.
LEAST_STEAL = 0.10

#: Weights that differ less do not explain who waits.
LIGHTER = 2


def observe(host: Host, target: Target) -> Watch[Observation]:
    """Its threads, its quotas, and everybody else, before and after."""
    group = target.group(host, "cpu")
    if group is None:
        raise OSError("the cpu control group of it cannot be seen from here")
    groups = cpustops.around(host, group)
    started = host.monotonic_ns()
    threads, machine = cpuwait.look(host, group), cpustat.times(host)
    stats, local = [cpu.stat(host, g) for g in groups], cpu.local_stopped_usec(host, group)
    used, everybody = _used_ns(host, target), cpucensus.census(host)
    waited = _pressure_usec(host, target)
    yield
    now = cpuwait.look(host, group)
    elapsed_ns = host.monotonic_ns() - started
    used_now, everybody_now = _used_ns(host, target), cpucensus.census(host)
    return Observation(
        elapsed_ns=elapsed_ns,
        group=group.path,
        threads=cpuwait.threads(host, threads, now, elapsed_ns),
        used_ns=0 if used is None or used_now is None else used_now - used,
        pressure_usec=_difference(waited, _pressure_usec(host, target)),
        levels=cpustops.between(host, groups, stats),
        local_file=None if local is None else group.file("cpu.stat.local"),
        local_stopped_usec=_difference(local, cpu.local_stopped_usec(host, group)),
        cpus=cpustat.used(machine, cpustat.times(host), elapsed_ns),
        group_cpus=cpuset.effective(host, target.group(host, "cpuset")),
        rivals=cpurivals.rivals(host, target, everybody, everybody_now, elapsed_ns),
        observer_ns=cpucensus.observer_ns(host, target, everybody, everybody_now),
        hidden=target.runtime == "self" and target.namespaces.get("cgroup") != INITIAL["cgroup"],
    )


def _used_ns(host: Host, target: Target) -> int | None:
    """``None`` where its time is not counted apart from the machine's."""
    acct = target.group(host, "cpuacct")
    if acct is None or (acct.path == "/" and target.runtime != "self"):
        return None
    usec = cpu.usage_usec(host, acct)
    return None if usec is None else usec * 1000


def _pressure_usec(host: Host, target: Target) -> int | None:
    said = pressure.pressure(host, cgroup.unified(host, target.cgroups), "cpu")
    return None if said is None else said.some_usec


def _difference(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else max(after - before, 0)


def judge(seen: Observation) -> Finding:
    """Found where others kept it waiting, or its own CPUs were too few; never for a quota."""
    if not wanting(seen):
        return clear("None of its threads wanted a CPU in this window.")
    if seen.elapsed_ns < SHORTEST_NS:
        return unknown(
            f"a window of {seen.elapsed_ns / 1e9:.1f} s is too short to see waiting: "
            "ask with --window 2s"
        )
    it = contended(seen)
    if limited(seen, it):
        return clear(_harmless(seen, it), evidence=evidence.of_threads(seen, it))
    if matters(it, it.by_itself_ns) and _is_squeezed(seen, it):
        return _behind_itself(seen, it)
    if matters(it, it.by_others_ns) and taken(it):
        return _of_its_own_work(seen, it) if for_it(seen, it) else _behind_others(seen, it)
    if (kept := stolen(seen, it)) >= LEAST_STEAL:
        return _behind_hypervisor(seen, it, kept)
    if matters(it, it.by_itself_ns):
        return _oversubscribed(seen, it)
    if matters(it, it.unexplained_ns):
        return unknown(_unexplained(seen, it), evidence=evidence.of_threads(seen, it))
    return clear(_harmless(seen, it), evidence=evidence.of_threads(seen, it))


def _is_squeezed(seen: Observation, it: Contention) -> bool:
    """Whether it waits for itself above all, on some of the machine's CPUs."""
    return len(it.cpus) < len(seen.cpus) and it.by_itself_ns >= it.by_others_ns


def _behind_others(seen: Observation, it: Contention) -> Finding:
    top = main_rival(seen, it)
    crowded = f"{_crowd(seen, it, top)}: {_waited(it, it.by_others_ns)}"
    return Finding(
        verdict=Verdict.FOUND,
        certainty=_certainty(seen, it, top),
        severity=_severity(it, it.by_others_ns),
        summary=f"It waits for a CPU behind {crowded}.{_why(seen, it, top)}",
        evidence=(
            *evidence.of_threads(seen, it),
            *evidence.of_rivals(seen, it),
            *evidence.of_cpus(seen, it),
        ),
        ruled_out=evidence.ruled_out(seen, it),
        cures=remedies.against_others(seen, it),
    )


def _crowd(seen: Observation, it: Contention, top: Rival | None) -> str:
    used = f"used {cores(it, it.others_used_ns)} of the {len(it.cpus)} CPUs it may run on"
    if top is not None:
        kind = "the real-time " if top.realtime else ""
        alone = top.used_ns * 10 >= it.others_used_ns * 9
        rest = "" if alone else f" (others {cores(it, it.others_used_ns - top.used_ns)})"
        return f"{kind}{top.name}, which used {cores(it, top.used_ns)} cores{rest}"
    if mostly_interrupts(seen, it):
        return f"the machine's interrupts, which {used}"
    who = "somebody who cannot be seen from here, who" if not seen.rivals else "many, who together"
    return f"{who} {used}"


def _why(seen: Observation, it: Contention, top: Rival | None) -> str:
    if could_go_elsewhere(seen, it):
        return f" It may run on CPU {cpuset.listed(it.cpus)} alone, while others are idle."
    meet = None if top is None or top.realtime else top.contest
    if meet is None or meet.own is None or meet.rival is None or meet.own * LIGHTER > meet.rival:
        return ""
    return f" Its weight is {meet.own} against {meet.rival} (1024 is ordinary), at {meet.level}."


def _certainty(seen: Observation, it: Contention, top: Rival | None) -> Certainty:
    sure = top is not None and it.threads <= len(it.cpus) and not seen.hidden
    return Certainty.CONFIRMED if sure else Certainty.LIKELY


def _severity(it: Contention, wait_ns: int) -> Severity:
    return Severity.CRITICAL if wait_ns > it.run_ns else Severity.WARNING


def _waited(it: Contention, wait_ns: int) -> str:
    share = wait_ns / max(it.run_ns + wait_ns, 1)
    busy, whose = ("thread", "its") if it.threads == 1 else ("threads", "their")
    return (
        f"its {it.threads} busy {busy} waited {wait_ns / 1e9:.2f} s in these "
        f"{it.elapsed_ns / 1e9:.1f} s, {share:.0%} of {whose} time, and no quota was the reason"
    )


def _of_its_own_work(seen: Observation, it: Contention) -> Finding:
    top = main_rival(seen, it)
    who = "the machine's interrupts" if top is None else top.name
    idle = idle_ns(seen, it) / (it.elapsed_ns * len(it.cpus))
    return clear(
        f"It waits for what the kernel does, {who} above all, which may well be for it: "
        f"{_waited(it, it.by_others_ns)}; its {len(it.cpus)} CPUs were idle for {idle:.0%} of it.",
        evidence=evidence.of_threads(seen, it),
    )


def _behind_itself(seen: Observation, it: Contention) -> Finding:
    """More of its own threads than CPUs, where the machine has more for it."""
    return Finding(
        verdict=Verdict.FOUND,
        certainty=Certainty.CONFIRMED,
        severity=Severity.WARNING,
        summary=(
            f"Its threads wait for each other: it may run on CPU {cpuset.listed(it.cpus)} alone, "
            f"{len(it.cpus)} of {len(seen.cpus)}; {_waited(it, it.by_itself_ns)}."
        ),
        evidence=(*evidence.of_threads(seen, it), *evidence.of_cpus(seen, it)),
        ruled_out=evidence.ruled_out(seen, it),
        cures=(remedies.wider(seen, it), remedies.fewer(it)),
    )


def _oversubscribed(seen: Observation, it: Contention) -> Finding:
    """The whole machine is its own: nobody starves it."""
    said = evidence.of_threads(seen, it)
    if seen.hidden and it.run_ns < 0.8 * it.elapsed_ns * len(it.cpus) - it.others_used_ns:
        return unknown(_unexplained(seen, it), evidence=said)
    return clear(
        f"It waits for nobody but itself: {_waited(it, it.by_itself_ns)}; it used "
        f"{cores(it, seen.used_ns)} of {len(it.cpus)} CPUs, others {cores(it, it.others_used_ns)}.",
        evidence=said,
    )


def _behind_hypervisor(seen: Observation, it: Contention, kept: float) -> Finding:
    return Finding(
        verdict=Verdict.FOUND,
        certainty=Certainty.CONFIRMED,
        severity=Severity.WARNING,
        summary=(
            f"The hypervisor keeps {kept:.0%} of its CPUs' time from this machine, so whatever "
            "runs here is slower by that; no container of this machine takes it."
        ),
        evidence=evidence.of_cpus(seen, it),
        ruled_out=evidence.ruled_out(seen, it),
        cures=(remedies.another_machine(),),
    )


def _unexplained(seen: Observation, it: Contention) -> str:
    waited = it.unexplained_ns + it.by_itself_ns
    what = f"It waited {waited / 1e9:.2f} s for CPUs that nobody used so long"
    if seen.hidden:
        return (
            f"{what}: a quota of a group above it, which cannot be seen from inside, may have "
            "stopped it. Ask on the host."
        )
    return f"{what}, and no quota here or above stopped it: ask again with a longer window."


def _harmless(seen: Observation, it: Contention) -> str:
    threads = "1 busy thread" if it.threads == 1 else f"{it.threads} busy threads"
    ran = f"{threads} ran {it.run_ns / 1e9:.2f} s and waited "
    waits = f"{it.wait_ns / 1e9:.2f} s for a CPU in these {it.elapsed_ns / 1e9:.1f} s"
    if any(level.throttled for level in seen.levels):
        return f"Its {ran}{waits}, which its quota explains: not others, but cpu/throttled."
    if matters(it, it.by_observer_ns):
        own = f"{it.by_observer_ns / 1e9:.2f} s of that for whybox itself, which looked"
        return f"Its {ran}{waits}, {own}; the rest is not felt."
    return f"Its {ran}{waits}: that is not felt."


CASE = Case(
    title="Waiting for a CPU without being limited",
    question="Why does it wait for CPU without being limited?",
    question_zh="没有限流,为什么还在等 CPU?",
    lesson="05",
    needs=(living, own_group("cpu")),
    observation=Observation,
    observe=observe,
    judge=judge,
)
