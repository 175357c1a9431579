"""Open files of a process: ``/proc/PID/fd`` and the limit of them (filesystems/proc.rst).

Since Linux 6.2 the size of the directory is the number of descriptors. Before, ``FDSize`` of
``status`` (the room in the table) tells that there cannot be more, and only a table that could be
full is listed.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from msgspec import Struct

from whybox.kernel import rlimits, task
from whybox.kernel.host import Host, ParseError
from whybox.kernel.rlimits import Limit
from whybox.kernel.task import Stat, TaskId

#: Of a container with more processes, those with the most descriptors are looked at.
MOST_PROCESSES = 64
MOST_SIZED = 1024
#: No longer listing than this, and no more links are read to tell what they are.
MOST_LISTED = 20_000
MOST_LINKS = 512

#: So large a share of the limit is as good as all of it.
NEARLY = 0.95

_FDSIZE = re.compile(r"^FDSize:\s+(\d+)$", re.MULTILINE)
_CLOSE_WAIT = "08"  # include/net/tcp_states.h


class Table(Struct, frozen=True, kw_only=True):
    """The descriptors of one process at one moment."""

    id: TaskId
    comm: str
    uid: int
    """As who it acts (the effective uid), as far as its directory tells."""
    count: int | None
    """``None``: it could not be counted."""
    at_most: int
    """Not more than this, where it could not be counted exactly."""
    soft: int | None
    hard: int | None

    @property
    def share(self) -> float:
        """How much of what it may have open it has; 0 where there is no limit or no count."""
        return 0.0 if not self.soft or self.count is None else self.count / self.soft

    @property
    def may_be_full(self) -> bool:
        """It could not be counted, and its table has room for that many."""
        return self.count is None and bool(self.soft) and self.at_most >= NEARLY * (self.soft or 0)


class Kinds(Struct, frozen=True, kw_only=True):
    """What the descriptors of one process are."""

    looked_at: int
    """Of a large table an even sample."""
    kinds: tuple[tuple[str, int], ...]
    """The largest first."""
    path: str | None
    """The one file that is open most often."""
    of_path: int
    close_wait: int
    """TCP sockets whose other end is closed, and that the program has not closed."""


def tables(host: Host, pids: Sequence[int]) -> tuple[Table, ...]:
    """The processes with the most descriptors; what is gone while we look is left out."""
    sized = [(pid, _directory(host, pid)) for pid in pids[:MOST_SIZED]]
    there = [(pid, said) for pid, said in sized if said is not None]
    if len(there) > MOST_PROCESSES:
        there = sorted(there, key=lambda one: -_size(host, *one))[:MOST_PROCESSES]
    found = (_table(host, pid, said) for pid, said in there)
    return tuple(one for one in found if one is not None)


def _size(host: Host, pid: int, said: os.stat_result) -> int:
    return said.st_size if _sized(host) else _room(host, pid)


def _room(host: Host, pid: int) -> int:
    """How many its table has room for: never less than there are."""
    said = _FDSIZE.search(host.optional_text(f"/proc/{pid}/status") or "")
    return 0 if said is None else int(said[1])


def _directory(host: Host, pid: int | str) -> os.stat_result | None:
    def look() -> os.stat_result:
        host.reads += 1
        return os.stat(host.path(f"/proc/{pid}/fd"))

    try:
        return host.remembered(f"descriptors.directory {pid}", look)
    except OSError:
        return None


def _sized(host: Host) -> bool:
    """Whether this kernel tells the number by the size: we ourselves have some open."""
    said = _directory(host, "self")
    return said is not None and said.st_size > 0


def _table(host: Host, pid: int, said: os.stat_result) -> Table | None:
    try:
        stat = task.stat(host, pid)
        limit = rlimits.limits(host, pid).get(rlimits.OPEN_FILES, Limit(None, None))
    except (OSError, ParseError):
        return None
    count, at_most = said.st_size, said.st_size
    counted: int | None = count
    if not _sized(host):
        counted, at_most = _listed(host, stat, limit.soft)
    return Table(
        id=stat.id,
        comm=stat.comm,
        uid=said.st_uid,
        count=counted,
        at_most=at_most,
        soft=limit.soft,
        hard=limit.hard,
    )


def _listed(host: Host, stat: Stat, soft: int | None) -> tuple[int | None, int]:
    """The number where it matters, and what it cannot exceed."""
    room = _room(host, stat.pid)
    if soft is None or room < NEARLY * soft:
        return None, room
    names = _names(host, stat.pid)
    return (None, room) if names is None or len(names) >= MOST_LISTED else (len(names), len(names))


def _names(host: Host, pid: int) -> list[str] | None:
    """The numbers of its descriptors, of very many some; ``None``: they may not be listed."""

    def look() -> list[str]:
        host.reads += 1
        with os.scandir(host.path(f"/proc/{pid}/fd")) as entries:
            return [entry.name for entry, _ in zip(entries, range(MOST_LISTED), strict=False)]

    try:
        return host.remembered(f"descriptors.names {pid}", look)
    except OSError:
        return None


def links(host: Host, pid: int, most: int = MOST_LINKS) -> tuple[str, ...]:
    """What its descriptors point at, of many an even sample; none where it may not be looked at."""
    names = _names(host, pid) or []
    found = []
    for name in names[:: len(names) // most + 1]:
        try:
            found.append(host.link(f"/proc/{pid}/fd/{name}"))
        except OSError:
            continue  # closed while we looked
    return tuple(found)


def kinds(host: Host, pid: int) -> Kinds | None:
    """What they are; ``None`` where they may not be looked at."""
    seen = links(host, pid)
    if not seen:
        return None
    paths = Counter(link for link in seen if link.startswith("/"))
    path, of_path = paths.most_common(1)[0] if paths else (None, 0)
    sockets = {link[8:-1] for link in seen if link.startswith("socket:[")}
    return Kinds(
        looked_at=len(seen),
        kinds=tuple(Counter(kind(link) for link in seen).most_common()),
        path=path,
        of_path=of_path,
        close_wait=_close_wait(host, pid, sockets) if 2 * len(sockets) >= len(seen) else 0,
    )


def kind(link: str) -> str:
    """What a descriptor is, by what it points at.

    >>> kind("socket:[4711]"), kind("anon_inode:[eventpoll]"), kind("anon_inode:inotify")
    ('sockets', 'eventpoll', 'inotify')
    >>> kind("/data/log (deleted)"), kind("/memfd:x (deleted)"), kind("/dev/null"), kind("/etc/x")
    ('deleted files', 'memory files', 'devices', 'files')
    """
    first, _, rest = link.partition(":")
    if first in ("socket", "pipe"):
        return f"{first}s"
    if first == "anon_inode":
        return rest.strip("[]") or "others"
    if link.startswith("/memfd:"):
        return "memory files"
    if link.endswith(" (deleted)"):
        return "deleted files"
    if link.startswith("/dev/"):
        return "devices"
    return "files" if link.startswith("/") else "others"


def _close_wait(host: Host, pid: int, sockets: Iterable[str]) -> int:
    found: set[str] = set()
    for file in ("tcp", "tcp6"):
        text = host.optional_text(f"/proc/{pid}/net/{file}") or ""
        found |= {row[9] for row in map(str.split, text.splitlines()) if _waits(row)}
    return len(found.intersection(sockets))


def _waits(row: list[str]) -> bool:
    return len(row) > 9 and row[3] == _CLOSE_WAIT


def file_nr(host: Host) -> tuple[int, int] | None:
    """How many files are open on the whole machine, and how many may be."""
    said = (host.optional_text("/proc/sys/fs/file-nr") or "").split()
    return (int(said[0]), int(said[2])) if len(said) == 3 else None
