"""Two calls that Python 3.11 has no name for: ``statx(2)``, which knows when a file was born, and
``openat2(2)``, which opens a path that a container made without being led out of a directory.
"""

import ctypes
import os
import struct

from msgspec import Struct

#: include/uapi/linux/stat.h
STATX_BASIC_STATS = 0x7FF
STATX_BTIME = 0x800
AT_SYMLINK_NOFOLLOW = 0x100
AT_EMPTY_PATH = 0x1000

#: The number of openat2 is the same on every architecture (kernel 5.6, commit fddb5d430ad9).
_SYS_OPENAT2 = 437
#: include/uapi/linux/openat2.h
RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

_libc = ctypes.CDLL(None, use_errno=True)
_libc.statx.argtypes = (
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_int,
    ctypes.c_uint,
    ctypes.c_char_p,
)
_libc.statx.restype = ctypes.c_int
_libc.syscall.restype = ctypes.c_long


class Statx(Struct, frozen=True, kw_only=True):
    """What ``statx`` says of one file."""

    mode: int
    ino: int
    nlink: int
    size_bytes: int
    allocated_bytes: int
    """Blocks that the file takes: less than its size where it has holes."""
    btime_ns: int | None
    """When the file was born, since 1970; ``None``: this file system does not keep it."""
    ctime_ns: int


def statx(directory: int, name: str) -> Statx:
    """One entry of an open directory; a link is not followed."""
    buffer = ctypes.create_string_buffer(256)
    mask = STATX_BASIC_STATS | STATX_BTIME
    if _libc.statx(directory, os.fsencode(name), AT_SYMLINK_NOFOLLOW, mask, buffer) != 0:
        raise _refusal(name)
    return parse(buffer.raw)


def attributes(opened: int) -> int:
    """The attributes of an open file, such as that it is immutable (``STATX_ATTR_…``)."""
    buffer = ctypes.create_string_buffer(256)
    if _libc.statx(opened, b"", AT_EMPTY_PATH, STATX_BASIC_STATS, buffer) != 0:
        raise _refusal("statx")
    return int(struct.unpack_from("=Q", buffer.raw, 8)[0])


def parse(raw: bytes) -> Statx:
    """Parse ``struct statx`` (include/uapi/linux/stat.h)."""
    (known,) = struct.unpack_from("=I", raw, 0)
    nlink, _uid, _gid, mode = struct.unpack_from("=IIIH", raw, 16)
    ino, size, blocks = struct.unpack_from("=QQQ", raw, 32)
    return Statx(
        mode=mode,
        ino=ino,
        nlink=nlink,
        size_bytes=size,
        allocated_bytes=blocks * 512,
        btime_ns=_time_ns(raw, 80) if known & STATX_BTIME else None,
        ctime_ns=_time_ns(raw, 96),
    )


def _time_ns(raw: bytes, offset: int) -> int:
    seconds, nanoseconds = struct.unpack_from("=qI", raw, offset)
    return int(seconds) * 1_000_000_000 + int(nanoseconds)


def open_beneath(directory: int, path: str, flags: int, *, into_mounts: bool = False) -> int:
    """Open ``path`` below an open directory, never through a link."""
    resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | (0 if into_mounts else RESOLVE_NO_XDEV)
    return _opened(directory, path, flags | os.O_NOFOLLOW, resolve)


def open_in_root(root: str, path: str, flags: int) -> int:
    """Open ``path`` as a process with that root would, links and all, and never outside of it."""
    top = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _opened(top, path, flags, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    finally:
        os.close(top)


def _opened(directory: int, path: str, flags: int, resolve: int) -> int:
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, 0, resolve)
    descriptor = _libc.syscall(
        ctypes.c_long(_SYS_OPENAT2),
        ctypes.c_int(directory),
        ctypes.c_char_p(os.fsencode(path)),
        ctypes.c_char_p(how),
        ctypes.c_size_t(len(how)),
    )
    if descriptor < 0:
        raise _refusal(path)
    return int(descriptor)


def _refusal(path: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), path)
