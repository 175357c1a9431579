"""Zombies that stay: the same (pid, start) in Z at both looks, and who does not wait for them."""

from collections import Counter
from contextlib import ExitStack

from msgspec import Struct

from whybox.change import InProgram, WithInit
from whybox.kernel import freezer, zombie
from whybox.kernel.cgroup import Group
from whybox.kernel.host import Host
from whybox.kernel.pids import Pids, pids
from whybox.kernel.target import Target
from whybox.kernel.zombie import Forks, Level, Look, Parent, Zombie
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
from whybox.needs import living

#: Between looks closer than this, a zombie that is just being reaped would seem to stay.
SHORTEST_NS = 1_000_000_000

#: So many that began so long ago are no coincidence, even at one glance.
MANY_AT_A_GLANCE = 5
OLD_SECONDS = 5.0

#: From here on they hurt: a parent that looks after its children only now and then has a few.
MANY = 10
GROWING = 2

#: Zombies this young may still be growing in number: it pays to watch who forks them.
YOUNG_SECONDS = 60.0


class Observation(Struct, frozen=True, kw_only=True):
    """All zombies of the container at both looks, and who should have waited for them."""

    elapsed_ns: int
    pids_file: str | None
    pids: tuple[int, int] | None
    """``pids.current`` and the number of threads listed; ``None``: no such controller."""
    levels: tuple[Level, ...]
    before: tuple[Zombie, ...]
    after: tuple[Zombie, ...]
    dead_leaders: int
    parents: tuple[Parent, ...]
    forkers: dict[int, int]
    """By whom each zombie was forked, where that was seen."""
    frozen: bool | None
    now_seconds: float | None
    """Since boot, as a task's start is."""


_NOBODY = Look(zombies=(), dead_leaders=0, parents={})


def observe(host: Host, target: Target) -> Watch[Observation]:
    """Count, and look through ``/proc`` only where the count says that there are zombies."""
    group = target.group(host, "pids")
    started = host.monotonic_ns()
    _, before = _look(host, target, group)
    with ExitStack() as sensors:
        forks = Forks()
        if host.window_seconds > 0 and zombie.youngest(host, before.zombies) < YOUNG_SECONDS:
            forks = sensors.enter_context(zombie.forks(host))
        yield
        counted, after = _look(host, target, group)
        forkers = zombie.forkers(host, after.zombies, before, forks)
    return Observation(
        elapsed_ns=host.monotonic_ns() - started,
        pids_file=None if group is None else group.file("pids.current"),
        pids=None if counted is None else (counted.current, counted.listed),
        levels=zombie.levels(host, group),
        before=before.zombies,
        after=after.zombies,
        dead_leaders=after.dead_leaders,
        parents=zombie.parents(host, target, after.zombies),
        forkers=forkers,
        frozen=freezer.frozen(host, target),
        now_seconds=zombie.uptime(host),
    )


def _look(host: Host, target: Target, group: Group | None) -> tuple[Pids | None, Look]:
    counted = None if group is None else pids(host, group)
    # A zombie is counted and not listed: as many listed as counted, and there is none.
    if counted is not None and counted.current <= counted.listed:
        return counted, _NOBODY
    return counted, zombie.look(host, target)


def judge(seen: Observation) -> Finding:
    """Found where zombies stayed for the whole window."""
    counts = _count_evidence(seen)
    if not seen.after:
        return clear(_none(seen), evidence=counts)
    if seen.frozen:
        return unknown("It is paused, so nothing in it can wait for children: ask when it runs.")
    if seen.elapsed_ns < SHORTEST_NS and not _plain_at_a_glance(seen):
        return unknown(
            f"Zombies now: {len(seen.after)}. Two looks {seen.elapsed_ns / 1e9:.1f} s apart cannot "
            "tell whether they stay: ask with --window 2s."
        )
    staying = _staying(seen)
    if not staying:
        return _passing(seen)
    return _found(seen, staying)


def _staying(seen: Observation) -> list[Zombie]:
    known = {z.id for z in seen.before}
    return [z for z in seen.after if z.id in known]


def _plain_at_a_glance(seen: Observation) -> bool:
    now = seen.now_seconds or 0.0
    return sum(zombie.age(z, now) >= OLD_SECONDS for z in _staying(seen)) >= MANY_AT_A_GLANCE


def _none(seen: Observation) -> str:
    if seen.before:
        return f"Its {len(seen.before)} zombies of the window's beginning were reaped within it."
    leaders = f": {seen.dead_leaders} first threads ended before others, which live"
    return f"No zombies{leaders if seen.dead_leaders else ''}."


def _passing(seen: Observation) -> Finding:
    """None was there at both looks: the question is whether anybody waits at all."""
    count = len(seen.after)
    if seen.before or count < MANY_AT_A_GLANCE:
        return clear(f"No zombie stayed for the window; {count} had just ended at its last moment.")
    return unknown(f"{count} zombies came up within this window: ask again to see if they stay.")


def _found(seen: Observation, staying: list[Zombie]) -> Finding:
    counts = Counter(z.ppid for z in staying)
    ppid = max(counts, key=lambda pid: counts[pid])
    parent = next((p for p in seen.parents if p.pid == ppid), None)
    if parent is not None and parent.state in ("T", "t"):
        return unknown(
            f"{len(staying)} zombies stay because their parent {parent.named} is stopped (State "
            f"{parent.state}): it can wait for nobody until it is continued (kill -CONT)."
        )
    if parent is not None and parent.wait_channel == "zap_pid_ns_processes":
        return clear("Its PID 1 has ended and is waiting for the last of its processes to go.")
    return Finding(
        verdict=Verdict.FOUND,
        certainty=Certainty.CONFIRMED if seen.elapsed_ns >= SHORTEST_NS else Certainty.LIKELY,
        severity=_severity(seen, staying),
        summary=_summary(seen, staying, parent),
        evidence=(*_count_evidence(seen), *_evidence(seen, staying, parent)),
        ruled_out=_ruled_out(seen),
        cures=_cures(parent, *zombie.origins(seen.after, parent, seen.forkers)),
    )


def _growth(seen: Observation) -> int:
    """Of those alone who let some stand: others' children come and go."""
    careless = {z.ppid for z in _staying(seen)}
    before, after = (sum(z.ppid in careless for z in look) for look in (seen.before, seen.after))
    return after - before


def _severity(seen: Observation, staying: list[Zombie]) -> Severity:
    if any(2 * len(staying) >= level.limit for level in seen.levels):
        return Severity.CRITICAL
    many = len(staying) >= MANY or _growth(seen) >= GROWING
    return Severity.WARNING if many else Severity.INFO


def _summary(seen: Observation, staying: list[Zombie], parent: Parent | None) -> str:
    count, theirs = len(staying), sum(parent is not None and z.ppid == parent.pid for z in staying)
    who = "a process outside of what can be seen" if parent is None else parent.named
    whom = f"{theirs} of them" if 0 < theirs < count else "it" if count == 1 else "them"
    says = "1 zombie stays" if count == 1 else f"{count} zombies stay"
    return f"{says}: {who} does not wait for {whom}{_instead(parent)}{_room(seen)}."


def _instead(parent: Parent | None) -> str:
    """What it does instead, as far as the kernel shows."""
    if parent is None:
        return ""
    where = f"is in {parent.system_call} and " if parent.system_call else ""
    return f" ({where}has SIGCHLD {parent.told})"


def _rate(seen: Observation) -> float:
    """How many more a minute."""
    return _growth(seen) * 60e9 / seen.elapsed_ns


def _room(seen: Observation) -> str:
    growth = _growth(seen)
    level = min(seen.levels, key=lambda level: level.limit - level.current, default=None)
    says = "" if level is None else f"; {level.current} of {level.limit} tasks are taken"
    if growth < GROWING:
        return says
    rate = _rate(seen)
    says += f", {rate:.0f} more a minute"
    if level is None or level.current >= level.limit:
        return says
    return says + f", full in {(level.limit - level.current) / rate:.1f} minutes"


def _count_evidence(seen: Observation) -> tuple[Evidence, ...]:
    if seen.pids is None or seen.pids_file is None:
        return ()
    current, listed = seen.pids
    says = f"{current}, of which {listed} are listed in tasks (v1) or cgroup.threads (v2)"
    return (Evidence(seen.pids_file, f"{says}: {max(0, current - listed)} are not"),)


def _evidence(
    seen: Observation, staying: list[Zombie], parent: Parent | None
) -> tuple[Evidence, ...]:
    some = ", ".join(f"{z.id.pid} ({z.comm})" for z in staying[:5])
    says = f"state Z with the same start at both looks, {seen.elapsed_ns / 1e9:.1f} s apart: {some}"
    both = Evidence("/proc/PID/stat", says + (" …" if len(staying) > 5 else ""))
    if parent is None:
        return (both, *_limits(seen))
    masks = f"State {parent.state}; SigIgn, SigBlk, SigCgt: SIGCHLD (10000) is {parent.told}"
    call = f"{parent.system_call} (its first thread; others may wait too)"
    calls = (Evidence(f"/proc/{parent.pid}/syscall", call),) if parent.system_call else ()
    return (
        both,
        *_limits(seen),
        Evidence(f"/proc/{parent.pid}/wchan", parent.wait_channel or "0"),
        *calls,
        Evidence(f"/proc/{parent.pid}/status", masks),
    )


def _limits(seen: Observation) -> tuple[Evidence, ...]:
    """Every limit that they count against, and when it will be met at this pace."""
    rate = _rate(seen) if _growth(seen) >= GROWING else 0.0
    found = []
    for level in seen.levels:
        left = level.limit - level.current
        when = f", full in {left / rate:.1f} minutes" if rate and left > 0 else ""
        says = f"{level.limit}, of which {level.current} are taken{when}"
        found.append(Evidence(level.file or f"pids.max of {level.path}", says))
    return tuple(found)


def _ruled_out(seen: Observation) -> tuple[RuledOut, ...]:
    leaders = f"{seen.dead_leaders} such left out: these have no thread that lives"
    current, listed = seen.pids or (0, 0)
    living = f"those are listed, and {current - listed} of {current} tasks are not"
    return (
        RuledOut("zombies that are just being reaped", "they were there at both looks"),
        RuledOut("a first thread that ended before the others", leaders),
        *([RuledOut("living tasks that fill the limit", living)] if seen.pids else []),
    )


def _cures(parent: Parent | None, own: int, orphans: int) -> tuple[Cure, ...]:
    if parent is None or not parent.inside:
        return (_outside(parent),)
    if parent.nspid != 1:
        return (_wait(parent, "An init would not help: they are not its children."), _end(parent))
    advice = _init_advice(parent, own, orphans)
    init = Cure(advice=advice, change=WithInit(), safety=Safety.MUTATING)
    wait = _wait(parent, "As PID 1 it inherits every orphan too: wait for any child (waitpid(-1)).")
    # One that never waited for anybody lets its own children stand; one that does wait knows
    # only its own, and what stays are those that it inherited.
    waits = parent.has_waited or parent.waits_for_one
    theirs = own > orphans or (own == orphans and not waits)
    return (wait, init) if theirs else (init, wait)


def _init_advice(parent: Parent, own: int, orphans: int) -> str:
    says = (
        "Run it under an init (docker run --init, tini; in Kubernetes shareProcessNamespace: true),"
        " which reaps the orphans that PID 1 inherits."
    )
    if orphans:
        return f"{says} {orphans} of these are known to be orphans."
    if own or not (parent.has_waited or parent.waits_for_one):
        return f"{says} It does not help with the program's own children, as these seem to be."
    return f"{says} It waits for other children, so these seem to be orphans."


def _wait(parent: Parent, more: str) -> Cure:
    return Cure(
        advice=(
            f"Let {parent.comm} wait for its children (waitpid on SIGCHLD), or tell the kernel "
            f"that it will not (SIGCHLD ignored, SA_NOCLDWAIT). {more}"
        ),
        change=InProgram("wait for every child that ends"),
        safety=Safety.LOW_RISK,
    )


def _end(parent: Parent) -> Cure:
    advice = (
        f"Or restart {parent.comm} (pid {parent.pid} on the host): when it ends PID 1 inherits "
        "its zombies, and reaps them if it is an init. Killing a zombie does nothing."
    )
    return Cure(advice=advice, safety=Safety.DESTRUCTIVE)


def _outside(parent: Parent | None) -> Cure:
    who = "their parent" if parent is None else f"{parent.comm} (pid {parent.pid})"
    advice = (
        f"They were started from outside (docker exec, a probe), and {who} there does not wait "
        "for them: see to the engine's shim on the host. Nothing in the container can help."
    )
    return Cure(advice=advice, safety=Safety.INSPECT)


CASE = Case(
    title="Zombies: nobody waits for the children that ended",
    question="Why is my container full of zombies?",
    question_zh="为什么我的容器里有这么多僵尸进程?",
    lesson="03",
    needs=(living,),
    observation=Observation,
    observe=observe,
    judge=judge,
    explains=("process/pids_exhausted",),
)
