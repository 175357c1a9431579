"""Room for inotify: ``fs.inotify.max_user_instances`` and ``max_user_watches`` (inotify(7)).

Both are counted for a user, over all containers that share the uid, and the kernel shows the count
to nobody (kernel/ucount.c). So it is asked: one instance with one watch is made as that user, by a
thread that takes on the uid alone, and is closed at once. Only where it is refused are descriptors
looked through, to tell who has them.
"""

import ctypes
import errno
import fcntl
import os
import struct
import threading
from collections.abc import Iterable, Sequence
from queue import SimpleQueue as Queue

from msgspec import Struct

from whybox.kernel import cgroup, descriptors, rlimits, task
from whybox.kernel.host import Host, ParseError
from whybox.kernel.libc import PR_SET_DUMPABLE, prctl
from whybox.kernel.namespace import namespace

#: Where the limits are.
INSTANCES = "fs.inotify.max_user_instances"
WATCHES = "fs.inotify.max_user_watches"

#: So many processes of a user are looked through, so many links in all, and bytes of ``fdinfo``.
MOST_PROCESSES = 512
MOST_LINKS = 20_000
MOST_BYTES = 4 << 20
MOST_HOLDERS = 32
#: Links of a container that are read to see whether it uses any.
MOST_LOOKED_AT = 512

INODE = "anon_inode:inotify"
_PR_GET_DUMPABLE = 3
_IN_CLOEXEC = 0o2000000
_IN_DELETE_SELF = 0x400
_NS_GET_OWNER_UID = 0xB704  # include/uapi/linux/nsfs.h

#: ``setresuid`` by the machine: arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic.
_SETRESUID = {"x86_64": 117, "aarch64": 147, "riscv64": 147, "loongarch64": 147}
_KEEP = 0xFFFFFFFF

_libc = ctypes.CDLL(None, use_errno=True)


class Room(Struct, frozen=True, kw_only=True):
    """Whether there was room when we asked; ``None``: that could not be asked."""

    instance: bool | None
    watch: bool | None


class Holder(Struct, frozen=True, kw_only=True):
    """A process with inotify instances."""

    pid: int
    comm: str
    group: str
    """Its control group, by which a neighbour is known."""
    instances: int
    watches: int | None
    """Counted only where watches are short."""


class Shortage(Struct, frozen=True, kw_only=True):
    """A user for whom there is no room."""

    uid: int
    watches: bool
    """It is watches that are short, not instances."""
    limit: int | None
    holders: tuple[Holder, ...]
    """Those who have the most; of a process that was forked, each of both counts."""


def shortage(host: Host, uid: int, mine: Sequence[int], *, watches: bool) -> Shortage | None:
    """What this user lacks, if anything; ``mine`` are the container's processes.

    A watch is asked for only where they use some: an instance is given back at once, and one that
    has had a watch only after 10 ms (measured), in which somebody else might lack it.
    """
    room = instance_room(host, uid)
    if room.instance and watches:
        room = host.remembered(f"inotify.watch {uid}", lambda: _asked(host, uid, watch=True))
    if room.instance is not False and room.watch is not False:
        return None
    short = room.instance is not False
    key = WATCHES if short else INSTANCES
    return Shortage(
        uid=uid,
        watches=short,
        limit=host.optional_number(f"/proc/sys/{key.replace('.', '/')}"),
        holders=_holders(host, [*mine, *rlimits.owned(host, uid)], watches=short),
    )


def instance_room(host: Host, uid: int) -> Room:
    """Whether one more instance could be had, asked once a moment."""
    return host.remembered(f"inotify.instance {uid}", lambda: _asked(host, uid, watch=False))


def _asked(host: Host, uid: int, *, watch: bool) -> Room:
    host.reads += 1
    return ask(uid, watch=watch) if host.live else Room(instance=None, watch=None)


def used(host: Host, pids: Iterable[int]) -> bool:
    """Whether any of these processes has an instance, as far as a short look tells."""
    left = MOST_LOOKED_AT
    for pid in pids:
        links = descriptors.links(host, pid, left)
        if INODE in links:
            return True
        left -= len(links)
        if left <= 0:
            break
    return False


def charged(host: Host, pid: int, uid: int) -> int | None:
    """The user whom the instances of a process are counted for in our user namespace.

    Those of a user namespace below ours count for whoever made it, and inside of it there is no
    limit unless somebody sets one (``create_user_ns``: INT_MAX).
    """
    if namespace(host, pid, "user") in (None, namespace(host, "self", "user")):
        return uid
    try:
        descriptor = os.open(host.path(f"/proc/{pid}/ns/user"), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        said = fcntl.ioctl(descriptor, _NS_GET_OWNER_UID, bytes(4))
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return int(struct.unpack("I", said)[0])


def ask(uid: int, *, watch: bool = False) -> Room:
    """Whether a user can have one more instance, and a watch; the kernel itself is asked."""
    if uid == os.geteuid():
        return _made(watch=watch)
    said: Queue[Room] = Queue()
    dumpable = _libc.prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0)
    thread = threading.Thread(target=lambda: said.put(_made_as(uid, watch=watch)))
    try:
        thread.start()
    except RuntimeError:  # no thread to be had: we may be in the very container that has none left
        return Room(instance=None, watch=None)
    thread.join()
    if dumpable == 1:
        prctl(PR_SET_DUMPABLE, 1)  # another uid in one thread has taken that from us all
    return Room(instance=None, watch=None) if said.empty() else said.get()


def _made_as(uid: int, *, watch: bool) -> Room:
    """In a thread that ends with it: the system call itself changes that one thread alone."""
    number, same = _SETRESUID.get(os.uname().machine), ctypes.c_uint32(_KEEP)
    if number is None or _libc.syscall(number, same, ctypes.c_uint32(uid), same):
        return Room(instance=None, watch=None)
    return _made(watch=watch)


def _made(*, watch: bool) -> Room:
    descriptor = _libc.inotify_init1(_IN_CLOEXEC)
    if descriptor < 0:
        refused = ctypes.get_errno() == errno.EMFILE and not _is_full()
        return Room(instance=False if refused else None, watch=None)
    if not watch:
        os.close(descriptor)
        return Room(instance=True, watch=None)
    room = Room(instance=True, watch=_watched(descriptor))
    _close_aside(descriptor)
    return room


def _close_aside(descriptor: int) -> None:
    """It takes 10 ms (measured), until nobody can be using its watch: we do not wait for that."""
    try:
        threading.Thread(target=os.close, args=(descriptor,), daemon=True).start()
    except RuntimeError:
        os.close(descriptor)


def _is_full() -> bool:
    """Whether it is our own table that has no room."""
    try:
        os.close(os.dup(2))
    except OSError as error:
        return error.errno == errno.EMFILE
    return False


def _watched(descriptor: int) -> bool | None:
    if _libc.inotify_add_watch(descriptor, b"/", _IN_DELETE_SELF) >= 0:
        return True
    return False if ctypes.get_errno() == errno.ENOSPC else None


def _holders(host: Host, pids: Iterable[int], *, watches: bool) -> tuple[Holder, ...]:
    found, left = [], MOST_LINKS
    for pid in list(dict.fromkeys(pids))[:MOST_PROCESSES]:
        numbers = _instances(host, pid, left)
        left -= numbers[1]
        if numbers[0]:
            found.append(_holder(host, pid, numbers[0], watches=watches))
    there = [one for one in found if one is not None]
    most = sorted(there, key=lambda one: (-(one.watches or 0), -one.instances))
    return tuple(most[:MOST_HOLDERS])


def _instances(host: Host, pid: int, left: int) -> tuple[list[str], int]:
    """The descriptors that are instances, and how many links were read."""
    try:
        names = os.listdir(host.path(f"/proc/{pid}/fd"))[: max(left, 0)]
    except OSError:
        return [], 0
    return [name for name in names if _is_instance(host, pid, name)], len(names)


def _is_instance(host: Host, pid: int, name: str) -> bool:
    try:
        return os.readlink(host.path(f"/proc/{pid}/fd/{name}")) == INODE
    except OSError:
        return False


def _holder(host: Host, pid: int, names: list[str], *, watches: bool) -> Holder | None:
    try:
        comm = task.stat(host, pid).comm
        paths = cgroup.membership_of(host, pid)
    except (OSError, ParseError):
        return None
    return Holder(
        pid=pid,
        comm=comm,
        group=paths.get("pids", paths.get(cgroup.UNIFIED, "/")),
        instances=len(names),
        watches=sum(_watches(host, pid, name) for name in names) if watches else None,
    )


def _watches(host: Host, pid: int, name: str) -> int:
    """One line of ``fdinfo`` for each; of a very long file the first of them."""
    count = size = 0
    try:
        with open(host.path(f"/proc/{pid}/fdinfo/{name}"), "rb") as lines:
            for line in lines:
                count += line.startswith(b"inotify ")
                size += len(line)
                if size > MOST_BYTES:
                    break
    except OSError:
        pass  # closed while we looked
    return count
