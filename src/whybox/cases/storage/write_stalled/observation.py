"""What is known of a window in which writes were slow, and the sums that are judged."""

from collections.abc import Mapping
from typing import Literal

from msgspec import Struct

from whybox.kernel.blockio import Limit
from whybox.kernel.diskwaits import NOT_WATCHED, Waits
from whybox.kernel.slowwrites import Slow, Writes

BUFFERED = "buffered write"
#: All slow writes together, as a share of the window; or one of them alone. Who syncs all the time
#: meets a slow moment of the disk for certain: it must last longer.
LEAST_SHARE, LEAST_SYNCED_SHARE, VERY_LONG_NS = 0.1, 0.3, 1_000_000_000
#: A buffered write this slow is felt.
BUFFERED_NS = 20_000_000
#: One that waits for the disk by its own wish is slow by comparison: longer than the first of these
#: and than so many times what half of its kind take; or longer than the second in any case.
SYNCED_NS, VERY_SLOW_NS, TIMES = 50_000_000, 250_000_000, 8

Place = Literal[
    "quota", "reclaim", "dirty", "journal", "device", "lock", "elsewhere", "cpu", "running"
]


class Room(Struct, frozen=True, kw_only=True):
    """A memory limit that is met, at its own group or above."""

    path: str
    own: bool
    limit_bytes: int
    current_bytes: int
    dirty_bytes: int | None
    """Of the container: what must be written before it can be given up."""


class Held(Struct, frozen=True, kw_only=True):
    """A limit on writing, and how much of what its writes waited at the disk was for it."""

    limit: Limit
    cgroup: str | None
    """Whose it is, if not its own."""
    share: float


class Observation(Struct, frozen=True, kw_only=True):
    """One window."""

    elapsed_ns: int
    writes: Writes
    waits: Waits = NOT_WATCHED
    limits: tuple[tuple[str | None, Limit], ...] = ()
    """Those on writing that hold for it, with the group that has them, if not its own."""
    disks_writing: tuple[str, ...] | None = None
    """With writes in flight at the end; ``None``: not asked, for writes of it were seen."""
    room: Room | None = None
    names: Mapping[str, str] = {}
    io_usec: int | None = None
    memory_usec: int | None = None
    """How long a task of it waited for IO, and for memory (PSI)."""

    @property
    def seconds(self) -> float:
        """How long the window was."""
        return max(self.elapsed_ns / 1e9, 1e-9)

    @property
    def waited(self) -> float:
        """The share of the window in which a task of it waited for IO or for memory."""
        most = max(self.io_usec or 0, self.memory_usec or 0)
        return most * 1000 / max(self.elapsed_ns, 1)

    def slow(self) -> tuple[Slow, ...]:
        """The writes that took much longer than one expects of their kind.

        If those are buffered ones that were felt, those alone: who syncs wants to wait.
        """
        half = {one.kind: one.half_ns for one in self.writes.ordinary}
        slow = tuple(
            one
            for one in self.writes.slow
            if one.took_ns >= least_ns(one.kind, half.get(one.kind, 0))
        )
        buffered = tuple(one for one in slow if one.kind == BUFFERED)
        return buffered if self.felt(buffered) else slow

    def felt(self, slow: tuple[Slow, ...]) -> bool:
        """Whether slow writes lasted long: all together, or one of them."""
        total = sum(one.took_ns for one in slow)
        longest = max((one.took_ns for one in slow), default=0)
        buffered = any(one.kind == BUFFERED for one in slow)
        least = LEAST_SHARE if buffered else LEAST_SYNCED_SHARE
        return total >= least * self.elapsed_ns or longest >= VERY_LONG_NS

    def held(self) -> Held | None:
        """The limit that held its writes longest, if one did."""
        best: Held | None = None
        for cgroup, limit in self.limits:
            kind = self.waits.of(limit.device, "write")
            if kind is None or not kind.held_ns:
                continue
            share = kind.held_ns / (kind.held_ns + kind.queued_ns + kind.device_ns)
            if best is None or share > best.share:
                best = Held(limit=limit, cgroup=cgroup, share=share)
        return best or self._held_all_along()

    def _held_all_along(self) -> Held | None:
        """One that was held before the window and still is: no write of it came to any disk."""
        devices = {limit.device for _, limit in self.limits}
        if self.disks_writing != () or len(devices) != 1:
            return None
        cgroup, limit = self.limits[0]
        return Held(limit=limit, cgroup=cgroup, share=1.0)

    def places(self) -> dict[Place, int]:
        """How long the slow writes were where, summed over all of them: that adds up to them."""
        sums: dict[Place, int] = {}
        for one in self.slow():
            for part, spent in one.parts.items():
                sums[part] = sums.get(part, 0) + spent
        held = self.held()
        if held is not None and sums.get("device"):
            # Which of its IOs a task waited for is not seen; what all of them waited for is.
            quota = round(sums["device"] * held.share)
            sums["quota"], sums["device"] = quota, sums["device"] - quota
        return {place: spent for place, spent in sums.items() if spent}


def least_ns(kind: str, half_ns: int) -> int:
    """From which length on a write is slow.

    >>> least_ns("buffered write", 30_000_000), least_ns("sync", 15_000_000)
    (20000000, 120000000)
    """
    if kind == BUFFERED:
        return BUFFERED_NS
    return min(max(SYNCED_NS, TIMES * half_ns), VERY_SLOW_NS)
