"""Parameters of the machine, put back exactly as they were, and of a box's own namespaces."""

import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from typing import TypeVar

from whybox.change import (
    Change,
    EmptyFile,
    FileAccess,
    HostSysctl,
    ProjectQuota,
    Sysctl,
    ThawFilesystem,
)
from whybox.kernel.fsfreeze import thaw
from whybox.kernel.namespace import FIRST_NET
from whybox.kernel.netns import call_in
from whybox.lab import quota

T = TypeVar("T")


def apply(change: Change, pid: int, closing: ExitStack) -> bool:
    """Change something of the machine or of a process' namespaces; False if it is neither's."""
    match change:
        case ThawFilesystem(mountpoint=path):
            thaw(path)
        case EmptyFile(path=file):
            os.truncate(file, 0)
        case ProjectQuota():
            quota.limit(change)
        case HostSysctl():
            set_sysctl(change, closing)
        case Sysctl(at_start=False):
            set_own(change, pid)
        case FileAccess():
            set_access(change, pid)
        case _:
            return False
    return True


def set_sysctl(change: HostSysctl, closing: ExitStack) -> None:
    """Set one; what it was before comes back when ``closing`` is closed."""
    file = _file(change.key)
    before = _of_the_machine(change.key, lambda: _read(file))
    closing.callback(_of_the_machine, change.key, lambda: _write(file, before))
    _of_the_machine(change.key, lambda: _write(file, change.value))


def _of_the_machine(key: str, do: Callable[[], T]) -> T:
    """Do it where the machine's own parameters are: we may be in a network of our own."""
    if not key.startswith("net.") or not os.path.exists(FIRST_NET):
        return do()
    return call_in(FIRST_NET, do)


def set_sysctls(changes: Iterable[Change], closing: ExitStack) -> None:
    """Those among these changes."""
    for change in changes:
        if isinstance(change, HostSysctl):
            set_sysctl(change, closing)


def set_own(change: Sysctl, pid: int) -> None:
    """Set a parameter of the namespaces of a process."""
    for key, value in change.pairs:
        kind = "net" if key.startswith("net.") else "ipc"
        write = partial(_write, _file(key), value)
        call_in(f"/proc/{pid}/ns/{kind}", write, kind=kind)


def set_access(change: FileAccess, pid: int) -> None:
    """Give a file of a process' root to somebody, or change its mode."""
    path = f"/proc/{pid}/root{change.path}"
    if change.uid is not None or change.gid is not None:
        ids = (-1 if one is None else one for one in (change.uid, change.gid))
        os.chown(path, *ids, follow_symlinks=False)
    if change.mode is not None:
        os.chmod(path, change.mode)


def _file(key: str) -> str:
    return f"/proc/sys/{key.replace('.', '/')}"


def _read(file: str) -> str:
    with open(file, encoding="ascii") as opened:
        return opened.read()


def _write(file: str, text: str) -> None:
    with open(file, "w", encoding="ascii") as opened:
        opened.write(text)
