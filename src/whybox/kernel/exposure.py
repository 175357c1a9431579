"""What of the host a container can reach: bind mounts by the host's own paths, device nodes.

``mountinfo`` shows a bind mount as a device and a directory of its file system, not as a path. The
path comes from the reader's own mounts: the one of the same device whose root lies above it.
"""

import itertools
import os
import stat
from collections.abc import Iterable, Iterator

from msgspec import Struct

from whybox.kernel.host import ROOT_HOME, Host, printable
from whybox.kernel.mountinfo import Mount, mounts
from whybox.kernel.statx import open_beneath

MOST_MOUNTS = 512
MOST_DEVICES = 64

#: Whoever may connect to one of these can start a container with the host's root in it.
SOCKETS = (
    "/run/docker.sock",
    "/run/containerd/containerd.sock",
    "/run/crio/crio.sock",
    "/run/podman/podman.sock",
    "/run/cri-dockerd.sock",
    "/run/k3s/containerd/containerd.sock",
    "/var/run/docker.sock",
)
_SOCKET_NAMES = frozenset(path.rsplit("/", 1)[1] for path in SOCKETS)

#: Whole, these are the host or all its containers; one volume, log or file below them is not.
_WHOLE = frozenset(
    {
        "/",
        "/dev",
        "/etc",
        "/home",
        "/proc",
        "/root",
        "/run",
        "/sys",
        "/usr",
        "/var",
        "/var/lib",
        "/var/lib/containerd",
        "/var/lib/containers",
        "/var/lib/docker",
        "/var/lib/kubelet",
        "/var/run",
    }
)
#: Whoever writes here, or below, decides what runs on the host, or who may log in.
_RULING = (
    "/bin",
    "/boot",
    "/etc/cron.d",
    "/etc/crontab",
    "/etc/init.d",
    "/etc/kubernetes",
    "/etc/ld.so.preload",
    "/etc/pam.d",
    "/etc/passwd",
    "/etc/profile.d",
    "/etc/shadow",
    "/etc/ssh",
    "/etc/sudoers",
    "/etc/sudoers.d",
    "/etc/systemd",
    "/etc/udev",
    "/lib",
    "/lib64",
    f"{ROOT_HOME}/.ssh",
    "/sbin",
    "/usr/bin",
    "/usr/lib",
    "/usr/sbin",
    "/var/spool/cron",
)

#: All of memory, and the ports: /dev/mem, /dev/kmem, /dev/port (admin-guide/devices.txt).
_MEMORY = frozenset({os.makedev(1, 1), os.makedev(1, 2), os.makedev(1, 4)})

#: null, zero, full, random, urandom, tty, console, ptmx: engines put them into every container.
_EVERYBODYS = frozenset({"1:3", "1:5", "1:7", "1:8", "1:9", "5:0", "5:1", "5:2"})


class Shown(Struct, frozen=True, kw_only=True):
    """One mount of the container."""

    mountpoint: str
    fstype: str
    writable: bool
    host_path: str | None
    """What the host calls that directory; ``None``: nothing of the host's own tree."""
    socket: str | None = None
    """The engine's socket that is in it."""


def shown(host: Host, seen: Iterable[Mount], *, from_outside: bool) -> tuple[Shown, ...]:
    """The mounts of a container; ``from_outside``: the reader's own mounts are the host's."""
    own = mounts(host, "self") if from_outside else ()
    return tuple(_shown(host, mount, own) for mount in tuple(seen)[:MOST_MOUNTS])


def _shown(host: Host, mount: Mount, own: tuple[Mount, ...]) -> Shown:
    host_path = path_on(own, mount)
    names = {path.rsplit("/", 1)[1] for path in (mount.root, mount.mountpoint) if "/" in path}
    named = not names.isdisjoint(_SOCKET_NAMES)
    return Shown(
        mountpoint=mount.mountpoint,
        fstype=mount.fstype,
        writable="rw" in mount.options and "ro" not in mount.super_options,
        host_path=host_path,
        socket=(host_path or mount.root) if named else _socket_in(host, mount, host_path, own),
    )


def is_the_host(path: str) -> bool:
    """Whether who may write to this path of the host rules the host.

    >>> is_the_host("/etc"), is_the_host("/etc/systemd/system"), is_the_host("/etc/letsencrypt")
    (True, True, False)
    """
    return path in _WHOLE or any(_is_below(path, top) for top in _RULING)


def path_on(own: Iterable[Mount], mount: Mount) -> str | None:
    """What a mount's directory is called where the mounts ``own`` are."""
    above = [m for m in own if m.device == mount.device and _is_below(mount.root, m.root)]
    if not above:
        return None
    nearest = max(above, key=lambda m: (len(m.root), -len(m.mountpoint)))
    rest = mount.root.removeprefix(nearest.root.rstrip("/"))
    return nearest.mountpoint.rstrip("/") + rest.rstrip("/") or "/"


def _is_below(path: str, top: str) -> bool:
    return top == "/" or path == top or path.startswith(top + "/")


def _socket_in(
    host: Host, mount: Mount, host_path: str | None, own: tuple[Mount, ...]
) -> str | None:
    """An engine's socket in a mounted directory: a read-only mount keeps nobody from it."""
    if host_path is None:
        return None
    for path in SOCKETS:
        inside = path.startswith(host_path.rstrip("/") + "/")
        # A bind mount need not show what is mounted below the directory.
        if inside and _device_of(own, path) == mount.device and host.exists(path):
            return path
    return None


def _device_of(own: Iterable[Mount], path: str) -> str | None:
    above = [m for m in own if _is_below(path, m.mountpoint)]
    return max(above, key=lambda m: len(m.mountpoint)).device if above else None


def devices(host: Host, pid: int | str, seen: tuple[Mount, ...]) -> tuple[str, ...] | None:
    """The disks, and the machine's memory, among the nodes of the container's ``/dev``.

    ``None`` where it cannot be looked at: not permitted, or on a file system that may hang.
    """
    way = [m.fstype for m in seen if m.mountpoint in ("/", "/dev")]
    if any(fstype.startswith("fuse") for fstype in way):
        return None
    try:
        return _devices(host.path(f"/proc/{pid}/root"))
    except OSError:
        return None


def _devices(root: str) -> tuple[str, ...]:
    top = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        directory = open_beneath(top, "dev", os.O_RDONLY | os.O_DIRECTORY, into_mounts=True)
    finally:
        os.close(top)
    try:
        with os.scandir(directory) as entries:
            found = sorted(entry.name for entry in entries if _is_dangerous(entry))
    finally:
        os.close(directory)
    return tuple(printable(name) for name in found[:MOST_DEVICES])


class Node(Struct, frozen=True, kw_only=True):
    """A device node of the container's ``/dev``."""

    name: str
    """Below ``/dev``, harmless to print."""
    device: str
    """``MAJOR:MINOR``."""
    block: bool


def nodes(host: Host, pid: int, seen: tuple[Mount, ...]) -> tuple[Node, ...] | None:
    """The device nodes directly in ``/dev``, but for those that every container has.

    ``None`` where it cannot be looked at.
    """
    way = [m.fstype for m in seen if m.mountpoint in ("/", "/dev")]
    if any(fstype.startswith("fuse") for fstype in way):
        return None
    try:
        top = os.open(host.path(f"/proc/{pid}/root"), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            flags = os.O_RDONLY | os.O_DIRECTORY
            directory = open_beneath(top, "dev", flags, into_mounts=True)
        finally:
            os.close(top)
        try:
            with os.scandir(directory) as entries:
                return tuple(_nodes(entries))
        finally:
            os.close(directory)
    except OSError:
        return None


def _nodes(entries: Iterable["os.DirEntry[str]"]) -> Iterator[Node]:
    for entry in itertools.islice(entries, MOST_MOUNTS):
        try:
            seen = entry.stat(follow_symlinks=False)
        except OSError:
            continue
        block = stat.S_ISBLK(seen.st_mode)
        number = f"{os.major(seen.st_rdev)}:{os.minor(seen.st_rdev)}"
        if block or (stat.S_ISCHR(seen.st_mode) and number not in _EVERYBODYS):
            yield Node(name=printable(entry.name), device=number, block=block)


def _is_dangerous(entry: "os.DirEntry[str]") -> bool:
    try:
        node = entry.stat(follow_symlinks=False)
    except OSError:
        return False
    memory = stat.S_ISCHR(node.st_mode) and node.st_rdev in _MEMORY
    return memory or stat.S_ISBLK(node.st_mode)
