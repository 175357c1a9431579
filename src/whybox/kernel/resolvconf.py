r"""``/etc/resolv.conf`` of a container (resolv.conf(5)): whom its programs ask for names, and how.

>>> parse("nameserver 10.0.0.1\nsearch a.b c\noptions ndots:5 timeout:1\n")
ResolvConf(nameservers=('10.0.0.1',), search=('a.b', 'c'), ndots=5, timeout_s=1, attempts=2)
"""

import ctypes
import errno
import os
import stat
import struct

from msgspec import Struct

from whybox.kernel.host import decode

PATH = "/etc/resolv.conf"
#: What glibc and musl do where the file does not say (resolv.conf(5), MAXNS).
NDOTS, TIMEOUT_S, ATTEMPTS, MOST_SERVERS = 1, 5, 2, 3
#: Where there is no nameserver they ask this one.
NOBODY = "127.0.0.1"

_MOST_BYTES = 1 << 16
#: include/uapi/linux/openat2.h; openat2(2) has one number everywhere (kernel 5.6).
_SYS_OPENAT2, _RESOLVE_IN_ROOT = 437, 0x10


class ResolvConf(Struct, frozen=True, kw_only=True):
    """What the file says."""

    nameservers: tuple[str, ...]
    """Those that count: the first three."""
    search: tuple[str, ...]
    """What is put behind a name that does not end with a dot."""
    ndots: int = NDOTS
    """A name with so many dots is first asked for as it is."""
    timeout_s: int = TIMEOUT_S
    attempts: int = ATTEMPTS


def parse(text: str) -> ResolvConf:
    """Lines that no resolver knows count for nothing, as with them."""
    servers: list[str] = []
    search: tuple[str, ...] = ()
    options = {"ndots": NDOTS, "timeout": TIMEOUT_S, "attempts": ATTEMPTS}
    for line in text.splitlines():
        words = line.split()
        match words:
            case ["nameserver", address, *_]:
                servers.append(address)
            case ["search" | "domain", *domains]:
                # The last one counts.
                search = tuple(domain.rstrip(".").lower() for domain in domains)
            case ["options", *given]:
                options |= _options(given)
    return ResolvConf(
        nameservers=tuple(servers[:MOST_SERVERS]),
        search=tuple(domain for domain in search if domain),
        ndots=options["ndots"],
        timeout_s=options["timeout"],
        attempts=options["attempts"],
    )


def _options(words: list[str]) -> dict[str, int]:
    pairs = (word.partition(":")[::2] for word in words)
    return {name: int(value) for name, value in pairs if value.isdigit() and len(value) < 9}


def read(root: str) -> ResolvConf | None:
    """Of the container whose root directory that is; links do not lead out of it.

    ``None``: it has no such file. Raises OSError where it may not be looked at.
    """
    how = struct.pack("=QQQ", os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT)
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.restype = ctypes.c_long
    top = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        number, length = ctypes.c_long(_SYS_OPENAT2), ctypes.c_size_t(len(how))
        found = int(call(number, ctypes.c_int(top), PATH.encode(), how, length))
    finally:
        os.close(top)
    if found < 0:
        if ctypes.get_errno() in (errno.ENOENT, errno.ENOTDIR):
            return None
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), PATH)
    try:
        # What is no file (a FIFO, a device) is not opened for reading.
        return parse(_text(found)) if stat.S_ISREG(os.fstat(found).st_mode) else None
    finally:
        os.close(found)


def _text(descriptor: int) -> str:
    file = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return decode(os.read(file, _MOST_BYTES))
    finally:
        os.close(file)
