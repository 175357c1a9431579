"""A limit on block IO held its reads or writes back in this window.

Decided by how long IO was held back before it came to the device, where the kernel lets that be
watched; else by the limit being reached while tasks wait. Never by a limit alone, nor by slowness.
"""

from msgspec import Struct

from whybox.change import IoLimit
from whybox.kernel import diskwaits, iothrottle
from whybox.kernel.blockio import Limit
from whybox.kernel.diskwaits import Kind
from whybox.kernel.host import Host
from whybox.kernel.iothrottle import Level, Throttle, Use
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
from whybox.needs import living, own_group

from . import words

#: Held back, or waiting, for less of the window is what nobody feels.
LEAST_SHARE = 0.1
CRITICAL_SHARE = 0.5
#: A limit counts as reached from here on: a window cuts the kernel's slices of 100 ms anywhere.
REACHED = 0.85
#: Less than the first share of the limit, and what tasks wait for is another thing for certain;
#: more than the second, and it is that, if they wait neither in a queue nor in a device.
FAR, MUCH = 0.3, 0.5
#: In a shorter window two slices of the throttle look like a state.
SHORTEST_SECONDS = 0.5


def observe(host: Host, target: Target) -> Watch[Throttle]:
    """Read limits and counters before and after; watch IO only where a limit holds for it."""
    limited = iothrottle.limited(host, target)
    with diskwaits.watch(host, target, worth=limited.any) as waits:
        start = iothrottle.begin(host, target, limited)
        yield
        return iothrottle.end(host, target, start, waits())


class Reach(Struct, frozen=True, kw_only=True):
    """One limit that holds for the container, and how near the group that has it came."""

    level: Level
    limit: Limit
    way: str
    """``read`` or ``write``."""
    use: Use
    kind: Kind | None
    """The container's own part, as the sensor saw it."""
    seconds: float

    @property
    def rate(self) -> float:
        """Bytes, or IOs, a second."""
        # v1 counts what comes to the limit, the sensor what has gone to its end.
        kind = self.kind if self.level.own else None
        done = (0, 0) if kind is None else (kind.bytes, kind.count)
        size, count = max(self.use.bytes, done[0]), max(self.use.count, done[1])
        return (size if self.in_bytes else count) / self.seconds

    @property
    def in_bytes(self) -> bool:
        """Whether bytes are limited, and not IOs."""
        return self.limit.what.endswith("bytes")

    @property
    def share(self) -> float:
        """Of the limit."""
        return self.rate / max(self.limit.value, 1)

    @property
    def held_share(self) -> float:
        """Of the window; more than one where several were held at once."""
        return 0.0 if self.kind is None else self.kind.held_ns / 1e9 / self.seconds


def reaches(seen: Throttle) -> list[Reach]:
    """Every limit that holds, what was held back longest first, then what was used most."""
    found = [
        Reach(
            level=level,
            limit=limit,
            way=(way := limit.what.split()[0]),
            use=level.used(limit.device, way),
            kind=seen.waits.of(limit.device, way),
            seconds=seen.seconds,
        )
        for level in seen.levels
        if level.applies
        for limit in level.limits
    ]
    return sorted(found, key=lambda one: (-one.held_share, -one.share))


def judge(seen: Throttle) -> Finding:
    """Found where a limit held its IO back for long, and somebody waited for that."""
    found = reaches(seen)
    if not found:
        return _no_limit(seen)
    if seen.seconds < SHORTEST_SECONDS:
        return unknown(
            "whether its limit holds IO back takes a window to see: ask with --window 2s"
        )
    worst = found[0]
    if seen.waits.reason is not None:
        return _by_counters(max(found, key=lambda one: one.share), seen)
    if worst.held_share < LEAST_SHARE:
        return _not_held(max(found, key=lambda one: one.share), seen)
    if _in_background(worst, seen):
        return clear(words.in_background(worst, seen), evidence=words.evidence(worst, seen))
    return _found(worst, seen, Certainty.CONFIRMED)


def _no_limit(seen: Throttle) -> Finding:
    if seen.hidden is not None:
        return unknown(f"{seen.hidden} may not be read here: ask on the host")
    beyond = [level for level in seen.levels if level.limits]
    if beyond:
        return clear(
            f"No limit on its block IO; that of {beyond[0].path} holds for the tasks of that group "
            "alone (cgroup v1)."
        )
    above = "" if seen.inside else ", here or above it"
    return clear(f"No limit on its block IO{above}.")


def _in_background(worst: Reach, seen: Throttle) -> bool:
    """Whether only what the kernel writes back was held, for which no task waited."""
    if worst.way == "read" or seen.version == 1 or seen.waited is None:
        return False
    return seen.waited < LEAST_SHARE / 2 and not seen.waits.held_of_tasks


def _not_held(nearest: Reach, seen: Throttle) -> Finding:
    waited = seen.waited or 0.0
    if waited >= LEAST_SHARE and nearest.share >= MUCH and _at_disk(seen) < waited / 4:
        # What was held before the sensor came, or has not ended within the window, is in no sum.
        return _found(nearest, seen, Certainty.LIKELY)
    return clear(words.not_held(nearest, seen), evidence=words.evidence(nearest, seen))


def _at_disk(seen: Throttle) -> float:
    """How long its IO was in the queues and in the devices, as a share of the window."""
    spent = sum(one.queued_ns + one.device_ns for one in seen.waits.kinds)
    return spent / max(seen.elapsed_ns, 1)


def _by_counters(nearest: Reach, seen: Throttle) -> Finding:
    waited, reason = seen.waited, seen.waits.reason
    if waited is not None and waited < LEAST_SHARE / 2 and nearest.share < REACHED:
        return clear(words.not_held(nearest, seen), evidence=words.evidence(nearest, seen))
    if nearest.share < FAR:
        return clear(words.not_held(nearest, seen), evidence=words.evidence(nearest, seen))
    if nearest.share >= REACHED and waited is not None and waited >= LEAST_SHARE:
        return _found(nearest, seen, Certainty.LIKELY)
    return unknown(
        f"It used {nearest.share:.0%} of its limit, and whether IO was held back for that is not "
        f"told here ({reason}): ask as root on the host.",
        evidence=words.evidence(nearest, seen),
    )


def _found(worst: Reach, seen: Throttle, certainty: Certainty) -> Finding:
    share = max(worst.held_share, 0.0 if seen.waits.kinds else seen.waited or 0.0)
    return Finding(
        verdict=Verdict.FOUND,
        certainty=certainty,
        severity=Severity.CRITICAL if share >= CRITICAL_SHARE else Severity.WARNING,
        summary=words.summary(worst, seen),
        evidence=words.evidence(worst, seen),
        ruled_out=words.ruled_out(worst, seen),
        cures=_cures(worst, seen),
    )


def _cures(worst: Reach, seen: Throttle) -> tuple[Cure, ...]:
    device = iothrottle.numbered(worst.limit.device)
    change = IoLimit(
        device=device,
        what=worst.limit.what,
        value=None,
        cgroup=None if worst.level.own else worst.level.path,
    )
    least = words.rate(worst.rate, worst)
    take_off = Cure(
        advice=(
            f"Take the limit off, or set it to what the program needs: more than {least}; how much "
            "more cannot be seen while it is held back, so raise it and look again."
        ),
        change=change,
        safety=Safety.LOW_RISK,
    )
    less = (
        "Or do with fewer, larger IOs: the limit counts each."
        if not worst.in_bytes
        else "Or write less at once: spread what is written, so that no burst meets the limit."
    )
    even = (
        " On cgroup v2 buffered writes are limited too, so that all writes go at one speed; on v1 "
        "only O_DIRECT, O_SYNC and fsync are."
        if words.escaped_bytes(worst, seen)
        else ""
    )
    return take_off, Cure(advice=less + even, safety=Safety.INSPECT)


CASE = Case(
    title="Held back by a limit on its disk IO",
    question="Why is disk throughput in my container unstable?",
    question_zh="我的容器里磁盘读写为什么不稳定?",
    lesson="13",
    needs=(living, own_group("blkio")),
    observation=Throttle,
    observe=observe,
    judge=judge,
    explains=("cpu/blocked_in_kernel", "storage/write_stalled"),
)
