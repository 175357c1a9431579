"""Whether owner and mode let somebody pass along a path, component by component.

As ``generic_permission()`` of fs/namei.c asks: the owner's bits for the owner, else what an access
list says (``posix_acl_permission()``), else the group's bits, else those of others. Every directory
on the way must give ``x``. Nothing is opened but by O_PATH, links are read and not followed, and
where a file system may wait for somebody else (FUSE, a network) the walk ends.
"""

import errno
import os
import stat
import struct
from collections.abc import Iterable, Sequence
from contextlib import suppress

from msgspec import Struct

from whybox.kernel.host import Host, printable
from whybox.kernel.mountinfo import Mount
from whybox.kernel.statx import attributes, open_beneath

R, W, X = 4, 2, 1
MOST_STEPS, MOST_LINKS = 64, 16

#: Whose server, or program, decides and may not answer.
REMOTE = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "afs", "lustre", "virtiofs"})

#: include/uapi/linux/posix_acl.h and posix_acl_xattr.h
_ACL = "system.posix_acl_access"
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_ENTRY = struct.Struct("<HHI")

#: include/uapi/linux/stat.h: STATX_ATTR_IMMUTABLE and STATX_ATTR_APPEND.
_IMMUTABLE, _APPEND = 0x10, 0x20


class Who(Struct, frozen=True, kw_only=True):
    """As whom a file is asked for, by the host's numbers."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


class Step(Struct, frozen=True, kw_only=True):
    """One component of a path."""

    path: str
    """From the container's root, without links, harmless to print."""
    mode: int
    """With the kind of file."""
    uid: int
    gid: int
    allowed: int
    """What owner, mode and access list let: a mask of R, W, X."""
    listed: bool = False
    """Whether an access list had a word in it."""
    immutable: bool = False
    append_only: bool = False
    device: int = 0
    """The number of a device node."""

    @property
    def sticky(self) -> bool:
        """Whether in this directory only owners remove what is theirs."""
        return stat.S_ISDIR(self.mode) and bool(self.mode & stat.S_ISVTX)


class Way(Struct, frozen=True, kw_only=True):
    """A path, as far as it goes."""

    steps: tuple[Step, ...] = ()
    missing: str | None = None
    """The name that is not there, where the last one is not."""
    stopped: str | None = None
    """Why the walk ended before the path did."""
    path: str = ""
    """The whole of it without links; harmless to print."""


def permitted(mode: int, uid: int, gid: int, who: Who, acl: bytes | None = None) -> int:
    """What owner, mode and access list let somebody do.

    >>> permitted(0o640, 0, 5, Who(uid=7, gid=7, groups=(5,)))
    4
    >>> permitted(0o077, 7, 5, Who(uid=7, gid=5))
    0
    """
    if who.uid == uid:
        return mode >> 6 & 7
    groups = {who.gid, *who.groups}
    if acl is not None:
        return _listed(acl, gid, who.uid, groups)
    return mode >> 3 & 7 if gid in groups else mode & 7


def _listed(acl: bytes, owner: int, uid: int, groups: set[int]) -> int:
    """fs/posix_acl.c, posix_acl_permission(), without the owner, who was asked before."""
    entries = [_ENTRY.unpack_from(acl, at) for at in range(4, len(acl) - 7, 8)]
    mask = next((perm for tag, perm, _ in entries if tag == _MASK), 7)
    for tag, perm, id in entries:
        if tag == _USER and id == uid:
            return int(perm & mask)
    mine = [
        perm
        for tag, perm, id in entries
        if (tag == _GROUP_OBJ and owner in groups) or (tag == _GROUP and id in groups)
    ]
    if mine:
        allowed = 0
        for perm in mine:
            allowed |= perm
        return int(allowed & mask)
    return next((int(perm) for tag, perm, _ in entries if tag == _OTHER), 0)


def walk(
    host: Host, pid: int, mounts: Sequence[Mount], path: str, who: Who, *, follow: bool = True
) -> Way:
    """Go along an absolute path of the container whose process ``pid`` is; never raises OSError."""
    try:
        top = os.open(host.path(f"/proc/{pid}/root"), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        return Way(stopped=f"its root cannot be looked at ({error.strerror})", path=printable(path))
    try:
        return _Walk(top, mounts, who, follow).along(path)
    finally:
        os.close(top)


class _Walk:
    """One walk: what is left of the path, and where it has come to."""

    def __init__(self, top: int, mounts: Sequence[Mount], who: Who, follow: bool) -> None:
        self._top, self._mounts, self._who, self._follow = top, mounts, who, follow
        self._steps: list[Step] = []
        self._links = 0

    def along(self, path: str) -> Way:
        left = [name for name in path.split("/") if name and name != "."]
        here: list[str] = []
        stopped = self._enter(here)
        while left and stopped is None:
            name = left.pop(0)
            if name == "..":
                here = here[:-1]
                continue
            try:
                target = self._link(here, name, last=not left)
            except OSError as error:
                if error.errno == errno.ENOENT and not left:
                    return self._way([*here, name], missing=printable(name))
                return self._way([*here, name, *left], stopped=error.strerror or "unknown")
            if target is None:
                here.append(name)
                stopped = self._enter(here)
                continue
            self._links += 1
            if self._links > MOST_LINKS or len(left) > MOST_STEPS:
                return self._way([*here, name, *left], stopped="too many links")
            if target.startswith("/"):
                here = []
            left = [part for part in target.split("/") if part and part != "."] + left
        return self._way([*here, *left], stopped=stopped)

    def _way(
        self, names: Sequence[str], *, missing: str | None = None, stopped: str | None = None
    ) -> Way:
        path = printable("/" + "/".join(names))
        return Way(steps=tuple(self._steps), missing=missing, stopped=stopped, path=path)

    def _enter(self, here: Sequence[str]) -> str | None:
        """Note the component that was come to; why the walk must end here, if it must."""
        path = "/" + "/".join(here)
        there = mount_of(self._mounts, path)
        if there is not None and is_remote(there.fstype):
            return f"{printable(there.mountpoint)} is {printable(there.fstype)}: it decides itself"
        if there is not None and there.fstype == "proc" and path != there.mountpoint:
            return "the kernel's own files: who may is for each of them to say"
        if len(self._steps) >= MOST_STEPS:
            return "too many components"
        try:
            self._steps.append(self._step(path))
        except OSError as error:
            return error.strerror or "unknown"
        return None

    def _step(self, path: str) -> Step:
        opened = open_beneath(self._top, path.strip("/") or ".", os.O_PATH, into_mounts=True)
        try:
            seen = os.fstat(opened)
            acl = None
            if not stat.S_ISLNK(seen.st_mode):
                with suppress(OSError):
                    acl = os.getxattr(f"/proc/self/fd/{opened}", _ACL)
            marks = _attributes(opened)
        finally:
            os.close(opened)
        return Step(
            path=printable(path),
            mode=seen.st_mode,
            uid=seen.st_uid,
            gid=seen.st_gid,
            allowed=permitted(seen.st_mode, seen.st_uid, seen.st_gid, self._who, acl),
            listed=acl is not None,
            immutable=bool(marks & _IMMUTABLE),
            append_only=bool(marks & _APPEND),
            device=seen.st_rdev,
        )

    def _link(self, here: Sequence[str], name: str, *, last: bool) -> str | None:
        """Where a name leads, or ``None``: it is no link, or one that is not to be followed."""
        there = mount_of(self._mounts, "/" + "/".join([*here, name]))
        if there is not None and is_remote(there.fstype):
            return None  # to look at it may take for ever
        above = open_beneath(self._top, "/".join(here) or ".", os.O_PATH, into_mounts=True)
        try:
            seen = os.stat(name, dir_fd=above, follow_symlinks=False)
            if not stat.S_ISLNK(seen.st_mode) or (last and not self._follow):
                return None
            return os.readlink(name, dir_fd=above)
        finally:
            os.close(above)


def _attributes(opened: int) -> int:
    with suppress(OSError):
        return attributes(opened)
    return 0


def mount_of(mounts: Iterable[Mount], path: str) -> Mount | None:
    """The mount that a path is on: the innermost one, and of two at one place the later.

    >>> mount_of((), "/data") is None
    True
    """
    found = None
    for mount in mounts:
        at = mount.mountpoint.rstrip("/")
        if path != at and not path.startswith(f"{at}/"):
            continue
        if found is None or len(at) >= len(found.mountpoint.rstrip("/")):
            found = mount
    return found


def is_remote(fstype: str) -> bool:
    """Whether somebody else than this kernel decides.

    >>> is_remote("fuse.sshfs"), is_remote("ext4"), is_remote("nfs4")
    (True, False, True)
    """
    return fstype in REMOTE or fstype.startswith("fuse")
