"""Blocked in the kernel: the same task in D over the window, and what it waits for there.

A task is found when it stays in D, by samples within the window and by how often it was given a
CPU; never by the load average, which is the machine's and remembers, nor by one glance at a state.
"""

from collections import Counter

from msgspec import structs

from whybox.kernel import blocked, blockedfile, freezer
from whybox.kernel.blocked import Blocked
from whybox.kernel.host import Host
from whybox.kernel.target import Target
from whybox.kernel.waitsite import Kind, kind
from whybox.model import (
    Case,
    Certainty,
    Finding,
    Severity,
    Verdict,
    Watch,
    clear,
    unknown,
)
from whybox.needs import living

from . import words
from .seen import HIDDEN, Observation, Stuck

#: Two looks closer together cannot tell a task that stays blocked from one that is about to go on.
SHORTEST_NS = 1_000_000_000

#: What is the cause when tasks wait for several things: who waits for a lock, or for a child,
#: waits for somebody who waits for something else.
CAUSES_FIRST: tuple[Kind, ...] = (
    *("frozen", "memory", "network", "fuse", "device", "journal", "swap", "other"),
    *("lock", "vfork"),
)


def observe(host: Host, target: Target) -> Watch[Observation]:
    """Look at every thread; what is blocked is sampled, and looked at closely if it stays so."""
    started = host.monotonic_ns()
    with blocked.watching(host, target) as watch:
        yield
        watch.end()
        after = blocked.look(host, target)
        elapsed_ns = host.monotonic_ns() - started
    known = {(one.tid, one.start_ticks): one for one in watch.before.blocked}
    both = [one for one in after.blocked if (one.tid, one.start_ticks) in known]
    return Observation(
        elapsed_ns=elapsed_ns,
        init_pid=None if target.init is None else target.init.pid,
        inside=target.runtime == "self",
        threads=after.threads,
        left_out=after.left_out,
        running=(watch.before.running, after.running),
        blocked=(len(watch.before.blocked), len(after.blocked)),
        late=tuple(one for one in after.blocked if (one.tid, one.start_ticks) not in known)[:64],
        stuck=tuple(
            _stuck(host, known[one.tid, one.start_ticks], one, watch, close=n)
            for n, one in enumerate(both[: blocked.MOST_SAMPLED])
        ),
        frozen=freezer.frozen(host, target),
        loadavg=host.optional_text("/proc/loadavg"),
    )


def _stuck(host: Host, then: Blocked, now: Blocked, watch: blocked.Watch, close: int) -> Stuck:
    detail = blocked.detail(host, now.tid) if close < blocked.MOST_DETAILED else None
    stuck = Stuck(
        tid=now.tid,
        comm=now.comm,
        site=now.site,
        sampled=watch.sampler.sampled(now.tid),
        switches=_difference(then.timeslices, now.timeslices),
        detail=detail,
    )
    if detail is None:
        return stuck
    place = blockedfile.place(host, now.tid, detail.call, detail.arguments, stuck.kind)
    return structs.replace(stuck, place=place)


def _difference(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else after - before


def judge(seen: Observation) -> Finding:
    """Found where a task stayed in D for so long that it is no ordinary wait."""
    if seen.frozen:
        return clear(_paused(seen))
    if not seen.stuck:
        return _nothing_stays(seen)
    if seen.elapsed_ns < SHORTEST_NS:
        return unknown(
            f"{_tasks(len(seen.stuck))} in D now, at {seen.stuck[0].where}. Two looks "
            f"{seen.seconds:.1f} s apart cannot tell whether that stays: ask with --window 2s."
        )
    held = [one for one in seen.stuck if one.held(seen.elapsed_ns)]
    if not held:
        return clear(_short(seen), evidence=words.load(seen))
    return _found(seen, held)


def _tasks(count: int) -> str:
    return "1 task is" if count == 1 else f"{count} tasks are"


def _paused(seen: Observation) -> str:
    if not seen.blocked[1]:
        return "It is paused: its tasks are frozen, and count in no load average."
    return (
        f"It is paused: what shows as D in it ({seen.blocked[1]} tasks) is frozen, waits for "
        "nothing else and counts in no load average."
    )


def _nothing_stays(seen: Observation) -> Finding:
    late = _came(seen)
    if len(late) > 1 and seen.elapsed_ns >= SHORTEST_NS:
        return unknown(
            f"{_tasks(len(late))} in D at {late[0].site or HIDDEN} since a moment within this "
            "window: ask again to see whether that stays."
        )
    if seen.blocked == (0, 0):
        beside = f"; {seen.left_out} more were not looked at" if seen.left_out else ""
        says = (
            f"None of its {seen.threads - seen.left_out} tasks is blocked in the kernel (state D)"
        )
        return clear(f"{says}{beside}.", evidence=words.load(seen))
    return clear(
        f"No task stayed blocked in the kernel: {seen.blocked[0]} in D when the window began, "
        f"{seen.blocked[1]} others when it ended.",
        evidence=words.load(seen),
    )


def _came(seen: Observation) -> list[Blocked]:
    """Those that came to a place which nobody leaves soon."""
    lasting = ("frozen", "network", "memory")
    return [
        one
        for one in seen.late
        if one.site == "percpu_rwsem_wait" or (one.site and kind((one.site,)) in lasting)
    ]


def _short(seen: Observation) -> str:
    longest = max(seen.stuck, key=lambda one: one.wait_ns(seen.elapsed_ns))
    if longest.kind == "freezer":
        return f"{longest.named} is frozen at {longest.where}: paused, and not blocked."
    if longest.child_runs:
        return (
            f"{longest.named} waits for its vfork child, which wants a CPU and nothing else: see "
            "cpu/throttled and cpu/starved."
        )
    wait_ms = longest.wait_ns(seen.elapsed_ns) / 1e6
    return (
        f"Its tasks wait in the kernel as tasks do that use a disk or a lock: the longest, "
        f"{longest.named} at {longest.where}, for {wait_ms:.0f} ms at a time, {longest.share:.0%} "
        "of the window in all."
    )


def _found(seen: Observation, held: list[Stuck]) -> Finding:
    kinds = Counter(one.kind for one in held)
    cause = min(kinds, key=CAUSES_FIRST.index)
    mine = [one for one in held if one.kind == cause]
    blind = not any(one.stack for one in mine)
    return Finding(
        verdict=Verdict.FOUND,
        certainty=Certainty.LIKELY if blind else Certainty.CONFIRMED,
        severity=_severity(seen, held, cause),
        summary=words.summary(seen, held, mine, cause),
        evidence=(*words.evidence(seen, held, mine), *words.load(seen)),
        ruled_out=words.ruled_out(seen, mine),
        cures=words.cures(seen, mine, cause),
    )


def _severity(seen: Observation, held: list[Stuck], cause: Kind) -> Severity:
    if cause == "vfork":
        return Severity.WARNING
    init = any(one.tid == seen.init_pid for one in held)
    return Severity.CRITICAL if init or 2 * len(held) >= seen.threads else Severity.WARNING


CASE = Case(
    title="Blocked in the kernel: it waits, and nothing can interrupt it",
    question="Why is load high and it is still slow?",
    question_zh="加了 CPU Cgroup 限制,为什么我的容器还是很慢?",
    lesson="07",
    needs=(living,),
    observation=Observation,
    observe=observe,
    judge=judge,
)
