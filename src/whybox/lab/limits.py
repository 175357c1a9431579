"""What a box may use, and how cures change that."""

import resource
from collections.abc import Iterable, Iterator
from contextlib import suppress

from msgspec import Struct, structs

from whybox import settings
from whybox.change import (
    Change,
    CpuBurst,
    CpuQuota,
    CpuSet,
    CpuWeight,
    HugepageLimit,
    IoLimit,
    MemoryHigh,
    MemoryLimit,
    PidsLimit,
    SwapLimit,
    Swappiness,
)

#: Eight times the ordinary weight: others are hardly felt, and still get on.
SHARES = 8 * 1024


class Limits(Struct, frozen=True, kw_only=True):
    """What a group may use; ``None``: no limit."""

    cores: float | None = None
    burst_usec: int | None = None
    cpus: str | None = None
    shares: int | None = None
    """v1's word, 1024 is ordinary; on v2 the weight that the kernel makes of it."""
    limit_bytes: int | None = None
    swap: bool = False
    kill: bool = True
    """Whether the OOM killer may act; v1 alone can say no."""
    pids: int | None = None
    high_bytes: int | None = None
    """Above it the kernel slows it down; v2 alone has it."""
    swap_bytes: int | None = None
    """How much of what it holds may be in swap, where ``swap`` is allowed."""
    swappiness: int | None = None
    """v1 alone has one for a group."""
    huge: HugepageLimit | None = None
    io: tuple[IoLimit, ...] = ()
    """What it may have of a disk in a second."""

    @property
    def controllers(self) -> frozenset[str]:
        """Those that not every box has a group of."""
        wanted = {"cpuset": self.cpus, "hugetlb": self.huge}
        return frozenset(name for name, value in wanted.items() if value is not None)


def outweighing(limits: Limits) -> Limits:
    """The same; unless its weight is set, it outweighs what else the machine does.

    Else whybox itself, which takes a whole CPU of a small and slow machine, would be a neighbour
    for which a box waits.
    """
    return limits if limits.shares is not None else structs.replace(limits, shares=SHARES)


def cured(own: Limits, parent: Limits, changes: Iterable[Change]) -> tuple[Limits, Limits]:
    """The limits of a box and of its parent as these changes leave them."""
    for change in changes:
        if getattr(change, "cgroup", None) is None:
            own = _changed(own, change)
        else:
            parent = _changed(parent, change)
    return own, parent


def _changed(limits: Limits, change: Change) -> Limits:
    """The limits as one change leaves them."""
    match change:
        case CpuQuota(cores=cores):
            return structs.replace(limits, cores=cores)
        case CpuBurst(burst_usec=burst):
            return structs.replace(limits, burst_usec=burst)
        case CpuWeight(shares=shares):
            return structs.replace(limits, shares=shares)
        case CpuSet(cpus=cpus):
            return structs.replace(limits, cpus=cpus)
        case PidsLimit(limit=limit):
            return structs.replace(limits, pids=limit)
        case IoLimit():
            return structs.replace(limits, io=(*limits.io, change))
        case _:
            return _changed_memory(limits, change)


def _changed_memory(limits: Limits, change: Change) -> Limits:
    match change:
        case MemoryLimit(bytes=size):
            return structs.replace(limits, limit_bytes=size)
        case MemoryHigh(bytes=size):
            return structs.replace(limits, high_bytes=size)
        case SwapLimit(bytes=size):
            return structs.replace(limits, swap=True, swap_bytes=size)
        case Swappiness(value=value):
            return structs.replace(limits, swappiness=value)
        case HugepageLimit():
            return structs.replace(limits, huge=change)
        case _:
            return limits


def each(limits: Limits) -> Iterator[settings.Setting]:
    """The limits that are one file each."""
    if limits.burst_usec is not None:
        yield CpuBurst(limits.burst_usec)
    if limits.shares is not None:
        yield CpuWeight(limits.shares)
    if limits.cpus is not None:
        yield CpuSet(limits.cpus)
    if limits.pids is not None:
        yield PidsLimit(limits.pids)
    if limits.high_bytes is not None:
        yield MemoryHigh(limits.high_bytes)
    if limits.swappiness is not None:
        yield Swappiness(limits.swappiness)
    if limits.huge is not None:
        yield limits.huge
    yield from limits.io


def allow_files(pids: Iterable[int], limit: int) -> bool:
    """So many open files to processes that live: what they start later has it from them."""
    try:
        for pid in pids:
            with suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, limit))
    except PermissionError:
        return False  # another user's, without CAP_SYS_RESOURCE (prlimit(2))
    return True
