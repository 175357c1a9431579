"""Huge pages refused: by a limit of the hugetlb controller, or by a pool that had none left.

A limit is told by its counter; that a pool was empty no counter tells, so a sensor watches the
calls that found none, and the faults.
"""

import math

from whybox.change import HostSysctl, HugepageLimit, InProgram
from whybox.kernel import hugelimits, hugetlb, refusals
from whybox.kernel.host import Host
from whybox.kernel.hugelimits import Hit, HugePages, Mount
from whybox.kernel.hugetlb import Pool
from whybox.kernel.refusals import Refused, What
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

Observation = HugePages

#: 128 and SIGBUS.
STATUS_SIGBUS = 135

_MIB = 1 << 20
_SENSOR = "raw_syscalls:sys_exit and signal:signal_generate"
_ADVICE = (
    "Or ask for fewer huge pages, and be ready to be given none: map without MAP_NORESERVE, so "
    "that mmap says ENOMEM before a fault says SIGBUS, and fall back to ordinary pages."
)
_LESS = Cure(advice=_ADVICE, change=InProgram(_ADVICE), safety=Safety.INSPECT)
_NOT_CHARGED = RuledOut(
    "the memory limit",
    "huge pages are not charged to it, unless cgroup2 is mounted with memory_hugetlb_accounting",
)


def observe(host: Host, target: Target) -> Watch[Observation]:
    """Read pools and groups before and after, and watch who is refused in between."""
    if target.init is None:
        raise OSError(_dead(target))
    pools = hugetlb.pools(host)
    sizes = tuple(pool.page_bytes for pool in pools)
    before = hugetlb.lineage(host, target.group(host, "hugetlb"), sizes)
    with refusals.watch(host, target) as refused:
        yield
        seen = refused()
    return hugelimits.observed(host, target, target.init.pid, pools, before, seen)


def _dead(target: Target) -> str:
    if target.exit is not None and target.exit.exit_code == STATUS_SIGBUS:
        return (
            f"it ended by SIGBUS (status {STATUS_SIGBUS}), of which the kernel keeps no record: "
            "start it again and ask with --window while it runs"
        )
    return "it is not running, so there is nothing to watch"


def judge(seen: Observation) -> Finding:
    """Found where pages were refused in this window: a limit first, then the pool."""
    hits = hugelimits.hits(seen)
    if hits:
        return _limited(max(hits, key=lambda hit: hit.count), seen)
    if seen.huge:
        return _refused(seen)
    if seen.refused.reason is not None and _may_be_short(seen):
        return unknown(
            "the huge pages of the size that it uses are all in use or promised, and whether it is "
            f"refused more was not watched ({seen.refused.reason}): ask with --window 2s"
        )
    if seen.refused.reason is not None and not _counters(seen):
        return unknown(
            f"Whether it was refused huge pages is not seen: {seen.refused.reason}, and no counter "
            "of the hugetlb controller can be read; ask as root on the host, with --window 2s."
        )
    return clear(_nothing(seen), evidence=_counters(seen))


# A limit of the controller.


def _limited(hit: Hit, seen: Observation) -> Finding:
    calls = hit.of_reservations
    whose = "its own" if hit.own else f"its parent's ({hit.level.path})"
    end = "mmap is refused with ENOMEM" if calls else "touching a page above it is SIGBUS"
    return Finding(
        verdict=Verdict.FOUND,
        certainty=Certainty.CONFIRMED if hit.certain else Certainty.LIKELY,
        severity=Severity.WARNING if calls else Severity.CRITICAL,
        summary=(
            f"It was refused huge pages {_times(hit.count)} in this window by {whose} limit of "
            f"{_size(hit.limit.limit_bytes)} on {'reserved ' if calls else ''}pages of "
            f"{_size(hit.level.page_bytes)}{_who(seen.huge)}: {end}."
        ),
        evidence=(
            Evidence(hit.file, hit.counted),
            Evidence(hit.limit.file, f"{hit.limit.limit_bytes}, in use {hit.limit.usage_bytes}"),
            *_sensed(seen.huge),
        ),
        ruled_out=_not_a_limit_look_alike(hit, seen),
        cures=_raise(hit, seen),
    )


def _times(n: int) -> str:
    return "once" if n == 1 else f"{n} times"


def _who(refused: tuple[Refused, ...]) -> str:
    if not refused:
        return ""
    most = max(refused, key=lambda one: one.size_bytes or 0)
    size = "touched one more" if most.size_bytes is None else f"wanted {_size(most.size_bytes)}"
    return f", when {most.comm} (pid {most.pid}) {size}"


def _size(size: int | None) -> str:
    """A size in words.

    >>> _size(8 << 20), _size(1 << 30), _size(64 << 10)
    ('8 MiB', '1 GiB', '64 KiB')
    """
    if size is None:
        return "unknown size"
    for shift, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size >> shift and size % (1 << shift) == 0:
            return f"{size >> shift} {unit}"
    return f"{size / _MIB:.1f} MiB"


def _sensed(refused: tuple[Refused, ...]) -> tuple[Evidence, ...]:
    said = list(dict.fromkeys(f"{one.comm} (pid {one.pid}): {one.how}" for one in refused))
    return (Evidence(_SENSOR, "; ".join(said[:3])),) if said else ()


def _not_a_limit_look_alike(hit: Hit, seen: Observation) -> tuple[RuledOut, ...]:
    pool = seen.pool(hit.level.page_bytes)
    counted = "the counter of the hugetlb controller moves only when it refuses"
    room = counted if pool is None else f"{counted}; the pool can give {seen.room(pool)} more"
    broken = "that SIGBUS has the si_code 4 or 5 (BUS_MCEERR_*), and none was seen"
    return (
        RuledOut("an empty pool", room),
        RuledOut("a truncated file or a full tmpfs, which end in SIGBUS too", counted),
        RuledOut("memory that has failed", counted if seen.refused.reason else broken),
        _NOT_CHARGED,
    )


def _raise(hit: Hit, seen: Observation) -> tuple[Cure, ...]:
    page, limit = hit.level.page_bytes, hit.limit.limit_bytes or 0
    asked = max((one.size_bytes or 0 for one in seen.huge), default=0)
    enough = _whole(max(2 * limit, (hit.limit.usage_bytes or 0) + asked), page)
    change = HugepageLimit(
        enough,
        page,
        cgroup=None if hit.own else hit.level.path,
        reserved=hit.of_reservations or _reserves_less(hit, enough),
    )
    raised = Cure(
        advice=f"Allow {_size(enough)} in pages of {_size(page)}; the pool must have them too.",
        change=change,
        safety=Safety.LOW_RISK,
    )
    pool = seen.pool(page)
    if pool is None or seen.room(pool) * page >= enough:
        return (raised, _LESS)
    return (raised, _grow(pool, enough, seen), _LESS)


def _reserves_less(hit: Hit, enough: int) -> bool:
    limit = None if hit.level.reservations is None else hit.level.reservations.limit_bytes
    return limit is not None and limit < enough


def _whole(size: int, page: int) -> int:
    return math.ceil(size / page) * page


# The pool, or a mount of hugetlbfs.


def _refused(seen: Observation) -> Finding:
    worst = max(seen.huge, key=lambda one: one.size_bytes or 0)
    pool = seen.pool(worst.page_bytes)
    if pool is None:
        return clear(
            f"{worst.comm} (pid {worst.pid}) asked for huge pages of a size that this kernel does "
            "not have, and was refused.",
            evidence=_sensed(seen.huge),
        )
    asked = _whole(max(worst.size_bytes or 0, pool.page_bytes), pool.page_bytes)
    if seen.room(pool) * pool.page_bytes < asked:
        return _pool_is_short(worst, pool, asked, seen)
    mount = next((m for m in seen.mounts if m.device == worst.device), None)
    if mount is not None:
        return _mount_is_full(worst, mount, pool, seen)
    return clear(
        f"{worst.comm} (pid {worst.pid}) was refused {_size(asked)} of huge pages ({worst.how}), "
        f"but the pool can give {seen.room(pool)} pages and no limit of the hugetlb controller was "
        "reached: look at its address space (ulimit -v) and its memory policy.",
        evidence=(*_sensed(seen.huge), Evidence(pool.directory, pool.says)),
    )


def _pool_is_short(worst: Refused, pool: Pool, asked: int, seen: Observation) -> Finding:
    faults = any(one.errno is None for one in seen.huge)
    return Finding(
        verdict=Verdict.FOUND,
        severity=Severity.CRITICAL if faults else Severity.WARNING,
        summary=(
            f"{worst.comm} (pid {worst.pid}) wanted {asked // pool.page_bytes} huge pages of "
            f"{_size(pool.page_bytes)}, and {_state(pool, seen)}: "
            f"{'a fault was SIGBUS' if faults else 'mmap failed with ENOMEM'}, "
            f"{refusals.times(seen.huge)} in this window."
        ),
        evidence=(*_sensed(seen.huge), Evidence(pool.directory, pool.says), *_counters(seen)),
        ruled_out=(
            RuledOut("a limit of the hugetlb controller", _no_limit(pool, seen)),
            _NOT_CHARGED,
            RuledOut("transparent huge pages", "those need no pool, and nobody is refused them"),
        ),
        cures=(_grow(pool, asked, seen), _LESS),
    )


def _state(pool: Pool, seen: Observation) -> str:
    if not pool.pages and not pool.overcommit:
        return "the machine's pool has none at all"
    where = "" if seen.nodes is None else f" on the NUMA nodes {list(seen.nodes)} that it may use"
    held = pool.pages - pool.free
    return (
        f"the machine's pool of {pool.pages} can give {seen.room(pool)}{where} ({held} in use, "
        f"{pool.reserved} promised)"
    )


def _no_limit(pool: Pool, seen: Observation) -> str:
    mine = [one for one in seen.after or seen.before if one.page_bytes == pool.page_bytes]
    if not mine:
        return "it has no group of that controller"
    if all(one.pages.limit_bytes is None for one in mine):
        return "neither its group nor one above has one"
    return "its counter stood still in this window"


def _grow(pool: Pool, asked: int, seen: Observation) -> Cure:
    wanted = math.ceil(asked / pool.page_bytes)
    total = pool.pages - pool.surplus + max(wanted - seen.room(pool), 0)
    advice = (
        f"Give the pool {total} pages ({_size(total * pool.page_bytes)}), best at boot, before "
        "memory is in pieces: the kernel makes as many as it can, so read nr_hugepages again."
    )
    if pool.default:
        change = HostSysctl("vm.nr_hugepages", str(total))
        return Cure(advice=advice, change=change, safety=Safety.MUTATING)
    line = f"echo {total} > {pool.directory}/nr_hugepages"
    return Cure(advice=advice, commands=(line,), safety=Safety.MUTATING)


def _mount_is_full(worst: Refused, mount: Mount, pool: Pool, seen: Observation) -> Finding:
    advice = f"Mount the hugetlbfs at {mount.mountpoint} with a larger size=, or without one."
    return Finding(
        verdict=Verdict.FOUND,
        certainty=Certainty.LIKELY,
        severity=Severity.WARNING,
        summary=(
            f"{worst.comm} (pid {worst.pid}) was refused huge pages by its hugetlbfs at "
            f"{mount.mountpoint}, which may hold {_size(mount.size_bytes)}."
        ),
        evidence=(
            Evidence("/proc/PID/mountinfo", f"{mount.mountpoint} size={mount.size_bytes}"),
            *_sensed(seen.huge),
        ),
        ruled_out=(RuledOut("an empty pool", f"{pool.directory}: {pool.says}"),),
        cures=(Cure(advice=advice, change=InProgram(advice), safety=Safety.LOW_RISK),),
    )


# Nothing was refused.


def _may_be_short(seen: Observation) -> bool:
    """Whether it has huge pages of a size of which there are no more."""
    used = {one.page_bytes for one in seen.own if one.pages.usage_bytes}
    return any(pool.page_bytes in used and seen.room(pool) == 0 for pool in seen.pools)


def _nothing(seen: Observation) -> str:
    events = sum(one.max_events or 0 for one in seen.own)
    past = f"; before it, {_times(events)} since its group was made" if events else ""
    other = seen.refused.of(What.BEYOND_END, What.TMPFS, What.BROKEN)
    bus = next((f" (it got SIGBUS for {one.what})" for one in other if one.errno is None), "")
    return f"It was refused no huge page in this window{past}{bus}."


def _counters(seen: Observation) -> tuple[Evidence, ...]:
    events = tuple(
        Evidence(one.events_file, f"max {one.max_events} (+0)")
        for one in seen.own
        if one.max_events is not None
    )
    # v1 has a counter at each limit instead.
    failed = tuple(
        Evidence(one.pages.file.replace("limit_in_bytes", "failcnt"), f"{one.pages.failcnt} (+0)")
        for one in seen.own
        if one.pages.failcnt is not None
    )
    return events + failed


CASE = Case(
    title="Out of huge pages",
    question="Why does my container die of SIGBUS with huge pages?",
    question_zh="HugePage 在 Cgroup 下为什么失败?",
    lesson="I",
    observation=Observation,
    observe=observe,
    judge=judge,
    outlives=True,
)
