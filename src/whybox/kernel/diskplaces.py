"""Where a container writes to disks: its writable layer, its log, and every disk mounted into it.

Known from the kernel alone. A mount is opened by its path below ``/proc/PID/root`` without leaving
that root; the layer by the upper directory in the overlay's options; the log by where engines keep
it, which mounts such as ``/etc/hostname`` and the layer's own path give away.
"""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from glob import escape, glob

from msgspec import Struct, structs

from whybox.kernel import reading
from whybox.kernel.diskroom import Project, Room, project, room
from whybox.kernel.host import Host, printable
from whybox.kernel.mountinfo import Mount, mounts, root_mount
from whybox.kernel.overlay import Overlay, obstacle, overlays
from whybox.kernel.statx import open_in_root
from whybox.kernel.target import Target
from whybox.kernel.tmpfs import reached_without_waiting

#: So many mounts of a container are looked at.
MOST_MOUNTS = 64
MOST_TOLD = 8
DISKS = reading.DISKS | {"zfs", "vfat", "exfat", "ntfs3", "jfs", "nilfs2"}
#: Asking these may take for ever.
WAITING = ("fuse", "nfs", "cifs", "smb3", "ceph", "glusterfs", "afs")

_ID = re.compile(r"[0-9a-f]{64}")
_EMPTY_DIR = re.compile(r"/pods/[^/]+/volumes/kubernetes\.io~empty-dir/([^/]+)")
_CLAIM = re.compile(r"/pods/[^/]+/volumes?/kubernetes\.io~[^/]+/([^/]+)")
_VOLUME = re.compile(r"/volumes/([^/]+)/_data(/|$)")
_POD = re.compile(r"/pods/(?P<uid>[0-9a-f-]{36})/containers/(?P<name>[a-z0-9.-]+)/")
#: What engines mount into a container from the directory that they keep for it.
_ENGINES_FILES = ("/etc/hostname", "/etc/hosts", "/etc/resolv.conf", "/dev/termination-log")


class Kind(StrEnum):
    """What a place is to the container."""

    LAYER = "writable layer"
    LOG = "log"
    VOLUME = "volume"
    EMPTY_DIR = "emptyDir"
    DIRECTORY = "directory of the host"
    HOST = "the host's own files"


_KINDS = ((Kind.EMPTY_DIR, _EMPTY_DIR), (Kind.VOLUME, _CLAIM), (Kind.VOLUME, _VOLUME))


class Place(Struct, frozen=True, kw_only=True):
    """One of them."""

    kind: Kind
    name: str
    """What its engine calls it, or whence it comes; harmless to print, as ``mountpoint``."""
    mountpoint: str
    """As the container has it; of a log, as the host has it."""
    root: str
    path: str
    """By which it is opened from here, within that root; hostile. An empty path: it cannot be."""
    device: str
    """``MAJOR:MINOR`` of the file system beneath."""
    inode: int
    mounted: str
    """The device that the mount has, which is another one where an overlay lies between."""
    mount_id: int | None
    fstype: str
    """Of the file system beneath, empty where that is not known."""
    options: tuple[str, ...]
    room: Room
    project: Project | None = None
    whole: bool = False
    """Whether it is the whole file system, or the whole project: all that is taken lies in it."""


class Places(Struct, frozen=True, kw_only=True):
    """All of a container's."""

    places: tuple[Place, ...]
    """The writable layer first."""
    unseen: tuple[str, ...]
    """Mounts that were not looked at, with their kind: a network or FUSE may never answer."""
    root: tuple[str, bool] | None = None
    """The kind of its root file system, and whether it can be written."""


def of(host: Host, target: Target) -> Places:
    """Every place of a container. Raises OSError when it is gone."""
    if target.init is None:
        raise OSError("it is not running")
    pid = "self" if target.runtime == "self" else str(target.init.pid)
    seen, ours = mounts(host, pid), mounts(host, "self")
    writable = _writable(seen)
    found = [*_mounted(host, pid, writable, ours), *_logs(host, target, seen, ours)]
    first: dict[tuple[str, int], Place] = {}
    for one in found:
        first.setdefault((one.device, one.inode), one)
    top = root_mount(seen)
    return Places(
        root=None if top is None else (printable(top.fstype), not _is_read_only(top)),
        places=tuple(sorted(first.values(), key=lambda one: one.kind is not Kind.LAYER)),
        unseen=tuple(
            f"{printable(mount.mountpoint)} ({printable(mount.fstype)})"
            for mount in seen
            if mount.fstype.startswith(WAITING) and "ro" not in mount.options
        )[:MOST_TOLD],
    )


def opened(place: Place) -> int:
    """A descriptor for its path alone. Raises OSError."""
    if not place.path:
        raise OSError("it cannot be seen from here")
    if place.root:
        return open_in_root(place.root, place.path, os.O_PATH)
    return os.open(place.path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)


def _writable(seen: Sequence[Mount]) -> list[Mount]:
    known = {mount.mount_id: mount for mount in seen}
    top = {mount.mountpoint: mount for mount in seen}
    found = [
        mount
        for mount in seen
        if mount.fstype in DISKS
        and mount.mountpoint not in _ENGINES_FILES  # small, and its engine's to write
        and not _is_read_only(mount)
        and top[mount.mountpoint] is mount
        and reached_without_waiting(mount, known)
    ]
    return found[:MOST_MOUNTS]


def _is_read_only(mount: Mount) -> bool:
    return "ro" in (*mount.options, *mount.super_options)


def _mounted(
    host: Host, pid: str, writable: Sequence[Mount], ours: Sequence[Mount]
) -> Iterator[Place]:
    layers = {one.mountpoint: one for one in overlays(writable)}
    root = host.path(f"/proc/{pid}/root")
    for mount in writable:
        try:
            descriptor = open_in_root(root, mount.mountpoint, os.O_PATH)
        except OSError:
            continue
        try:
            overlay = layers.get(mount.mountpoint)
            if not _is_there(mount, descriptor):
                continue
            if mount.fstype != "overlay":
                yield _disk(host, root, mount, descriptor, ours)
            elif overlay is not None:
                yield _layer(host, mount, overlay, descriptor, ours)
        except OSError:
            continue  # it was taken away meanwhile
        finally:
            os.close(descriptor)


def _is_there(mount: Mount, descriptor: int) -> bool:
    """Whether that mount was opened, and nothing that was put in its place."""
    # A part of btrfs has a device of its own, and so have files of some overlays.
    return mount.fstype in ("btrfs", "overlay") or mount.device == _name(
        os.fstat(descriptor).st_dev
    )


def _disk(host: Host, root: str, mount: Mount, descriptor: int, ours: Sequence[Mount]) -> Place:
    kind, name = meaning(mount, root_mount(tuple(ours)))
    said, there = room(os.fstatvfs(descriptor)), os.fstat(descriptor)
    return Place(
        kind=kind,
        name=printable(name),
        mountpoint=printable(mount.mountpoint),
        root=root,
        path=mount.mountpoint,
        device=_name(there.st_dev),
        inode=there.st_ino,
        mounted=mount.device,
        mount_id=mount.mount_id,
        fstype=mount.fstype,
        options=mount.super_options,
        room=said,
        project=(quota := project(host, descriptor, said.size_bytes)),
        whole=quota is not None or mount.root == "/",
    )


def _layer(
    host: Host, mount: Mount, overlay: Overlay, descriptor: int, ours: Sequence[Mount]
) -> Place:
    """Its room is the container's own ``df``: an overlay answers for its upper directory."""
    said = room(os.fstatvfs(descriptor))
    place = Place(
        kind=Kind.LAYER,
        name="",
        mountpoint=printable(mount.mountpoint),
        root="",
        path="",
        device=mount.device,
        inode=os.fstat(descriptor).st_ino,
        mounted=mount.device,
        mount_id=mount.mount_id,
        fstype="",
        options=(),
        room=said,
    )
    if obstacle(host, overlay, marks=False) is not None:
        return place
    upper = host.path(overlay.upperdir)
    top = os.open(upper, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        there = os.fstat(top)
        if room(os.fstatvfs(top)).size_bytes != said.size_bytes:
            return place  # another directory of that name: its mount namespace has another
        beneath = on_device(ours, _name(there.st_dev))
        quota = project(host, top, said.size_bytes)
        return structs.replace(
            place,
            path=upper,
            device=_name(there.st_dev),
            inode=there.st_ino,
            fstype="" if beneath is None else beneath.fstype,
            options=() if beneath is None else beneath.super_options,
            project=quota,
            whole=quota is not None,
        )
    finally:
        os.close(top)


def meaning(mount: Mount, hosts: Mount | None) -> tuple[Kind, str]:
    """What a mounted directory is, by where it lies; ``hosts`` is the host's root.

    >>> base = dict(mount_id=1, parent_id=0, device="8:1", mountpoint="/data", options=("rw",),
    ...             fstype="ext4", source="/dev/sda1", super_options=())
    >>> meaning(Mount(root="/var/lib/docker/volumes/db/_data", **base), None)
    (<Kind.VOLUME: 'volume'>, 'db')
    >>> meaning(Mount(root="/k/pods/4f/volumes/kubernetes.io~empty-dir/cache", **base), None)
    (<Kind.EMPTY_DIR: 'emptyDir'>, 'cache')
    >>> meaning(Mount(root="/srv/db", **base), None)
    (<Kind.DIRECTORY: 'directory of the host'>, '/srv/db')
    """
    for kind, pattern in _KINDS:
        if match := pattern.search(mount.root):
            return kind, match[1]
    if mount.root != "/":
        return Kind.DIRECTORY, mount.root
    if hosts is not None and hosts.device == mount.device:
        return Kind.HOST, mount.source
    return Kind.VOLUME, mount.source


def _logs(
    host: Host, target: Target, seen: Sequence[Mount], ours: Sequence[Mount]
) -> Iterator[Place]:
    """The directories in which its engine keeps what it says."""
    if target.runtime == "self":
        return
    for path in dict.fromkeys(_log_paths(host, target, seen, ours)):
        try:
            top = os.open(host.path(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            said, there = room(os.fstatvfs(top)), os.fstat(top)
        finally:
            os.close(top)
        yield _hosts(host, Kind.LOG, path, there, said, on_device(ours, _name(there.st_dev)))


def directory(host: Host, mount: Mount, said: Room) -> Place | None:
    """The top of a mount of ours, as a place of the host's."""
    try:
        there = os.stat(host.path(mount.mountpoint))
    except OSError:
        return None
    return _hosts(host, Kind.HOST, mount.mountpoint, there, said, mount)


def _hosts(
    host: Host, kind: Kind, path: str, there: os.stat_result, said: Room, beneath: Mount | None
) -> Place:
    """A directory of the host's."""
    return Place(
        kind=kind,
        name="",
        mountpoint=printable(path),
        root="",
        path=host.path(path),
        device=_name(there.st_dev),
        inode=there.st_ino,
        mounted=_name(there.st_dev),
        mount_id=None,
        fstype="" if beneath is None else beneath.fstype,
        options=() if beneath is None else beneath.super_options,
        room=said,
    )


def _log_paths(
    host: Host, target: Target, seen: Sequence[Mount], ours: Sequence[Mount]
) -> Iterator[str]:
    for mount in seen:
        if mount.mountpoint not in _ENGINES_FILES:
            continue
        if pod := _POD.search(mount.root):
            pattern = f"/var/log/pods/*_{escape(pod['uid'])}/{escape(pod['name'])}"
            for path in glob(host.path(pattern)):
                yield path.removeprefix(host.root)
    if not _ID.fullmatch(target.id):
        return
    for mount in seen:
        directory = os.path.dirname(mount.root)
        if mount.mountpoint in _ENGINES_FILES and directory.endswith(f"/containers/{target.id}"):
            there = on_device(ours, mount.device, directory)
            if there is not None:
                below = os.path.relpath(directory, there.root)
                yield os.path.normpath(os.path.join(there.mountpoint, below))
    for overlay in overlays(seen):
        # /var/lib/docker/overlay2/LAYER/diff; /var/lib/containers/storage/overlay/LAYER/diff
        store = os.path.dirname(os.path.dirname(os.path.dirname(overlay.upperdir)))
        yield f"{store}/containers/{target.id}"
        yield f"{store}/overlay-containers/{target.id}/userdata"


def on_device(ours: Iterable[Mount], device: str, below: str = "/") -> Mount | None:
    """A mount of ours that shows a directory of a file system, the widest there is."""
    fit = [
        mount
        for mount in ours
        if mount.device == device and f"{below}/".startswith(f"{mount.root.rstrip('/')}/")
    ]
    if not fit and below == "/":
        fit = [mount for mount in ours if mount.device == device]
    return min(fit, key=lambda mount: len(mount.root), default=None)


def _name(device: int) -> str:
    return f"{os.major(device)}:{os.minor(device)}"
