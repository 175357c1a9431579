"""What takes the room in one directory: ``du`` with a bound, that tells what it left out.

What a file takes is its blocks (``st_blocks``), not its length, and a file with several names
counts once.
"""

import os
import time
from collections.abc import Iterator

from msgspec import Struct

from whybox.kernel.diskplaces import Place, opened
from whybox.kernel.host import Host, decode, printable
from whybox.kernel.walk import Walk, joined

#: For all walks of one moment together; of one place not more than half of it.
MOST_NS = 4_000_000_000
MOST_ENTRIES = 500_000
MOST_IN_ONE = 20_000
MOST_TOLD = 3

#: include/uapi/linux/time.h; Python has no name for it.
_CLOCK_REALTIME_COARSE = 5


class Heavy(Struct, frozen=True, kw_only=True):
    """One file."""

    path: str
    """As the container has it; of a log, as the host has it. Harmless to print."""
    bytes: int
    growing: bool
    """Whether it was written to in this window."""


class Use(Struct, frozen=True, kw_only=True):
    """What was seen of one place."""

    bytes: int = 0
    files: int = 0
    """Names of any kind, each with an inode of its own."""
    largest: tuple[Heavy, ...] = ()
    crowded: tuple[str, int] | None = None
    """The directory with most names in it."""
    written: bool = False
    """Whether any of its files was written to in this window."""
    incomplete: str | None = None
    """Why some of it was not seen."""


class Purse:
    """The time that all walks of one moment may take together."""

    def __init__(self, nanoseconds: int = MOST_NS) -> None:
        self._left = self._all = nanoseconds

    def share(self) -> int:
        """How much the next may take."""
        return max(0, min(self._left, self._all // 2))

    def pay(self, nanoseconds: int) -> None:
        """So much was taken."""
        self._left -= nanoseconds


def purse(host: Host) -> Purse:
    """That of this moment."""
    return host.remembered("diskuse.purse", Purse)


def now_ns() -> int:
    """The clock that file systems stamp with."""
    return time.clock_gettime_ns(_CLOCK_REALTIME_COARSE)


def use(host: Host, place: Place, since_ns: int, *, without: frozenset[int] = frozenset()) -> Use:
    """Everything in a place, as far as the time goes; files written since are growing.

    ``without`` are the inodes of directories that are left out.
    """
    key = f"diskuse {place.device} {place.inode} {sorted(without)}"
    return host.remembered(key, lambda: _use(purse(host), place, since_ns, without))


def _use(purse: Purse, place: Place, since_ns: int, without: frozenset[int]) -> Use:
    share, began = purse.share(), time.monotonic_ns()
    if share == 0:
        return Use(incomplete="the time for looking was over before")
    try:
        top = opened(place)
    except OSError as error:
        return Use(incomplete=error.strerror or str(error))
    try:
        said = os.fstat(top)
        if not os.path.isdir(f"/proc/self/fd/{top}"):
            growing = said.st_mtime_ns >= since_ns
            one = Heavy(path=place.mountpoint, bytes=said.st_blocks * 512, growing=growing)
            return Use(bytes=one.bytes, files=1, largest=(one,), written=growing)
        walk = Walk(
            top,
            most_entries=MOST_ENTRIES,
            most_ns=share,
            most_in_one=MOST_IN_ONE,
            without=without,
        )
        return _walked(walk, place.mountpoint, since_ns)
    finally:
        os.close(top)
        purse.pay(time.monotonic_ns() - began)


class _Sum:
    def __init__(self, since_ns: int) -> None:
        self.since_ns = since_ns
        self.bytes = self.files = 0
        self.written = False
        self.largest: list[tuple[int, str, bool]] = []
        self.crowded = (0, "")
        self._linked: set[int] = set()

    def add(self, directory: str, entry: "os.DirEntry[str]") -> None:
        try:
            said = entry.stat(follow_symlinks=False)
        except OSError:
            return  # removed while we walked
        if said.st_nlink > 1:
            if said.st_ino in self._linked:
                return
            self._linked.add(said.st_ino)
        taken, growing = said.st_blocks * 512, said.st_mtime_ns >= self.since_ns
        self.bytes += taken
        self.written |= growing
        if len(self.largest) < MOST_TOLD or taken > self.largest[-1][0]:
            self.largest.append((taken, joined(directory, entry.name), growing))
            self.largest.sort(key=lambda one: -one[0])
            del self.largest[MOST_TOLD:]


def _walked(walk: Walk, mountpoint: str, since_ns: int) -> Use:
    summed = _Sum(since_ns)
    for directory in walk.directories(widely=True):
        summed.files += directory.entries
        summed.crowded = max(summed.crowded, (directory.entries, directory.path))
        for entry in directory.files:
            summed.add(directory.path, entry)
    count, crowded = summed.crowded
    return Use(
        bytes=summed.bytes,
        files=summed.files,
        largest=tuple(_heavy(mountpoint, summed.largest)),
        crowded=(_inside(mountpoint, crowded), count) if count else None,
        written=summed.written,
        incomplete=walk.incomplete,
    )


def _heavy(mountpoint: str, found: list[tuple[int, str, bool]]) -> Iterator[Heavy]:
    for taken, path, growing in found:
        if taken:
            yield Heavy(path=_inside(mountpoint, path), bytes=taken, growing=growing)


def _inside(mountpoint: str, path: str) -> str:
    """A path of the walk as the container has it.

    >>> _inside("/data", "a/b"), _inside("/", "."), _inside("/data", ".")
    ('/data/a/b', '/', '/data')
    """
    shown = printable(decode(os.fsencode(path)))
    return os.path.normpath(os.path.join(mountpoint, shown))
