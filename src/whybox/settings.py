"""Changes that are one file of a control group: which one, on v1 and v2, and what is written to it.

What a cure prints and what a lab's box applies is read off the same table. Quotas and limits of
memory need more than one file, in an order, and are not here.
"""

from collections.abc import Callable
from typing import TypeAlias

from msgspec import Struct, structs

from whybox.change import (
    CpuBurst,
    CpuSet,
    CpuWeight,
    HugepageLimit,
    IoLimit,
    MemoryHigh,
    PidsLimit,
    SwapLimit,
    Swappiness,
    Unpause,
)

#: What can be written to one file, or two.
Setting: TypeAlias = (
    CpuBurst
    | CpuSet
    | CpuWeight
    | HugepageLimit
    | IoLimit
    | MemoryHigh
    | PidsLimit
    | SwapLimit
    | Swappiness
    | Unpause
)


class File(Struct, frozen=True, kw_only=True):
    """A file of a group, and what to write."""

    controller: str
    name: str
    value: str


def file(change: Setting, version: int) -> File | None:
    """The file for a change in a tree of that version; ``None``: that version has none.

    >>> file(PidsLimit(100), 1), file(Swappiness(0), 2)
    (File(controller='pids', name='pids.max', value='100'), None)
    """
    controller, v1, v2, value = _rule(change)
    name = v1 if version == 1 else v2
    if name is None:
        return None
    return File(controller=controller, name=name, value=value(version))


def files(change: Setting, version: int) -> tuple[File, ...]:
    """All files for a change, in the order in which they are written; none: that version has none.

    >>> [one.name for one in files(HugepageLimit(0, 2 << 20, reserved=True), 2)]
    ['hugetlb.2MB.rsvd.max', 'hugetlb.2MB.max']
    """
    one = file(change, version)
    if one is None:
        return ()
    if not isinstance(change, HugepageLimit) or not change.reserved:
        return (one,)
    size = f"hugetlb.{_page(change.page_bytes)}."
    return structs.replace(one, name=one.name.replace(size, f"{size}rsvd.")), one


def controller(change: Setting) -> str:
    """Whose file it is."""
    return _rule(change)[0]


_Rule: TypeAlias = tuple[str, str | None, str | None, Callable[[int], str]]


def _rule(change: Setting) -> _Rule:
    """The controller, the file on v1, the file on v2, and what to write by version."""
    match change:
        case CpuBurst(burst_usec=burst):
            return "cpu", "cpu.cfs_burst_us", "cpu.max.burst", _always(burst)
        case CpuWeight(shares=shares):
            return "cpu", "cpu.shares", "cpu.weight", lambda v: str(_weight(shares, v))
        case CpuSet(cpus=cpus):
            return "cpuset", "cpuset.cpus", "cpuset.cpus", _always(cpus)
        case IoLimit():
            return _rule_of_io(change)
        case PidsLimit(limit=limit):
            return "pids", "pids.max", "pids.max", _always("max" if limit is None else limit)
        case _:
            return _rule_of_memory(change)


def _rule_of_io(change: IoLimit) -> _Rule:
    """v1 takes 0 for no limit (admin-guide/cgroup-v1/blkio-controller.rst), v2 ``max``."""
    way, unit = change.what.split()
    name = f"blkio.throttle.{way}_{'bps' if unit == 'bytes' else 'iops'}_device"
    key = f"{way[0]}{'bps' if unit == 'bytes' else 'iops'}"

    def said(version: int) -> str:
        if version == 1:
            return f"{change.device} {change.value or 0}"
        return f"{change.device} {key}={'max' if change.value is None else change.value}"

    return "blkio", name, "io.max", said


def _rule_of_memory(
    change: HugepageLimit | MemoryHigh | SwapLimit | Swappiness | Unpause,
) -> _Rule:
    match change:
        case MemoryHigh(bytes=size):
            return "memory", None, "memory.high", _always("max" if size is None else size)
        case SwapLimit(bytes=size):
            # v1 counts memory and swap together: runtimes/commands_kernel.py and lab/groups.py.
            return "memory", None, "memory.swap.max", _always("max" if size is None else size)
        case Swappiness(value=value):
            return "memory", "memory.swappiness", None, _always(value)
        case HugepageLimit():
            page = _page(change.page_bytes)
            names = f"hugetlb.{page}.limit_in_bytes", f"hugetlb.{page}.max"
            return "hugetlb", *names, _always(change.bytes)
        case Unpause():
            name = "freezer.state", "cgroup.freeze"
            return "freezer", *name, lambda version: "THAWED" if version == 1 else "0"


def _always(value: object) -> Callable[[int], str]:
    return lambda _: str(value)


def _weight(shares: int, version: int) -> int:
    """The line through (2, 1) and (262144, 10000), as engines convert."""
    return shares if version == 1 else 1 + (shares - 2) * 9999 // 262142


def _page(size: int) -> str:
    """As the kernel names it (mm/hugetlb_cgroup.c, mem_fmt()).

    >>> _page(2 << 20), _page(1 << 30), _page(64 << 10)
    ('2MB', '1GB', '64KB')
    """
    for shift, unit in ((30, "GB"), (20, "MB")):
        if size >> shift:
            return f"{size >> shift}{unit}"
    return f"{size >> 10}KB"
