"""Programs that read and write files in one known way, for labs of disks."""

import mmap
import os
import signal
import time
from collections.abc import Callable

from whybox.kernel.libc import SYNC_FILE_RANGE_WRITE, sync_file_range
from whybox.lab.process import Program

_BLOCK = 4096


def _end_on_term() -> None:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))


def _for_ever(
    path: str, flags: int, bytes: int, step: Callable[[int, mmap.mmap, int], int]
) -> None:
    """Call ``step`` with the open file, a block and a place, which goes round and round."""
    _end_on_term()
    file = os.open(path, flags, 0o600)
    block = mmap.mmap(-1, max(bytes, _BLOCK))  # O_DIRECT wants memory that is aligned
    block.write(b"x" * bytes)
    at, most = 0, 64 * bytes
    while True:
        step(file, block, at)
        at = (at + bytes) % most


def stream(path: str, bytes: int, *, most: int) -> Callable[[], None]:
    """Writes that many bytes past the page cache without end, round and round; for a thread."""

    def stream() -> None:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_DIRECT, 0o600)
        block = mmap.mmap(-1, bytes)
        while True:
            for nth in range(most):
                os.pwrite(file, block, nth * bytes)

    return stream


def writing(
    path: str, bytes: int, *, every_s: float = 0.0, direct: bool = True, sync: bool = False
) -> Program:
    """Writes that many bytes again and again: past the page cache or not, with an fsync or not."""

    def step(file: int, block: mmap.mmap, at: int) -> int:
        wrote = os.pwrite(file, memoryview(block)[:bytes], at)
        if sync:
            os.fsync(file)
        time.sleep(every_s)
        return wrote

    def writing() -> None:
        flags = os.O_WRONLY | os.O_CREAT | (os.O_DIRECT if direct else 0)
        _for_ever(path, flags, bytes, step)

    return writing


def reading(path: str, bytes: int, *, every_s: float = 0.0) -> Program:
    """Reads that many bytes of a file of its own again and again, past the page cache."""

    def step(file: int, block: mmap.mmap, at: int) -> int:
        got = os.preadv(file, [memoryview(block)[:bytes]], at)
        time.sleep(every_s)
        return got

    def reading() -> None:
        with open(path, "wb") as file:
            file.write(b"x" * 64 * bytes)
            os.fsync(file.fileno())
        _for_ever(path, os.O_RDONLY | os.O_DIRECT, bytes, step)

    return reading


def sending(path: str, bytes: int, *, most: int, every_s: float = 0.0) -> Program:
    """Writes over a file that is there, through the page cache, and sends each block off at once.

    It waits for none of it: what is on the way to the disk piles up in memory. As the task itself
    sends it, a limit of its group holds it on v1 too, where the flusher's writes are nobody's.
    """

    def sending() -> None:
        _end_on_term()
        file, block = os.open(path, os.O_WRONLY), b"x" * bytes
        while True:
            for at in range(0, most, bytes):
                os.pwrite(file, block, at)
                sync_file_range(file, at, bytes, SYNC_FILE_RANGE_WRITE)
                time.sleep(every_s)

    return sending


def reading_through(path: str, bytes: int) -> Program:
    """Writes a file out, and reads it through once a second."""

    def reading_through() -> None:
        _end_on_term()
        with open(path, "wb") as file:
            for _ in range(bytes >> 20):
                file.write(b"x" * (1 << 20))
                os.fdatasync(file.fileno())
        while True:
            with open(path, "rb") as file:
                while file.read(1 << 20):
                    pass
            time.sleep(1)

    return reading_through
