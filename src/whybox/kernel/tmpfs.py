"""The tmpfs mounts of a container, and how full each is (filesystems/tmpfs.rst).

``df`` from outside: each mount point is opened by its path below ``/proc/PID/root`` without leaving
that root and without being opened for anything (O_PATH), and asked by ``fstatfs``. A mount that
lies below one which may make us wait, a network's or FUSE's, is not looked at.
"""

import os
from collections.abc import Iterator, Sequence

from msgspec import Struct

from whybox.kernel.host import Host, decode, printable
from whybox.kernel.mountinfo import Mount, mounts
from whybox.kernel.statx import open_in_root

#: So many mounts of a container are looked at, and so many names in a directory.
MOST_MOUNTS = 32
MOST_FILES = 1000

#: Looking a name up in one of these waits for nobody but a disk.
_LOCAL = (
    *("overlay", "tmpfs", "ramfs", "devtmpfs", "squashfs", "erofs", "iso9660", "vfat"),
    *("ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs"),
    *("proc", "sysfs", "cgroup", "cgroup2", "devpts", "mqueue"),
)


class Tmpfs(Struct, frozen=True, kw_only=True):
    """One mount."""

    mountpoint: str
    """As the container has it, harmless to print."""
    device: str
    size_bytes: int
    """What it may hold."""
    free_bytes: int
    files: int
    """How many it may hold, with directories; 0: any number."""
    free_files: int
    largest: tuple[tuple[str, int], ...] = ()
    """The largest files at its top, with what they take; only where it is full."""

    @property
    def used_bytes(self) -> int:
        """What it holds."""
        return self.size_bytes - self.free_bytes

    @property
    def full(self) -> bool:
        """Whether the next page is refused."""
        return self.free_bytes <= 0

    @property
    def out_of_files(self) -> bool:
        """Whether the next file is refused."""
        return self.files > 0 and self.free_files <= 0


def all_of(host: Host, pid: int | str) -> tuple[Tmpfs, ...]:
    """Those of a process that can be written and may not hold as much as they like."""
    seen = mounts(host, pid)
    found = (_look(pid, mount) for mount in _wanted(seen))
    return tuple(one for one in found if one is not None)


def _wanted(seen: Sequence[Mount]) -> list[Mount]:
    known = {mount.mount_id: mount for mount in seen}
    top = {mount.mountpoint: mount for mount in seen}
    wanted = [
        mount
        for mount in seen
        if mount.fstype == "tmpfs"
        and "ro" not in (*mount.options, *mount.super_options)
        and top[mount.mountpoint] is mount
        and reached_without_waiting(mount, known)
    ]
    # One file system may be seen at many places, such as /dev and what hides /proc/kcore.
    first: dict[str, Mount] = {}
    for mount in wanted:
        first.setdefault(mount.device, mount)
    return list(first.values())[:MOST_MOUNTS]


def reached_without_waiting(mount: Mount, known: dict[int, Mount]) -> bool:
    """Whether no network's and no FUSE's file system lies on the way to a mount point."""
    for _ in range(MOST_MOUNTS):
        above = known.get(mount.parent_id)
        if above is None or above is mount:
            return True  # the container's root, whose parent it does not see
        if above.fstype not in _LOCAL:
            return False
        mount = above
    return False


def _look(pid: int | str, mount: Mount) -> Tmpfs | None:
    try:
        descriptor = open_in_root(f"/proc/{pid}/root", mount.mountpoint, os.O_PATH)
    except OSError:
        return None
    try:
        device = os.fstat(descriptor).st_dev
        if f"{os.major(device)}:{os.minor(device)}" != mount.device:
            return None  # something else was mounted there meanwhile
        said = os.fstatvfs(descriptor)
        if said.f_blocks == 0:
            return None  # without a limit (size=0)
        full = said.f_bavail == 0 or (said.f_files > 0 and said.f_ffree == 0)
        return Tmpfs(
            mountpoint=printable(mount.mountpoint),
            device=mount.device,
            size_bytes=said.f_blocks * said.f_frsize,
            free_bytes=said.f_bavail * said.f_frsize,
            files=said.f_files,
            free_files=said.f_ffree,
            largest=tuple(_largest(descriptor)) if full else (),
        )
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _largest(descriptor: int) -> list[tuple[str, int]]:
    sizes = sorted(_files(descriptor), key=lambda one: -one[1])
    return [(printable(decode(os.fsencode(name))), size) for name, size in sizes[:3] if size]


def _files(descriptor: int) -> Iterator[tuple[str, int]]:
    """Names at the top of an O_PATH descriptor, with the room that each takes."""
    opened = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with os.scandir(opened) as entries:
            for number, entry in enumerate(entries):
                if number >= MOST_FILES:
                    return
                if entry.is_file(follow_symlinks=False):
                    yield entry.name, entry.stat(follow_symlinks=False).st_blocks * 512
    finally:
        os.close(opened)
