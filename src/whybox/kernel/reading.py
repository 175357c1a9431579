"""Which files a container's processes read, and how much of each is in the page cache.

The processes that read most in a window are asked for what they have open and mapped. A file is
opened by its descriptor's link in ``/proc``, never by its name, and only where it lies on a file
system of a disk: looking at a dead network mount or at FUSE could wait for ever.
"""

import os
import stat as modes
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress

from msgspec import Struct

from whybox.kernel import task
from whybox.kernel.host import Host, ParseError, decode
from whybox.kernel.mountinfo import Mount, mounts
from whybox.kernel.residency import PAGE_BYTES, cached_bytes
from whybox.kernel.target import Target, processes
from whybox.kernel.task import TaskId

MOST_PROCESSES = 64
MOST_READERS = 4
MOST_DESCRIPTORS = 64
MOST_MAP_BYTES = 1 << 20
#: Of a process with a larger ``maps`` the mappings are not looked at.
MOST_FILES = 8
LEAST_FILE_BYTES = 1 << 20
#: With fewer its mappings are not what it waits for.
LEAST_FAULTS = 64
DISKS = frozenset(
    ("ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "bcachefs", "overlay", "erofs", "squashfs")
)
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Account(Struct, frozen=True, kw_only=True):
    """What one process had read at one moment."""

    comm: str
    read_bytes: int | None
    """From disks; ``None``: it may not be asked."""
    majflt: int
    open: frozenset[str]
    """The paths of what it had open."""


class File(Struct, frozen=True, kw_only=True):
    """One file that a reader has open or mapped."""

    path: str
    """As the container sees it."""
    size_bytes: int
    cached_bytes: int
    pid: int
    comm: str
    steady: bool
    """Whether it was there before the window too, or is mapped."""

    @property
    def missing_bytes(self) -> int:
        """What of it is not in memory."""
        return self.size_bytes - self.cached_bytes


class Reader(Struct, frozen=True, kw_only=True):
    """A process that read from disks in the window."""

    pid: int
    comm: str
    read_bytes: int
    major_faults: int = 0
    """How often it touched a page that had to be read."""


class Reading(Struct, frozen=True, kw_only=True):
    """Who read, and the largest files of theirs that are not wholly in memory."""

    readers: tuple[Reader, ...] = ()
    files: tuple[File, ...] = ()

    @property
    def read_bytes(self) -> int:
        """All that was read."""
        return sum(reader.read_bytes for reader in self.readers)

    @property
    def steady(self) -> bool:
        """Whether the same files were there before and after: then there may be no others."""
        return bool(self.files) and all(file.steady for file in self.files)


Accounts = Mapping[TaskId, Account]


def accounts(host: Host, target: Target) -> Accounts:
    """What its processes had read and have open now, as far as they may be asked."""
    found: dict[TaskId, Account] = {}
    for pid in processes(host, target)[:MOST_PROCESSES]:
        with suppress(OSError, ParseError):
            stat = task.stat(host, pid)
            found[stat.id] = Account(
                comm=stat.comm,
                read_bytes=_read_bytes(host, pid),
                majflt=stat.majflt,
                open=frozenset(path for _, path in _open(host, pid)),
            )
    return found


def _read_bytes(host: Host, pid: int) -> int | None:
    try:
        return task.io(host, pid).read_bytes
    except OSError:
        return None


def _open(host: Host, pid: int) -> Iterator[tuple[str, str]]:
    """Numbers and paths of its open files, without sockets and pipes."""
    with suppress(OSError):
        for number in host.names(f"/proc/{pid}/fd")[:MOST_DESCRIPTORS]:
            with suppress(OSError):
                path = host.link(f"/proc/{pid}/fd/{number}")
                if path.startswith("/") and not path.startswith("/dev/"):
                    yield number, path


def reading(host: Host, before: Accounts, after: Accounts) -> Reading:
    """Who read between two accounts, and from what. Only on the running machine."""
    readers = sorted(_readers(before, after), key=lambda one: -one[1].read_bytes)[:MOST_READERS]
    # By whomever: a shell that starts a reader again and again still reads one file.
    known = frozenset[str]().union(*(account.open for account in before.values()))
    files: dict[str, File] = {}
    for _, reader in readers if host.live else ():
        for file in _files(host, reader, known):
            files.setdefault(file.path, file)
    largest = sorted(files.values(), key=lambda file: -file.missing_bytes)[:MOST_FILES]
    return Reading(readers=tuple(reader for _, reader in readers), files=tuple(largest))


def _readers(before: Accounts, after: Accounts) -> Iterator[tuple[TaskId, Reader]]:
    for id, now in after.items():
        was = before.get(id)
        read = (now.read_bytes or 0) - ((was and was.read_bytes) or 0)
        faults = now.majflt - (0 if was is None else was.majflt)
        read = max(read, faults * PAGE_BYTES)
        if read > 0:
            yield id, Reader(pid=id.pid, comm=now.comm, read_bytes=read, major_faults=faults)


def _files(host: Host, reader: Reader, known: frozenset[str]) -> Iterator[File]:
    links = [*_descriptors(host, reader.pid, known)]
    if reader.major_faults >= LEAST_FAULTS:
        links += _mappings(host, reader.pid)
    for link, path, steady in links[: MOST_DESCRIPTORS * 2]:
        with suppress(OSError):
            found = _file(host.path(link), path, reader, steady=steady)
            if found is not None:
                yield found


def _file(link: str, path: str, reader: Reader, *, steady: bool) -> File | None:
    seen = os.stat(link)
    if not modes.S_ISREG(seen.st_mode) or seen.st_size < LEAST_FILE_BYTES:
        return None
    descriptor = os.open(link, _FLAGS)
    try:
        size = os.fstat(descriptor).st_size
        cached = cached_bytes(descriptor, size)
    finally:
        os.close(descriptor)
    return File(
        path=path,
        size_bytes=size,
        cached_bytes=cached,
        pid=reader.pid,
        comm=reader.comm,
        steady=steady,
    )


_Link = tuple[str, str, bool]


def _descriptors(host: Host, pid: int, known: frozenset[str]) -> Iterator[_Link]:
    safe = {str(m.mount_id) for m in _mounts(host, pid) if m.fstype in DISKS}
    for number, path in _open(host, pid):
        said = host.optional_text(f"/proc/{pid}/fdinfo/{number}") or ""
        if fields(said).get("mnt_id") in safe:
            yield f"/proc/{pid}/fd/{number}", path, path in known


def _mounts(host: Host, pid: int | str) -> tuple[Mount, ...]:
    with suppress(OSError, ParseError):
        return mounts(host, pid)
    return ()


def fields(text: str) -> dict[str, str]:
    r"""The lines of ``fdinfo``.

    >>> fields("pos:\t0\nflags:\t02\nmnt_id:\t29")["mnt_id"]
    '29'
    """
    return {
        name: value.strip() for name, _, value in (line.partition(":") for line in text.split("\n"))
    }


def _mappings(host: Host, pid: int) -> Iterator[_Link]:
    """The files that it has mapped. An old kernel names the disk of an overlay, not the overlay."""
    seen = [*_mounts(host, pid), *_mounts(host, "self")]
    safe = {mount.device for mount in seen if mount.fstype in DISKS}
    with suppress(OSError):
        with open(host.path(f"/proc/{pid}/maps"), "rb") as maps:
            raw = maps.read(MOST_MAP_BYTES)
        for span, path in mapped(raw.splitlines(), safe):
            yield f"/proc/{pid}/map_files/{span}", path, True


def mapped(lines: Iterable[bytes], devices: Iterable[str]) -> Iterator[tuple[str, str]]:
    r"""The first mapping of each file on these devices, as ``map_files`` calls it.

    >>> line = b"7f0000-7f1000 r--p 00000000 fe:00 42      /data/a b"
    >>> list(mapped([line, line, b"1-2 rw-p 0 00:00 0"], {"254:0"}))
    [('7f0000-7f1000', '/data/a b')]
    """
    known = {_hex(device) for device in devices}
    seen: set[tuple[bytes, bytes]] = set()
    for line in lines:
        parts = line.split(None, 5)
        if len(parts) < 6 or parts[3] not in known or (parts[3], parts[4]) in seen:
            continue
        seen.add((parts[3], parts[4]))
        first, _, last = decode(parts[0]).partition("-")
        yield f"{int(first, 16):x}-{int(last, 16):x}", decode(parts[5])


def _hex(device: str) -> bytes:
    """A device as ``maps`` writes it."""
    major, _, minor = device.partition(":")
    return b"%02x:%02x" % (int(major), int(minor))
