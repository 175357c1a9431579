"""Calls of a container that were not permitted, with what tells the gate that refused them.

From ``raw_syscalls:sys_enter`` and ``sys_exit``, the kernel's check for a capability in between,
and what the same thread and its process did next. A call that seccomp refuses is seen to leave and
never to enter (kernel/entry, ``syscall_trace_enter()``: the filter runs before the tracepoint).
"""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

from msgspec import Struct

from whybox.kernel import syscalltable
from whybox.kernel.bpf.objects import Spec, loaded
from whybox.kernel.host import Host, c_string
from whybox.kernel.sensors import checks
from whybox.kernel.sensors.kept import Kept
from whybox.kernel.sensors.syscalls import EVERY_CALL

SPEC = Spec(
    name="denied",
    # In this order they are attached: whoever is seen to enter is seen to be refused, and to leave.
    programs=(
        ("on_move",),
        ("on_end",),
        ("on_check", "on_check_begin"),
        ("on_check", "on_check_end"),
        ("on_enter",),
        ("on_exit",),
    ),
    optional=("on_signal",),
    falls_back="nothing: a call that is not permitted leaves no trace",
)

#: So many are kept for those who share a sensor; more are counted as lost.
MOST_KEPT = 5_000

_NOWHERE, _MOST_CALLS = 0xFF, 512
_IDS, _NETLINK, _EXECUTES = 1, 2, 4
_CALL, _INDEX = struct.Struct("=BBBBBBxx"), struct.Struct("=I")
_HEAD = struct.Struct("=QQIIIiIIIiQQQ6QQIIIIIIII16I")
_PLACE = struct.Struct("=QIIII40s")
_TEXTS = struct.Struct("=16s16s256s256s")


class Kind(IntEnum):
    """``enum kind``."""

    SECCOMP = 1
    """It left and never entered, and a filter is in force."""
    ENTERED = 2
    """It entered and was refused."""
    TRAPPED = 3
    """Seccomp sent SIGSYS."""
    KILLED = 4
    """Seccomp ended the thread."""
    ANSWERED = 5
    """A message was taken, and the answer to it is a refusal."""
    MADE_GOOD = 6
    """The same thread got the same thing afterwards."""
    ENDED = 7
    """A process that had been refused something ended."""


class Place(Struct, frozen=True, kw_only=True):
    """A file or a directory as the kernel had it open."""

    device: str
    inode: int
    flags: int
    """Of its mount (include/linux/mount.h)."""
    mode: int
    name: str
    """Its last name alone."""


class Event(Struct, frozen=True, kw_only=True):
    """``struct event``."""

    at_ns: int
    seq: int
    slot: int
    kind: Kind
    call: str
    """Empty where there is none."""
    error: int
    """The errno; of ``ENDED`` the status as wait(2) has it."""
    pid: int
    tid: int
    parent: int
    stack: int | None
    refused: int
    overridden: int
    elsewhere: int
    arguments: tuple[int, ...]
    held: int
    """The effective capabilities."""
    uid: int
    euid: int
    fsuid: int
    fsgid: int
    """By the host's numbers."""
    user_ns: int
    since: int
    """Of ``ENDED``: calls since its last refusal."""
    groups: tuple[int, ...]
    """Of them the first sixteen."""
    more_groups: bool
    address: bytes
    """Of a socket."""
    cwd: Place | None
    """Where a relative path begins."""
    file: Place | None
    comm: str
    parent_comm: str
    path: str
    path2: str


@contextmanager
def attached(host: Host) -> Iterator[Kept[Event]]:
    """The sensor. Nobody is in its scope yet. Raises ``Refused``."""
    with loaded(host, SPEC, before={"calls": table()}) as object:
        checks.begin_epoch(object)
        yield Kept(object, event, MOST_KEPT)


def untold(sensor: Kept[Event], slot: int) -> int:
    """How many refusals of a container were too many to be told one by one."""
    raw = sensor.object.map("untold").get(_INDEX.pack(slot))
    return 0 if raw is None else int.from_bytes(raw, "little")


def event(raw: bytes) -> Event:
    """Decode ``struct event``."""
    head = _HEAD.unpack_from(raw)
    at, seq, slot, kind, index, error, pid, tid, parent, stack = head[:10]
    refused, overridden, elsewhere = head[10:13]
    held, uid, euid, fsuid, fsgid, user_ns, since, count, length = head[19:28]
    places = [_place(raw, _HEAD.size + nth * _PLACE.size) for nth in range(2)]
    comm, parent_comm, path, path2 = _TEXTS.unpack_from(raw, _HEAD.size + 2 * _PLACE.size)
    return Event(
        at_ns=at,
        seq=seq,
        slot=slot,
        kind=Kind(kind),
        call=_called(index),
        error=error,
        pid=pid,
        tid=tid,
        parent=parent,
        stack=None if stack < 0 else stack,
        refused=refused,
        overridden=overridden,
        elsewhere=elsewhere,
        arguments=head[13:19],
        held=held,
        uid=uid,
        euid=euid,
        fsuid=fsuid,
        fsgid=fsgid,
        user_ns=user_ns,
        since=since,
        groups=head[28 : 28 + min(count, 16)],
        more_groups=count > 16,
        address=path[:length],
        cwd=places[0],
        file=places[1],
        comm=c_string(comm),
        parent_comm=c_string(parent_comm),
        path="" if length else c_string(path),
        path2=c_string(path2),
    )


def _called(index: int) -> str:
    if index >= 2 * EVERY_CALL:
        return ""
    return syscalltable.name(index % EVERY_CALL, compat=index >= EVERY_CALL)


def _place(raw: bytes, at: int) -> Place | None:
    inode, device, flags, mode, known, name = _PLACE.unpack_from(raw, at)
    if not known:
        return None
    return Place(
        # MKDEV() of include/linux/kdev_t.h.
        device=f"{device >> 20}:{device & 0xFFFFF}",
        inode=inode,
        flags=flags,
        mode=mode,
        name=c_string(name),
    )


def _row(*names: str, **what: int) -> dict[str, dict[str, int]]:
    return dict.fromkeys(names, what)


#: Of each call which arguments are a path, the directory it begins in, a descriptor, an address.
_CALLS: dict[str, dict[str, int]] = {
    **_row("open", "creat", "stat", "lstat", "access", "chdir", "mkdir", "rmdir", path=0),
    **_row("unlink", "readlink", "chmod", "truncate", "utime", "mknod", "statfs", "chroot", path=0),
    **_row("utimes", "acct", "swapon", "swapoff", "umount2", path=0),
    **_row("setxattr", "lsetxattr", "getxattr", "lgetxattr", "listxattr", "llistxattr", path=0),
    **_row("removexattr", "lremovexattr", path=0),
    **_row("chown", "lchown", path=0, about=_IDS),
    **_row("execve", path=0, about=_EXECUTES),
    **_row("execveat", at=0, path=1, about=_EXECUTES),
    **_row("rename", "link", path=0, path2=1),
    **_row("symlink", path=1),
    **_row("mount", "pivot_root", path=1),
    **_row("openat", "openat2", "newfstatat", "statx", "faccessat", "faccessat2", at=0, path=1),
    **_row("mkdirat", "mknodat", "unlinkat", "readlinkat", "fchmodat", "fchmodat2", at=0, path=1),
    **_row("utimensat", "futimesat", "name_to_handle_at", at=0, path=1),
    **_row("fchownat", at=0, path=1, about=_IDS),
    **_row("symlinkat", at=1, path=2),
    **_row("renameat", "renameat2", "linkat", at=0, path=1, path2=3),
    **_row("inotify_add_watch", path=1),
    **_row("quotactl", path=1),
    **_row("bind", "connect", address=1),
    **_row("sendto", address=4, about=_NETLINK),
    **_row("sendmsg", "sendmmsg", about=_NETLINK),
    **_row("mmap", file=4),
    **_row("fchown", file=0, about=_IDS),
    **_row("fchdir", "fchmod", "ftruncate", "fallocate", "fsetxattr", "fremovexattr", file=0),
    **_row("write", "pwrite64", "writev", "read", "pread64", "ioctl", "getdents64", file=0),
    **_row("setuid", "setgid", "setreuid", "setregid", "setresuid", "setresgid", about=_IDS),
    **_row("setgroups", "setfsuid", "setfsgid", about=_IDS),
    **_row("socket"),
}


def table() -> list[tuple[bytes, bytes]]:
    """What the program is to know of every call, as its map has it."""
    known = {syscalltable.number(name): what for name, what in _CALLS.items()}
    return [(_INDEX.pack(number), _packed(known.get(number, {}))) for number in range(_MOST_CALLS)]


def _packed(what: dict[str, int]) -> bytes:
    places = (what.get(one, _NOWHERE) for one in ("path", "path2", "at", "file", "address"))
    return _CALL.pack(*places, what.get("about", 0))
