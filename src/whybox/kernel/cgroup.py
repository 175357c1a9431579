"""Control groups: where each controller's files of a task are, on v1, v2 and hybrid machines.

A task's place, ``/proc/PID/cgroup``, one line a hierarchy:

>>> membership("4:memory:/pod/x\\n2:cpu,cpuacct:/docker/x\\n0::/docker/x\\n")
{'memory': '/pod/x', 'cpu': '/docker/x', 'cpuacct': '/docker/x', '': '/docker/x'}

The paths differ between controllers (measured: cpu ``/docker/ID``, memory ``/PARENT/docker/ID``),
so no path is ever joined to another hierarchy than its own. The empty name is the unified (v2)
tree.
"""

import errno
from collections.abc import Iterator, Mapping

from msgspec import Struct

from whybox.kernel.host import Host, ParseError
from whybox.kernel.mountinfo import Mount, mounts

#: The key of the unified hierarchy in a membership, as ``/proc/PID/cgroup`` leaves it empty.
UNIFIED = ""


class Hierarchy(Struct, frozen=True, kw_only=True):
    """One mounted cgroup tree."""

    version: int
    """1 or 2."""
    controllers: tuple[str, ...]
    """v1: the controllers mounted here. v2: the unified name."""
    mountpoint: str
    root: str
    """The cgroup that the mount point shows: ``/``, or less inside a container."""


class Group(Struct, frozen=True, kw_only=True):
    """One control group as one controller sees it."""

    controller: str
    version: int
    path: str
    """The path in its hierarchy, as ``/proc/PID/cgroup`` prints it."""
    directory: str
    """Where its files are."""
    top: str
    """The directory beyond which no ancestor can be seen."""

    def file(self, name: str) -> str:
        """The path of one of its files."""
        return f"{self.directory}/{name}"

    def parent(self) -> "Group | None":
        """The group that holds this one, or ``None`` at the top of what can be seen."""
        if self.directory == self.top:
            return None
        directory, _, name = self.directory.rpartition("/")
        path = self.path.removesuffix("/" + name) or "/"
        return Group(
            controller=self.controller,
            version=self.version,
            path=path,
            directory=directory,
            top=self.top,
        )

    def lineage(self) -> Iterator["Group"]:
        """This group, then every ancestor up to the top."""
        group: Group | None = self
        while group is not None:
            yield group
            group = group.parent()


def membership(text: str) -> dict[str, str]:
    """Parse ``/proc/PID/cgroup``: the path of each controller, the unified tree under ``""``."""
    paths: dict[str, str] = {}
    for line in text.splitlines():
        parts = line.split(":", 2)
        if len(parts) != 3:
            raise ParseError("/proc/PID/cgroup", line)
        for controller in parts[1].split(","):
            paths[controller] = parts[2]
    return paths


def membership_of(host: Host, pid: int | str) -> dict[str, str]:
    """The control groups of a task."""
    return membership(host.text(f"/proc/{pid}/cgroup"))


def hierarchies(host: Host) -> tuple[Hierarchy, ...]:
    """The cgroup trees mounted where we run; of several mounts of one, the one that shows most."""
    return host.remembered("cgroup.hierarchies", lambda: _hierarchies(host))


def _hierarchies(host: Host) -> tuple[Hierarchy, ...]:
    best: dict[tuple[str, ...], Hierarchy] = {}
    for mount in mounts(host, "self"):
        if mount.fstype not in ("cgroup", "cgroup2"):
            continue
        found = _hierarchy(mount)
        known = best.get(found.controllers)
        if known is None or len(found.root) < len(known.root):
            best[found.controllers] = found
    return tuple(best.values())


def _hierarchy(mount: Mount) -> Hierarchy:
    version = 2 if mount.fstype == "cgroup2" else 1
    # The superblock options of a v1 mount name its controllers among flags such as ``rw``.
    named = tuple(o for o in mount.super_options if o not in ("rw", "ro") and not _is_flag(o))
    return Hierarchy(
        version=version,
        controllers=(UNIFIED,) if version == 2 else named,
        mountpoint=mount.mountpoint,
        root=mount.root,
    )


def _is_flag(option: str) -> bool:
    flags = ("xattr", "clone_children", "noprefix", "cpuset_v2_mode", "favordynmods", "seclabel")
    return option in flags or option.startswith("release_agent=")


def group(host: Host, paths: Mapping[str, str], controller: str) -> Group | None:
    """Where ``controller`` keeps the files of a task with these paths, if that can be seen.

    A controller is either in its v1 tree or in the unified one, never in both
    (Documentation/admin-guide/cgroup-v2.rst, "Mounting").
    """
    trees = {name: tree for tree in hierarchies(host) for name in tree.controllers}
    for name in (controller, UNIFIED):
        if name in trees and name in paths:
            return _located(trees[name], controller, paths[name])
    return None


def unified(host: Host, paths: Mapping[str, str]) -> Group | None:
    """The group in the v2 tree: pressure lives there on hybrid machines too."""
    return group(host, paths, UNIFIED)


def _located(tree: Hierarchy, controller: str, path: str) -> Group | None:
    root = tree.root.rstrip("/")
    if root and path != root and not path.startswith(root + "/"):
        return None  # outside the part of the tree that this mount shows
    if path.startswith("/.."):
        return None  # outside our own cgroup namespace
    below = path[len(root) :].rstrip("/")
    return Group(
        controller=controller,
        version=tree.version,
        path=path,
        directory=tree.mountpoint + below,
        top=tree.mountpoint,
    )


def members(host: Host, group: Group) -> tuple[int, ...]:
    """The processes in the group and in every group below it."""
    return _listed(host, group, "cgroup.procs")


def threads(host: Host, group: Group) -> tuple[int, ...]:
    """The threads in the group and below: zombies are not among them, on v1 and v2 (measured)."""
    return _listed(host, group, "tasks" if group.version == 1 else "cgroup.threads")


#: A group that was removed while we walked; a threaded group, which lists no processes
#: (admin-guide/cgroup-v2.rst, "Threads").
_PASSED_OVER = (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP)


def _listed(host: Host, group: Group, file: str) -> tuple[int, ...]:
    found: list[int] = []
    for directory in below(host, group.directory):
        try:
            found.extend(int(pid) for pid in host.text(f"{directory}/{file}").split())
        except OSError as error:
            if error.errno not in _PASSED_OVER:
                raise
    # v2 names a process of another pid namespace 0 when read from inside one.
    return tuple(sorted({pid for pid in found if pid > 0}))


def below(host: Host, directory: str) -> Iterator[str]:
    """The directory of a group and of all groups below it, without following links."""
    # Not by recursion: whoever may make groups may nest them deeper than Python calls.
    waiting = [directory]
    while waiting:
        here = waiting.pop()
        yield here
        try:
            children = host.directories(here)
        except OSError:
            continue
        waiting.extend(f"{here}/{name}" for name in reversed(children))


def keyed(file: str, text: str) -> dict[str, int]:
    """Parse a flat keyed file.

    >>> keyed("cpu.stat", "nr_periods 4\\nnr_throttled 1")
    {'nr_periods': 4, 'nr_throttled': 1}
    """
    values = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        try:
            values[name] = int(value)
        except ValueError:
            raise ParseError(file, line) from None
    return values
