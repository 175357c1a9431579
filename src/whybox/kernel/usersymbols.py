"""Names of functions in processes that come, execute others and go while somebody watches.

All that touches a process or a file of its is done in threads of their own: a process that is stuck
with its memory locked, or a file system that never answers (FUSE), holds up nobody but them. One
looks at processes, at once when they are told, and opens their files; the other reads the files.
"""

import os
import queue
import select
import threading
import time
from collections.abc import Hashable, Iterable
from contextlib import suppress
from typing import Protocol

from msgspec import Struct

from whybox.kernel.elfsymbols import ElfSymbols
from whybox.kernel.host import Host
from whybox.kernel.symbols import Frame, plain
from whybox.kernel.task import status
from whybox.kernel.usermaps import (
    PerfMap,
    Region,
    Regions,
    opened,
    origin,
    read_perf_map,
    read_regions,
)

#: So many programs and files are looked at, and processes known by name; more are not.
MOST_IMAGES = 2000
MOST_FILES = 400
_MOST_PROCESSES = 50_000

#: A program loads libraries as it goes: it is looked at again so long after it was first seen.
_AGAIN_SECONDS = (0.02, 0.1, 0.5, 2.0, 10.0, 60.0)

#: At the end the threads are waited for so long.
PATIENCE_SECONDS = 10.0
_POLL_SECONDS = 0.1


class ImageKey(Struct, frozen=True, kw_only=True):
    """A process while it runs one program."""

    tgid: int
    exec: int


class Image(Struct, frozen=True, kw_only=True):
    """What identifies a program in memory: a fork shares it, and all that was mapped."""

    start_code: int
    start_stack: int
    inode: int
    comm: str


class Source(Protocol):
    """Who tells of processes."""

    @property
    def descriptor(self) -> int:
        """It can be read when there is news."""

    def news(self) -> Iterable[tuple[ImageKey, Image]]:
        """Those that are new."""

    def seen(self) -> Iterable[tuple[ImageKey, Image]]:
        """Those that were told lately, for what was missed."""


class _Program:
    """One program in memory: all that was seen of it."""

    def __init__(self, image: Image) -> None:
        self.image = image
        self.pids: dict[int, None] = {}
        self.since = time.monotonic()
        self.looks = 0
        self.regions: tuple[Regions, ...] = ()
        self.perf_map: PerfMap | None = None

    @property
    def due(self) -> bool:
        """Whether it is to be looked at again."""
        if self.looks >= len(_AGAIN_SECONDS):
            return False
        return time.monotonic() - self.since > _AGAIN_SECONDS[self.looks]

    def region(self, address: int) -> Region | None:
        for regions in reversed(self.regions):
            found = regions.at(address)
            if found is not None:
                return found
        return None


_Identity = tuple[str, int]


class UserSymbols:
    """The functions of many processes."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._programs: dict[Hashable, _Program] = {}
        self._of: dict[ImageKey, _Program] = {}
        self._comms: dict[ImageKey, str] = {}
        self._files: dict[_Identity, ElfSymbols | None] = {}
        self._opened: queue.SimpleQueue[tuple[_Identity, int] | threading.Event | None]
        self._opened = queue.SimpleQueue()
        self._settling: threading.Event | None = None
        self._closed = False
        self.late = False
        """Whether a process or a file could not be read in time: names are missing."""
        self._threads = [
            threading.Thread(target=target, name="whybox-symbols", daemon=True)
            for target in (self._watch, self._load)
        ]
        for thread in self._threads:
            thread.start()

    def settle(self, seconds: float = PATIENCE_SECONDS) -> None:
        """Look at every living program for the last time, and wait until all is read."""
        done = self._settling = threading.Event()
        self.late = not done.wait(seconds)

    def comm(self, key: ImageKey) -> str:
        """What a process is called."""
        return self._comms.get(key, f"pid {key.tgid}")

    def known(self, key: ImageKey) -> bool:
        """Whether what the process has mapped was read."""
        program = self._of.get(key)
        return program is not None and bool(program.regions)

    def frame(self, key: ImageKey, address: int) -> Frame:
        """The function at an address of a process."""
        program = self._of.get(key)
        region = None if program is None else program.region(address)
        if program is None or region is None:
            return Frame(name="[unknown]", file="", named=False)
        known = self._files.get((region.device, region.inode))
        jitted = None if program.perf_map is None else program.perf_map.name(address)
        if jitted is not None and known is None:
            return Frame(name=jitted, file="jit")
        if region.anonymous:
            return Frame(name="[jit]", file="jit", named=False)
        return _frame(region, known, address)

    def build_ids(self) -> dict[str, str | None]:
        """The files that were mapped, each with its build id if that is known."""
        found: dict[str, str | None] = {}
        for program in tuple(self._programs.values()):
            for regions in program.regions:
                for one in regions.all:
                    file = self._files.get((one.device, one.inode))
                    found[one.file] = found.get(one.file) or (
                        None if file is None else file.build_id
                    )
        return found

    def close(self) -> None:
        """Close all files. A thread that is held up is left to itself: it ends with the process."""
        self._closed = True
        self._opened.put(None)
        for thread in self._threads:
            thread.join(1.0)
        if not any(thread.is_alive() for thread in self._threads):
            for file in filter(None, self._files.values()):
                file.close()

    def _watch(self) -> None:
        poll = select.poll()
        poll.register(self._source.descriptor, select.POLLIN)
        while not self._closed:
            poll.poll(_POLL_SECONDS * 1000)
            for key, image in self._source.news():
                self._see(key, image)
            for program in self._programs.values():
                if program.due:
                    program.looks += 1
                    self._read(program)
            done, self._settling = self._settling, None
            if done is not None:
                self._look_for_the_last_time()
                self._opened.put(done)

    def _look_for_the_last_time(self) -> None:
        for key, image in self._source.seen():
            self._see(key, image)
        for program in self._programs.values():
            self._read(program)

    def _see(self, key: ImageKey, image: Image) -> None:
        known = key in self._comms
        if not known and len(self._comms) >= _MOST_PROCESSES:
            return
        self._comms[key] = image.comm  # it may have taken another name since
        if known:
            return
        identity = (image.start_code, image.start_stack, image.inode)
        program = self._programs.get(identity)
        if program is None:
            if len(self._programs) >= MOST_IMAGES:
                return
            program = self._programs[identity] = _Program(image)
        self._of[key] = program
        program.pids[key.tgid] = None
        if not program.regions:
            self._read(program)

    def _read(self, program: _Program) -> None:
        """Read what it has mapped, from any process that lives and has it."""
        for pid in reversed(program.pids):
            if self._closed:
                return
            # What is gone, or may not be read, has no names; another process may.
            with suppress(OSError, ValueError, IndexError):
                if _same(pid, program.image):
                    self._read_process(program, pid)
                    return

    def _read_process(self, program: _Program, pid: int) -> None:
        regions = read_regions(pid)
        if not regions.all or not _same(pid, program.image):
            return  # it has executed another one meanwhile
        # The first and the latest: what was unloaded in between may be missing.
        program.regions = (*program.regions[:1], regions)
        for region in regions.all:
            self._open(pid, region)
        if any(region.anonymous for region in regions.all):
            nspid = status(Host(), pid).nspid[-1]
            program.perf_map = read_perf_map(pid, nspid) or program.perf_map

    def _open(self, pid: int, region: Region) -> None:
        identity = (region.device, region.inode)
        if not region.inode or identity in self._files or len(self._files) >= MOST_FILES:
            return
        with suppress(OSError):
            descriptor = opened(pid, region)
            self._files[identity] = None
            self._opened.put((identity, descriptor))

    def _load(self) -> None:
        while (job := self._opened.get()) is not None:
            if isinstance(job, threading.Event):
                job.set()
                continue
            identity, descriptor = job
            try:
                self._files[identity] = ElfSymbols(descriptor)
            except OSError:
                os.close(descriptor)


def _same(pid: int, image: Image) -> bool:
    return origin(pid) == (image.start_code, image.start_stack)


def _frame(region: Region, file: ElfSymbols | None, address: int) -> Frame:
    shown = region.file or "?"
    if region.path.startswith("["):
        return Frame(name=region.path, file=region.path.strip("[]"))
    offset = address - region.start + region.offset
    place = None if file is None else file.address(offset)
    if file is None or place is None:
        return Frame(name=f"[{shown}+{offset:#x}]", file=shown, named=False)
    name = file.name(place)
    if name is None:
        return Frame(name=f"[{shown}+{file.start(place):#x}]", file=shown, named=False)
    return Frame(name=plain(name), file=shown)
