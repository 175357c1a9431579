"""Whose a socket is: the container's process that has a descriptor of it (``/proc/PID/fd``).

Containers may share a network namespace, with their pod or with the host; then what the namespace
tells of a socket does not tell whose it is.
"""

from collections.abc import Iterable, Mapping, Set
from contextlib import suppress

from msgspec import Struct

from whybox.kernel import freezer, task
from whybox.kernel.host import Host, printable
from whybox.kernel.namespace import namespace
from whybox.kernel.target import Target, processes

#: So many descriptors are read to find out whose a socket is.
MOST_LINKS = 20_000


class Owner(Struct, frozen=True, kw_only=True):
    """A process that has a socket open."""

    pid: int
    comm: str
    stopped: bool
    """By SIGSTOP or a debugger."""


class Owners(Struct, frozen=True, kw_only=True):
    """Whose the sockets are that were asked about."""

    of: Mapping[int, Owner]
    """By the inode of the socket: those of the container's processes."""
    complete: bool
    """Every descriptor of the container was seen, so that what is not in it is another's."""
    frozen: bool | None
    """The container is paused."""


def owners(host: Host, target: Target, inodes: Iterable[int]) -> Owners:
    """Which of the container's processes have these sockets open."""
    wanted = frozenset(inodes)
    found, complete = _among(host, processes(host, target) if wanted else (), wanted)
    return Owners(of=found, complete=complete, frozen=freezer.frozen(host, target))


def within(host: Host, netns: int, inodes: Iterable[int]) -> Mapping[int, Owner]:
    """Which processes of a network namespace have these sockets open, by the socket's inode."""
    there = (pid for pid in task.pids(host) if namespace(host, pid, "net") == netns)
    return _among(host, there, frozenset(inodes))[0]


def _among(host: Host, pids: Iterable[int], inodes: Set[int]) -> tuple[dict[int, Owner], bool]:
    """Who has them open, and whether every descriptor was seen."""
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    found: dict[int, Owner] = {}
    complete, left = True, MOST_LINKS
    for pid in pids:
        if len(found) == len(wanted):
            break
        try:
            names = host.names(f"/proc/{pid}/fd")
        except FileNotFoundError:
            continue  # it has ended
        except OSError:
            complete = False  # another user's
            continue
        complete &= len(names) <= left
        for name in names[: max(left, 0)]:
            with suppress(OSError):  # closed meanwhile
                inode = wanted.get(host.link(f"/proc/{pid}/fd/{name}"))
                if inode is not None and (owner := _owner(host, pid)) is not None:
                    found.setdefault(inode, owner)
        left -= len(names)
    return found, complete


def _owner(host: Host, pid: int) -> Owner | None:
    with suppress(OSError):
        said = task.stat(host, pid)
        return Owner(pid=pid, comm=printable(said.comm), stopped=said.state in "Tt")
    return None
