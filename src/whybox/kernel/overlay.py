"""Overlay mounts: the directories under them, and the marks that overlayfs leaves in the upper one
(Documentation/filesystems/overlayfs.rst).
"""

import os
from collections.abc import Iterable, Iterator

from msgspec import Struct

from whybox.kernel.host import Host, printable
from whybox.kernel.mountinfo import Mount, mounts
from whybox.kernel.namespace import INITIAL, namespace
from whybox.kernel.task import status

CAP_SYS_ADMIN = 21
#: Opening something there may wait for a server for ever.
_REMOTE = ("fuse", "nfs", "cifs", "smb3", "ceph", "glusterfs", "afs")


class Overlay(Struct, frozen=True, kw_only=True):
    """A writable overlay mount and the directories under it, as the kernel shows them."""

    mountpoint: str
    upperdir: str
    workdir: str | None
    lowerdirs: tuple[str, ...]
    """The topmost first."""
    userxattr: bool
    """Its marks are ``user.overlay.*``, as in mounts made without privileges (kernel 5.11)."""
    volatile: bool
    """A copy is not synced to the disk (kernel 5.10)."""

    @property
    def xattr(self) -> str:
        """How the names of its marks begin."""
        return "user.overlay." if self.userxattr else "trusted.overlay."


def overlays(seen: Iterable[Mount]) -> tuple[Overlay, ...]:
    """The overlay mounts that can be written to, one for each upper directory."""
    found: dict[str, Overlay] = {}
    for mount in seen:
        upperdir = mount.option("upperdir")
        if mount.fstype == "overlay" and upperdir is not None:
            found.setdefault(upperdir, _overlay(mount, upperdir))
    return tuple(found.values())


def _overlay(mount: Mount, upperdir: str) -> Overlay:
    return Overlay(
        mountpoint=mount.mountpoint,
        upperdir=upperdir,
        workdir=mount.option("workdir"),
        lowerdirs=tuple(_lowerdirs(mount.super_options)),
        userxattr="userxattr" in mount.super_options,
        # The newer spelling: measured on 6.18.
        volatile=not {"volatile", "fsync=volatile"}.isdisjoint(mount.super_options),
    )


def _lowerdirs(options: Iterable[str]) -> Iterator[str]:
    r"""The layers in ``lowerdir=a:b``, or in one ``lowerdir+=`` each (kernel 6.8).

    >>> list(_lowerdirs(["rw", r"lowerdir=/l/A:/l/with\:colon::/data"]))
    ['/l/A', '/l/with:colon', '/data']
    """
    for option in options:
        name, _, value = option.partition("=")
        if name in ("lowerdir+", "datadir+"):
            yield value
        elif name == "lowerdir":
            for part in value.replace(r"\:", "\0").split(":"):
                if part:
                    yield part.replace("\0", ":")


def origin_inode(handle: bytes) -> int | None:
    """The inode number in ``struct ovl_fh`` (fs/overlayfs/overlayfs.h) of an origin mark.

    As ext4 encodes it (FILEID_INO32_GEN), xfs (FILEID_INO64_GEN) and btrfs; ``None`` elsewhere,
    and for the empty handle of a file system without handles.
    """
    if len(handle) < 29 or handle[1] != 0xFB:
        return None
    length = {0x01: 4, 0x02: 4, 0x81: 8, 0x82: 8, 0x4D: 8, 0x4E: 8, 0x4F: 8}.get(handle[4])
    return None if length is None else int.from_bytes(handle[21 : 21 + length], "little")


def obstacle(host: Host, overlay: Overlay, *, marks: bool = True) -> str | None:
    """Why its upper directory cannot be watched from here, as a sentence, or ``None``.

    Without ``marks`` it is enough that its files can be seen.
    """
    where = printable(overlay.upperdir)
    fstype = _fstype(host, overlay.upperdir)
    if fstype.startswith(_REMOTE):
        return f"its upper directory {where} is on {printable(fstype)}, which may keep us waiting"
    if not overlay.upperdir.startswith("/") or not _is_here(host, overlay):
        return f"its upper directory {where} cannot be seen from here: ask on the host, as root"
    if marks and not overlay.userxattr and not _may_read_trusted(host):
        # Without the capability the kernel says "no such attribute", not "not permitted".
        return "the marks of copied files (trusted.overlay.*) are for root on the host only"
    return None


def _is_here(host: Host, overlay: Overlay) -> bool:
    """Whether the path means the same here: an unrelated one would have no work directory."""
    here = os.path.isdir(host.path(overlay.upperdir))
    return here and (overlay.workdir is None or host.exists(overlay.workdir))


def _fstype(host: Host, path: str) -> str:
    """The file system that holds a path, by the longest mount point above it."""
    best, fstype = -1, ""
    for mount in mounts(host, "self"):
        top = mount.mountpoint.rstrip("/")
        if (path == top or path.startswith(top + "/")) and len(top) >= best:
            best, fstype = len(top), mount.fstype
    return fstype


def _may_read_trusted(host: Host) -> bool:
    able = bool(status(host, "self").cap_eff >> CAP_SYS_ADMIN & 1)
    return able and namespace(host, "self", "user") in (None, INITIAL["user"])
