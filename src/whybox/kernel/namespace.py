"""Namespaces: ``/proc/PID/ns`` (namespaces(7)).

>>> inode_in("pid:[4026531836]")
4026531836
"""

from collections.abc import Mapping

from whybox.kernel.host import Host
from whybox.kernel.task import PF_KTHREAD, stat

KINDS = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")

#: Inodes of the first namespaces that never change (include/linux/proc_ns.h). ``mnt`` and ``net``
#: have none: they differ from boot to boot (measured).
INITIAL: Mapping[str, int] = {
    "cgroup": 0xEFFFFFFB,
    "ipc": 0xEFFFFFFF,
    "pid": 0xEFFFFFFC,
    "time": 0xEFFFFFFA,
    "user": 0xEFFFFFFD,
    "uts": 0xEFFFFFFE,
}

#: The first network namespace: kthreadd lives in it, and everybody may look at kthreadd.
FIRST_NET = "/proc/2/ns/net"
#: Where the host's network is most likely found: ours, and the first one.
HOST_NETS = ("/proc/self/ns/net", FIRST_NET)


def inode_in(link: str) -> int:
    """The inode in the text of a namespace link."""
    return int(link.partition("[")[2].rstrip("]"))


def namespace(host: Host, pid: int | str, kind: str) -> int | None:
    """The inode of one namespace of a task, or ``None`` if it may not be looked at."""
    try:
        return inode_in(host.link(f"/proc/{pid}/ns/{kind}"))
    except (OSError, ValueError):
        return None


def namespaces(host: Host, pid: int | str) -> dict[str, int]:
    """The namespaces of a task that may be looked at; a kind that is missing is not known."""
    found = {kind: namespace(host, pid, kind) for kind in KINDS}
    return {kind: inode for kind, inode in found.items() if inode is not None}


def host_namespaces(host: Host) -> dict[str, int]:
    """The host's namespaces, as far as they can be known from here.

    ``/proc/1/ns`` may be closed even to root (measured), so the reference is kthreadd, which lives
    in all the first namespaces; from inside a container only the constants are left.
    """
    known = dict(INITIAL)
    if _is_kthreadd(host):
        known |= namespaces(host, 2)
    return known


def _is_kthreadd(host: Host) -> bool:
    try:
        second = stat(host, 2)
    except OSError:
        return False
    return second.comm == "kthreadd" and bool(second.flags & PF_KTHREAD)
