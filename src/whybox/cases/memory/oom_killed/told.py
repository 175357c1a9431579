"""A kill of which the kernel log tells, or that the sensor saw."""

from whybox.change import InProgram
from whybox.kernel.casualties import within
from whybox.kernel.oomkill import OomKill
from whybox.model import (
    Cure,
    Evidence,
    Finding,
    RuledOut,
    Safety,
    Severity,
    Verdict,
    ago,
    clear,
)

from .words import Observation, counters, mib, raised, times

#: A kill of longer ago than an hour hurts nobody at this moment.
RECENT_USEC = 3600 * 1_000_000

#: Kernel memory is told of from this part of the limit on.
LEAST_SHARE = 20

#: By the largest part of what was held, where that is not anonymous.
_ADVICE = {
    "tmpfs": (
        "Most of it is tmpfs or shared memory, which no kill frees: remove files in /dev/shm and "
        "other tmpfs, and make those smaller than the limit (--shm-size, sizeLimit)."
    ),
    "page tables": (
        "Most of it is page tables: many processes that map the same memory each have their own; "
        "use fewer of them, or huge pages."
    ),
    "kernel objects (slab)": (
        "Most of it are the kernel's own objects: many open files, names that are looked up, or "
        "buffers of pipes and local sockets that nobody empties."
    ),
    "kernel stacks": "Most of it is kernel stacks, 16 KiB for each thread: run fewer threads.",
    "socket buffers": (
        "Most of it is socket buffers: somebody does not read, or the peers are slow; bound the "
        "connections and what is queued on each."
    ),
}

_MIB = 1 << 20
_MARK = "tracepoint oom:mark_victim"


def found(kill: OomKill, seen: Observation) -> Finding:
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
        most = f"; {hog.comm} (pid {hog.pid}) held most, {mib(hog.rss_bytes)}" if hog else ""
        return f"the host itself ran out of memory{where}, no limit of the container was met{most}"
    what, bytes = "memory limit", kill.limit_bytes
    if kill.by_swap:
        what, bytes = "limit of memory and swap together", kill.swap_limit_bytes
    limit = what if bytes is None else f"{what} of {mib(bytes)}"
    if kill.oom_memcg is None:
        return "its own memory limit was reached or a parent's (the log has no full report of it)"
    if not seen.is_own(kill.oom_memcg):
        return (
            f"its parent {kill.oom_memcg} reached the {limit}, the container not its own"
            f"{_sharers(seen)}"
        )
    if kill.oom_memcg != seen.path and within(kill.oom_memcg or "", seen.path):
        return f"a group inside of it, {kill.oom_memcg}, reached its {limit}"
    return f"the container reached its own {limit}"


def _sharers(seen: Observation) -> str:
    """Who else is below that limit, if that is much."""
    others = [one for one in seen.around.sharing if one.current_bytes >= _MIB]
    said = ", ".join(f"{one.path} with {mib(one.current_bytes)}" for one in others)
    return f" (it is shared with {said})" if said else ""


def _held(kill: OomKill) -> str:
    parts = (
        (kill.held_anon_bytes, "anonymous"),
        (kill.held_shmem_bytes, "tmpfs and shared memory"),
        (kill.held_file_bytes, "page cache"),
    )
    said = [f"{mib(size)} {what}" for size, what in parts if (size or 0) > _MIB // 10]
    said += [f"{mib(size)} {what}" for size, what in _kernels(kill)]
    return f", holding {', '.join(said)}" if said else ""


def _kernels(kill: OomKill) -> list[tuple[int, str]]:
    """What the kernel kept on its behalf, where that is worth a word."""
    if kill.held_kernel is None:
        return []
    least = max(_MIB, (kill.limit_bytes or 0) // LEAST_SHARE)
    return [(size, what) for size, what in kill.held_kernel.parts if size >= least]


def _trigger(kill: OomKill) -> str:
    pid = "" if kill.trigger_pid is None else f" (pid {kill.trigger_pid})"
    return f", when {kill.trigger_comm}{pid} asked for more" if kill.another_asked else ""


def _evidence(kill: OomKill, seen: Observation) -> tuple[Evidence, ...]:
    logged = [Evidence(seen.log.source, line) for line in kill.said] if kill.logged else []
    marked = [Evidence(_MARK, kill.marked)] if kill.witnessed else []
    return (*logged, *marked, *counters(seen), *_around(seen))


def _around(seen: Observation) -> tuple[Evidence, ...]:
    """Who else holds memory below the same limit, and who may be the next to die at an own one."""
    sharing = [
        Evidence(one.file, f"{one.current_bytes}, below the same limit")
        for one in (seen.around.sharing)
    ]
    close = [
        Evidence(one.file, f"{one.current_bytes} of {one.limit_bytes}, close to a limit of its own")
        for one in seen.around.close
    ]
    return (*sharing, *close)


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
    found = raised(path, limit, None if now is None else now.peak_bytes, seen)
    special = _by_kind(kill)
    return found if special is None else (*found, Cure(advice=special, safety=Safety.INSPECT))


def _by_kind(kill: OomKill) -> str | None:
    """What to do about memory that is not a program's own; the largest part decides."""
    kernel = () if kill.held_kernel is None else kill.held_kernel.parts
    parts = (
        (kill.held_anon_bytes or 0, ""),
        (kill.held_shmem_bytes or 0, "tmpfs"),
        *kernel,
    )
    return _ADVICE.get(max(parts)[1])


def _for_the_host(kill: OomKill) -> Cure:
    hog = "" if kill.largest is None else f", above all {kill.largest.comm}"
    advice = (
        f"The host promises more memory than it has: limit what uses most{hog}, move something to "
        "another host, or reserve memory for this container (memory.min or memory.low; in "
        "Kubernetes a request equal to the limit)."
    )
    return Cure(advice=advice, change=InProgram(advice), safety=Safety.MUTATING)


def past(kill: OomKill, seen: Observation) -> Finding:
    level, age = seen.level(kill.oom_memcg), seen.age_usec(kill)
    now = None if level is None else level.memory.limit_bytes
    last = "" if age is None else f", last {ago(age / 1e6)} ago"
    at = "" if kill.limit_bytes is None else f" at a limit of {mib(kill.limit_bytes)}"
    whose = "the limit" if seen.is_own(kill.oom_memcg) else f"the limit of {kill.oom_memcg}"
    swap = " with more swap" if now is not None and now == kill.limit_bytes else ""
    is_now = "was lifted" if now is None else f"is {mib(now)} now{swap}"
    return clear(
        f"It was OOM-killed {times(seen.times)}{last}{at}; {whose} {is_now} and nothing was "
        "killed since.",
        evidence=_evidence(kill, seen),
    )
