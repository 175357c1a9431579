"""Which limit of shared memory is reached: every one that the next who asks runs into, as data.

``shmget`` says ENOSPC for a limit on segments or on their pages in all, EINVAL for one segment that
is too large; ``semget`` and ``msgget`` alike (ipc/shm.c newseg(), ipc/sem.c, ipc/msg.c).
"""

import errno
import math
from collections.abc import Iterator

from msgspec import Struct

from whybox.kernel.refusals import Refused, What
from whybox.kernel.sharedmemory import SharedMemory, Use
from whybox.kernel.sysvipc import PAGE_BYTES
from whybox.kernel.tmpfs import Tmpfs

MIB = 1 << 20
#: IPCMNI (include/linux/ipc_namespace.h): more than this no parameter allows, unless booted so.
MOST_IDS = 32768
#: A size is enough if it is twice what there is, and whole steps of this.
STEP_BYTES = 16 * MIB


class Shortage(Struct, frozen=True, kw_only=True):
    """One limit that is reached."""

    what: str
    """What the next one is refused, such as ``a shared memory segment``."""
    says: str
    """How much of how much is used."""
    file: str
    """Where the limit is."""
    refused: tuple[Refused, ...] = ()
    """Who ran into it in this window."""
    parameter: str | None = None
    """The sysctl that is the limit; ``None``: the limit is a mount's."""
    enough: str = ""
    """The parameter's value that would do; empty: there is none."""
    mount: Tmpfs | None = None
    enough_bytes: int = 0
    """Of a mount."""


def shortages(seen: SharedMemory) -> tuple[Shortage, ...]:
    """All of them; those that somebody ran into first, and of these what was refused most."""
    found = [*_of_mounts(seen), *(() if seen.ipc is None else _of_ipc(seen, seen.ipc))]
    return tuple(sorted(found, key=lambda one: -len(one.refused)))


# tmpfs


def _of_mounts(seen: SharedMemory) -> Iterator[Shortage]:
    for mount in seen.mounts:
        refused = seen.of_mount(mount)
        if mount.out_of_files:
            yield Shortage(
                what=f"a file in {mount.mountpoint}",
                says=f"all {mount.files} of its files and directories (nr_inodes) exist",
                file=mount.mountpoint,
                refused=refused,
                mount=mount,
                enough_bytes=2 * mount.size_bytes,
            )
        elif mount.full or refused:
            yield _full(mount, refused)


def _full(mount: Tmpfs, refused: tuple[Refused, ...]) -> Shortage:
    asked = max((one.size_bytes or 0 for one in refused), default=0)
    wanted = max(2 * mount.size_bytes, mount.used_bytes + asked)
    return Shortage(
        what=f"a page in {mount.mountpoint}",
        says=_held(mount),
        file=mount.mountpoint,
        refused=refused,
        mount=mount,
        enough_bytes=math.ceil(wanted / STEP_BYTES) * STEP_BYTES,
    )


def _held(mount: Tmpfs) -> str:
    now = f"{size(mount.used_bytes)} of {size(mount.size_bytes)} are used"
    # Whoever died of it, or gave up, may have given it back.
    return now if mount.full else f"{now} now, and it was full then"


# System V IPC


def _of_ipc(seen: SharedMemory, use: Use) -> Iterator[Shortage]:
    yield from _too_large(seen, use)
    segments = _with(seen, What.SEGMENT, errno.ENOSPC)
    count, pages = _reached(use, segments)
    if count:
        yield _many("segments", "a shared memory segment", "shmmni", use.segments, segments, use)
    if pages:
        yield _pages(use, segments)
    yield from _of_semaphores(seen, use)
    queues = _with(seen, What.QUEUE, errno.ENOSPC)
    if use.queues >= use.limits.msgmni or queues:
        yield _many("queues", "a message queue", "msgmni", use.queues, queues, use)


def _with(seen: SharedMemory, what: What, error: int) -> tuple[Refused, ...]:
    return tuple(one for one in seen.refused.of(what) if one.errno == error)


def _reached(use: Use, refused: tuple[Refused, ...]) -> tuple[bool, bool]:
    """Whether the limit on their number is reached, and that on their pages.

    What was refused was one or the other, though by now somebody may have given one back.
    """
    limits = use.limits
    count = use.segments >= limits.shmmni
    asked = max((one.size_bytes or 0 for one in refused), default=0)
    pages = use.pages >= limits.shmall_pages
    if refused and not count:
        pages = pages or use.pages + -(-asked // PAGE_BYTES) > limits.shmall_pages
        nearer = use.segments * limits.shmall_pages > use.pages * limits.shmmni
        return (False, True) if pages else (nearer, not nearer)
    return count, pages


def _too_large(seen: SharedMemory, use: Use) -> Iterator[Shortage]:
    """EINVAL is said of many mistakes: only a size above the limit counts, and no older segment
    of that key, than which no more may be asked for."""
    limit = use.limits.shmmax_bytes
    refused = tuple(
        one
        for one in _with(seen, What.SEGMENT, errno.EINVAL)
        if (one.size_bytes or 0) > limit and one.key not in use.known_keys
    )
    if refused:
        asked = max(one.size_bytes or 0 for one in refused)
        yield Shortage(
            what="a shared memory segment",
            says=f"one may have {size(limit)}, and {size(asked)} were wanted",
            file="/proc/sys/kernel/shmmax",
            refused=refused,
            parameter="kernel.shmmax",
            enough=str(max(asked, 2 * limit)),
        )


def _many(
    plural: str, what: str, name: str, used: int, refused: tuple[Refused, ...], use: Use
) -> Shortage:
    limit = use.limits.shmmni if name == "shmmni" else use.limits.msgmni
    return Shortage(
        what=what,
        says=f"{used} {plural} exist and {limit} may",
        file=f"/proc/sys/kernel/{name}",
        refused=refused,
        parameter=f"kernel.{name}",
        enough=str(min(max(2 * limit, 16), MOST_IDS)) if limit < MOST_IDS else "",
    )


def _pages(use: Use, refused: tuple[Refused, ...]) -> Shortage:
    limit = use.limits.shmall_pages
    asked = max((-(-(one.size_bytes or 0) // PAGE_BYTES) for one in refused), default=0)
    return Shortage(
        what="a shared memory segment",
        says=(
            f"{use.pages} pages ({size(use.pages * PAGE_BYTES)}) are promised to segments and "
            f"{limit} ({size(limit * PAGE_BYTES)}) may be, touched or not"
        ),
        file="/proc/sys/kernel/shmall",
        refused=refused,
        parameter="kernel.shmall",
        enough=str(max(2 * limit, use.pages + asked)),
    )


def _of_semaphores(seen: SharedMemory, use: Use) -> Iterator[Shortage]:
    limits, refused = use.limits, _with(seen, What.SEMAPHORES, errno.ENOSPC)
    larger = tuple(
        one
        for one in _with(seen, What.SEMAPHORES, errno.EINVAL)
        if (one.size_bytes or 0) > limits.semmsl and one.key not in use.known_keys
    )
    sets = use.sets >= limits.semmni
    if not (sets or refused or larger or use.semaphores >= limits.semmns):
        return
    asked = max((one.size_bytes or 0 for one in (*refused, *larger)), default=0)
    enough = (
        max(limits.semmsl, asked),
        max(2 * limits.semmns, use.semaphores + asked),
        limits.semopm,
        min(2 * limits.semmni, MOST_IDS),
    )
    yield Shortage(
        what="a set of semaphores",
        says=_semaphores(use, asked),
        file="/proc/sys/kernel/sem",
        refused=(*refused, *larger),
        parameter="kernel.sem",
        enough=" ".join(map(str, enough)),
    )


def _semaphores(use: Use, asked: int) -> str:
    limits = use.limits
    if asked > limits.semmsl:
        return f"a set may have {limits.semmsl} semaphores, and {asked} were wanted"
    return (
        f"{use.sets} sets exist and {limits.semmni} may, with {use.semaphores} of "
        f"{limits.semmns} semaphores in all"
    )


def size(size: int) -> str:
    """A size in words.

    >>> size(64 << 20), size(4096), size(18446744073692774399)
    ('64 MiB', '4.0 KiB', '16384 PiB')
    """
    for shift, unit in ((50, "PiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size >> shift:
            value = size / (1 << shift)
            return f"{value:.0f} {unit}" if value >= 10 else f"{value:.1f} {unit}"
    return f"{size} bytes"
