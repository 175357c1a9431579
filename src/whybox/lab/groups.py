"""The control groups of a box: made, limited, entered and removed; on v1, v2 and hybrid machines.

A box has a group directly under the root of every hierarchy that matters to it,
``/whybox-NAME``, so that it is found as any engine's container is (``kernel/finding.py``). Where a
limit is to be in another directory than the symptom, that group has a parent,
``/pod-whybox-NAME``, which must not look like a container itself.
"""

import errno
import os
import re
import signal
import time
from contextlib import suppress

from whybox import settings
from whybox.change import (
    Change,
    CpuBurst,
    CpuQuota,
    CpuSet,
    CpuWeight,
    HugepageLimit,
    IoLimit,
    MemoryHigh,
    MemoryLimit,
    PidsLimit,
    SwapLimit,
    Swappiness,
    Unpause,
)
from whybox.kernel import cgroup
from whybox.kernel.cgroup import UNIFIED, Group, Hierarchy
from whybox.kernel.host import Host
from whybox.kernel.memory import UNLIMITED_V1
from whybox.lab.limits import Limits, each

PERIOD_USEC = 100_000
#: Where a box has a group of its own on v1: what engines use and some case reads.
CONTROLLERS = frozenset({"cpu", "cpuacct", "memory", "pids", "blkio", "freezer"})
#: What must be switched on in the unified tree, where it is there at all.
ENABLED = ("cpu", "memory", "pids", "io")

#: A killed task leaves its group a moment after it was killed, not at once.
PATIENCE_SECONDS = 5.0

_OURS = re.compile(r"(pod-)?whybox-.+-(?P<pid>\d+)-\d+$")


def owner(name: str) -> int | None:
    """The lab process in the name of a group or directory of ours.

    >>> owner("whybox-zombies-4711-2"), owner("user.slice")
    (4711, None)
    """
    ours = _OURS.match(name)
    return None if ours is None else int(ours["pid"])


def abandoned(name: str) -> bool:
    """Whether it is ours and its lab process is dead."""
    pid = owner(name)
    return pid is not None and not os.path.exists(f"/proc/{pid}")


def sweep() -> None:
    """Remove the groups of dead lab processes."""
    host = Host()
    for tree in cgroup.hierarchies(host):
        for name in filter(abandoned, host.directories(tree.mountpoint)):
            with suppress(OSError):
                _remove(_group(tree, f"/{name}"))


class Groups:
    """The groups of one box, one a hierarchy."""

    def __init__(self, name: str, own: Limits, parent: Limits | None) -> None:
        self.name = f"whybox-{name}"
        self._own = own
        self._parent = parent
        above = "" if parent is None else f"/pod-{self.name}"
        self.path = f"{above}/{self.name}"
        """As ``/proc/PID/cgroup`` names it where whybox sees the whole tree."""
        self._wanted = own.controllers if parent is None else own.controllers | parent.controllers
        wanted = CONTROLLERS | self._wanted
        self._trees = tuple(
            tree
            for tree in cgroup.hierarchies(Host())
            if tree.version == 2 or wanted.intersection(tree.controllers)
        )

    @property
    def version(self) -> int:
        """1 where any controller of the box is in a tree of its own, else 2."""
        return min((tree.version for tree in self._trees), default=2)

    @property
    def directories(self) -> dict[str, str]:
        """The name of each tree's mount point, and the box's own directory in that tree."""
        return {
            os.path.basename(tree.mountpoint): tree.mountpoint + self.path
            for tree in self._trees
            if tree.version == self.version
        }

    def create(self) -> None:
        """Make the groups and set their limits."""
        if self._parent is not None:
            for tree in self._trees:
                self._create(tree, self._above)
            self._limit(self._parent, self._above)  # before there is a child to be limited by
        for tree in self._trees:
            self._create(tree, self.path)
        self._limit(self._own, self.path)

    def enter(self, pid: int) -> None:
        """Move a process into all of them."""
        for tree in self._trees:
            _write(f"{tree.mountpoint}{self.path}/cgroup.procs", str(pid))

    def apply(self, change: Change) -> bool:
        """Change a limit of the living groups; False if it is not about them."""
        path = self._above if getattr(change, "cgroup", None) else self.path
        if not path and not isinstance(change, IoLimit):
            return False
        match change:
            case IoLimit(cgroup=str(where)):
                self._set(where, change)  # its parent's, or a neighbour's
            case CpuQuota(cores=cores):
                self._set_cores(path, cores)
            case MemoryLimit(bytes=limit):
                self._set_memory(path, limit)
            case SwapLimit(bytes=size):
                self._set_swap(path, size)
            case Unpause():
                self.thaw()
            case (
                CpuBurst()
                | CpuWeight()
                | CpuSet()
                | PidsLimit()
                | MemoryHigh()
                | Swappiness()
                | HugepageLimit()
                | IoLimit()
            ):
                self._set(path, change)
            case _:
                return False
        return True

    def freeze(self) -> None:
        """Pause it, as an engine does."""
        self._write_freezer("FROZEN", "1")

    def thaw(self) -> None:
        """Let it run on."""
        self._write_freezer("THAWED", "0")

    def _write_freezer(self, v1: str, v2: str) -> None:
        tree = next((t for t in self._trees if "freezer" in t.controllers), None)
        if tree is not None:
            _write(f"{tree.mountpoint}{self.path}/freezer.state", v1)
        else:
            _write(self._group(self.path, UNIFIED).file("cgroup.freeze"), v2)

    def kill(self) -> None:
        """SIGKILL to every process in them, frozen ones too."""
        self._free_io()
        for tree in self._trees:
            # On v1 a frozen task does not even die (admin-guide/cgroup-v1/freezer-subsystem.rst).
            with suppress(OSError):
                _write(f"{tree.mountpoint}{self.path}/freezer.state", "THAWED")
            _kill(_group(tree, self.path))

    def _free_io(self) -> None:
        """Who waits for what a limit holds back dies only when that has come to the disk."""
        for limits, path in ((self._own, self.path), (self._parent, self._above)):
            for limit in () if limits is None else limits.io:
                with suppress(OSError):  # of a disk that has gone
                    self._set(path, IoLimit(limit.device, limit.what, None))

    def remove(self) -> list[str]:
        """Remove them; the directories that could not be removed."""
        left = []
        for tree in self._trees:
            top = _group(tree, self._above or self.path)
            try:
                _remove(top)
            except OSError as error:
                left.append(f"{top.directory} ({error.strerror})")
        return left

    @property
    def _above(self) -> str:
        return os.path.dirname(self.path).rstrip("/")

    def _create(self, tree: Hierarchy, path: str) -> None:
        directory = tree.mountpoint + path
        _enable(os.path.dirname(directory), tree, self._wanted)
        os.mkdir(directory)
        _inherit_cpuset(tree, directory)

    def _limit(self, limits: Limits, path: str) -> None:
        if limits.cores is not None:
            self._set_cores(path, limits.cores)
        if limits.limit_bytes is not None:
            self._set_memory(path, limits.limit_bytes, swap=limits.swap)
        if limits.swap and limits.swap_bytes is not None:
            self._set_swap(path, limits.swap_bytes)
        if not limits.kill:
            _write(self._group(path, "memory").file("memory.oom_control"), "1")
        for change in each(limits):
            self._set(path, change)

    def _set_cores(self, path: str, cores: float | None) -> None:
        group = self._group(path, "cpu")
        quota = None if cores is None else round(cores * PERIOD_USEC)
        if group.version == 1:
            _write(group.file("cpu.cfs_period_us"), str(PERIOD_USEC))
            _write(group.file("cpu.cfs_quota_us"), "-1" if quota is None else str(quota))
        else:
            _write(group.file("cpu.max"), f"{'max' if quota is None else quota} {PERIOD_USEC}")

    def _set(self, path: str, change: settings.Setting) -> None:
        """Raises where this kernel's version of the tree has no file for it."""
        group = self._group(path, settings.controller(change))
        files = settings.files(change, group.version)
        if not files:
            raise OSError(errno.ENOTSUP, f"cgroup v{group.version} has no file for {change}")
        for file in files:
            _write(group.file(file.name), file.value)

    def _set_swap(self, path: str, size: int | None) -> None:
        group = self._group(path, "memory")
        if group.version == 2:
            self._set(path, SwapLimit(size))
            return
        memory = int(_read(group.file("memory.limit_in_bytes")))
        both = -1 if size is None else memory + size
        _write(group.file("memory.memsw.limit_in_bytes"), str(both))

    def _set_memory(self, path: str, limit: int, swap: bool | None = None) -> None:
        """``swap`` None: as it was."""
        group = self._group(path, "memory")
        if group.version == 1:
            _set_memory_v1(group, limit, swap)
            return
        _write(group.file("memory.max"), str(limit))
        if swap is False and os.path.exists(group.file("memory.swap.max")):
            _write(group.file("memory.swap.max"), "0")

    def _group(self, path: str, controller: str) -> Group:
        """Where that controller's files are."""
        for name in (controller, UNIFIED):
            for tree in self._trees:
                if name in tree.controllers:
                    return _group(tree, path)
        raise FileNotFoundError(errno.ENOENT, "no cgroup tree has this controller", controller)


def _group(tree: Hierarchy, path: str) -> Group:
    return Group(
        controller=tree.controllers[0],
        version=tree.version,
        path=path,
        directory=tree.mountpoint + path,
        top=tree.mountpoint,
    )


def _enable(directory: str, tree: Hierarchy, controllers: frozenset[str]) -> None:
    """Give the groups below a v2 directory their controllers; those that are on stay on."""
    if tree.version == 1:
        return
    wanted = {*ENABLED, *controllers}
    there = wanted.intersection(_words(f"{directory}/cgroup.controllers"))
    control = f"{directory}/cgroup.subtree_control"
    missing = there.difference(_words(control))
    if missing:
        _write(control, " ".join(f"+{name}" for name in sorted(missing)))


def _inherit_cpuset(tree: Hierarchy, directory: str) -> None:
    """A new v1 cpuset is empty and lets nobody in (admin-guide/cgroup-v1/cpusets.rst)."""
    if tree.version == 1 and "cpuset" in tree.controllers:
        for file in ("cpuset.cpus", "cpuset.mems"):
            _write(f"{directory}/{file}", _read(f"{os.path.dirname(directory)}/{file}"))


def _set_memory_v1(group: Group, limit: int, swap: bool | None) -> None:
    memory, both = group.file("memory.limit_in_bytes"), group.file("memory.memsw.limit_in_bytes")
    known = int(_read(both)) if os.path.exists(both) else UNLIMITED_V1
    if known >= UNLIMITED_V1:
        _write(memory, str(limit))
        if swap is False and os.path.exists(both):
            _write(both, str(limit))
        return
    # Memory and swap together may never be allowed less than memory alone.
    for file in (both, memory) if limit > known else (memory, both):
        _write(file, str(limit))


def _kill(group: Group) -> bool:
    """SIGKILL to all that live in the group and below; whether there were any."""
    members = cgroup.members(Host(), group)
    for pid in members:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return bool(members)


def _remove(group: Group) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    for directory in reversed(list(cgroup.below(Host(), group.directory))):
        while True:
            try:
                os.rmdir(directory)
                break
            except FileNotFoundError:
                break
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    raise
            if not _kill(group):
                time.sleep(0.005)


def _write(file: str, text: str) -> None:
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        reason = f"{error.strerror} (writing {text})"
        raise OSError(error.errno, reason, file) from None


def _read(file: str) -> str:
    with open(file, encoding="ascii") as opened:
        return opened.read().strip()


def _words(file: str) -> list[str]:
    return _read(file).split()
