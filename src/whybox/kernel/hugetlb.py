"""Huge pages: the machine's pools, and what the hugetlb controller lets each group have of them.

Pools: ``/sys/kernel/mm/hugepages/hugepages-SIZEkB`` (admin-guide/mm/hugetlbpage.rst). Groups:
``hugetlb.SIZE.*`` (admin-guide/cgroup-v2.rst, "HugeTLB"; cgroup-v1/hugetlb.rst). Two limits hold:
one on pages, which a fault runs into, and one on reservations (``rsvd``), which ``mmap`` runs into.
"""

import re

from msgspec import Struct

from whybox.kernel.cgroup import Group, keyed
from whybox.kernel.host import Host, ParseError
from whybox.kernel.memory import UNLIMITED_V1

POOLS = "/sys/kernel/mm/hugepages"
_NODES = "/sys/devices/system/node"
_DEFAULT = re.compile(r"^Hugepagesize: +(\d+) kB", re.MULTILINE)
_POOL = re.compile(r"hugepages-(\d+)kB")


class Node(Struct, frozen=True, kw_only=True):
    """What one NUMA node has of a pool."""

    node: int
    pages: int
    free: int


class Pool(Struct, frozen=True, kw_only=True):
    """The machine's huge pages of one size."""

    page_bytes: int
    directory: str
    default: bool
    """Whether it is the size that ``vm.nr_hugepages`` and a plain MAP_HUGETLB mean."""
    pages: int
    """All there are, with the surplus."""
    free: int
    reserved: int
    """Of the free ones: promised to mappings that have not touched them yet."""
    surplus: int
    """More than the pool should have, made as they were asked for."""
    overcommit: int
    """So many surplus pages may be made, if memory for them is found."""
    nodes: tuple[Node, ...] = ()
    """Where there is more than one."""

    @property
    def available(self) -> int:
        """Pages that nobody holds and nobody was promised, and those that may still be made."""
        return max(self.free - self.reserved, 0) + max(self.overcommit - self.surplus, 0)

    @property
    def says(self) -> str:
        """Its files in a line."""
        return (
            f"nr_hugepages {self.pages}, free_hugepages {self.free}, resv_hugepages "
            f"{self.reserved}, surplus_hugepages {self.surplus}, nr_overcommit_hugepages "
            f"{self.overcommit}"
        )


class Limit(Struct, frozen=True, kw_only=True):
    """One of a group's limits on huge pages of one size."""

    file: str
    limit_bytes: int | None
    """``None``: none here."""
    usage_bytes: int | None
    failcnt: int | None
    """v1: how often this very limit refused."""

    @property
    def room_bytes(self) -> int | None:
        """How much more it allows; ``None``: no limit."""
        if self.limit_bytes is None:
            return None
        return max(self.limit_bytes - (self.usage_bytes or 0), 0)


class Level(Struct, frozen=True, kw_only=True):
    """One group's huge pages of one size."""

    path: str
    version: int
    page_bytes: int
    pages: Limit
    reservations: Limit | None
    """``None`` where the kernel has none (before 5.7)."""
    max_events: int | None
    """v2: how often a task of this group or one below was refused, by whichever group's limit."""
    events_file: str


def pools(host: Host) -> tuple[Pool, ...]:
    """The machine's pools, the smallest pages first."""
    return host.remembered("hugetlb pools", lambda: _pools(host))


def _pools(host: Host) -> tuple[Pool, ...]:
    try:
        names = host.names(POOLS)
    except OSError:
        return ()
    known = _DEFAULT.search(host.text("/proc/meminfo"))
    default = int(known[1]) if known is not None else 0
    sizes = sorted(int(m[1]) for name in names if (m := _POOL.fullmatch(name)))
    return tuple(_pool(host, kib, default=kib == default) for kib in sizes)


def _pool(host: Host, kib: int, *, default: bool) -> Pool:
    directory = f"{POOLS}/hugepages-{kib}kB"

    def number(name: str) -> int:
        return host.number(f"{directory}/{name}_hugepages") or 0

    return Pool(
        page_bytes=kib << 10,
        directory=directory,
        default=default,
        pages=number("nr"),
        free=number("free"),
        reserved=number("resv"),
        surplus=number("surplus"),
        overcommit=number("nr_overcommit"),
        nodes=_nodes(host, f"hugepages-{kib}kB"),
    )


def _nodes(host: Host, name: str) -> tuple[Node, ...]:
    try:
        nodes = [n for n in host.names(_NODES) if re.fullmatch(r"node\d+", n)]
    except OSError:
        return ()
    if len(nodes) < 2:
        return ()
    return tuple(
        Node(
            node=int(node.removeprefix("node")),
            pages=host.optional_number(f"{_NODES}/{node}/hugepages/{name}/nr_hugepages") or 0,
            free=host.optional_number(f"{_NODES}/{node}/hugepages/{name}/free_hugepages") or 0,
        )
        for node in nodes
    )


def word(page_bytes: int) -> str:
    """A page size as the files of a group have it in their names (mm/hugetlb_cgroup.c, mem_fmt()).

    >>> word(2 << 20), word(1 << 30), word(64 << 10)
    ('2MB', '1GB', '64KB')
    """
    for shift, unit in ((30, "GB"), (20, "MB")):
        if page_bytes >> shift:
            return f"{page_bytes >> shift}{unit}"
    return f"{page_bytes >> 10}KB"


def level(host: Host, group: Group, page_bytes: int) -> Level | None:
    """What one group holds and may hold; ``None`` where the controller keeps no files for it."""
    prefix = f"hugetlb.{word(page_bytes)}"
    pages = _limit(host, group, prefix)
    if pages is None:
        return None  # a root, or a v2 group for which the controller is not switched on
    events = group.file(f"{prefix}.events")
    said = host.optional_text(events) if group.version == 2 else None
    return Level(
        path=group.path,
        version=group.version,
        page_bytes=page_bytes,
        pages=pages,
        reservations=_limit(host, group, f"{prefix}.rsvd"),
        max_events=None if said is None else keyed(events, said).get("max"),
        events_file=events,
    )


def _limit(host: Host, group: Group, prefix: str) -> Limit | None:
    names = ("limit_in_bytes", "usage_in_bytes") if group.version == 1 else ("max", "current")
    file, usage = (group.file(f"{prefix}.{name}") for name in names)
    try:
        limit = host.number(file)
    except (OSError, ParseError):
        return None
    return Limit(
        file=file,
        # "No limit" is the largest multiple of a huge page in a signed 64-bit number, or ``max``.
        limit_bytes=None if limit is None or limit >= UNLIMITED_V1 else limit,
        usage_bytes=host.optional_number(usage),
        failcnt=host.optional_number(group.file(f"{prefix}.failcnt")),
    )


def lineage(host: Host, group: Group | None, sizes: tuple[int, ...]) -> tuple[Level, ...]:
    """The group and those above it, of each size the lowest first."""
    if group is None:
        return ()
    found = (level(host, one, size) for size in sizes for one in group.lineage())
    return tuple(one for one in found if one is not None)


def numbers(text: str) -> tuple[int, ...]:
    """A list of numbers and ranges, as the kernel prints sets of nodes and CPUs.

    >>> numbers("0-2,5"), numbers("")
    ((0, 1, 2, 5), ())
    """
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if first.isdigit():
            found.extend(range(int(first), int(last or first) + 1))
    return tuple(found)
