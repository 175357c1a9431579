"""A file of 96 MiB, read from end to end again and again, where 64 MiB of memory are allowed."""

import mmap
import os
import re
import signal
import time
from collections.abc import Callable

from whybox.change import MemoryLimit
from whybox.lab.box import Box
from whybox.lab.lab import Lab
from whybox.lab.process import BoxError, Program
from whybox.model import Finding

MIB = 1 << 20
LIMIT = 64 * MIB
FILE = 96 * MIB
SMALL = 32 * MIB
PATH = "/tmp/file"
_READY = "/tmp/ready"
#: In an emulated machine writing the file takes its time.
PATIENCE_SECONDS = 60.0


def reader(size: int, passes: int | None = None) -> Program:
    """Writes a file, then reads it so many times, or for ever."""

    def reader() -> None:
        _end_on_term()
        _written(PATH, size)
        buffer = bytearray(MIB)
        done = 0
        with open(PATH, "rb", buffering=0) as file:
            while passes is None or done < passes:
                os.lseek(file.fileno(), 0, os.SEEK_SET)
                while file.readinto(buffer):
                    pass
                done += 1
                _say_ready(done)
        _rest()

    return reader


def mapped_reader(size: int) -> Program:
    """Reads a file through a mapping, one byte of every page."""

    def mapped() -> None:
        _end_on_term()
        _written(PATH, size)
        done = 0
        with open(PATH, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as memory:
            while True:
                for page in range(0, size, mmap.PAGESIZE):
                    memory[page]
                done += 1
                _say_ready(done)

    return mapped


def writer(size: int) -> Program:
    """Writes a file again and again, faster than the disk takes it."""

    def writer() -> None:
        _end_on_term()
        piece, done = b"x" * MIB, 0
        while True:
            with open(PATH, "wb") as file:
                for _ in range(size // MIB):
                    file.write(piece)
            done += 1
            _say_ready(done)

    return writer


def in_shared_memory(size: int) -> Program:
    """A file in /dev/shm: page cache by name, and nothing that could give way."""

    def shared() -> None:
        _end_on_term()
        with open("/dev/shm/file", "wb") as file:
            for _ in range(size // MIB):
                file.write(b"x" * MIB)
        _say_ready(1)
        _rest()

    return shared


def missing_names(count: int) -> Program:
    """Asks for files that do not exist: the kernel remembers each answer (negative dentries)."""

    def names() -> None:
        _end_on_term()
        for number in range(count):
            os.path.exists(f"/tmp/{number:040}")
        _say_ready(1)
        _rest()

    return names


def holder(size: int) -> Program:
    """Memory without a file, private to the process: what a heap is."""

    def holder() -> None:
        _end_on_term()
        with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
            for page in range(0, size, mmap.PAGESIZE):
                memory[page] = 1
            _say_ready(1)
            _rest()

    return holder


def _end_on_term() -> None:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))


def _rest() -> None:
    while True:
        signal.pause()


def _say_ready(done: int) -> None:
    if done == 1:
        with open(_READY, "wb"):
            pass


def _written(path: str, size: int) -> None:
    with open(path, "wb") as file:
        for _ in range(size // MIB):
            file.write(os.urandom(MIB))
            # Dirty pages cannot give way at once.
            os.fdatasync(file.fileno())


def _start(box: Box, program: Program) -> None:
    """Comes back when the program has gone round once."""
    box.start(program)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not os.path.exists(f"/proc/{box.pid}/root{_READY}"):
        if time.monotonic() > deadline or box.wait(0) is not None:
            raise BoxError(f"the program did not come so far: {box.error()}")
        time.sleep(0.05)


def healthy(box: Box) -> None:
    """A file that fits, read again and again: all of it comes from memory."""
    box.memory(limit_bytes=LIMIT)
    _start(box, reader(SMALL))


def reproduce(box: Box) -> None:
    """Whenever it comes back to the beginning, that was pushed out by the end."""
    box.memory(limit_bytes=LIMIT)
    _start(box, reader(FILE))


def under_parent(box: Box) -> None:
    """The limit is the parent's, as a pod's is."""
    box.memory(parent_limit_bytes=LIMIT)
    _start(box, reader(FILE))


def through_a_mapping(box: Box) -> None:
    """Page faults instead of reads, as a database that maps its files."""
    box.memory(limit_bytes=LIMIT)
    _start(box, mapped_reader(FILE))


def read_once(box: Box) -> None:
    """The same file at the same limit, once: full, and nothing comes back."""
    box.memory(limit_bytes=LIMIT)
    _start(box, reader(FILE, passes=1))


def tmpfs(box: Box) -> None:
    """Nearly full of /dev/shm."""
    box.shm(LIMIT)
    box.memory(limit_bytes=LIMIT)
    _start(box, in_shared_memory(LIMIT - 8 * MIB))


def names(box: Box) -> None:
    """Full of names that do not exist."""
    box.memory(limit_bytes=32 * MIB)
    _start(box, missing_names(80_000))


def dirty(box: Box) -> None:
    """Full of what the disk has not taken yet."""
    box.memory(limit_bytes=LIMIT)
    _start(box, writer(FILE))


def anonymous(box: Box) -> None:
    """Nearly full of its own data, as a leak is shortly before its end."""
    box.memory(limit_bytes=LIMIT)
    _start(box, holder(LIMIT - 8 * MIB))


def numbers(finding: Finding) -> str | None:
    """The file is 96 MiB, the limit 64, and both together are more than enough."""
    for words in ("limit of 64 MiB", f"{PATH} (96 MiB"):
        if words not in finding.summary:
            return f"{words!r} is not in: {finding.summary}"
    change = finding.cures[0].change
    if not isinstance(change, MemoryLimit) or not FILE < change.bytes <= FILE + LIMIT:
        return f"enough is more than 96 and at most 160 MiB, the cure is {change}"
    moved = re.search(r"refault_file \+(\d+)", finding.evidence[0].says)
    if moved is None or int(moved[1]) * mmap.PAGESIZE < MIB:
        return f"a MiB at least comes back, the evidence is {finding.evidence[0].says}"
    return None


_LOOK_ALIKES: dict[str, Callable[[Box], None]] = {
    "a file that was read once": read_once,
    "tmpfs and shared memory": tmpfs,
    "names that do not exist": names,
    "writing that waits for the disk": dirty,
    "anonymous memory": anonymous,
}

LAB = Lab(
    healthy=healthy,
    reproduce=reproduce,
    variants={"the parent's limit": under_parent, "through a mapping": through_a_mapping},
    look_alikes=_LOOK_ALIKES,
    numbers=numbers,
    window_seconds=2.0,
)
