"""A bounded walk through a directory that a container filled: no links, no other mounts, no writes.

Every directory is opened by its path below the top with ``openat2(RESOLVE_BENEATH)``, so a name
that becomes a link while we walk leads nowhere.
"""

import errno
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from msgspec import Struct

from whybox.kernel.host import printable
from whybox.kernel.statx import open_beneath

#: A walk ends here, and says so. A time for each: the entries may be cold, or the disk busy.
MOST_ENTRIES = 50_000
MOST_CPU_NS = 400_000_000
MOST_NS = 1_500_000_000

#: How often the clocks are looked at, in entries.
_STRIDE = 256


class Directory(Struct, frozen=True, kw_only=True):
    """One directory, open while it is looked at."""

    path: str
    """Below the top, which is ``.``."""
    descriptor: int
    ctime_ns: int
    files: tuple["os.DirEntry[str]", ...]
    """Its regular files."""
    entries: int = 0
    """Names of any kind in it, as far as it was listed."""


class Walk:
    """One walk: each directory once, then ``incomplete`` says what was left out, if anything."""

    def __init__(
        self,
        top: int,
        *,
        most_entries: int = MOST_ENTRIES,
        most_ns: int = MOST_NS,
        most_in_one: int | None = None,
        without: frozenset[int] = frozenset(),
    ) -> None:
        self.incomplete: str | None = None
        self._top = top
        self._entries = 0
        self._most_entries = most_entries
        self._most_in_one = most_in_one
        """Of one directory so many names are looked at; ``None``: all."""
        self._without = without
        """The inodes of directories that are left out."""
        self._cpu_end_ns = time.thread_time_ns() + min(MOST_CPU_NS, most_ns)
        self._end_ns = time.monotonic_ns() + most_ns

    def directories(self, *, breadth_first: bool = False) -> Iterator[Directory]:
        """Every directory from the top down; level by level, one deep tree does not use up all."""
        pending = deque(["."])
        while pending and not self._spent():
            path = pending.popleft() if breadth_first else pending.pop()
            try:
                descriptor = _open_directory(self._top, path)
            except OSError as error:
                self._missed(path, error)
                continue
            try:
                here, below = self._listed(path, descriptor)
                yield here
            finally:
                os.close(descriptor)
            pending.extend(joined(path, name) for name in below)

    def while_time(self, names: Iterable[str]) -> Iterator[str]:
        """The same names, for as long as the walk may last."""
        for name in names:
            if self._spent():
                return
            yield name

    def _listed(self, path: str, descriptor: int) -> tuple[Directory, list[str]]:
        files: list[os.DirEntry[str]] = []
        below: list[str] = []
        number = 0
        with os.scandir(descriptor) as entries:
            for number, entry in enumerate(entries, 1):
                self._entries += 1
                if entry.is_dir(follow_symlinks=False):
                    if entry.inode() not in self._without:
                        below.append(entry.name)
                elif entry.is_file(follow_symlinks=False):
                    files.append(entry)
                if self._entries % _STRIDE == 0 and self._spent():
                    break
                if number == self._most_in_one:
                    self.incomplete = f"{printable(path)} alone has more than {number} entries"
                    break
        here = Directory(
            path=path,
            descriptor=descriptor,
            ctime_ns=os.fstat(descriptor).st_ctime_ns,
            files=tuple(files),
            entries=number,
        )
        return here, below

    def _spent(self) -> bool:
        if self._entries > self._most_entries:
            self.incomplete = f"it holds more than {self._most_entries} entries"
        elif time.thread_time_ns() > self._cpu_end_ns or time.monotonic_ns() > self._end_ns:
            self.incomplete = f"after {self._entries} entries the time for looking was over"
        else:
            return False
        return True

    def _missed(self, path: str, error: OSError) -> None:
        # Removed or replaced while we walked, or another mount: no part of this tree.
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV):
            self.incomplete = f"{printable(path)}: {error.strerror}"


@contextmanager
def walking(directory: str, *, most_entries: int = MOST_ENTRIES) -> Iterator[Walk]:
    """A walk through a directory, which is held open for as long."""
    top = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield Walk(top, most_entries=most_entries)
    finally:
        os.close(top)


def joined(directory: str, name: str) -> str:
    """The path of a name in a directory of the walk."""
    return name if directory == "." else f"{directory}/{name}"


def _open_directory(top: int, path: str) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK
    try:
        # Without O_NOATIME reading a directory may move its atime, and looking must not write.
        return open_beneath(top, path, flags | os.O_NOATIME)
    except PermissionError:  # O_NOATIME is for the owner and for root
        return open_beneath(top, path, flags)
