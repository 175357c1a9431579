"""What a container had of huge pages over a window, and which limit refused it more.

On v1 the limit that refused counts it (``failcnt``). On v2 the group that *asked* counts it, and
every group above, whosever limit it was (``hugetlb_event()``; measured: parent's limit, child's
``events.local`` +1): so of several limits the one with the least room is named, and not for sure.
"""

from collections.abc import Iterator

from msgspec import Struct

from whybox.kernel import hugetlb
from whybox.kernel.host import Host, printable
from whybox.kernel.hugetlb import Level, Limit, Pool
from whybox.kernel.mountinfo import mounts
from whybox.kernel.refusals import Refused, What, Window
from whybox.kernel.target import Target, still_there


class Mount(Struct, frozen=True, kw_only=True):
    """A hugetlbfs of the container that may hold only so much."""

    mountpoint: str
    device: str
    size_bytes: int


class HugePages(Struct, frozen=True, kw_only=True):
    """Pools and groups before and after, and what was refused in between."""

    pools_before: tuple[Pool, ...]
    pools: tuple[Pool, ...]
    before: tuple[Level, ...]
    """Of each page size its own group first, then those above."""
    after: tuple[Level, ...]
    """Empty where it ended within the window."""
    refused: Window
    mounts: tuple[Mount, ...] = ()
    nodes: tuple[int, ...] | None = None
    """The NUMA nodes that it may use; ``None``: there is one only, or it is not known."""

    def pool(self, page_bytes: int | None) -> Pool | None:
        """The pool of a size, or of the default one; as it was when it had less, before or after.

        A program that dies gives back what it had, and then the pool looks ample.
        """
        both = (*self.pools_before, *self.pools)
        fits = [
            p for p in both if (p.default if page_bytes is None else p.page_bytes == page_bytes)
        ]
        return min(fits, key=self.room, default=None)

    def room(self, pool: Pool) -> int:
        """Pages that it could have been given."""
        if self.nodes is None or not pool.nodes:
            return pool.available
        # hugetlb_acct_memory() looks at the nodes of the task's cpuset.
        near = sum(node.free for node in pool.nodes if node.node in self.nodes)
        return min(pool.available, near + max(pool.overcommit - pool.surplus, 0))

    @property
    def huge(self) -> tuple[Refused, ...]:
        """Calls and faults that found no huge page."""
        return self.refused.of(What.HUGE_PAGES)

    @property
    def own(self) -> tuple[Level, ...]:
        """Its own group as it was seen last, of each page size."""
        first: dict[int, Level] = {}
        for level in self.after or self.before:
            first.setdefault(level.page_bytes, level)
        return tuple(first.values())


class Hit(Struct, frozen=True, kw_only=True):
    """A limit that refused pages in this window."""

    level: Level
    limit: Limit
    own: bool
    count: int
    certain: bool
    """Whether no other limit can have been the one."""
    file: str
    """The counter that says so."""
    counted: str

    @property
    def of_reservations(self) -> bool:
        """Whether it is the limit that ``mmap`` runs into, not the one that a fault does."""
        return self.limit is self.level.reservations


_Pair = tuple[Level, Level]


def observed(
    host: Host,
    target: Target,
    init: int,
    pools: tuple[Pool, ...],
    before: tuple[Level, ...],
    refused: Window,
) -> HugePages:
    """All that can be told at the end of a window."""
    there = still_there(host, target)
    sizes = tuple(pool.page_bytes for pool in pools)
    group = target.group(host, "hugetlb")
    return HugePages(
        pools_before=pools,
        pools=hugetlb.pools(host),
        before=before,
        after=hugetlb.lineage(host, group, sizes) if there else (),
        refused=refused,
        mounts=_mounts(host, init) if there and refused.of(What.HUGE_PAGES) else (),
        nodes=_nodes(host, init) if there and any(pool.nodes for pool in pools) else None,
    )


def _mounts(host: Host, pid: int) -> tuple[Mount, ...]:
    found = ((m, m.option("size")) for m in mounts(host, pid) if m.fstype == "hugetlbfs")
    return tuple(
        Mount(mountpoint=printable(m.mountpoint), device=m.device, size_bytes=int(size))
        for m, size in found
        if size is not None and size.isdigit()
    )


def _nodes(host: Host, pid: int) -> tuple[int, ...] | None:
    for line in host.text(f"/proc/{pid}/status").splitlines():
        if line.startswith("Mems_allowed_list:"):
            return hugetlb.numbers(line.partition(":")[2].strip())
    return None


def hits(seen: HugePages) -> tuple[Hit, ...]:
    """The limits that refused, of each page size at most one."""
    found = (_hit(level.page_bytes, seen) for level in seen.own)
    return tuple(hit for hit in found if hit is not None)


def _hit(size: int, seen: HugePages) -> Hit | None:
    before = {one.path: one for one in seen.before if one.page_bytes == size}
    after = [one for one in seen.after or seen.before if one.page_bytes == size]
    pairs = [(before[now.path], now) for now in after if now.path in before]
    if not pairs:
        return None
    return _hit_v1(pairs) if pairs[0][1].version == 1 else _hit_v2(pairs, seen)


def _hit_v1(pairs: list[_Pair]) -> Hit | None:
    return next((hit for was, now in pairs for hit in _failed(was, now, pairs[0][1])), None)


def _failed(was: Level, now: Level, own: Level) -> Iterator[Hit]:
    for then, limit in ((was.pages, now.pages), (was.reservations, now.reservations)):
        if then is None or limit is None or limit.failcnt is None or then.failcnt is None:
            continue
        count = limit.failcnt - then.failcnt
        if count > 0:
            yield Hit(
                level=now,
                limit=limit,
                own=now is own,
                count=count,
                certain=True,
                file=limit.file.replace("limit_in_bytes", "failcnt"),
                counted=f"{limit.failcnt} (+{count})",
            )


def _hit_v2(pairs: list[_Pair], seen: HugePages) -> Hit | None:
    was, own = pairs[0]
    count = (own.max_events or 0) - (was.max_events or 0)
    asked = [one for one in seen.huge if one.page_bytes in (None, own.page_bytes)]
    if count <= 0 and not _went_with_its_group(asked, own, seen):
        return None
    limits = [one for _, level in pairs for one in _limits(level, asked)]
    if not limits:
        return None
    level, limit = min(limits, key=lambda one: one[1].room_bytes or 0)
    return Hit(
        level=level,
        limit=limit,
        own=level is own,
        count=count if count > 0 else len(asked),
        certain=len(limits) == 1,
        file=own.events_file,
        counted=f"max {own.max_events} (+{count})" if count > 0 else "gone with its group",
    )


def _went_with_its_group(asked: list[Refused], own: Level, seen: HugePages) -> bool:
    """It died of it, and its counters too: it was a limit where the pool had pages to give."""
    pool = seen.pool(own.page_bytes)
    return bool(asked) and not seen.after and pool is not None and seen.room(pool) > 0


def _limits(level: Level, asked: list[Refused]) -> Iterator[tuple[Level, Limit]]:
    """A group's limits that can have refused: faults run into one, calls into the other."""
    faults, calls = _kinds(asked)
    if faults and level.pages.limit_bytes is not None:
        yield level, level.pages
    if calls and level.reservations is not None and level.reservations.limit_bytes is not None:
        yield level, level.reservations


def _kinds(asked: list[Refused]) -> tuple[bool, bool]:
    """Whether faults were refused, and whether calls were; if nobody watched it may be both."""
    faults = any(one.errno is None for one in asked)
    calls = any(one.errno is not None for one in asked)
    return (faults, calls) if faults or calls else (True, True)
