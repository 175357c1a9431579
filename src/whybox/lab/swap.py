"""Swap of a lab's own: switched on, and off again when its box is closed.

Swap is the machine's: whatever else runs on it may be swapped too meanwhile, so only labs that may
break the kernel have it.
"""

import ctypes
import itertools
import mmap
import os
import signal
import struct
import subprocess
from contextlib import ExitStack, suppress

from whybox.kernel.host import Host
from whybox.kernel.swap import devices
from whybox.lab.box import Box, BoxError

PREFIX = "whybox-swap"
SIZE_BYTES = 192 << 20
#: A killed PID 1 with much of it in swap takes a while to go.
PATIENCE_SECONDS = 30.0

_ZRAM = "/sys/class/zram-control"
#: include/linux/swap.h: before all that is there already.
_SWAP_FLAG_PREFER = 0x8000
_PRIORITY = 0x7FFF

_numbers = itertools.count(1)
_libc = ctypes.CDLL(None, use_errno=True)


def impossible(host: Host) -> str | None:
    """Why there can be no swap here, or ``None``."""
    if devices(host) is None:
        return "this kernel was built without swap"
    return None if os.geteuid() == 0 else "switching swap on takes root"


def zram_possible() -> bool:
    """Whether this kernel has zram, built in or as a module that is there."""
    module = f"/lib/modules/{os.uname().release}/kernel/drivers/block/zram"
    return os.path.exists(_ZRAM) or os.path.exists(module)


def sweep() -> None:
    """Switch off and remove the swap files of dead lab processes."""
    for device in devices(Host()) or ():
        name = os.path.basename(device.path)
        owner = name.removeprefix(f"{PREFIX}-").partition("-")[0]
        if name.startswith(PREFIX) and owner.isdigit() and not os.path.exists(f"/proc/{owner}"):
            _off(device.path)
            os.unlink(device.path)


def on_file(box: Box, size: int = SIZE_BYTES) -> None:
    """A swap file, until the box is closed."""
    file(box.closing, size)
    box.closing.callback(_end, box)


def on_zram(box: Box, size: int = SIZE_BYTES) -> None:
    """Compressed memory, until the box is closed."""
    zram(box.closing, size)
    box.closing.callback(_end, box)


def _end(box: Box) -> None:
    """First of all: with a living box swapoff would have to find room for what is swapped."""
    with suppress(BoxError, OSError):
        box.signal(signal.SIGKILL)
        box.wait(PATIENCE_SECONDS)


def file(closing: ExitStack, size: int = SIZE_BYTES) -> None:
    """A swap file, switched off and removed when the stack is closed."""
    sweep()
    directory = os.environ.get("TMPDIR", "/var/tmp")
    path = os.path.join(directory, f"{PREFIX}-{os.getpid()}-{next(_numbers)}")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    closing.callback(os.unlink, path)
    with os.fdopen(descriptor, "wb") as opened:
        _format(opened.fileno(), size)
        opened.seek(mmap.PAGESIZE)
        opened.write(bytes(size - mmap.PAGESIZE))  # a swap file has no holes
        opened.flush()
        os.fsync(opened.fileno())
    _on(closing, path)


def zram(closing: ExitStack, size: int = SIZE_BYTES) -> None:
    """Compressed memory, switched off and removed when the stack is closed."""
    if not os.path.exists(_ZRAM):
        subprocess.run(["modprobe", "zram", "num_devices=0"], check=True)
    with open(f"{_ZRAM}/hot_add", encoding="ascii") as added:
        number = added.read().strip()
    closing.callback(_write, f"{_ZRAM}/hot_remove", number)
    _write(f"/sys/block/zram{number}/disksize", str(size))
    path = f"/dev/zram{number}"
    descriptor = os.open(path, os.O_RDWR | os.O_EXCL)
    try:
        _format(descriptor, size)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    _on(closing, path)


def _format(descriptor: int, size: int) -> None:
    """The first page of a swap area (include/linux/swap.h, ``union swap_header``)."""
    header = bytearray(mmap.PAGESIZE)
    struct.pack_into("=III", header, 1024, 1, size // mmap.PAGESIZE - 1, 0)
    header[-10:] = b"SWAPSPACE2"
    os.pwrite(descriptor, header, 0)


def _on(closing: ExitStack, path: str) -> None:
    _checked(_libc.swapon(os.fsencode(path), _SWAP_FLAG_PREFER | _PRIORITY), path)
    closing.callback(_off, path)


def _off(path: str) -> None:
    _checked(_libc.swapoff(os.fsencode(path)), path)


def _checked(result: int, about: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), about)


def _write(file: str, text: str) -> None:
    with open(file, "w", encoding="ascii") as opened:
        opened.write(text)
