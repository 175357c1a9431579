"""What is observed of a container's shared memory: its IPC namespace and its tmpfs mounts."""

from collections.abc import Iterable

from msgspec import Struct

from whybox.kernel import memory, refusals, sysvipc, tmpfs
from whybox.kernel.host import Host, ParseError
from whybox.kernel.refusals import Refused, What
from whybox.kernel.sysvipc import Ipc, Limits, Segment
from whybox.kernel.target import Target, still_there
from whybox.kernel.tmpfs import Tmpfs

#: So many segments are told of, the largest.
MOST_SEGMENTS = 5


class Use(Struct, frozen=True, kw_only=True):
    """One IPC namespace: what there is of each kind, and the limits."""

    limits: Limits
    segments: int
    pages: int
    detached: int
    """Segments that nobody holds."""
    detached_bytes: int
    largest: tuple[Segment, ...]
    living: tuple[int, ...]
    """Those of their creators that still run."""
    sets: int
    semaphores: int
    queues: int
    known_keys: tuple[int, ...] = ()
    """Keys that were asked for within the window and exist."""


class SharedMemory(Struct, frozen=True, kw_only=True):
    """The namespace and the mounts at the end of the window, and who was refused within it."""

    ipc: Use | None
    ipc_reason: str | None
    """Why the namespace could not be looked at."""
    own_ipc: bool | None
    """Whether the namespace is its own; False: it is the host's."""
    mounts: tuple[Tmpfs, ...]
    mounts_reason: str | None
    refused: refusals.Window
    ended: bool
    """Whether it is dead at the end of the window; then the mounts are those from before."""
    memory_limit_bytes: int | None
    """The lowest on the way up: what shared memory is charged to."""

    def of_mount(self, one: Tmpfs) -> tuple[Refused, ...]:
        """Calls and faults that found no room in one tmpfs."""
        return tuple(r for r in self.refused.of(What.TMPFS) if r.device == one.device)


def looked_at(
    host: Host, target: Target, before: tuple[Tmpfs, ...], refused: refusals.Window
) -> SharedMemory:
    """All that is there at the end of the window; of one that has ended, what was before."""
    there = still_there(host, target)
    mounts, mounts_reason = mounts_of(host, target) if there else (before, None)
    use, reason = _use(host, target, refused) if there else (None, "it ended within the window")
    return SharedMemory(
        ipc=use,
        ipc_reason=reason,
        own_ipc=target.own("ipc"),
        mounts=mounts,
        mounts_reason=mounts_reason,
        refused=refused,
        ended=not there,
        memory_limit_bytes=_memory_limit(host, target),
    )


def mounts_of(host: Host, target: Target) -> tuple[tuple[Tmpfs, ...], str | None]:
    """Its tmpfs mounts, or why they cannot be looked at."""
    if target.init is None:
        return (), "it is not running"
    try:
        pid = "self" if target.runtime == "self" else target.init.pid
        return tmpfs.all_of(host, pid), None
    except (OSError, ParseError) as error:
        return (), str(error)


def _use(host: Host, target: Target, refused: refusals.Window) -> tuple[Use | None, str | None]:
    try:
        return _summed(host, sysvipc.ipc(host, target), refused.seen), None
    except (OSError, ParseError) as error:
        return None, f"its IPC namespace cannot be looked at: {error}"


def _summed(host: Host, ipc: Ipc, refused: Iterable[Refused]) -> Use:
    largest = sorted(ipc.segments, key=lambda one: -one.bytes)[:MOST_SEGMENTS]
    detached = [one for one in ipc.segments if one.attached == 0]
    keys = {one.key for one in ipc.segments} | {one.key for one in ipc.sets}
    keys = {key & 0xFFFFFFFF for key in keys | {one.key for one in ipc.queues}}
    asked = {one.key for one in refused if one.key is not None}
    return Use(
        limits=ipc.limits,
        segments=len(ipc.segments),
        pages=ipc.pages,
        detached=len(detached),
        detached_bytes=sum(one.bytes for one in detached),
        largest=tuple(largest),
        living=tuple(p for p in {s.creator_pid for s in largest} if host.exists(f"/proc/{p}")),
        sets=len(ipc.sets),
        semaphores=ipc.semaphores,
        queues=len(ipc.queues),
        known_keys=tuple(sorted(keys & asked)),
    )


def _memory_limit(host: Host, target: Target) -> int | None:
    group = target.group(host, "memory")
    levels = () if group is None else group.lineage()
    limits = [memory.memory(host, one).limit_bytes for one in levels]
    return min((limit for limit in limits if limit is not None), default=None)
