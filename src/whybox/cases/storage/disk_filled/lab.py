"""A log that was rotated away while its writer holds it, on a small disk that it fills."""

import ctypes
import errno
import os
import resource
import signal
import time
from collections.abc import Callable
from contextlib import suppress

from whybox.kernel.libc import CLONE_NEWUSER, setns, unshare
from whybox.lab import disk
from whybox.lab.box import Box
from whybox.lab.lab import Lab
from whybox.lab.process import Program
from whybox.model import Finding

MIB = 1 << 20
DATA = "/data"
#: Of a disk of 16 MiB, on which some 12 may be taken: more than half.
DISK_MIB = 16
HELD = 8 * MIB
INODES = 256
EVERY_SECONDS = 0.1
PATIENCE_SECONDS = 60.0
UID = 4711

_libc = ctypes.CDLL(None, use_errno=True)
_ADD_KEY = {"x86_64": 248, "aarch64": 217}


def once_then_again(first: Callable[[], None], again: Callable[[], None]) -> Program:
    """Runs ``first`` once, says so, and does ``again`` all the time, refused or not."""

    def program() -> None:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        first()
        os.mkdir("/dev/shm/ready")
        while True:
            with suppress(OSError):
                again()
            time.sleep(EVERY_SECONDS)

    return program


def nothing() -> None:
    """Does nothing."""


def write(path: str, size: int | None = None) -> int:
    """Write a file, as far as there is room; its descriptor."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    # By large pieces, and the last crumbs by small ones.
    for piece in (MIB, 4096, 512):
        try:
            while size is None or os.fstat(descriptor).st_size < size:
                os.write(descriptor, b"x" * min(piece, size or piece))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
    return descriptor


def once_more(directory: str = DATA) -> Callable[[], None]:
    """Writes one small file there, and removes it."""

    def again() -> None:
        path = f"{directory}/once-more"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
        try:
            os.write(descriptor, bytes(64 << 10))
        finally:
            os.close(descriptor)
            os.unlink(path)

    return again


def begin(box: Box, program: Program) -> None:
    """Start it, and come back when the first part is done."""
    box.start(program)
    until_ready(box)


def until_ready(box: Box) -> None:
    """Come back when its program has done the first part."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    ready = f"/proc/{box.pid}/root/dev/shm/ready"
    while not os.path.exists(ready) and box.wait(0) is None and time.monotonic() < deadline:
        time.sleep(0.02)


def hold_and_fill(directory: str = DATA) -> None:
    """A log of 8 MiB without a name, and a file with the rest."""
    os.dup2(write(f"{directory}/log", HELD), 9)
    os.unlink(f"{directory}/log")
    write(f"{directory}/rest")


def fill(directory: str = DATA) -> None:
    """8 MiB in one file, and the rest in another."""
    write(f"{directory}/large", HELD)
    write(f"{directory}/rest")


def half(directory: str = DATA) -> None:
    """8 MiB, and there is room."""
    write(f"{directory}/large", HELD)


def healthy(box: Box) -> None:
    """As much, and room for more."""
    disk.mounted(box, DATA, mib=4 * DISK_MIB)
    begin(box, once_then_again(half, once_more()))


def reproduce(box: Box) -> None:
    """The log is removed and held open, and the disk is full, but for what is kept for root."""
    disk.mounted(box, DATA, mib=DISK_MIB)
    begin(box, once_then_again(hold_and_fill, once_more()))


# other ways to a full disk


def layer(box: Box) -> None:
    """What it writes into its own root file system."""
    disk.beneath(box, mib=DISK_MIB)
    begin(box, once_then_again(lambda: fill("/tmp"), once_more("/tmp")))


def many_files(box: Box) -> None:
    """Room for blocks, and none for one more file."""

    def first() -> None:
        with suppress(OSError):
            os.mkdir(f"{DATA}/sessions")
            for number in range(2 * INODES):
                os.close(os.open(f"{DATA}/sessions/{number}", os.O_CREAT | os.O_WRONLY))

    disk.mounted(box, DATA, mib=DISK_MIB, inodes=INODES)
    begin(box, once_then_again(first, once_more()))


def a_neighbour(box: Box) -> None:
    """Another container fills the disk that both write to."""
    made = disk.mounted(box, DATA, mib=DISK_MIB)
    other = Box(f"{box.name.rpartition('-')[0].rpartition('-')[0]}-other")
    for name in ("mine", "theirs"):
        os.mkdir(f"{made.mountpoint}/{name}", 0o777)
        os.chmod(f"{made.mountpoint}/{name}", 0o777)
    box.closing.callback(other.close)
    other.volume("/spool", source=f"{made.mountpoint}/theirs")
    begin(other, once_then_again(lambda: fill("/spool"), nothing))
    box.volume(DATA, source=f"{made.mountpoint}/mine")
    begin(box, once_then_again(nothing, once_more()))


def the_machine(box: Box) -> None:
    """A file of the host's, beside what the container has."""
    made = disk.mounted(box, DATA, mib=DISK_MIB)
    os.mkdir(f"{made.mountpoint}/mine", 0o777)
    os.chmod(f"{made.mountpoint}/mine", 0o777)
    os.close(write(f"{made.mountpoint}/spool", HELD))
    os.close(write(f"{made.mountpoint}/rest"))
    box.volume(DATA, source=f"{made.mountpoint}/mine")
    begin(box, once_then_again(nothing, once_more()))


def soon(box: Box) -> None:
    """A few more seconds at this rate."""

    def first() -> None:
        room = os.statvfs(DATA)
        os.close(write(f"{DATA}/large", int(0.96 * room.f_bavail * room.f_frsize)))

    def again() -> None:
        descriptor = os.open(f"{DATA}/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            os.write(descriptor, b"x" * (32 << 10))
        finally:
            os.close(descriptor)

    disk.mounted(box, DATA, mib=6 * DISK_MIB)
    begin(box, once_then_again(first, again))


def too_large(box: Box) -> None:
    """It wants more at once than there is, and has given it back since."""

    def again() -> None:
        descriptor = os.open(f"{DATA}/large", os.O_WRONLY | os.O_CREAT)
        try:
            os.posix_fallocate(descriptor, 0, 64 * MIB)
        finally:
            os.ftruncate(descriptor, 0)
            os.close(descriptor)

    disk.mounted(box, DATA, mib=DISK_MIB)
    begin(box, once_then_again(nothing, again))


# what says the same, or looks the same, with room on the disk


def larger_than_it_is(box: Box) -> None:
    """A removed file that is held, a gigabyte of hole and a file in memory, and there is room."""

    def first() -> None:
        os.dup2(write(f"{DATA}/log", HELD), 9)
        os.unlink(f"{DATA}/log")
        os.truncate(os.open(f"{DATA}/image", os.O_WRONLY | os.O_CREAT), 1 << 30)
        os.write(os.memfd_create("log"), bytes(2 * HELD))

    disk.mounted(box, DATA, mib=4 * DISK_MIB)
    begin(box, once_then_again(first, once_more()))


def no_disk(box: Box) -> None:
    """A tmpfs is full, and /dev/full always says that it is: ENOSPC."""
    box.shm(4 * MIB)
    begin(box, once_then_again(lambda: void(write("/dev/shm/x")), memory_and_device))


def void(_: object) -> None:
    """Drops a value."""


def memory_and_device() -> None:
    """Is refused by both."""
    with suppress(OSError):
        once_more("/dev/shm")()
    descriptor = os.open("/dev/full", os.O_WRONLY)
    try:
        os.write(descriptor, b"x")
    finally:
        os.close(descriptor)


def limits(box: Box) -> None:
    """No more segments, keys, namespaces and inotify watches: ENOSPC and EDQUOT."""
    box.user_namespace()
    box.user(UID, UID)
    box.sysctl("kernel.shmmni", "3")
    box.start(once_then_again(lambda: add_keys(400), beyond_limits))
    _set_in_user_namespace(box, "max_user_namespaces", 0)
    _set_in_user_namespace(box, "max_inotify_watches", 2)
    until_ready(box)


def add_keys(count: int) -> None:
    """Keys of its session, each with a name of its own."""
    add_key = _ADD_KEY.get(os.uname().machine, -1)
    for _ in range(count):
        name = f"whybox:{time.monotonic_ns()}".encode()
        _libc.syscall(add_key, b"user", name, b"x" * 64, 64, -3)


def beyond_limits() -> None:
    """Wants one more of each."""
    _libc.shmget(ctypes.c_int(0), ctypes.c_size_t(4096), ctypes.c_int(0o1600))
    add_keys(1)
    notify = _libc.inotify_init1(0)
    for path in ("/dev", "/proc", "/sys", "/tmp"):
        _libc.inotify_add_watch(notify, path.encode(), 2)
    os.close(notify)
    unshare(CLONE_NEWUSER)


def _set_in_user_namespace(box: Box, name: str, value: int) -> None:
    """A limit of its user namespace, set by a process that joins that alone."""
    child = os.fork()
    if child == 0:
        try:
            setns(os.open(f"/proc/{box.pid}/ns/user", os.O_RDONLY), 0)
            with open(f"/proc/sys/user/{name}", "w", encoding="ascii") as file:
                file.write(str(value))
            os._exit(0)
        finally:
            os._exit(1)
    if os.waitpid(child, 0)[1] != 0:
        raise OSError(f"user.{name} could not be set")


def not_its_own(box: Box) -> None:
    """A full disk that it may only read, and one that it does not have at all."""
    for number, make_read_only in enumerate((True, False)):
        made = disk.Disk(f"{number}-{box.name}", mib=DISK_MIB)
        box.closing.callback(made.remove)
        os.close(write(f"{made.mountpoint}/all"))
        if make_read_only:
            made.make_read_only()
            box.volume(DATA, source=made.mountpoint)
    begin(box, once_then_again(nothing, once_more("/tmp")))


def freed(box: Box) -> None:
    """It was full, and now it is a limit of its own on the size of a file: EFBIG."""

    def first() -> None:
        os.close(write(f"{DATA}/all"))
        os.unlink(f"{DATA}/all")
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    disk.mounted(box, DATA, mib=DISK_MIB)
    begin(box, once_then_again(first, once_more()))


def nearly_and_steady(box: Box) -> None:
    """Nearly full for ever: a database that has taken its room beforehand."""

    def first() -> None:
        room = os.statvfs(DATA)
        os.close(write(f"{DATA}/database", int(0.96 * room.f_bavail * room.f_frsize)))

    def again() -> None:
        descriptor = os.open(f"{DATA}/database", os.O_WRONLY)
        os.pwrite(descriptor, b"y" * 4096, 0)
        os.close(descriptor)

    disk.mounted(box, DATA, mib=4 * DISK_MIB)
    begin(box, once_then_again(first, again))


def numbers(finding: Finding) -> str | None:
    """Each with its own."""
    said = " ".join((finding.summary, *(one.says for one in finding.evidence)))
    known = (f"{INODES} inodes", "8.0 MiB with no link", "/large (8.0 MiB)", "spool (8.0 MiB)")
    soon = ("Only", "not room enough", "No room is left")
    if not any(words in said for words in (*known, *soon)):
        return f"none of the known numbers is in: {said}"
    return None


LAB = Lab(
    healthy=healthy,
    reproduce=reproduce,
    variants={
        "files in its writable layer": layer,
        "too many files": many_files,
        "another container fills it": a_neighbour,
        "the machine fills it": the_machine,
        "soon": soon,
        "more at once than there is": too_large,
    },
    look_alikes={
        "files that look larger than they are": larger_than_it_is,
        "a tmpfs that is full, and /dev/full": no_disk,
        "limits that say the same": limits,
        "full disks that it does not write to": not_its_own,
        "full in the past, and a limit on the size of a file": freed,
        "nearly full, and steady": nearly_and_steady,
    },
    numbers=numbers,
    needs=(disk.missing,),
    window_seconds=0.5,
)
