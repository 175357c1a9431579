"""What the tests of the box look at, beside the box itself."""

import os
import time
from collections.abc import Callable
from pathlib import Path

from whybox.kernel import cgroup
from whybox.kernel.cgroup import UNIFIED
from whybox.kernel.host import Host
from whybox.lab.box import Box

SIGTERM_BIT = 1 << 14


def until(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Whether the condition came true in time."""
    end = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < end:
        time.sleep(0.01)
    return met


def read(path: str) -> str:
    """A file of the kernel's."""
    return Path(path).read_text()


def status(pid: int, key: str) -> str:
    """One line of /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split(":", 1)[1].strip() for line in lines if line.startswith(f"{key}:"))


def handles_term(pid: int) -> bool:
    """Whether it has come so far that it catches SIGTERM."""
    return bool(int(status(pid, "SigCgt"), 16) & SIGTERM_BIT)


def children(pid: int) -> list[int]:
    """The children of a process."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def directory(box: Box, controller: str) -> Path:
    """The box's directory, as the kernel names it for its first process."""
    lines = Path(f"/proc/{box.pid}/cgroup").read_text().splitlines()
    paths = dict(line.split(":", 2)[1:] for line in lines)
    trees = {name: tree for tree in cgroup.hierarchies(Host()) for name in tree.controllers}
    name = controller if controller in trees else UNIFIED
    return Path(trees[name].mountpoint + paths[name])


def is_v1(controller: str) -> bool:
    """Whether the controller has a tree of its own."""
    return any(controller in tree.controllers for tree in cgroup.hierarchies(Host()))


def said(box: Box, controller: str, v1: str, v2: str) -> str:
    """The file of the box's group, by the name that it has here."""
    file = v1 if is_v1(controller) else v2
    return (directory(box, controller) / file).read_text().strip()


def leftovers(name: str) -> list[str]:
    """What is there of a box: groups, directories, mounts, and processes with its host name."""
    groups = [p for tree in cgroup.hierarchies(Host()) for p in Path(tree.mountpoint).glob("*")]
    files = [*Path("/var/tmp").glob("*"), *Path(os.environ.get("TMPDIR") or "/tmp").glob("*")]
    found = [str(path) for path in (*groups, *files) if name in path.name]
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    return [*found, *(line for line in mounts if name in line)]


def gone(pid: int) -> bool:
    """Whether there is no such process, or only its remains."""
    try:
        return status(pid, "State").startswith("Z")
    except FileNotFoundError:
        return True
