"""System V IPC of one namespace: what there is, and the limits (``/proc/sysvipc``, sysctl(5)).

Both show the namespace of whoever *reads*, also through ``/proc/PID/root`` (measured): so a thread
goes there and reads. Limits are the namespace's own: a new one begins with the defaults.

>>> text = "key shmid perms size cpid lpid nattch uid gid cuid cgid atime dtime ctime rss swap\\n"
>>> segments(text + "0 7 1600 4097 31 31 1 1000 0 0 0 0 0 9 4096 0")[0].pages
2
"""

import os
from collections.abc import Iterable

from msgspec import Struct

from whybox.kernel.host import Host, ParseError
from whybox.kernel.netns import call_in
from whybox.kernel.target import Target

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
#: ``shm_perm.mode``: it goes with the last who is attached (include/linux/shm.h, SHM_DEST).
SHM_DEST = 0o1000

_LISTS = ("shm", "sem", "msg")
_LIMITS = ("shmmax", "shmall", "shmmni", "sem", "msgmni")


class Segment(Struct, frozen=True, kw_only=True):
    """One shared memory segment."""

    key: int
    id: int
    bytes: int
    """As asked for; only pages that were touched take memory."""
    resident_bytes: int | None
    attached: int
    """How often it is attached; 0: nobody holds it."""
    creator_pid: int
    """As the reader's ``/proc`` counts; it may have ended long ago."""
    uid: int
    created_at: int
    """Seconds since 1970."""

    @property
    def pages(self) -> int:
        """What it counts against ``shmall``."""
        return -(-self.bytes // PAGE_BYTES)


class Set(Struct, frozen=True, kw_only=True):
    """One set of semaphores."""

    key: int
    id: int
    semaphores: int
    uid: int


class Queue(Struct, frozen=True, kw_only=True):
    """One message queue."""

    key: int
    id: int
    bytes: int
    uid: int


class Limits(Struct, frozen=True, kw_only=True):
    """``/proc/sys/kernel``: what the namespace allows."""

    shmmax_bytes: int
    shmall_pages: int
    shmmni: int
    """Segments."""
    semmsl: int
    """Semaphores in one set."""
    semmns: int
    """Semaphores in all."""
    semopm: int
    """Operations in one call."""
    semmni: int
    """Sets."""
    msgmni: int
    """Queues."""


class Ipc(Struct, frozen=True, kw_only=True):
    """One namespace."""

    limits: Limits
    segments: tuple[Segment, ...]
    sets: tuple[Set, ...]
    queues: tuple[Queue, ...]

    @property
    def pages(self) -> int:
        """Of all segments, touched or not (``shm_tot``)."""
        return sum(one.pages for one in self.segments)

    @property
    def semaphores(self) -> int:
        """In all sets."""
        return sum(one.semaphores for one in self.sets)


def ipc(host: Host, target: Target) -> Ipc:
    """The IPC of the target's namespace; raises OSError where it may not be looked at."""
    inode = target.namespaces.get("ipc")
    name = target.id if inode is None else inode
    return host.remembered(f"sysvipc {name}", lambda: _ipc(host, target))


def _ipc(host: Host, target: Target) -> Ipc:
    files = [f"/proc/sysvipc/{name}" for name in _LISTS]
    files += [f"/proc/sys/kernel/{name}" for name in _LIMITS]
    if target.runtime == "self" or not host.live:
        return parsed([host.text(file) for file in files])
    if target.init is None:
        raise OSError("it is not running, so its IPC namespace is gone")

    def read() -> list[str]:
        there = Host()  # of a moment of its own: what it reads is not what the host's files say
        return [there.text(file) for file in files]

    host.reads += len(files)
    return parsed(call_in(f"/proc/{target.init.pid}/ns/ipc", read, kind="ipc"))


def parsed(texts: Iterable[str]) -> Ipc:
    """From the three lists and the five limits, in the order in which they are read."""
    shm, sem, msg, *limits = texts
    shmmax, shmall, shmmni, semaphores, msgmni = limits
    try:
        semmsl, semmns, semopm, semmni = (int(word) for word in semaphores.split())
        allowed = Limits(
            shmmax_bytes=int(shmmax),
            shmall_pages=int(shmall),
            shmmni=int(shmmni),
            semmsl=semmsl,
            semmns=semmns,
            semopm=semopm,
            semmni=semmni,
            msgmni=int(msgmni),
        )
    except ValueError as error:
        raise ParseError("/proc/sys/kernel", str(error)) from None
    return Ipc(limits=allowed, segments=segments(shm), sets=sets(sem), queues=queues(msg))


def segments(text: str) -> tuple[Segment, ...]:
    """Parse ``/proc/sysvipc/shm``."""
    return tuple(
        Segment(
            key=row["key"],
            id=row["shmid"],
            bytes=row["size"],
            resident_bytes=row.get("rss"),
            attached=row["nattch"],
            creator_pid=row["cpid"],
            uid=row["uid"],
            created_at=row["ctime"],
        )
        for row in _rows("/proc/sysvipc/shm", text, ("perms",))
    )


def sets(text: str) -> tuple[Set, ...]:
    """Parse ``/proc/sysvipc/sem``."""
    return tuple(
        Set(key=row["key"], id=row["semid"], semaphores=row["nsems"], uid=row["uid"])
        for row in _rows("/proc/sysvipc/sem", text, ("perms",))
    )


def queues(text: str) -> tuple[Queue, ...]:
    """Parse ``/proc/sysvipc/msg``."""
    return tuple(
        Queue(key=row["key"], id=row["msqid"], bytes=row["cbytes"], uid=row["uid"])
        for row in _rows("/proc/sysvipc/msg", text, ("perms",))
    )


def _rows(file: str, text: str, left_out: tuple[str, ...]) -> list[dict[str, int]]:
    head, *lines = text.splitlines()
    names = head.split()
    try:
        return [dict(zip(names, map(int, line.split()), strict=True)) for line in lines]
    except ValueError:
        raise ParseError(file, next(iter(lines), "")) from None
