"""A log that was rotated away while its writer holds it, on a small disk that it fills."""

import ctypes
import errno
import os
import resource
import signal
import time
from collections.abc import Callable
from contextlib import suppress

from whybox.change import ProjectQuota
from whybox.kernel.host import Host
from whybox.kernel.libc import CLONE_NEWUSER, setns, unshare
from whybox.lab import disk, quota
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
PROJECT, QUOTA = 42, 10 * MIB

_libc = ctypes.CDLL(None, use_errno=True)
_KEYCTL = {"x86_64": (248, 250), "aarch64": (217, 219)}  # add_key, keyctl


def once_then_again(first: Callable[[], None], again: Callable[[], None]) -> Program:
    """Runs ``first`` once, makes /tmp/ready, and does ``again`` all the time, refused or not."""

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
        try:
            os.write(os.open(path, os.O_WRONLY | os.O_CREAT), bytes(64 << 10))
        finally:
            os.closerange(10, 64)
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


def volume(box: Box) -> None:
    """What it writes into a volume, and nobody writes any more."""
    disk.mounted(box, DATA, mib=DISK_MIB)
    begin(box, once_then_again(fill, nothing))


def many_files(box: Box) -> None:
    """Room for blocks, and none for one more file."""

    def first() -> None:
        with suppress(OSError):
            os.mkdir(f"{DATA}/sessions")
            for number in range(2 * INODES):
                os.close(os.open(f"{DATA}/sessions/{number}", os.O_CREAT | os.O_WRONLY))

    disk.mounted(box, DATA, mib=DISK_MIB, inodes=INODES)
    begin(box, once_then_again(first, once_more()))


def mapped(box: Box) -> None:
    """The removed file is not open any more, but mapped."""

    def first() -> None:
        import mmap

        descriptor = write(f"{DATA}/log", HELD)
        again = os.open(f"{DATA}/log", os.O_RDWR)
        kept.append(mmap.mmap(again, HELD))
        os.close(descriptor)
        os.close(again)
        os.unlink(f"{DATA}/log")
        for other in os.listdir("/proc/self/fd"):  # mmap keeps a descriptor of its own
            with suppress(OSError):
                if os.readlink(f"/proc/self/fd/{other}").startswith(DATA):
                    os.close(int(other))
        write(f"{DATA}/rest")

    kept: list[object] = []
    disk.mounted(box, DATA, mib=DISK_MIB)
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
        os.close(write(f"{DATA}/large", int(0.97 * room.f_bavail * room.f_frsize)))

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


def project(box: Box) -> None:
    """The project quota of a directory, on a disk with room."""
    made = disk.Disk(box.name, mib=4 * DISK_MIB, projects=True)
    box.closing.callback(made.remove)
    mine = f"{made.mountpoint}/mine"
    os.mkdir(mine, 0o777)
    os.chmod(mine, 0o777)
    quota.make_project(mine, PROJECT)
    quota.limit(ProjectQuota(PROJECT, made.mountpoint, "ext4", bytes=QUOTA))
    box.volume(DATA, source=mine)
    begin(box, once_then_again(fill, once_more()))


# what says the same, or looks the same, with room on the disk


def held_with_room(box: Box) -> None:
    """The log without a name, on a disk with room."""

    def first() -> None:
        os.dup2(write(f"{DATA}/log", HELD), 9)
        os.unlink(f"{DATA}/log")

    disk.mounted(box, DATA, mib=4 * DISK_MIB)
    begin(box, once_then_again(first, once_more()))


def sparse(box: Box) -> None:
    """A file of a gigabyte that is a hole."""

    def first() -> None:
        os.truncate(os.open(f"{DATA}/image", os.O_WRONLY | os.O_CREAT), 1 << 30)

    disk.mounted(box, DATA, mib=DISK_MIB)
    begin(box, once_then_again(first, once_more()))


def in_memory(box: Box) -> None:
    """A tmpfs is full: ENOSPC, and the disk has nothing to do with it."""
    box.shm(4 * MIB)
    begin(box, once_then_again(lambda: void(write("/dev/shm/x")), once_more("/dev/shm")))


def void(_: object) -> None:
    """Drops a value."""


def memory_file(box: Box) -> None:
    """A memfd looks like a removed file of 16 MiB, and is memory."""

    def first() -> None:
        os.write(os.memfd_create("log"), bytes(2 * HELD))

    disk.mounted(box, DATA, mib=DISK_MIB)
    begin(box, once_then_again(first, once_more()))


def device_full(box: Box) -> None:
    """/dev/full always says ENOSPC."""
    begin(box, once_then_again(nothing, lambda: void(os.write(_opened("/dev/full"), b"x"))))


def _opened(path: str) -> int:
    os.closerange(10, 64)
    return os.open(path, os.O_WRONLY)


def segments(box: Box) -> None:
    """No more segments of shared memory: ENOSPC."""

    def again() -> None:
        _libc.shmget(ctypes.c_int(0), ctypes.c_size_t(4096), ctypes.c_int(0o1600))

    box.sysctl("kernel.shmmni", "3")
    begin(box, once_then_again(nothing, again))


def keys(box: Box) -> None:
    """No more keys for this user: EDQUOT."""
    add_key = _KEYCTL.get(os.uname().machine, (0, 0))[0]

    def again() -> None:
        for number in range(400):
            name = f"whybox:{number}".encode()
            _libc.syscall(add_key, b"user", name, b"x" * 64, 64, -3)

    box.user(UID, UID)
    begin(box, once_then_again(nothing, again))


def namespaces(box: Box) -> None:
    """No more user namespaces: ENOSPC."""
    box.user_namespace()
    box.start(once_then_again(nothing, lambda: unshare(CLONE_NEWUSER)))
    _set_in_user_namespace(box, "max_user_namespaces", 0)
    until_ready(box)


def watches(box: Box) -> None:
    """No more inotify watches: ENOSPC."""

    def again() -> None:
        notify = _libc.inotify_init1(0)
        for path in ("/dev", "/proc", "/sys", "/tmp"):
            _libc.inotify_add_watch(notify, path.encode(), 2)
        os.close(notify)

    box.user_namespace()
    box.start(once_then_again(nothing, again))
    _set_in_user_namespace(box, "max_inotify_watches", 2)
    until_ready(box)


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


def file_size(box: Box) -> None:
    """A limit of its own on the size of a file: EFBIG, and SIGXFSZ."""

    def first() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    disk.mounted(box, DATA, mib=DISK_MIB)
    begin(box, once_then_again(first, once_more()))


def read_only(box: Box) -> None:
    """Full, and mounted read-only: EROFS, and nobody wants to write there."""
    made = disk.mounted(box, DATA, mib=DISK_MIB)
    os.close(write(f"{made.mountpoint}/all"))
    made.make_read_only()
    begin(box, once_then_again(nothing, once_more()))


def full_and_elsewhere(box: Box) -> None:
    """A disk is full, and it is no disk of this container's."""
    made = disk.Disk(box.name, mib=DISK_MIB)
    box.closing.callback(made.remove)
    os.close(write(f"{made.mountpoint}/all"))
    begin(box, once_then_again(nothing, once_more("/tmp")))


def freed(box: Box) -> None:
    """It was full, and the file was removed."""

    def first() -> None:
        os.close(write(f"{DATA}/all"))
        os.unlink(f"{DATA}/all")

    disk.mounted(box, DATA, mib=DISK_MIB)
    begin(box, once_then_again(first, once_more()))


def nearly_and_steady(box: Box) -> None:
    """Nearly full for ever: a database that has taken its room beforehand."""

    def first() -> None:
        room = os.statvfs(DATA)
        write(f"{DATA}/database", int(0.97 * room.f_bavail * room.f_frsize))

    def again() -> None:
        descriptor = os.open(f"{DATA}/database", os.O_WRONLY)
        os.pwrite(descriptor, b"y" * 4096, 0)
        os.close(descriptor)

    disk.mounted(box, DATA, mib=DISK_MIB)
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
        "files on a volume": volume,
        "too many files": many_files,
        "a removed file that is mapped": mapped,
        "another container fills it": a_neighbour,
        "the machine fills it": the_machine,
        "soon": soon,
        "more at once than there is": too_large,
        **({"a project quota": project} if quota.missing(Host()) is None else {}),
    },
    look_alikes={
        "a removed file that is held, with room": held_with_room,
        "a large file that is a hole": sparse,
        "a tmpfs that is full": in_memory,
        "a file in memory": memory_file,
        "/dev/full": device_full,
        "no more segments of shared memory": segments,
        "no more keys": keys,
        "no more namespaces": namespaces,
        "no more inotify watches": watches,
        "a limit on the size of a file": file_size,
        "a full disk that is read-only": read_only,
        "a full disk of somebody else": full_and_elsewhere,
        "full in the past": freed,
        "nearly full, and steady": nearly_and_steady,
    },
    numbers=numbers,
    needs=(disk.missing,),
    window_seconds=0.5,
)
