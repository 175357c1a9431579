"""Which file system a blocked system call is about, and where the host has it mounted.

A descriptor among the arguments tells the mount exactly (``fdinfo``). A path is read from the
task's memory; the mount is then told by the text of the path alone, for to walk it is to wait
where the task waits.
"""

import os
import threading
from collections.abc import Iterable

from msgspec import Struct

from whybox.kernel import mountinfo
from whybox.kernel.host import Host, ParseError, decode
from whybox.kernel.mountinfo import Mount
from whybox.kernel.waitsite import Kind


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Which argument of a call is the descriptor of the file that it waits for.
_DESCRIPTORS = {
    **dict.fromkeys(
        _words(
            "write writev pwrite64 pwritev pwritev2 fsync fdatasync ftruncate fallocate fchmod "
            "fchown fsetxattr sendfile sync_file_range syncfs read readv pread64 getdents64 fstat "
            "fstatfs"
        ),
        0,
    ),
    **dict.fromkeys(("splice", "copy_file_range"), 2),
}

#: Calls whose first argument is a path.
_FIRST = _words(
    "open creat mkdir mknod unlink rmdir rename truncate chmod chown lchown utime utimes setxattr "
    "lsetxattr removexattr stat lstat access readlink chdir statfs execve getxattr lgetxattr"
)
#: Calls whose second argument is a path that begins at the first one, a directory.
_SECOND = _words(
    "openat openat2 mkdirat mknodat unlinkat renameat renameat2 fchmodat fchownat utimensat "
    "futimesat newfstatat statx faccessat readlinkat execveat"
)

#: Which argument is a path, and which the directory it begins at, if not the current one.
_PATHS: dict[str, tuple[int, int | None]] = {
    **dict.fromkeys(_FIRST, (0, None)),
    **dict.fromkeys(_SECOND, (1, 0)),
    "symlink": (1, None),
    "link": (1, None),
    "symlinkat": (2, 1),
    "linkat": (3, 2),
}

_AT_FDCWD = -100
_PATH_BYTES = 1024
_PATIENCE_SECONDS = 0.2

#: File systems that can be frozen are on a device (fs/ioctl.c, ioctl_fsfreeze()).
_NOT_FROZEN = _words(
    "proc sysfs tmpfs devtmpfs devpts cgroup cgroup2 mqueue ramfs hugetlbfs nfs nfs4 cifs fuse "
    "tracefs debugfs securityfs bpf pstore configfs autofs binfmt_misc nsfs squashfs iso9660 "
    "erofs overlay 9p ceph fusectl efivarfs rpc_pipefs selinuxfs"
)


#: The file systems whose server is somewhere else.
_REMOTE = ("nfs", "cifs", "smb", "ceph", "9p", "afs", "ocfs2", "gfs2", "lustre", "glusterfs")


class Place(Struct, frozen=True, kw_only=True):
    """The file system that a task waits for."""

    path: str | None
    """What the call is about, as the container names it; ``None``: not known."""
    fstype: str
    source: str
    mountpoint: str
    """Where the host reaches it; below ``/proc/PID/root`` where it is in the container alone."""
    exact: bool
    """Told by the call's own argument, not because no other file system can be it."""


def place(
    host: Host, tid: int, call: str | None, arguments: tuple[int, ...], kind: Kind
) -> Place | None:
    """The file system that a blocked call is about, if it waits for one and that can be told."""
    if kind not in ("frozen", "network", "fuse"):
        return None
    try:
        theirs = mountinfo.mounts(host, tid)
        ours = mountinfo.mounts(host, "self")
    except (OSError, ParseError):
        return None
    mount, path = _by_descriptor(host, tid, call, arguments, theirs)
    if mount is None:
        path = _path(host, tid, call, arguments)
        mount = None if path is None else under(theirs, path)
    real = None if mount is None else _real(mount, ours)
    if real is not None and _can_be(real, kind):
        return _placed(tid, real, ours, path, exact=True)
    only = _only(theirs, ours, kind)
    return None if only is None else _placed(tid, only, ours, None, exact=False)


def _can_be(mount: Mount, kind: Kind) -> bool:
    if kind == "frozen":
        return mount.fstype not in _NOT_FROZEN and "ro" not in mount.super_options
    return mount.fstype.startswith("fuse" if kind == "fuse" else _REMOTE)


def _placed(
    tid: int, mount: Mount, ours: tuple[Mount, ...], path: str | None, *, exact: bool
) -> Place:
    return Place(
        path=path,
        fstype=mount.fstype,
        source=mount.source,
        mountpoint=_ours(mount, ours) or f"/proc/{tid}/root{mount.mountpoint}",
        exact=exact,
    )


def _by_descriptor(
    host: Host, tid: int, call: str | None, arguments: tuple[int, ...], theirs: tuple[Mount, ...]
) -> tuple[Mount | None, str | None]:
    index = _DESCRIPTORS.get(call or "")
    if index is None or len(arguments) <= index:
        return None, None
    number = arguments[index]
    info = host.optional_text(f"/proc/{tid}/fdinfo/{number}") or ""
    said = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    mount_id = said.get("mnt_id", "").strip()
    mount = next((m for m in theirs if str(m.mount_id) == mount_id), None)
    return mount, _link(host, f"/proc/{tid}/fd/{number}")


def _link(host: Host, path: str) -> str | None:
    try:
        return host.link(path)
    except OSError:
        return None


def _path(host: Host, tid: int, call: str | None, arguments: tuple[int, ...]) -> str | None:
    index, directory = _PATHS.get(call or "", (None, None))
    if index is None or len(arguments) <= index or not host.live:
        return None
    path = _memory_text(host.path(f"/proc/{tid}/mem"), arguments[index])
    if path is None or path.startswith("/"):
        return path
    begins = _AT_FDCWD if directory is None else _signed(arguments[directory])
    base = _link(host, f"/proc/{tid}/cwd" if begins == _AT_FDCWD else f"/proc/{tid}/fd/{begins}")
    return None if base is None else os.path.join(base, path)


def _signed(number: int) -> int:
    number &= 0xFFFFFFFF
    return number - (1 << 32) if number >> 31 else number


def _memory_text(file: str, address: int) -> str | None:
    """A text in a task's memory. To read it takes a lock that another thread may hold for ever."""
    found: list[bytes] = []

    def read() -> None:
        try:
            descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return
        try:
            found.append(os.pread(descriptor, _PATH_BYTES, address))
        except (OSError, OverflowError):
            pass
        finally:
            os.close(descriptor)

    reader = threading.Thread(target=read, name="path", daemon=True)
    reader.start()
    reader.join(_PATIENCE_SECONDS)
    text = found[0].partition(b"\0") if found else (b"", b"", b"")
    return decode(text[0]) if text[0] and text[1] else None


def under(mounts: Iterable[Mount], path: str) -> Mount | None:
    """The mount that a path lies on, by its text; of several at one place the last."""
    path = os.path.normpath(path)
    best: Mount | None = None
    for mount in mounts:
        top = mount.mountpoint.rstrip("/")
        longer = best is None or len(top) >= len(best.mountpoint.rstrip("/"))
        if longer and (path == top or path.startswith(top + "/")):
            best = mount
    return best


def _real(mount: Mount, ours: tuple[Mount, ...]) -> Mount:
    """An overlay is not what is frozen: that is where its upper layer lies."""
    upper = mount.option("upperdir") if mount.fstype == "overlay" else None
    found = None if upper is None else under(ours, upper.replace("\\", ""))
    return mount if found is None else found


def _only(theirs: Iterable[Mount], ours: tuple[Mount, ...], kind: Kind) -> Mount | None:
    """The one file system of the task that it can be, if there is but one."""
    real = (_real(mount, ours) for mount in theirs)
    found = {mount.device: mount for mount in real if _can_be(mount, kind)}
    return next(iter(found.values())) if len(found) == 1 else None


def _ours(mount: Mount, ours: Iterable[Mount]) -> str | None:
    """Where the host has it: its whole tree, if it is mounted so, at the shortest path."""
    same = [m for m in ours if m.device == mount.device]
    best = min(same, key=lambda m: (m.root != "/", len(m.mountpoint)), default=None)
    return None if best is None else best.mountpoint
