"""How much room a file system has left: ``statvfs`` at one place in it, and its project quota.

``f_bavail`` is what everybody may still take, ``f_bfree`` what there is: the difference is kept for
root (ext4: 5 %, mke2fs(8)). Within a directory that has a project quota xfs and ext4 answer with
the quota as the size (fs/xfs/xfs_qm_bhv.c xfs_fill_statvfs_from_dquot(), fs/ext4/super.c
ext4_statfs_project()).
"""

import fcntl
import os
import struct

from msgspec import Struct

from whybox.kernel.host import Host, ParseError

#: With less a file system is full: what is left are blocks for the tables of files (measured: 0
#: to some KiB when a writer was refused).
SLACK_BYTES = 1 << 20
SLACK = 0.001
#: With less than this share it is nearly full.
NEARLY = 0.05

#: FS_IOC_FSGETXATTR, ``struct fsxattr`` and FS_XFLAG_PROJINHERIT (include/uapi/linux/fs.h).
_FS_IOC_FSGETXATTR = 0x801C581F
_FSXATTR = struct.Struct("=IIIII8x")
_PROJINHERIT = 0x200


class Room(Struct, frozen=True, kw_only=True):
    """What one ``statvfs`` says, in bytes and inodes."""

    size_bytes: int
    free_bytes: int
    available_bytes: int
    """Of the free ones what not only root may take."""
    files: int
    """How many inodes there can be; 0: as many as there is room for."""
    free_files: int

    @property
    def used_bytes(self) -> int:
        """What is taken."""
        return self.size_bytes - self.free_bytes

    @property
    def used_files(self) -> int:
        """Inodes that are taken."""
        return self.files - self.free_files

    @property
    def reserved_bytes(self) -> int:
        """Free, and for root only."""
        return max(0, self.free_bytes - self.available_bytes)

    @property
    def full(self) -> bool:
        """Whether the next block is refused."""
        return self.available_bytes <= min(SLACK_BYTES, self.size_bytes * SLACK)

    @property
    def out_of_files(self) -> bool:
        """Whether the next file is refused, for want of an inode."""
        return self.files > 0 and self.free_files <= 0 and not self.full

    @property
    def nearly_full(self) -> bool:
        """Whether blocks or inodes are running out."""
        few = self.files > 0 and self.free_files < NEARLY * self.files
        return few or self.available_bytes < NEARLY * self.size_bytes


def room(said: os.statvfs_result) -> Room:
    """Put the numbers into units."""
    return Room(
        size_bytes=said.f_blocks * said.f_frsize,
        free_bytes=said.f_bfree * said.f_frsize,
        available_bytes=said.f_bavail * said.f_frsize,
        files=said.f_files,
        free_files=said.f_ffree,
    )


class Project(Struct, frozen=True, kw_only=True):
    """A directory whose files are counted together."""

    id: int
    disk_bytes: int | None
    """How large the whole device is, which the quota is a part of."""


def project(host: Host, descriptor: int, size_bytes: int) -> Project | None:
    """The project quota that ``statvfs`` answered with, by a directory's descriptor, or ``None``.

    The descriptor may be one for its path alone.
    """
    try:
        opened = os.open(
            f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK
        )
    except OSError:
        return None
    try:
        raw = fcntl.ioctl(opened, _FS_IOC_FSGETXATTR, bytes(_FSXATTR.size))
        device = os.fstat(opened).st_dev
    except OSError:
        return None  # this file system knows no projects
    finally:
        os.close(opened)
    flags, _, _, id, _ = _FSXATTR.unpack(raw)
    disk = _device_bytes(host, device)
    if not flags & _PROJINHERIT or id == 0 or (disk is not None and size_bytes > 0.9 * disk):
        return None
    return Project(id=id, disk_bytes=disk)


def _device_bytes(host: Host, device: int) -> int | None:
    """The size of a block device, which the kernel counts in sectors of 512 bytes."""
    try:
        said = host.number(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/size")
    except (OSError, ParseError):
        return None
    return None if said is None else said * 512
