"""Memory and room that a container was refused, where no counter of the kernel tells of it.

System calls that found no huge page, no room in a file system or a limit of System V IPC, by their
errors (``raw_syscalls:sys_exit``), those that say the same for other reasons, and SIGBUS
(``signal:signal_generate``) with what was mapped at the address: so a fault in a file beyond its
end is told from one in a file without room.
"""

import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from enum import IntEnum

from msgspec import Struct, structs

from whybox.kernel import syscalltable
from whybox.kernel.bpf.objects import Refused, Spec, loaded
from whybox.kernel.host import Host, c_string
from whybox.kernel.sensors.kept import Kept

SPEC = Spec(
    name="refusals",
    programs=(("on_exit",), ("on_bus",)),
    falls_back="how full pools, tmpfs and IPC namespaces are, which does not tell who was refused",
)
#: Without what was mapped at the address, for kernels that do not tell that.
UNPLACED = structs.replace(SPEC, programs=(("on_exit",), ("on_bus_unplaced",)))

#: So many are kept for those who share a sensor; more are counted as lost.
MOST_KEPT = 5_000

_REFUSAL = struct.Struct("=QIIIiII4QQQII16s")
_CALL, _INDEX = struct.Struct("=BBxx"), struct.Struct("=I")
_MOST_CALLS = 512


class Kind(IntEnum):
    """``enum kind``."""

    MAPS = 1
    IPC = 2
    FILE = 3
    BUS = 4
    NAME = 5
    OTHER = 6


#: The calls that are looked at: what of them, and which argument is the descriptor.
_CALLS: dict[str, tuple[Kind, int]] = {
    "mmap": (Kind.MAPS, 4),
    **dict.fromkeys(("shmget", "semget", "msgget"), (Kind.IPC, 0)),
    **dict.fromkeys(
        ("write", "pwrite64", "writev", "pwritev", "pwritev2", "fallocate", "sendfile"),
        (Kind.FILE, 0),
    ),
    **dict.fromkeys(("ftruncate", "fsync", "fdatasync"), (Kind.FILE, 0)),
    "copy_file_range": (Kind.FILE, 2),
    "splice": (Kind.FILE, 2),
    **dict.fromkeys(
        (
            *("open", "creat", "openat", "openat2", "mkdir", "mkdirat", "mknod", "mknodat"),
            *("symlink", "symlinkat", "link", "linkat", "rename", "renameat", "renameat2"),
            *("truncate", "chmod", "fchmodat", "fchmodat2", "chown", "lchown", "fchownat"),
        ),
        (Kind.NAME, 0),
    ),
    **dict.fromkeys(
        (
            *("inotify_add_watch", "clone", "clone3", "fork", "vfork", "unshare"),
            *("mount", "move_mount", "open_tree", "add_key", "keyctl"),
        ),
        (Kind.OTHER, 0),
    ),
}


class Refusal(Struct, frozen=True, kw_only=True):
    """One of them, as the sensor tells it."""

    at_ns: int
    """Of the monotonic clock."""
    slot: int
    kind: Kind
    call: str
    error: int
    """The errno; of a signal its code."""
    pid: int
    comm: str
    arguments: tuple[int, ...]
    """The first four; of a signal the address, the mapping's flags, and where in its file that is,
    in bytes, and the size of the file."""
    magic: int
    """Of the file system of the file; 0: there is no file."""
    device: str
    """``MAJOR:MINOR``."""
    inode: int
    mapped: bool
    """Whether it is known what was mapped at the address."""


Refusals = Kept[Refusal]


@contextmanager
def attached(host: Host) -> Iterator[Refusals]:
    """The sensor. Nobody is in its scope yet. Raises ``Refused``."""
    with ExitStack() as stack:
        try:
            object = stack.enter_context(loaded(host, SPEC, before={"calls": table()}))
        except Refused:
            object = stack.enter_context(loaded(host, UNPLACED, before={"calls": table()}))
        yield Refusals(object, refusal, MOST_KEPT)


def table() -> list[tuple[bytes, bytes]]:
    """What the program is to know of these calls, as its map has it."""
    numbers = {name: syscalltable.number(name) for name in _CALLS}
    return [
        (_INDEX.pack(number), _CALL.pack(*_CALLS[name]))
        for name, number in numbers.items()
        if number is not None and number < _MOST_CALLS
    ]


def refusal(raw: bytes) -> Refusal:
    """Decode ``struct refusal``."""
    at, slot, kind, number, error, pid, _, *rest = _REFUSAL.unpack(raw[: _REFUSAL.size])
    *arguments, magic, inode, device, mapped, comm = rest
    return Refusal(
        at_ns=at,
        slot=slot,
        kind=Kind(kind),
        call="" if kind == Kind.BUS else syscalltable.name(number),
        error=error,
        pid=pid,
        comm=c_string(comm),
        arguments=tuple(arguments),
        magic=magic,
        # MKDEV() of include/linux/kdev_t.h.
        device=f"{device >> 20}:{device & 0xFFFFF}",
        inode=inode,
        mapped=bool(mapped),
    )
