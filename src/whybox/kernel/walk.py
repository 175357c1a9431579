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
from heapq import heappop, heappush

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


class _Deep:
    """Directories to come, the last that was found first."""

    def __init__(self) -> None:
        self._paths: list[str] = []

    def add(self, path: str, _: "os.DirEntry[str] | None") -> None:
        self._paths.append(path)

    def take(self) -> str | None:
        return self._paths.pop() if self._paths else None


class _Wide:
    """Directories to come: by turns the one nearest to the top and the one changed last.

    So neither one deep tree nor many old ones use up the time before what was just filled.
    """

    def __init__(self) -> None:
        self._paths: deque[str] = deque()
        self._newest: list[tuple[float, str]] = []
        self._taken: set[str] = set()
        self._turn = 0

    def add(self, path: str, entry: "os.DirEntry[str] | None") -> None:
        """It may be removed while we look."""
        changed = 0.0
        if entry is not None:
            try:
                changed = entry.stat(follow_symlinks=False).st_mtime
            except OSError:
                return
        self._paths.append(path)
        heappush(self._newest, (-changed, path))

    def take(self) -> str | None:
        self._turn += 1
        while self._paths and self._newest:
            path = self._paths.popleft() if self._turn % 2 else heappop(self._newest)[1]
            # Each is in both; the second time it is only taken out.
            if path not in self._taken:
                self._taken.add(path)
                return path
        return None


class Walk:
    """One walk: each directory once, then ``incomplete`` says what was left out, if anything."""

    def __init__(
        self,
        top: int,
        *,
        most_entries: int = MOST_ENTRIES,
        most_ns: int | None = None,
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
        self._cpu_end_ns = time.thread_time_ns() + (most_ns or MOST_CPU_NS)
        self._end_ns = time.monotonic_ns() + (most_ns or MOST_NS)

    def directories(self, *, widely: bool = False) -> Iterator[Directory]:
        """Every directory from the top down; ``widely``, those first that are likely to tell."""
        pending: _Deep | _Wide = _Wide() if widely else _Deep()
        pending.add(".", None)
        while not self._spent() and (path := pending.take()) is not None:
            try:
                descriptor = _open_directory(self._top, path)
            except OSError as error:
                self._missed(path, error)
                continue
            try:
                here, below = self._listed(path, descriptor)
                yield here
                for entry in below:
                    pending.add(joined(path, entry.name), entry)
            finally:
                os.close(descriptor)

    def while_time(self, names: Iterable[str]) -> Iterator[str]:
        """The same names, for as long as the walk may last."""
        for name in names:
            if self._spent():
                return
            yield name

    def _listed(self, path: str, descriptor: int) -> "tuple[Directory, list[os.DirEntry[str]]]":
        files: list[os.DirEntry[str]] = []
        below: list[os.DirEntry[str]] = []
        number = 0
        with os.scandir(descriptor) as entries:
            for number, entry in enumerate(entries, 1):
                self._entries += 1
                if entry.is_dir(follow_symlinks=False):
                    if entry.inode() not in self._without:
                        below.append(entry)
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
