"""The container asked about: its control groups, its first process, its namespaces.

Containers are found from the kernel alone, so that it works with every engine's daemon dead: by
the name of a control group, which each engine forms in its own way, and by a pid namespace that is
not the host's (``kernel/finding.py``). What an engine knows besides (a name, an image, how it
ended) is added by ``runtimes``.
"""

import re
from collections.abc import Mapping

from msgspec import Struct

from whybox.kernel import cgroup
from whybox.kernel.cgroup import UNIFIED, Group
from whybox.kernel.host import Host
from whybox.kernel.namespace import host_namespaces, namespace, namespaces
from whybox.kernel.task import TaskId, pids, stat, status

#: Controllers whose group tells a container's processes, the likeliest first.
PLACES = ("pids", "memory", "cpu", "name=systemd", "freezer", UNIFIED)


class Exit(Struct, frozen=True, kw_only=True):
    """How a container ended, as its engine recorded it. Weaker evidence than the kernel's."""

    source: str
    """Where the record is, such as ``docker inspect 4f1c State``."""
    status: str
    """The engine's word: ``exited``, ``running``, ``restarting``, …"""
    exit_code: int | None = None
    oom_killed: bool | None = None
    """The engine's flag; podman 4 does not set it on v1 (measured)."""
    started_at_ns: int | None = None
    """Wall clock, nanoseconds since 1970."""
    finished_at_ns: int | None = None
    restarts: int = 0
    events: tuple[str, ...] = ()
    """The engine's events, oldest first: ``kill signal=15``, ``oom``, ``die exitCode=137``."""
    events_at_ns: tuple[int, ...] = ()
    """When each of them was, by the wall clock; empty where the engine does not say."""


class Port(Struct, frozen=True, kw_only=True):
    """A port of the container that others are meant to reach."""

    port: int
    protocol: str = "tcp"
    host_address: str | None = None
    host_port: int | None = None


class Target(Struct, frozen=True, kw_only=True):
    """One container, living or dead."""

    id: str
    name: str
    runtime: str
    """``docker``, ``podman``, …, ``systemd``, ``cgroup``, ``process``, ``self``."""
    init: TaskId | None
    """Its first process, which is PID 1 inside where it has a pid namespace. ``None``: dead."""
    init_nspid: int | None = None
    """What that process is called in its own pid namespace."""
    cgroups: Mapping[str, str] = {}
    """The path in each controller's tree, the unified one under ``""``."""
    cgroup_inode: int | None = None
    namespaces: Mapping[str, int] = {}
    host_namespaces: Mapping[str, int] = {}
    image: str | None = None
    command: str | None = None
    stop_signal: str | None = None
    stop_seconds: int | None = None
    """How long it is given to end when it is stopped, where that was set for it."""
    created_at_ns: int | None = None
    ports: tuple[Port, ...] = ()
    """Published by its engine; the kernel does not know what is *meant* to be reachable."""
    exit: Exit | None = None

    @property
    def alive(self) -> bool:
        """Whether there is a process to look at."""
        return self.init is not None

    @property
    def short_id(self) -> str:
        """An id as people read it."""
        return self.id[:12] if re.fullmatch(r"[0-9a-f]{64}", self.id) else self.id

    def group(self, host: Host, controller: str) -> Group | None:
        """Its group in one controller's tree."""
        return cgroup.group(host, self.cgroups, controller)

    def own(self, kind: str) -> bool | None:
        """Whether a namespace is its own (True), the host's (False), or that cannot be told."""
        mine, theirs = self.namespaces.get(kind), self.host_namespaces.get(kind)
        return None if mine is None or theirs is None else mine != theirs


def processes(host: Host, target: Target) -> tuple[int, ...]:
    """The container's living processes, by the host's pids; those in nested groups too."""
    group = place(host, target.cgroups)
    if group is not None and target.runtime != "process":
        return cgroup.members(host, group)
    if target.init is None:
        return ()
    mine = target.namespaces.get("pid")
    if mine is None or target.own("pid") is False:
        return (target.init.pid,)
    return tuple(p for p in pids(host) if namespace(host, p, "pid") == mine)


def place(host: Host, paths: Mapping[str, str]) -> Group | None:
    """The tree in which these paths have a group of their own, if one does."""
    for name in PLACES:
        if paths.get(name, "/") != "/":
            found = cgroup.group(host, paths, name)
            if found is not None and host.exists(found.directory):
                return found
    return None


def described(host: Host, pid: int, *, id: str, runtime: str) -> Target:
    """The target whose first process is ``pid``; raises OSError when it is gone."""
    first = stat(host, pid)
    paths = cgroup.membership_of(host, pid)
    group = place(host, paths)
    return Target(
        id=id,
        name=id,
        runtime=runtime,
        init=first.id,
        init_nspid=status(host, pid).nspid[-1],
        cgroups=paths,
        cgroup_inode=None if group is None else _inode(host, group.directory),
        namespaces=namespaces(host, pid),
        host_namespaces=host_namespaces(host),
        command=first.comm,
    )


def _inode(host: Host, directory: str) -> int | None:
    try:
        return host.inode(directory)
    except OSError:
        return None


def still_there(host: Host, target: Target) -> bool:
    """Whether the target is the one that was resolved: same first process, same group."""
    if target.init is None:
        return False
    try:
        first = stat(host, target.init.pid)
    except OSError:
        return False
    if first.id != target.init or first.state in "ZX":
        return False
    group = place(host, target.cgroups)
    inode = None if group is None else _inode(host, group.directory)
    return target.cgroup_inode is None or inode in (None, target.cgroup_inode)
