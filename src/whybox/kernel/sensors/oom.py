"""Whom the OOM killer killed of a container, who asked for memory, and which group was full.

From ``oom:mark_victim`` (mm/oom_kill.c), which unlike the kernel log is never held back. Which
limit it was, no argument tells: so the counters of all groups above the victim are read at that
moment, while it still holds its memory.
"""

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from msgspec import Struct

from whybox.kernel.bpf.objects import Spec, loaded
from whybox.kernel.host import Host, c_string
from whybox.kernel.sensors.kept import Kept

SPEC = Spec(
    name="oom",
    programs=(("on_victim",), ("on_signal",)),
    falls_back="the reports in the kernel log, and the counters of the control groups",
)

#: So many are kept for those who share a sensor; more are counted as lost.
MOST_KEPT = 10_000

MOST_LEVELS = 12
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
#: PAGE_COUNTER_MAX (include/linux/page_counter.h) is LONG_MAX in pages, or that divided by a page.
_UNLIMITED_PAGES = 1 << 50
#: Pages are charged ahead in batches of MEMCG_CHARGE_BATCH: a group is full a little below its
#: limit.
_BATCH_PAGES = 64

_HEAD = struct.Struct("=QIIIIIiqqqqII16s16s")
_LEVEL = struct.Struct("=QQQQQ")
_GROUPS = struct.Struct(f"={MOST_LEVELS}Q")


class Held(Struct, frozen=True, kw_only=True):
    """What a group held when the kill was decided."""

    id: int
    """The inode of its directory in the tree of the memory controller."""
    usage_bytes: int
    limit_bytes: int | None
    swap_usage_bytes: int
    """v1: of memory and swap together; v2: of swap."""
    swap_limit_bytes: int | None

    @property
    def full(self) -> bool:
        """Whether no more memory was allowed."""
        slack = _BATCH_PAGES * _PAGE_BYTES
        return self.limit_bytes is not None and self.usage_bytes + slack >= self.limit_bytes

    @property
    def full_with_swap(self) -> bool:
        """v1: whether no more memory and swap together was allowed."""
        slack, limit = _BATCH_PAGES * _PAGE_BYTES, self.swap_limit_bytes
        return limit is not None and self.swap_usage_bytes + slack >= limit


class Killed(Struct, frozen=True, kw_only=True):
    """One process that the OOM killer ended."""

    at_ns: int
    """Of the monotonic clock."""
    slot: int
    """The victim's container; 0: another's, or nobody's."""
    trigger_slot: int
    """The container that asked for memory."""
    victim_pid: int
    victim_comm: str
    trigger_pid: int
    trigger_tid: int
    trigger_comm: str
    anon_rss_bytes: int | None
    """Of the victim; 6.2 and later count it to within some pages for each CPU."""
    file_rss_bytes: int | None
    shmem_rss_bytes: int | None
    score_adj: int
    levels: tuple[Held, ...]
    """The victim's own group first, then those above."""
    trigger_groups: tuple[int, ...]
    """The ids of the trigger's own group and of those above."""

    def over(self, v1: bool) -> Held | None:
        """The lowest group that was full and holds both; ``None``: it was the machine."""
        both = [held for held in self.levels if held.id in self.trigger_groups]
        return next((h for h in both if h.full or (v1 and h.full_with_swap)), None)


Kills = Kept[Killed]


@contextmanager
def attached(host: Host, *, stats: bool = False) -> Iterator[Kills]:
    """The sensor; nobody is in its scope yet. Raises ``Refused``."""
    with loaded(host, SPEC, stats=stats) as object:
        yield Kills(object, killed, MOST_KEPT)


def killed(raw: bytes) -> Killed:
    """Decode ``struct killed``."""
    head = _HEAD.unpack_from(raw)
    at, slot, trigger_slot, victim, trigger, trigger_tid, adj = head[:7]
    file, anon, _, shmem, levels, trigger_levels, comm, trigger_comm = head[7:]
    after = _HEAD.size + MOST_LEVELS * _LEVEL.size
    return Killed(
        at_ns=at,
        slot=slot,
        trigger_slot=trigger_slot,
        victim_pid=victim,
        victim_comm=c_string(comm),
        trigger_pid=trigger,
        trigger_tid=trigger_tid,
        trigger_comm=c_string(trigger_comm),
        anon_rss_bytes=_resident(anon),
        file_rss_bytes=_resident(file),
        shmem_rss_bytes=_resident(shmem),
        score_adj=adj,
        levels=tuple(
            _held(*_LEVEL.unpack_from(raw, _HEAD.size + n * _LEVEL.size)) for n in range(levels)
        ),
        trigger_groups=_GROUPS.unpack_from(raw, after)[:trigger_levels],
    )


def _held(id: int, usage: int, limit: int, swap_usage: int, swap_limit: int) -> Held:
    return Held(
        id=id,
        usage_bytes=usage * _PAGE_BYTES,
        limit_bytes=_limit(limit),
        swap_usage_bytes=swap_usage * _PAGE_BYTES,
        swap_limit_bytes=_limit(swap_limit),
    )


def _limit(pages: int) -> int | None:
    return None if pages >= _UNLIMITED_PAGES else pages * _PAGE_BYTES


def _resident(pages: int) -> int | None:
    # A counter that is summed up over CPUs only now and then may be below zero.
    return None if pages < 0 else pages * _PAGE_BYTES
