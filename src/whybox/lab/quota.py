"""Project quotas of a lab's own ext4: quotactl(2), ioctl_fsgetxattr(2)."""

import ctypes
import fcntl
import os
import shutil
import struct
import subprocess

from whybox.change import ProjectQuota
from whybox.kernel.host import Host
from whybox.kernel.mountinfo import mounts

#: include/uapi/linux/quota.h
_Q_SETQUOTA, _PRJQUOTA, _QIF_LIMITS = 0x800008, 2, 5
#: ``struct if_dqblk``: limits and use, of blocks of 1 KiB and of inodes; times; what of it counts.
_DQBLK = struct.Struct("=8QI4x")
#: include/uapi/linux/fs.h
_FS_IOC_FSGETXATTR, _FS_IOC_FSSETXATTR = 0x801C581F, 0x401C5820
_FSXATTR = struct.Struct("=IIIII8x")
_PROJINHERIT = 0x200

#: What ``mke2fs`` and ``mount`` need to be told.
FEATURES = ("-I", "256", "-O", "project,quota", "-E", "quotatype=prjquota")
OPTIONS = "loop,prjquota"

_libc = ctypes.CDLL(None, use_errno=True)


def missing(host: Host) -> str | None:
    """Why this kernel cannot count projects on ext4, or ``None``."""
    base = f"/lib/modules/{os.uname().release}"
    files = (f"{base}/modules.dep", f"{base}/modules.builtin")
    if any("/quota_v2.ko" in (host.optional_text(file) or "") for file in files):
        return None
    return "this kernel has no QFMT_V2, which the quotas of ext4 need"


def load() -> None:
    """The module, where it is one."""
    if shutil.which("modprobe"):
        subprocess.run(["modprobe", "quota_v2"], check=False, capture_output=True)


def make_project(directory: str, id: int) -> None:
    """Count what is made in a directory for a project from now on."""
    opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        raw = fcntl.ioctl(opened, _FS_IOC_FSGETXATTR, bytes(_FSXATTR.size))
        flags, extent, extents, _, cow = _FSXATTR.unpack(raw)
        said = _FSXATTR.pack(flags | _PROJINHERIT, extent, extents, id, cow)
        fcntl.ioctl(opened, _FS_IOC_FSSETXATTR, said)
    finally:
        os.close(opened)


def limit(change: ProjectQuota) -> None:
    """So many bytes and files, and no more; ``None``: any number."""
    blocks = -(-(change.bytes or 0) // 1024)
    raw = _DQBLK.pack(blocks, 0, 0, change.files or 0, 0, 0, 0, 0, _QIF_LIMITS)
    device = next(m.source for m in mounts(Host(), "self") if m.mountpoint == change.mountpoint)
    command = _Q_SETQUOTA << 8 | _PRJQUOTA
    if _libc.quotactl(ctypes.c_int(command), os.fsencode(device), change.id, raw) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), device)
