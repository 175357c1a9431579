"""What a process has mapped to run (``/proc/PID/maps``, filesystems/proc.rst), and the files
behind it, opened without following a path that a container made.
"""

import os
import stat
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import suppress

from msgspec import Struct

from whybox.kernel.host import decode
from whybox.kernel.statx import open_beneath

#: A process may have 65,530 mappings by default (vm.max_map_count); some have more.
_MOST_MAP_BYTES = 16 << 20
_MOST_REGIONS = 20_000
_MOST_PERF_MAP_BYTES = 32 << 20
_MOST_PERF_MAP_NAMES = 300_000
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Region(Struct, frozen=True, kw_only=True):
    """One mapping that may be executed."""

    start: int
    end: int
    offset: int
    """In the file, bytes."""
    device: str
    inode: int
    """0: no file."""
    path: str
    """As the process sees it; ``[vdso]``, ``""``: no file."""

    @property
    def file(self) -> str:
        """The last part of its path."""
        return self.path.removesuffix(" (deleted)").rpartition("/")[2]

    @property
    def anonymous(self) -> bool:
        """Whether what runs there was made by the process itself, as a JIT compiler does."""
        return not self.inode and not self.path.startswith("[v")


class Regions:
    """What a process has mapped to run, in the order of the addresses."""

    def __init__(self, regions: Iterable[Region] = ()) -> None:
        self.all = tuple(sorted(regions, key=lambda one: one.start))
        self._starts = array("Q", (one.start for one in self.all))

    def at(self, address: int) -> Region | None:
        """The region that holds the address."""
        found = bisect_right(self._starts, address) - 1
        if found < 0 or address >= self.all[found].end:
            return None
        return self.all[found]


def regions(raw: bytes) -> Iterator[Region]:
    r"""The regions of ``maps`` that may be executed.

    >>> next(regions(b"5000-6000 r-xp 00001000 fe:00 42      /bin/a b\n")).path
    '/bin/a b'
    """
    for line in raw.split(b"\n"):
        fields = line.split(None, 5)
        if len(fields) < 5 or b"x" not in fields[1]:
            continue
        with suppress(ValueError):
            start, _, end = fields[0].partition(b"-")
            yield Region(
                start=int(start, 16),
                end=int(end, 16),
                offset=int(fields[2], 16),
                device=decode(fields[3]),
                inode=int(fields[4]),
                path=decode(fields[5]) if len(fields) == 6 else "",
            )


def read_regions(pid: int) -> Regions:
    """What a process has mapped to run at this moment. May wait for its lock on its memory."""
    raw = _bounded(os.open(f"/proc/{pid}/maps", _FLAGS), _MOST_MAP_BYTES)
    return Regions(one for one, _ in zip(regions(raw), range(_MOST_REGIONS), strict=False))


def origin(pid: int) -> tuple[int, int]:
    """Where the program of a process begins and its stack did: random, so an identity.

    ``startcode`` and ``startstack`` of ``/proc/PID/stat``.
    """
    raw = _bounded(os.open(f"/proc/{pid}/stat", _FLAGS), 4096)
    fields = raw[raw.rindex(b")") + 1 :].split()
    return int(fields[23]), int(fields[25])


def opened(pid: int, region: Region) -> int:
    """A descriptor of the file behind a region; raises OSError.

    ``map_files`` leads to the very file, even if its name is gone or means another one by now.
    """
    try:
        return os.open(f"/proc/{pid}/map_files/{region.start:x}-{region.end:x}", _FLAGS)
    except OSError:
        if region.path.endswith(" (deleted)") or not region.path.startswith("/"):
            raise
    return beneath(pid, region.path)


def beneath(pid: int, path: str) -> int:
    """A descriptor of a regular file below the root of a process; raises OSError."""
    root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = open_beneath(root, path.lstrip("/"), _FLAGS, into_mounts=True)
    finally:
        os.close(root)
    if not stat.S_ISREG(os.fstat(found).st_mode):
        os.close(found)
        raise OSError(22, "not a regular file", path)
    return found


class PerfMap(Struct, frozen=True, kw_only=True):
    """What a JIT compiler tells of its functions (tools/perf/Documentation/jit-interface.txt)."""

    starts: "array[int]"
    ends: "array[int]"
    names: tuple[str, ...]

    def name(self, address: int) -> str | None:
        """The function at an address."""
        found = bisect_right(self.starts, address) - 1
        if found < 0 or address >= self.ends[found]:
            return None
        return self.names[found]


def perf_map(raw: bytes) -> PerfMap:
    r"""Parse ``/tmp/perf-PID.map``; what is told last of a place counts.

    >>> perf_map(b"10 8 old\n18 8 b\n10 8 a c\nnonsense\n").name(0x11)
    'a c'
    """
    found: dict[int, tuple[int, str]] = {}
    for line in raw.split(b"\n")[-_MOST_PERF_MAP_NAMES:]:
        fields = line.split(None, 2)
        with suppress(ValueError):
            if len(fields) == 3:
                start = int(fields[0], 16) & 0xFFFFFFFFFFFFFFFF
                end = start + int(fields[1], 16) & 0xFFFFFFFFFFFFFFFF
                found[start] = (end, decode(fields[2][:512]))
    rows = sorted(found.items())
    return PerfMap(
        starts=array("Q", (start for start, _ in rows)),
        ends=array("Q", (end for _, (end, _) in rows)),
        names=tuple(name for _, (_, name) in rows),
    )


def read_perf_map(pid: int, nspid: int) -> PerfMap | None:
    """The functions that a JIT compiler made in a process, if it tells."""
    try:
        return perf_map(_bounded(beneath(pid, f"/tmp/perf-{nspid}.map"), _MOST_PERF_MAP_BYTES))
    except OSError:
        return None


def _bounded(descriptor: int, most: int) -> bytes:
    """The file up to so many bytes; closed then."""
    parts, size = [], 0
    try:
        while size < most and (part := os.read(descriptor, min(1 << 16, most - size))):
            parts.append(part)
            size += len(part)
    finally:
        os.close(descriptor)
    return b"".join(parts)
