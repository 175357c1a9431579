"""The file system of a box: an overlay whose lower layer is the host's own, seen and not touched.

    base/layer     the image layer: what ``lower_file`` puts there
    base/upper     what the box writes, on disk as with an engine
    base/volumes   what is bind mounted into it
    base/root      where all that is mounted, in the mount namespace of PID 1 alone

An overlay refuses a layer that lies inside another lower one (ELOOP, measured), and ``base`` lies
inside ``/``. So where there is an image layer, the host's tree comes through an overlay of its own.
"""

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress

from msgspec import Struct

from whybox.kernel.host import Host
from whybox.kernel.libc import (
    MNT_DETACH,
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    mount,
    pivot_root,
    umount2,
)
from whybox.kernel.mountinfo import mounts
from whybox.lab.groups import Groups, abandoned

#: What programs and shells need, where it is not on the host's root file system or where an
#: overlay over that is refused.
SYSTEM = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/usr", "/etc", "/opt", "/nix")
#: Directories that the box must not share with the host, not even to look at.
HIDDEN = {"/tmp": 0o1777, "/var/tmp": 0o1777, "/run": 0o755}
MOUNT_POINTS = ("/proc", "/sys", "/dev")
#: Engines mount these read-only: they are the machine's, not the container's.
READ_ONLY_PROC = ("sys", "sysrq-trigger", "irq", "bus", "fs")
DEVICES = {"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9}
SHM_BYTES = 64 << 20

_PIECE = 1 << 20
#: File systems on which an upper layer would be no example, or is refused.
_UNFIT = (None, "tmpfs", "overlay")
_HARMLESS = MS_NOSUID | MS_NODEV | MS_NOEXEC


class LowerFile(Struct, frozen=True, kw_only=True):
    """A file of the image."""

    path: str
    bytes: int
    mode: int


class Owner(Struct, frozen=True, kw_only=True):
    """Whom the box's own files belong to, by the host's numbers."""

    uid: int
    gid: int


def disk() -> str:
    """A directory for what boxes write: on a disk, since an upper layer in memory is no example."""
    wanted = [os.environ.get("TMPDIR") or "/var/tmp", "/var/tmp", tempfile.gettempdir()]
    return next((path for path in wanted if _fstype(path) not in _UNFIT), wanted[0])


def _fstype(path: str) -> str | None:
    try:
        device = os.stat(path).st_dev
    except OSError:
        return None
    name = f"{os.major(device)}:{os.minor(device)}"
    return next((m.fstype for m in mounts(Host(), "self") if m.device == name), "")


def sweep() -> None:
    """Remove the directories of dead lab processes."""
    base = disk()
    for name in filter(abandoned, os.listdir(base)):
        shutil.rmtree(f"{base}/{name}", ignore_errors=True)


class Rootfs:
    """The directories of one box, and the mounts that its PID 1 makes of them."""

    def __init__(
        self,
        name: str,
        files: Iterable[LowerFile],
        volumes: Mapping[str, str | None],
        shm_bytes: int = SHM_BYTES,
        *,
        place: str | None = None,
        options: tuple[str, ...] = (),
    ) -> None:
        self.base = f"{place or disk()}/whybox-{name}"
        self._files = tuple(files)
        self._volumes = {os.path.normpath(path): source for path, source in volumes.items()}
        """Each with the host's directory that it is, where that is not one of ``base/volumes``."""
        self._shm_bytes = shm_bytes
        self._options = options
        """Of the overlay that is its root."""

    @property
    def root(self) -> str:
        """Where the box's root is before it becomes the root."""
        return f"{self.base}/root"

    def create(self, owner: Owner) -> None:
        """Make the directories and the files of the image, on the host."""
        # A user namespace's root must pass, and only pass.
        _make_directory(self.base, 0o711)
        for name in ("layer", "upper", "work", "host", "host-upper", "host-work", "root"):
            _make_directory(f"{self.base}/{name}")
        for path, mode in HIDDEN.items():
            self._make_parents(f"{self.base}/upper", path, owner)
            _make_directory(f"{self.base}/upper{path}", mode)
            os.setxattr(f"{self.base}/upper{path}", "trusted.overlay.opaque", b"y")
        for path in MOUNT_POINTS:
            _make_directory(f"{self.base}/upper{path}")
        for number, path in enumerate(self._volumes):
            self._create_volume(number, path, owner)
        for file in self._files:
            self._create_file(file, owner)

    def remove(self) -> list[str]:
        """Remove the directories; the one that could not be removed."""
        try:
            shutil.rmtree(self.base)
        except FileNotFoundError:
            pass
        except OSError as error:
            return [f"{self.base} ({error.strerror})"]
        return []

    def mount(self) -> None:
        """Put the box's root together. Runs in its PID 1, which still has the host's rights."""
        mount(None, "/", None, MS_REC | MS_PRIVATE)
        self._mount_layers()
        for number, (path, source) in enumerate(self._volumes.items()):
            mount(source or f"{self.base}/volumes/{number}", self.root + path, None, MS_BIND)
        _mount_devices(f"{self.root}/dev", self._shm_bytes)
        _mount_proc(f"{self.root}/proc")

    def enter(self, groups: Groups) -> None:
        """Make it the root. Runs in PID 1 once it has all its namespaces."""
        # After unshare(CLONE_NEWUSER | CLONE_NEWNS) the mounts are locked, and a locked mount may
        # not become the root (pivot_root(2)); a bind of it may.
        mount(self.root, self.root, None, MS_BIND | MS_REC)
        os.chdir(self.root)
        _mount_sys("sys", groups)
        pivot_root(".", ".")
        umount2(".", MNT_DETACH)
        os.chdir("/")

    def _mount_layers(self) -> None:
        elsewhere = [path for path in SYSTEM if _on_other_device(path)]
        try:
            self._overlay("root", self._lower(), "upper", "work", *self._options)
        except OSError:
            # The root is on something that cannot be a lower layer: then the layer is an image
            # without programs, and they come from the host directory by directory.
            layer = _quoted(f"{self.base}/layer")
            self._overlay("root", layer, "upper", "work", *self._options)
            elsewhere = [path for path in SYSTEM if os.path.isdir(path)]
        for path in elsewhere:
            _show(path, self.root + path)

    def _lower(self) -> str:
        if not self._files:
            return "/"
        self._overlay("host", "/", "host-upper", "host-work")
        return f"{_quoted(self.base + '/layer')}:{_quoted(self.base + '/host')}"

    def _overlay(self, target: str, lower: str, upper: str, work: str, *more: str) -> None:
        upper, work = _quoted(f"{self.base}/{upper}"), _quoted(f"{self.base}/{work}")
        options = ",".join((f"lowerdir={lower},upperdir={upper},workdir={work}", *more))
        mount("overlay", f"{self.base}/{target}", "overlay", 0, options)

    def _create_volume(self, number: int, path: str, owner: Owner) -> None:
        directory = f"{self.base}/volumes/{number}"
        os.makedirs(os.path.dirname(directory), exist_ok=True)
        _make_directory(directory, owner=owner)
        self._make_parents(f"{self.base}/upper", f"{path}/x", owner)

    def _create_file(self, file: LowerFile, owner: Owner) -> None:
        path = os.path.normpath(file.path)
        top, below = f"{self.base}/layer", path
        for number, volume in enumerate(self._volumes):
            if path.startswith(f"{volume}/"):
                top, below = f"{self.base}/volumes/{number}", path.removeprefix(volume)
        self._make_parents(top, below, owner)
        _fill(top + below, file.bytes)
        os.chmod(top + below, file.mode)
        os.chown(top + below, owner.uid, owner.gid)

    def _make_parents(self, top: str, path: str, owner: Owner) -> None:
        """The directories above ``path``: as the host has them, or else the program's own."""
        made = ""
        for name in path.split("/")[1:-1]:
            made += f"/{name}"
            if os.path.isdir(top + made):
                continue
            known = os.stat(made) if os.path.isdir(made) else None
            if known is None:
                _make_directory(top + made, owner=owner)
            else:
                theirs = Owner(uid=known.st_uid, gid=known.st_gid)
                _make_directory(top + made, stat.S_IMODE(known.st_mode), theirs)


def _make_directory(path: str, mode: int = 0o755, owner: Owner | None = None) -> None:
    os.mkdir(path)
    os.chmod(path, mode)  # whatever our umask is
    if owner is not None:
        os.chown(path, owner.uid, owner.gid)


def _fill(path: str, size: int) -> None:
    """A file of real blocks: copying up leaves holes out (ovl_copy_up_file())."""
    piece = os.urandom(min(size, _PIECE))
    with open(path, "wb") as file:
        for _ in range(size // _PIECE):
            file.write(piece)
        file.write(piece[: size % _PIECE])
        if size >= _PIECE:
            # What is written back later would disturb what is measured.
            file.flush()
            os.fsync(file.fileno())


def _quoted(path: str) -> str:
    """A path in the options of an overlay, where colons and commas part things."""
    for sign in "\\:,":
        path = path.replace(sign, f"\\{sign}")
    return path


def _on_other_device(path: str) -> bool:
    """Whether an overlay over ``/`` would not show it: it shows one file system, no mounts."""
    try:
        return not os.path.islink(path) and os.stat(path).st_dev != os.stat("/").st_dev
    except OSError:
        return False


def _show(path: str, target: str) -> None:
    """The host's directory or link, read-only."""
    if os.path.islink(path):
        os.symlink(os.readlink(path), target)
        return
    os.makedirs(target, exist_ok=True)
    mount(path, target, None, MS_BIND)
    _make_read_only(target)


def _make_read_only(target: str, flags: int = 0) -> None:
    mount(None, target, None, MS_REMOUNT | MS_BIND | MS_RDONLY | flags)


def _mount_devices(directory: str, shm_bytes: int) -> None:
    mount("tmpfs", directory, "tmpfs", MS_NOSUID, "mode=755,size=65536k")
    for name, minor in DEVICES.items():
        os.mknod(f"{directory}/{name}", stat.S_IFCHR | 0o666, os.makedev(1, minor))
    os.mknod(f"{directory}/tty", stat.S_IFCHR | 0o666, os.makedev(5, 0))
    for name, target in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        os.symlink(f"/proc/self/fd{target}", f"{directory}/{name}")
    os.mkdir(f"{directory}/shm")
    mount("shm", f"{directory}/shm", "tmpfs", _HARMLESS, f"mode=1777,size={shm_bytes}")


def _mount_proc(directory: str) -> None:
    mount("proc", directory, "proc", _HARMLESS)
    for name in READ_ONLY_PROC:
        with suppress(FileNotFoundError):
            mount(f"{directory}/{name}", f"{directory}/{name}", None, MS_BIND)
            _make_read_only(f"{directory}/{name}", _HARMLESS)


def _mount_sys(directory: str, groups: Groups) -> None:
    try:
        mount("sysfs", directory, "sysfs", _HARMLESS | MS_RDONLY)
    except OSError as error:
        # In a user namespace only where the host's own is in full view (mount_too_revealing()).
        if error.errno != errno.EPERM:
            raise
        return
    if groups.version == 2:
        mount("cgroup2", f"{directory}/fs/cgroup", "cgroup2", _HARMLESS | MS_RDONLY)
        return
    mount("tmpfs", f"{directory}/fs/cgroup", "tmpfs", _HARMLESS, "mode=755")
    for name, group in groups.directories.items():
        os.mkdir(f"{directory}/fs/cgroup/{name}")
        mount(group, f"{directory}/fs/cgroup/{name}", None, MS_BIND)
        _make_read_only(f"{directory}/fs/cgroup/{name}", _HARMLESS)
    mount(None, f"{directory}/fs/cgroup", None, MS_REMOUNT | MS_RDONLY | _HARMLESS, "mode=755")
