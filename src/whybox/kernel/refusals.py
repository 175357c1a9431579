"""Memory and room that a container was refused within a window, by a sensor which is shared.

No counter tells that ``mmap`` found no huge page, ``shmget`` a limit of its namespace, or a fault
no room in a tmpfs; the sensor sees the error, or the SIGBUS and what was mapped at its address.
"""

import errno
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING

from msgspec import Struct

from whybox.kernel.host import Host, printable
from whybox.kernel.target import Target

if TYPE_CHECKING:
    from whybox.kernel.sensors.refusals import Refusal, Refusals

#: The sensor's name in ``Host.sensor``.
SENSOR = "refusals"
#: An observation holds so many of those that are alike, the first.
MOST_TOLD = 64

#: include/uapi/linux/magic.h
TMPFS_MAGIC = 0x01021994
HUGETLBFS_MAGIC = 0x958458F6

#: ``enum kind`` of the sensor, which is not loaded to tell them.
KIND_NAME, KIND_OTHER = 5, 6

#: include/uapi/asm-generic/mman-common.h and hugetlb_encode.h; include/uapi/linux/shm.h
MAP_HUGETLB, HUGE_SHIFT, HUGE_MASK = 0x40000, 26, 0x3F
SHM_HUGETLB = 0o4000
#: include/linux/mm.h
VM_HUGETLB = 0x00400000
#: include/uapi/asm-generic/siginfo.h: a fault that found nothing there, and broken memory.
BUS_ADRERR, BUS_MCEERR = 2, (4, 5)


class What(StrEnum):
    """What was refused."""

    HUGE_PAGES = "huge pages"
    SEGMENT = "shared memory segment"
    SEMAPHORES = "semaphores"
    QUEUE = "message queue"
    TMPFS = "room in a tmpfs"
    DISK = "room on a disk"
    NAME = "a new name, or a file by its name"
    ELSEWHERE = "something that is no file"
    BEYOND_END = "a page beyond the end of its file"
    BROKEN = "memory that has failed"
    OTHER = "a page"


class Refused(Struct, frozen=True, kw_only=True):
    """One call, or one fault."""

    what: What
    how: str
    """The call and its error, or SIGBUS and its code."""
    errno: int | None
    """``None``: it was a SIGBUS."""
    pid: int
    comm: str
    """Harmless to print."""
    size_bytes: int | None = None
    """What was asked for, where a call says it."""
    page_bytes: int | None = None
    """Of huge pages; ``None``: the default size, or not known."""
    device: str | None = None
    """``MAJOR:MINOR`` of the file system."""
    key: int | None = None
    """Of IPC: the key that was asked for; ``None``: none (IPC_PRIVATE)."""


class Window(Struct, frozen=True, kw_only=True):
    """The refusals of one window."""

    reason: str | None = None
    """Why they could not be watched; ``None``: they were."""
    seen: tuple[Refused, ...] = ()
    """The first of them."""
    count: int = 0
    lost: int = 0

    def of(self, *wanted: What) -> tuple[Refused, ...]:
        """Those of some kinds."""
        return tuple(one for one in self.seen if one.what in wanted)


def times(refused: Sequence[Refused]) -> str:
    """How often, in words; beyond what is kept it is not counted.

    >>> times([])
    '0 times'
    """
    more = " or more" if len(refused) >= MOST_TOLD else ""
    return "once" if len(refused) == 1 else f"{len(refused)} times{more}"


@contextmanager
def watch(host: Host, target: Target) -> Iterator[Callable[[], Window]]:
    """Watch a container; asked for what was refused so far."""
    if host.window_seconds <= 0 or not target.alive:
        yield lambda: Window(reason="nothing is refused in a window of no length")
        return
    with ExitStack() as stack:
        yield _sensed(host, target, stack)


def _sensed(host: Host, target: Target, stack: ExitStack) -> Callable[[], Window]:
    from whybox.kernel.sensors import refusals as sensor  # loads libbpf: only for a window

    try:
        attached = stack.enter_context(host.sensor(SENSOR, lambda: sensor.attached(host)))
        slot = attached.scope.add(host, target)
    except OSError as error:
        refused = Window(reason=str(error.strerror or error))
        return lambda: refused
    return lambda: _window(attached, slot)


def _window(attached: "Refusals", slot: int) -> Window:
    mine = [told(one) for one in attached.all() if one.slot == slot]
    return Window(seen=tuple(_first(mine)), count=len(mine), lost=attached.lost)


def _first(refused: Iterable[Refused]) -> Iterator[Refused]:
    """The first of each that are alike, so that many of one leave room for another."""
    counts: dict[tuple[What, str, str | None], int] = {}
    for one in refused:
        alike = one.what, one.how, one.device
        counts[alike] = counts.get(alike, 0) + 1
        if counts[alike] <= MOST_TOLD:
            yield one


def told(one: "Refusal") -> Refused:
    """A refusal as a case is told of it."""
    if not one.call:
        return _bus(one)
    if one.call in ("shmget", "semget", "msgget"):
        return _ipc(one)
    if one.kind in (KIND_NAME, KIND_OTHER):
        return _made(one, What.NAME if one.kind == KIND_NAME else What.ELSEWHERE, None)
    if one.call == "mmap" or one.magic == HUGETLBFS_MAGIC:
        flags = one.arguments[3] if one.call == "mmap" else 0
        size = one.arguments[1] if one.call == "mmap" else None
        return _made(one, What.HUGE_PAGES, size, page_bytes=_page_bytes(flags))
    what = What.TMPFS if one.magic == TMPFS_MAGIC else What.DISK
    return _made(one, what, _end_bytes(one))


def _end_bytes(one: "Refusal") -> int | None:
    """Where the file would have ended, where the call says it."""
    _, _, offset, length = one.arguments
    return offset + length if one.call == "fallocate" else None


def _ipc(one: "Refusal") -> Refused:
    key, size, flags, _ = one.arguments
    named = key & 0xFFFFFFFF or None
    if one.call == "semget":
        return _made(one, What.SEMAPHORES, size & 0xFFFFFFFF, key=named)
    if one.call == "msgget":
        return _made(one, What.QUEUE, None, key=named)
    if flags & SHM_HUGETLB and one.error == errno.ENOMEM:
        return _made(one, What.HUGE_PAGES, size, page_bytes=_page_bytes(flags))
    return _made(one, What.SEGMENT, size, key=named)


def _page_bytes(flags: int) -> int | None:
    """The size that a mapping's or a segment's flags name.

    >>> _page_bytes(MAP_HUGETLB | 21 << HUGE_SHIFT), _page_bytes(MAP_HUGETLB)
    (2097152, None)
    """
    shift = flags >> HUGE_SHIFT & HUGE_MASK
    return 1 << shift if shift else None


def _bus(one: "Refusal") -> Refused:
    _, flags, offset, size = one.arguments
    what = What.OTHER
    if one.error in BUS_MCEERR:
        what = What.BROKEN
    elif one.mapped and flags & VM_HUGETLB:
        what = What.HUGE_PAGES
    elif one.mapped and one.inode:
        # A fault beyond the end is refused before any room is sought (filemap_fault()).
        beyond = offset >= size
        tmpfs = one.magic == TMPFS_MAGIC
        what = What.BEYOND_END if beyond else What.TMPFS if tmpfs else What.OTHER
    return Refused(
        what=what,
        how=f"SIGBUS, si_code {one.error}",
        errno=None,
        pid=one.pid,
        comm=printable(one.comm),
        # An anonymous mapping of huge pages is a file as long as itself.
        size_bytes=size if what in (What.HUGE_PAGES, What.TMPFS) and size else None,
        device=one.device if one.inode else None,
    )


def _made(
    one: "Refusal",
    what: What,
    size: int | None,
    *,
    page_bytes: int | None = None,
    key: int | None = None,
) -> Refused:
    return Refused(
        what=what,
        how=f"{one.call} {errno.errorcode.get(one.error, one.error)}",
        errno=one.error,
        pid=one.pid,
        comm=printable(one.comm),
        size_bytes=size,
        page_bytes=page_bytes,
        device=one.device if one.inode else None,
        key=key,
    )
