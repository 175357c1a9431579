r"""The kernel log: ``/dev/kmsg``, or ``syslog(2)`` where that device is not to be had.

One read of ``/dev/kmsg`` is one record (Documentation/ABI/testing/dev-kmsg): level and facility,
sequence number, microseconds since boot, flags, text; unprintable bytes are spelled out.

>>> record(b"6,3062,1879580897,-;Comm: caf\\xc3\\xa9\n SUBSYSTEM=net\n")
Record(seq=3062, usec=1879580897, facility=0, text='Comm: café')
"""

import errno
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from msgspec import Struct

from whybox.kernel.host import Host, ParseError, decode
from whybox.kernel.task import TICKS_PER_SECOND

FILE = "/dev/kmsg"

#: The facility of the kernel's own records: whoever writes to ``/dev/kmsg`` gets another one
#: (devkmsg_write, kernel/printk/printk.c), so a container cannot forge a report.
KERNEL = 0

#: A read with less room than a record needs is refused with EINVAL (PRINTK_MESSAGE_MAX is 2048,
#: CONSOLE_EXT_LOG_MAX was 8192).
_RECORD_BYTES = 8192
#: log_buf_len is a megabyte or two on the largest machines.
_MOST_BYTES = 16 << 20
_MOST_SECONDS = 2.0

_DEVICE = os.makedev(1, 11)
_SYSLOG_ACTION_READ_ALL = 3
_SYSLOG_ACTION_SIZE_BUFFER = 10
_ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")
_SYSLOG_LINE = re.compile(r"<(\d+)>(?:\[ *(\d+)\.(\d{6})\])?(?:\[ *[TC]\d+\])? ?(.*)")


class Record(Struct, frozen=True):
    """One message."""

    seq: int | None
    """Counted since boot; syslog(2) does not tell it."""
    usec: int | None
    """On the clock of the log: about the time since boot, without time spent suspended."""
    facility: int
    text: str


class Reach(Struct, frozen=True, kw_only=True):
    """How far back the kernel log goes, or why it may not be read."""

    source: str = FILE
    oldest_usec: int | None = None
    """When its oldest record was written."""
    complete: bool = False
    """Whether that is the first since the boot: nothing was overwritten yet."""
    truncated: bool = False
    """There was more than we are willing to read."""
    reason: str | None = None
    """Why it may not be read."""

    def covers(self, usec: int | None) -> bool:
        """Whether all that the kernel said since that moment is there."""
        if usec is None or usec < 0 or self.truncated or self.oldest_usec is None:
            return False
        return self.complete or self.oldest_usec <= usec


class KernelLog(Struct, frozen=True, kw_only=True):
    """What the kernel still remembers of what it said."""

    records: tuple[Record, ...]
    reach: Reach


def _kernel_log(records: Iterator[Record], source: str, truncated: bool = False) -> KernelLog:
    kept = tuple(records)
    oldest = kept[0] if kept else None
    reach = Reach(
        source=source,
        oldest_usec=None if oldest is None else oldest.usec,
        complete=oldest is not None and oldest.seq == 0,
        truncated=truncated,
        reason=None if kept else f"{source} is empty",
    )
    return KernelLog(records=kept, reach=reach)


def record(raw: bytes) -> Record:
    """Parse one record; the lines after the first are its device, which nobody asks for."""
    head, separator, rest = raw.partition(b";")
    try:
        # There are thousands of records: no generator, and a decoder that is found at once.
        priority, seq, usec = head.split(b",", 3)[:3]
        text = rest[: rest.find(b"\n")] if b"\n" in rest else rest
        if b"\\" in text:
            text = _ESCAPED.sub(lambda m: bytes((int(m[1], 16),)), text)
        said = Record(
            int(seq), int(usec), int(priority) >> 3, text.decode("utf-8", "backslashreplace")
        )
    except ValueError:
        raise ParseError(FILE, decode(raw)) from None
    if not separator:
        raise ParseError(FILE, decode(raw))
    return said


def syslog_records(text: str) -> Iterator[Record]:
    r"""Parse what syslog(2) gives: no sequence numbers, and a time only with ``printk.time``.

    >>> list(syslog_records("<6>[    1.000200][    T1] ready\n<4>old"))[0]
    Record(seq=None, usec=1000200, facility=0, text='ready')
    """
    for line in text.splitlines():
        if match := _SYSLOG_LINE.match(line):
            priority, seconds, micro, said = match.groups()
            usec = None if seconds is None else int(seconds) * 1_000_000 + int(micro)
            yield Record(None, usec, int(priority) >> 3, said)


def log(host: Host) -> KernelLog:
    """The kernel log, read once a moment for all targets and cases."""
    return host.remembered("kmsg", lambda: _log(host))


def _log(host: Host) -> KernelLog:
    host.reads += 1
    try:
        return _from_device() if host.live else _from_tree(host)
    except OSError as error:
        refused = error
    if host.live and (said := _syslog()) is not None:
        return said
    reason = f"the kernel log may not be read from here ({FILE}: {refused.strerror})"
    return KernelLog(records=(), reach=Reach(reason=reason))


def _from_tree(host: Host) -> KernelLog:
    lines = host.read(FILE).splitlines()
    # A line that begins with a blank belongs to the record before it.
    return _kernel_log((record(line) for line in lines if line[:1] not in (b"", b" ")), FILE)


def _from_device() -> KernelLog:
    descriptor = _open()
    try:
        raw, truncated = _read_all(descriptor)
    finally:
        os.close(descriptor)
    return _kernel_log((record(one) for one in raw), FILE, truncated)


def _open() -> int:
    descriptor = os.open(FILE, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    about = os.fstat(descriptor)
    if stat.S_ISCHR(about.st_mode) and about.st_rdev == _DEVICE:
        return descriptor
    os.close(descriptor)
    # In containers it is often a link to the console or to nowhere, which reads as empty.
    raise OSError(errno.ENODEV, "it is not the kernel log here", FILE)


def _read_all(descriptor: int) -> tuple[list[bytes], bool]:
    records: list[bytes] = []
    size, until = 0, time.monotonic() + _MOST_SECONDS
    while (one := _read_one(descriptor)) is not None:
        records.append(one)
        size += len(one)
        if size > _MOST_BYTES or (len(records) % 256 == 0 and time.monotonic() > until):
            return records, True
    return records, False


def _read_one(descriptor: int) -> bytes | None:
    """The next record, ``None`` at the end."""
    while True:
        try:
            return os.read(descriptor, _RECORD_BYTES) or None
        except BlockingIOError:
            return None
        except BrokenPipeError:
            continue  # the next record was overwritten; now we stand at the oldest that is left


def _syslog() -> KernelLog | None:
    import ctypes  # only needed here: starting up is a feature

    libc = ctypes.CDLL(None, use_errno=True)
    size = min(libc.klogctl(_SYSLOG_ACTION_SIZE_BUFFER, None, 0), _MOST_BYTES)
    if size <= 0:
        return None
    buffer = ctypes.create_string_buffer(size)
    length = libc.klogctl(_SYSLOG_ACTION_READ_ALL, buffer, size)
    if length <= 0:
        return None
    return _kernel_log(syslog_records(decode(buffer.raw[:length])), "syslog(2)")


class Mark:
    """A place in the log, to tell what was said after it.

    Sequence numbers tell it exactly; times do not, since the log's clock is not disciplined and
    drifts from all others, by minutes in a hundred days.
    """

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor
        self._first: int | None = None

    def first_after(self) -> int | None:
        """The sequence number of the first record after the mark, or ``None``: nothing came."""
        if self._first is None and self._descriptor is not None:
            raw = _read_one(self._descriptor)
            self._first = None if raw is None else record(raw).seq
        return self._first


def mark(host: Host) -> AbstractContextManager[Mark]:
    """Mark the end of the log; one that may not be read, or is a recording, gets no mark.

    Where no time passes nothing can come after it.
    """
    if host.live and host.window_seconds > 0:
        return host.sensor("kmsg", _marked)
    return nullcontext(Mark(None))


@contextmanager
def _marked() -> Iterator[Mark]:
    try:
        descriptor = _open()
    except OSError:
        yield Mark(None)
        return
    try:
        os.lseek(descriptor, 0, os.SEEK_END)
        yield Mark(descriptor)
    finally:
        os.close(descriptor)


def now_usec(host: Host) -> int | None:
    """The present moment on the clock of the log, as well as it can be told."""
    if host.live:
        return host.monotonic_ns() // 1000
    said = host.optional_text("/proc/uptime")
    return None if said is None else int(float(said.split()[0]) * 1_000_000)


def usec_of_wall(host: Host, wall_ns: int | None) -> int | None:
    """A wall-clock time on the clock of the log; negative before this boot."""
    now = now_usec(host)
    if wall_ns is None or now is None:
        return None
    if host.live:
        return now - (time.time_ns() - wall_ns) // 1000
    booted = re.search(r"^btime (\d+)$", host.optional_text("/proc/stat") or "", re.MULTILINE)
    return None if booted is None else wall_ns // 1000 - int(booted[1]) * 1_000_000


def usec_of_ticks(host: Host, start_ticks: int) -> int:
    """A task's start on the clock of the log: ``stat`` also counts time spent suspended."""
    usec = start_ticks * 1_000_000 // TICKS_PER_SECOND
    if not host.live:
        return usec
    suspended = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.clock_gettime_ns(
        time.CLOCK_MONOTONIC
    )
    return usec - max(suspended, 0) // 1000
