"""Freezing and thawing a file system: ``FIFREEZE`` and ``FITHAW`` (fs/ioctl.c), for CAP_SYS_ADMIN.

While it is frozen whoever wants to write to it waits in D, in no way that a signal could end
(fs/super.c, ``freeze_super()``; include/linux/fs.h, ``sb_start_write()``).
"""

import fcntl
import os

#: include/uapi/linux/fs.h: _IOWR('X', 119, int) and _IOWR('X', 120, int).
FIFREEZE = 0xC0045877
FITHAW = 0xC0045878


def freeze(mountpoint: str) -> None:
    """Flush the file system and let no more writes begin."""
    _ioctl(mountpoint, FIFREEZE)


def thaw(mountpoint: str) -> None:
    """Let writes go on; raises EINVAL where it is not frozen."""
    _ioctl(mountpoint, FITHAW)


def _ioctl(mountpoint: str, request: int) -> None:
    # Read-only: to open for writing may wait for the very thaw.
    descriptor = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, request, 0)
    finally:
        os.close(descriptor)
