"""A container's slow file operations, and those that copy a file of a lower overlay layer.

A copy is told by the kernel's account of the task: within one call it dirtied pages of a file that
the program gave it no bytes for. Whether it was one, the upper layer tells (``confirmed``).
"""

import ctypes
import os
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from msgspec import Struct

from whybox.kernel import overlay, syscalltable, upper
from whybox.kernel.bpf.objects import Spec, loaded
from whybox.kernel.host import Host, c_string, decode
from whybox.kernel.mountinfo import mounts
from whybox.kernel.overlay import Overlay
from whybox.kernel.sensors.kept import Kept
from whybox.kernel.target import Target
from whybox.kernel.upper import WORTH_BYTES

SPEC = Spec(
    name="files",
    programs=(("on_enter",), ("on_exit",)),
    optional=("on_copy", "after_copy"),
    falls_back="only the copies that landed in the upper layer meanwhile, without who made them",
)

NEVER_NS = (1 << 63) - 1
PATH_BYTES, BASE_BYTES = 256, 768
#: A longer path is cut by the sensor.
LONGEST_NAME = 127

_TOLD = struct.Struct(f"=7Qq8I16s{PATH_BYTES}s{BASE_BYTES}s")
_CALL, _INDEX, _LENGTH = struct.Struct("=8B"), struct.Struct("=I"), struct.Struct("=Q")
_NO_ARGUMENT = 7
_MOST_CALLS = 512

#: So many copies and mounts are remembered, and so many events are kept for those who share.
MOST_COPIES, MOST_MOUNTS, MOST_KEPT = 20_000, 16, 20_000

#: A file system stamps by the clock of the last tick, which is 10 ms old at most (CONFIG_HZ=100).
TICK_NS = 10_000_000


class Call(NamedTuple):
    """Which argument of a system call is what; ``None``: it has none of that kind."""

    kind: str
    directory: int | None = None
    path: int | None = None
    file: int | None = None
    flags: int | None = None
    copies: bool = False
    points: bool = False


def _at(kind: str, *, copies: bool = False) -> Call:
    return Call(kind, directory=0, path=1, copies=copies)


def _by_path(kind: str, *, copies: bool = False) -> Call:
    return Call(kind, path=0, copies=copies)


def _by_file(kind: str, *, copies: bool = False) -> Call:
    return Call(kind, file=0, copies=copies)


def _same(call: Call, names: str) -> dict[str, Call]:
    return dict.fromkeys(names.split(), call)


#: The calls that open or change a file of a lower layer, which copies it.
COPYING: dict[str, Call] = {
    "open": Call("open", path=0, flags=1, copies=True),
    "openat": Call("open", directory=0, path=1, flags=2, copies=True),
    "openat2": Call("open", directory=0, path=1, flags=2, copies=True, points=True),
    **_same(_by_path("truncate", copies=True), "truncate"),
    **_same(_by_path("rename", copies=True), "rename"),
    **_same(_at("rename", copies=True), "renameat renameat2"),
    **_same(_by_path("link", copies=True), "link"),
    **_same(_at("link", copies=True), "linkat"),
    **_same(_by_path("chmod", copies=True), "chmod"),
    **_same(_at("chmod", copies=True), "fchmodat fchmodat2"),
    **_same(_by_file("chmod", copies=True), "fchmod"),
    **_same(_by_path("chown", copies=True), "chown lchown"),
    **_same(_at("chown", copies=True), "fchownat"),
    **_same(_by_file("chown", copies=True), "fchown"),
    **_same(_by_path("utime", copies=True), "utime utimes"),
    **_same(_at("utime", copies=True), "utimensat futimesat"),
    **_same(_by_path("xattr", copies=True), "setxattr lsetxattr removexattr lremovexattr"),
    **_same(_by_file("xattr", copies=True), "fsetxattr fremovexattr"),
}

#: … and those that are told only when they were slow.
SLOW: dict[str, Call] = {
    **_same(_by_file("read"), "read pread64 readv preadv preadv2 getdents64"),
    **_same(_by_file("write"), "write pwrite64 writev pwritev pwritev2"),
    **_same(_by_file("sync"), "fsync fdatasync sync_file_range syncfs"),
    **_same(_by_file("truncate"), "ftruncate fallocate"),
    **_same(Call("copy", file=2), "copy_file_range"),
    **_same(Call("copy", file=0), "sendfile"),
    "creat": Call("open", path=0),
    **_same(_by_path("unlink"), "unlink rmdir"),
    **_same(_at("unlink"), "unlinkat"),
    **_same(_by_path("make"), "mkdir mknod"),
    **_same(_at("make"), "mkdirat mknodat"),
    **_same(Call("make", path=1), "symlink"),
    **_same(Call("make", directory=1, path=2), "symlinkat"),
    **_same(_by_path("stat"), "stat lstat access statfs readlink"),
    **_same(_at("stat"), "newfstatat statx faccessat faccessat2 readlinkat"),
}
EVERY = {**COPYING, **SLOW}


class Done(Struct, frozen=True, kw_only=True):
    """One operation."""

    at_ns: int
    """When it ended, of the monotonic clock."""
    took_ns: int
    slot: int
    pid: int
    tid: int
    comm: str
    call: str
    """The system call."""
    kind: str
    """What it does: ``open``, ``chmod``, ``read``, …"""
    path: str
    """As the task that called sees it, from its root down where it begins with ``/``."""
    error: int | None
    """The errno."""
    read_bytes: int
    """From the disk in the name of the task (``/proc/PID/io``), within the call."""
    written_bytes: int
    """Dirtied in its name."""
    copying_ns: int
    """Of the call inside ``ovl_copy_up_flags``; 0 where functions cannot be probed."""
    truncated: bool
    """Opened with O_TRUNC: then no contents are copied."""


def table(wanted: Iterable[str] = EVERY) -> Iterator[tuple[bytes, bytes]]:
    """What the programs are to know of these calls, as their map has it."""
    for name in wanted:
        number = syscalltable.number(name)
        if number is not None and number < _MOST_CALLS:
            yield _INDEX.pack(number), _packed(EVERY[name])


def _packed(call: Call) -> bytes:
    places = (call.directory, call.path, call.file, call.flags)
    arguments = (_NO_ARGUMENT if place is None else place for place in places)
    opens = call.kind == "open"
    return _CALL.pack(1, *arguments, call.copies, opens, call.points)


def before(slower_ns: int, wanted: Iterable[str] = EVERY) -> dict[str, list[tuple[bytes, bytes]]]:
    """What the maps hold before anything runs."""
    return {
        "calls": list(table(wanted)),
        "slower": [(_INDEX.pack(0), _LENGTH.pack(slower_ns))],
    }


def done(raw: bytes) -> Done:
    """Decode ``struct told``."""
    at, took, read, wrote, copying, _, flags, result, *rest = _TOLD.unpack(raw[: _TOLD.size])
    slot, pid, tid, number, path_bytes, base_bytes, complete, absolute, comm, path, base = rest
    call = syscalltable.name(number)
    return Done(
        at_ns=at,
        took_ns=took,
        slot=slot,
        pid=pid,
        tid=tid,
        comm=c_string(comm),
        call=call,
        kind=EVERY[call].kind if call in EVERY else call,
        path=joined(
            b"" if absolute else path[:path_bytes].split(b"\0", 1)[0],
            base[:base_bytes],
            complete=bool(complete),
        ),
        error=-result if -4096 < result < 0 else None,
        read_bytes=read,
        written_bytes=wrote,
        copying_ns=copying,
        truncated=EVERY.get(call, Call("")).kind == "open" and bool(flags & os.O_TRUNC),
    )


def joined(path: bytes, base: bytes, *, complete: bool) -> str:
    """A path from what the sensor saw: the names from a directory up to the root, then the rest.

    >>> joined(b"x", b"etc\\0srv\\0", complete=True), joined(b"/a/b", b"", complete=False)
    ('/srv/etc/x', '/a/b')
    >>> joined(b"../x", b"etc\\0", complete=False), joined(b"./x", b"etc\\0", complete=True)
    ('…/etc/../x', '/etc/x')
    """
    if path.startswith(b"/"):
        return decode(path)
    names = [name for name in reversed(base.split(b"\0")) if name]
    names += [name for name in path.split(b"/") if name not in (b"", b".")]
    top = b"/" if complete else b""
    shown = decode(top + b"/".join(names))
    return shown if complete or not base.strip(b"\0") else f"…/{shown}"


class Copied(Struct, frozen=True, kw_only=True):
    """An operation that copied a file of a lower layer."""

    done: Done
    bytes: int
    """Of the file that was copied; where that was not found again, as accounted to the task."""
    exact: bool
    """Whether the upper layer shows the copy, born within the call."""


class Layers:
    """The overlay mounts of a container, to be asked whether an operation copied a file."""

    def __init__(self, host: Host, mounted: Sequence[Overlay]) -> None:
        self._host = host
        self._mounts = sorted(mounted, key=lambda one: -len(one.mountpoint))[:MOST_MOUNTS]
        self._known: set[tuple[str, str, int | None]] = set()

    def copied(self, done: Done, offset_ns: int | None = None) -> Copied | None:
        """What it copied, or ``None``. ``offset_ns``: of the wall clock from the monotonic one."""
        if done.error is not None or done.truncated or not EVERY[done.call].copies:
            return None
        if not done.written_bytes and not done.copying_ns:
            return None
        exact = self._found(done, clock_offset_ns() if offset_ns is None else offset_ns)
        if exact is not None:
            return Copied(done=done, bytes=exact, exact=True)
        if done.written_bytes >= WORTH_BYTES:
            return Copied(done=done, bytes=done.written_bytes, exact=False)
        return None

    def _found(self, done: Done, offset_ns: int) -> int | None:
        size = self._found_at(done.path, done, offset_ns)
        if size is None:
            real = resolved(f"/proc/{done.pid}/root", done.path)
            if real not in (None, done.path):
                return self._found_at(str(real), done, offset_ns)
        return size

    def _found_at(self, path: str, done: Done, offset_ns: int) -> int | None:
        mount = next((one for one in self._mounts if _below(one, path) is not None), None)
        if mount is None:
            return None
        below = os.path.normpath(_below(mount, path) or "")
        seen = upper.look(self._host, mount, below, done.written_bytes)
        if seen is None or (mount.upperdir, below, seen.btime_ns) in self._known:
            return None
        began = done.at_ns - done.took_ns + offset_ns - TICK_NS
        if seen.btime_ns is not None and not began <= seen.btime_ns <= done.at_ns + offset_ns:
            return None
        if len(self._known) < MOST_COPIES:
            self._known.add((mount.upperdir, below, seen.btime_ns))
        return seen.contents_bytes


def _below(mount: Overlay, path: str) -> str | None:
    """The path below a mount point; ``None``: it is elsewhere."""
    top = mount.mountpoint.rstrip("/")
    return path[len(top) + 1 :] if path.startswith(f"{top}/") else None


#: include/uapi/linux/openat2.h; openat2(2) has one number everywhere (kernel 5.6).
_SYS_OPENAT2, _RESOLVE_IN_ROOT = 437, 0x10


def resolved(root: str, path: str) -> str | None:
    """Where a path below a container's root leads through links, which it does not leave.

    ``None``: nowhere now. Nothing is opened but by its path (``O_PATH``), which waits for nobody.
    """
    how = struct.pack("=QQQ", os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT)
    call = ctypes.CDLL(None).syscall
    call.restype = ctypes.c_long
    try:
        top = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        name = os.fsencode(path)
    except (OSError, ValueError):
        return None
    try:
        number = ctypes.c_long(_SYS_OPENAT2)
        found = int(call(number, ctypes.c_int(top), name, how, ctypes.c_size_t(len(how))))
    finally:
        os.close(top)
    if found < 0:
        return None
    try:
        return os.readlink(f"/proc/self/fd/{found}")
    except OSError:
        return None
    finally:
        os.close(found)


def layers(host: Host, target: Target) -> tuple[Layers, tuple[str, ...]]:
    """The overlay mounts of a living container, and why some of them cannot be asked."""
    seen = () if target.init is None else overlay.overlays(mounts(host, target.init.pid))
    reasons = {one.mountpoint: overlay.obstacle(host, one) for one in seen[:MOST_MOUNTS]}
    open_ = [one for one in seen if reasons.get(one.mountpoint) is None]
    return Layers(host, open_), tuple(why for why in reasons.values() if why is not None)


def clock_offset_ns() -> int:
    """How far the wall clock is ahead of the monotonic one."""
    return time.time_ns() - time.monotonic_ns()


Files = Kept[Done]


@contextmanager
def attached(host: Host) -> Iterator[Files]:
    """The sensor for copies alone. Nobody is in its scope yet. Raises ``Refused``."""
    with loaded(host, SPEC, before=before(NEVER_NS, COPYING)) as object:
        yield Files(object, done, MOST_KEPT)
