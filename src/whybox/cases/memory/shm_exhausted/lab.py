"""A writer that wants 80 MiB of a /dev/shm that holds 64, again and again."""

import ctypes
import errno
import mmap
import os
import signal
import time
from collections.abc import Callable

from whybox.lab.box import Box
from whybox.lab.lab import Lab
from whybox.lab.process import Program
from whybox.model import Finding

MIB = 1 << 20
SHM_BYTES = 64 * MIB
WANTED = 80 * MIB
EVERY_SECONDS = 0.3

IPC_PRIVATE, IPC_CREAT, IPC_EXCL, IPC_RMID = 0, 0o1000, 0o2000, 0

_libc = ctypes.CDLL(None, use_errno=True)


def shmget(bytes: int, key: int = IPC_PRIVATE, flags: int = IPC_CREAT | 0o600) -> int:
    """An id, or minus the errno."""
    found = _libc.shmget(ctypes.c_int(key), ctypes.c_size_t(bytes), ctypes.c_int(flags))
    return int(found) if found >= 0 else -ctypes.get_errno()


def once_then_again(first: Callable[[], None], again: Callable[[], None]) -> Program:
    """Runs ``first`` once and then one child after the other with ``again``."""

    def program() -> None:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        first()
        while True:
            child = os.fork()
            if child == 0:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                try:
                    again()
                finally:
                    os._exit(0)
            os.waitpid(child, 0)
            time.sleep(EVERY_SECONDS)

    return program


def _nothing() -> None:
    pass


def _fill(path: str, bytes: int) -> None:
    """Write a file as far as there is room."""
    try:
        with open(path, "wb", buffering=0) as file:
            for _ in range(bytes // MIB):
                file.write(b"x" * MIB)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise


def _touch(path: str, bytes: int) -> None:
    """Map a file and touch it all: for a page without room that is SIGBUS."""
    with open(path, "w+b") as file:
        file.truncate(bytes)
        with mmap.mmap(file.fileno(), bytes) as memory:
            for page in range(0, bytes, mmap.PAGESIZE):
                memory[page] = 1


def healthy(box: Box) -> None:
    """48 of 64 MiB."""
    box.shm(SHM_BYTES)
    box.start(once_then_again(_nothing, lambda: _fill("/dev/shm/file", 48 * MIB)))


def reproduce(box: Box) -> None:
    """It writes until there is no room (ENOSPC)."""
    box.shm(SHM_BYTES)
    box.start(once_then_again(_nothing, lambda: _fill("/dev/shm/file", WANTED)))
    time.sleep(0.5)


def touched(box: Box) -> None:
    """It touches a mapped file until there is no room, which is SIGBUS, and the file goes."""

    def again() -> None:
        path = "/dev/shm/file"
        with open(path, "w+b") as file:
            os.unlink(path)
            file.truncate(WANTED)
            with mmap.mmap(file.fileno(), WANTED) as memory:
                for page in range(0, WANTED, mmap.PAGESIZE):
                    memory[page] = 1

    box.shm(SHM_BYTES)
    box.start(once_then_again(_nothing, again))


def full_and_quiet(box: Box) -> None:
    """It was filled before, and nobody writes any more."""
    box.shm(SHM_BYTES)
    box.start(once_then_again(lambda: _fill("/dev/shm/file", WANTED), _nothing))
    time.sleep(1)


def many_segments(box: Box) -> None:
    """Twelve segments are allowed, and twelve are left behind by those who made them."""
    box.sysctl("kernel.shmmni", "12")
    box.start(once_then_again(lambda: _segments(12, 4096), lambda: _one_more(4096)))
    time.sleep(0.5)


def _segments(count: int, bytes: int) -> None:
    for _ in range(count):
        shmget(bytes)


def _one_more(bytes: int) -> None:
    """Asks for a segment, and gives it back if it gets one."""
    if (made := shmget(bytes)) >= 0:
        _libc.shmctl(made, IPC_RMID, None)


def many_pages(box: Box) -> None:
    """256 pages are allowed, and two segments of 100 leave no room for a third."""
    box.sysctl("kernel.shmall", "256")
    size = 100 * mmap.PAGESIZE
    box.start(once_then_again(lambda: _segments(2, size), lambda: _one_more(size)))
    time.sleep(0.5)


def large_segment(box: Box) -> None:
    """1 MiB is allowed and 2 are wanted (EINVAL)."""
    box.sysctl("kernel.shmmax", str(MIB))
    box.start(once_then_again(_nothing, lambda: _one_more(2 * MIB)))


def semaphores(box: Box) -> None:
    """Three sets of semaphores are allowed."""
    box.sysctl("kernel.sem", "250 32000 32 3")
    box.start(once_then_again(lambda: _sets(3), _one_more_set))
    time.sleep(0.5)


def _sets(count: int) -> None:
    for _ in range(count):
        _libc.semget(IPC_PRIVATE, 1, IPC_CREAT | 0o600)


def _one_more_set() -> None:
    if (made := _libc.semget(IPC_PRIVATE, 1, IPC_CREAT | 0o600)) >= 0:
        _libc.semctl(made, 0, IPC_RMID)


def size_of_nothing(box: Box) -> None:
    """A segment of 0 bytes: EINVAL as well, whatever is allowed."""
    box.sysctl("kernel.shmmax", str(64 * MIB))
    box.start(once_then_again(_nothing, lambda: _one_more(0)))


def existing_key(box: Box) -> None:
    """The key exists: EEXIST, and EINVAL for who wants a larger one."""

    def again() -> None:
        shmget(4096, 42, IPC_CREAT | IPC_EXCL | 0o600)
        shmget(8 * MIB, 42)

    box.sysctl("kernel.shmmax", str(4 * MIB))
    box.start(once_then_again(lambda: void(shmget(4096, 42)), again))


def void(_: object) -> None:
    """Drops a value."""


def another_users_key(box: Box) -> None:
    """The key is somebody else's: EACCES."""

    def again() -> None:
        os.setresuid(1000, 1000, 1000)
        shmget(4096, 42, 0o600)

    box.start(once_then_again(lambda: void(shmget(4096, 42)), again))


def large_and_untouched(box: Box) -> None:
    """1 GiB of shared memory under a memory limit of 64 MiB: it is charged when it is touched."""
    box.memory(limit_bytes=64 * MIB)
    box.start(once_then_again(lambda: void(shmget(1 << 30)), _nothing))


def cut_off(box: Box) -> None:
    """SIGBUS for a page beyond the end of a file in /dev/shm, with room in it."""

    def again() -> None:
        with open("/dev/shm/file", "w+b") as file:
            file.truncate(2 * mmap.PAGESIZE)
            with mmap.mmap(file.fileno(), 2 * mmap.PAGESIZE) as memory:
                file.truncate(0)
                memory[mmap.PAGESIZE] = 1

    box.start(once_then_again(_nothing, again))


def killed_for_it(box: Box) -> None:
    """The memory limit is smaller than /dev/shm: that ends in SIGKILL, not in SIGBUS."""
    box.memory(limit_bytes=32 * MIB)
    box.shm(256 * MIB)

    def again() -> None:
        try:
            _touch("/dev/shm/file", WANTED)
        finally:
            os.unlink("/dev/shm/file")

    box.start(once_then_again(_nothing, again))


def device_full(box: Box) -> None:
    """/dev/full lies on a tmpfs, and says ENOSPC whatever room there is."""

    def again() -> None:
        descriptor = os.open("/dev/full", os.O_WRONLY)
        try:
            os.write(descriptor, b"x")
        except OSError:
            os.close(descriptor)

    box.start(once_then_again(_nothing, again))


def freed(box: Box) -> None:
    """It was full once, and the file was removed."""

    def first() -> None:
        _fill("/dev/shm/file", WANTED)
        os.unlink("/dev/shm/file")

    box.shm(SHM_BYTES)
    box.start(once_then_again(first, _nothing))
    time.sleep(1)


def numbers(finding: Finding) -> str | None:
    """Each of them with its own known number."""
    known = (
        "of 64 MiB are used",
        "12 segments exist and 12 may",
        "200 pages",
        "one may have 1.0 MiB, and 2.0 MiB were wanted",
        "3 sets exist and 3 may",
    )
    if not any(words in finding.summary for words in known):
        return f"none of the known numbers is in: {finding.summary}"
    return None


LAB = Lab(
    healthy=healthy,
    reproduce=reproduce,
    variants={
        "a touched page": touched,
        "full and quiet": full_and_quiet,
        "too many segments": many_segments,
        "too many pages": many_pages,
        "too large a segment": large_segment,
        "too many semaphores": semaphores,
    },
    look_alikes={
        "a segment of 0 bytes": size_of_nothing,
        "a key that exists": existing_key,
        "a key of another user": another_users_key,
        "a segment that is never touched": large_and_untouched,
        "a file that was cut off": cut_off,
        "a smaller memory limit": killed_for_it,
        "full in the past": freed,
        "/dev/full": device_full,
    },
    numbers=numbers,
)
