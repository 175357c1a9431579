"""Writes that took long in this window, and in which place of the kernel they spent that time.

Decided by the time inside the slow calls themselves, divided by where it went; never by counters
of reclaim or of dirty pages, which move in every container that fills its cache.
"""

from whybox.change import Change, InProgram, IoLimit
from whybox.kernel import (
    blockio,
    diskwaits,
    iothrottle,
    memory,
    memorystat,
    slowwrites,
    waiting,
)
from whybox.kernel.diskwaits import Waits
from whybox.kernel.host import Host, ParseError
from whybox.kernel.iothrottle import Limited, numbered
from whybox.kernel.pressure import Resource
from whybox.kernel.target import Target
from whybox.model import (
    Case,
    Certainty,
    Cure,
    Finding,
    Safety,
    Severity,
    Verdict,
    Watch,
    clear,
    unknown,
)
from whybox.needs import living

from . import words
from .observation import LEAST_SHARE, Observation, Place, Room

CRITICAL_SHARE = 0.5
#: In a shorter window a moment looks like a state.
SHORTEST_SECONDS = 0.5
#: Waits that tell a cause: the others are for somebody who waits for one of these, or for a CPU.
CAUSES: tuple[Place, ...] = ("quota", "reclaim", "dirty", "journal", "device")


def observe(host: Host, target: Target) -> Watch[Observation]:
    """Time the writes where that is worth it, and see what limits hold meanwhile."""
    with slowwrites.watch(host, target) as writes:
        limited = _limited(host, target)
        worth = limited is not None and limited.any
        with diskwaits.watch(host, target, worth=worth) as waits:
            began = host.monotonic_ns()
            before = {what: waiting.waited_usec(host, target, what) for what in _RESOURCES}
            yield
            now = host.monotonic_ns()
            after = {what: waiting.waited_usec(host, target, what) for what in _RESOURCES}
            limits, seen = () if limited is None else tuple(_on_writing(limited)), waits()
            return Observation(
                elapsed_ns=now - began,
                writes=writes(),
                waits=seen,
                limits=limits,
                disks_writing=blockio.writing(host) if limits and _none_came(seen) else None,
                room=_room(host, target),
                names=_names(host, limits),
                io_usec=_difference(before["io"], after["io"]),
                memory_usec=_difference(before["memory"], after["memory"]),
            )


_RESOURCES: tuple[Resource, ...] = ("io", "memory")


def _limited(host: Host, target: Target) -> Limited | None:
    try:
        return iothrottle.limited(host, target)
    except OSError:
        return None


def _none_came(waits: Waits) -> bool:
    """Whether they were watched, and no write came to a disk."""
    return waits.reason is None and not any(one.kind == "write" for one in waits.kinds)


def _on_writing(limited: Limited) -> list[tuple[str | None, blockio.Limit]]:
    return [
        (None if nth == 0 else limited.groups[nth].path, limit)
        for nth, mine in enumerate(limited.limits)
        if iothrottle.applies(limited.groups, nth)
        for limit in mine
        if limit.what.startswith("write")
    ]


def _names(host: Host, limits: tuple[tuple[str | None, blockio.Limit], ...]) -> dict[str, str]:
    devices = {limit.device for _, limit in limits}
    names = ((numbered(one), blockio.device_name(host, one)) for one in sorted(devices))
    return {number: name for number, name in names if name is not None}


def _difference(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else after - before


def _room(host: Host, target: Target) -> Room | None:
    """The nearest memory limit of which 95 % are used."""
    group = target.group(host, "memory")
    if group is None:
        return None
    for one in group.lineage():
        try:
            seen = memory.memory(host, one)
        except (OSError, ParseError):
            continue
        limit, held = seen.limit_bytes, seen.current_bytes
        if limit is not None and held is not None and held >= 0.95 * limit:
            stat = memorystat.stat(host, group)
            return Room(
                path=one.path,
                own=one is group or one.path == group.path,
                limit_bytes=limit,
                current_bytes=held,
                dirty_bytes=None if stat is None else stat.dirty_bytes,
            )
    return None


def judge(seen: Observation) -> Finding:
    """Found where slow writes lasted long, and most of that in a place that holds writes up."""
    if seen.seconds < SHORTEST_SECONDS:
        return unknown("how long its writes take takes a window to see: ask with --window 2s")
    if seen.writes.reason is not None:
        return _not_timed(seen)
    if seen.writes.idle and seen.writes.late is not None:
        return unknown(
            f"{seen.writes.late} came to be in D within this window, before which nothing had "
            "waited, so its writes were not timed: ask again."
        )
    if seen.writes.idle:
        return clear("Its tasks wait for neither disk nor memory, so its writes were not timed.")
    slow = seen.slow()
    total = sum(one.took_ns for one in slow)
    if not seen.felt(slow):
        return clear(words.quick(seen), evidence=words.evidence(seen))
    places = seen.places()
    waited = sum(places.get(place, 0) for place in CAUSES)
    if 2 * waited < total:
        return clear(words.elsewhere(seen), evidence=words.evidence(seen))
    cause = max(CAUSES, key=lambda place: places.get(place, 0))
    share = total / max(seen.elapsed_ns, 1)
    inferred = cause == "device" or (cause == "quota" and seen.disks_writing is not None)
    return Finding(
        verdict=Verdict.FOUND,
        certainty=Certainty.LIKELY if inferred else Certainty.CONFIRMED,
        severity=Severity.CRITICAL if share >= CRITICAL_SHARE else Severity.WARNING,
        summary=words.summary(seen, cause),
        evidence=words.evidence(seen),
        ruled_out=words.ruled_out(seen, cause),
        cures=cures(seen, cause),
    )


def _not_timed(seen: Observation) -> Finding:
    if seen.io_usec is not None and seen.waited < LEAST_SHARE / 2:
        return clear(f"Its tasks waited {seen.waited:.0%} of the time for disk and memory.")
    return unknown(f"its writes could not be timed: {seen.writes.reason}")


def cures(seen: Observation, cause: Place) -> tuple[Cure, ...]:
    """What ends it, by where the time went."""
    held = seen.held()
    match cause:
        case "quota" if held is not None:
            change: Change = IoLimit(
                device=numbered(held.limit.device),
                what=held.limit.what,
                value=None,
                cgroup=held.cgroup,
            )
            advice = "Take the limit on its disk IO off, or raise it: see storage/io_throttled."
            return (Cure(advice=advice, change=change, safety=Safety.LOW_RISK),)
        case "reclaim":
            return _write_out(
                "Or give it memory for what it writes: twice what it dirties at a time beside what "
                "it holds anyway."
            )
        case "dirty":
            return _write_out(
                "Or give it a faster disk or more memory: the kernel pauses a writer so that what "
                "is dirty stays below a share of the memory (vm.dirty_ratio, vm.dirty_bytes; on v2 "
                "of its own limit)."
            )
        case "journal":
            advice = (
                "Find who syncs large files on the same file system (whybox trace files): a commit "
                "writes out what belongs to it of everybody, at the speed of the slowest. Give "
                "this container a file system of its own, or let the other write less at a time."
            )
            return (Cure(advice=advice, safety=Safety.INSPECT),)
        case _:
            advice = (
                "See who fills the disk's queue (storage/io_contended), and how long single IOs "
                "take in it: whybox trace disk. If nobody else uses it, the disk itself is slow."
            )
            return (Cure(advice=advice, safety=Safety.INSPECT),)


def _write_out(more: str) -> tuple[Cure, ...]:
    write = (
        "Write to the disk as you go (fdatasync or sync_file_range every few MiB, or O_DIRECT), "
        "from a thread that may wait, so that little is dirty at a time"
    )
    return (
        Cure(advice=f"{write}.", change=InProgram(write), safety=Safety.LOW_RISK),
        Cure(advice=more, safety=Safety.INSPECT),
    )


CASE = Case(
    title="Writes to files stall",
    question="Why does writing a file sometimes take so long?",
    question_zh="容器写文件的延时为什么波动很大?",
    lesson="14",
    needs=(living,),
    observation=Observation,
    observe=observe,
    judge=judge,
    explains=("cpu/blocked_in_kernel",),
)
