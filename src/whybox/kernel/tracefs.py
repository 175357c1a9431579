"""Tracepoints, read as text through a tracing instance of our own (trace/ftrace.rst, "Instances").

    whybox-1-21693   [001] d..1.  1619.250225: signal_generate: sig=15 … comm=nosig pid=77 … res=1

An instance has its own ring buffer and its own switches, so whoever else traces is not disturbed.
Where tracefs is not mounted it is reached through a mount that only our descriptor holds
(``fsmount(2)``, kernel 5.2): nothing appears in anybody's mount table. Parsing is in
``tracetext``.
"""

import errno
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from msgspec import Struct

from whybox.kernel import task
from whybox.kernel.host import Host, decode
from whybox.kernel.namespace import INITIAL, namespace
from whybox.kernel.task import TaskId
from whybox.kernel.tracetext import Event, Layout, layout, lost_events, records

#: Where tracefs is mounted: by itself, and below debugfs as before Linux 4.1.
PLACES = ("/sys/kernel/tracing", "/sys/kernel/debug/tracing")

#: Ring buffer of an instance. The default, 1408 KiB a CPU, is much on a machine with many CPUs.
BUFFER_KIB_PER_CPU = 256

#: No more than this is kept of what one instance wrote.
LIMIT_BYTES = 8 << 20

_INSTANCE = re.compile(r"whybox-(?:graph-|top-)?(\d+)-(\d+)(?:\.\d+)?")

#: The same on every architecture (kernel 5.2, include/uapi/asm-generic/unistd.h).
_SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT = 430, 431, 432
_CLOEXEC = 1
_FSCONFIG_CMD_CREATE = 6


class Recorder:
    """What an instance has recorded since it was switched on.

    Reading takes the records out of the kernel's buffer and keeps them here, so everybody who
    shares a recorder sees all of them.
    """

    def __init__(self, pipe: int, layouts: Mapping[str, Layout]) -> None:
        self._pipe: int | None = pipe
        self._layouts = layouts
        self._lines: list[str] = []
        self._events: list[Event] = []
        self._bytes = 0
        self._lost = 0

    def read(self) -> tuple[Event, ...]:
        """Every event so far, oldest first on each CPU."""
        self._drain()
        return tuple(self._events)

    def lines(self) -> tuple[str, ...]:
        """The same as the kernel printed it; a name in it may hold anything."""
        self._drain()
        return tuple(self._lines)

    @property
    def lost(self) -> int:
        """Events that were overwritten before they were read, as far as the kernel says."""
        self._drain()
        return self._lost

    @property
    def complete(self) -> bool:
        """Whether ``read`` tells everything that happened."""
        return self.lost == 0 and self._bytes < LIMIT_BYTES

    def stop(self) -> None:
        """Take what is there and close the pipe; what was read remains."""
        if self._pipe is not None:
            self._drain()
            os.close(self._pipe)
            self._pipe = None

    def _drain(self) -> None:
        while self._pipe is not None and self._bytes < LIMIT_BYTES:
            try:
                part = os.read(self._pipe, 1 << 16)
            except BlockingIOError:
                return
            if not part:
                return
            # One read gives a page or two of whole records, never a part of one.
            self._bytes += len(part)
            self._lost += lost_events(part)
            for record in records(part):
                self._lines.append(decode(record.raw))
                self._events.append(record.event(self._layouts))


def why_not(host: Host) -> str | None:
    """Why tracepoints cannot be read here, or ``None``. Only switching one on is the full test."""
    if not host.live:
        return "a recorded tree has no tracepoints"
    if namespace(host, "self", "pid") not in (None, INITIAL["pid"]):
        return (
            "tracepoints name the host's pids, and whybox runs in a pid namespace of its own: "
            "run it on the host"
        )
    try:
        with directory(host) as root:
            if os.access(f"{root}/instances", os.W_OK | os.X_OK):
                return None
    except OSError as error:
        return explained(error)
    return "tracefs may not be written to: run whybox as root on the host"


def explained(error: OSError) -> str:
    """A refusal of tracefs as a reason with the way out."""
    if error.errno in (errno.EPERM, errno.EACCES):
        return "tracepoints may not be read without privileges: run whybox as root on the host"
    if error.errno in (errno.ENODEV, errno.ENOSYS, errno.ENOENT):
        return f"this kernel offers no such tracepoint ({error.strerror})"
    return f"tracepoints could not be switched on: {error.strerror or error}"


def has_event(host: Host, place: str) -> bool:
    """Whether the kernel has that tracepoint, such as ``sched/sched_switch``."""
    with directory(host) as root:
        return host.exists(f"{root}/events/{place}/id")


def event_id(host: Host, place: str) -> int:
    """The number by which ``perf_event_open(2)`` knows a tracepoint."""
    with directory(host) as root, open(f"{root}/events/{place}/id", "rb") as file:
        return int(file.read())


@contextmanager
def events(
    host: Host, names: Iterable[str], filters: Mapping[str, str] | None = None
) -> Iterator[Recorder]:
    """Record these tracepoints (``signal/signal_generate``) until the block is left.

    ``filters`` are the kernel's own, such as ``{"signal/signal_generate": "sig == 15"}``. Raises
    OSError where it is refused; ``explained`` says why. Measured on 6.18: 70 ms to make and remove
    an instance (two RCU grace periods), 6 ms of them CPU.
    """
    names = tuple(names)
    with directory(host) as root, _instance(host, root) as instance:
        layouts = {n.rpartition("/")[2]: _layout(f"{instance}/events/{n}/format") for n in names}
        # Changing the clock empties the buffer, so it comes before everything else. The default
        # clock stands still for a whole tick where the TSC is unstable (measured in a VM).
        write(f"{instance}/trace_clock", "mono")
        write(f"{instance}/buffer_size_kb", str(BUFFER_KIB_PER_CPU))
        for name, condition in (filters or {}).items():
            write(f"{instance}/events/{name}/filter", condition)
        recorder = Recorder(_open(f"{instance}/trace_pipe", os.O_RDONLY), layouts)
        try:
            for name in names:
                write(f"{instance}/events/{name}/enable", "1")
            yield recorder
        finally:
            recorder.stop()  # an instance whose pipe is open cannot be removed


class Attempt(Struct, frozen=True, kw_only=True):
    """A recorder, or why there is none."""

    recorder: Recorder | None = None
    reason: str | None = None


@contextmanager
def attempt(
    host: Host, names: Iterable[str], filters: Mapping[str, str] | None = None
) -> Iterator[Attempt]:
    """``events`` for those who can do without: a refusal is told, not raised."""
    reason = why_not(host)
    if reason is not None:
        yield Attempt(reason=reason)
        return
    recording = events(host, names, filters)
    try:
        recorder = recording.__enter__()
    except OSError as error:
        yield Attempt(reason=explained(error))
        return
    try:
        yield Attempt(recorder=recorder)
    finally:
        recording.__exit__(None, None, None)


@contextmanager
def _instance(host: Host, root: str) -> Iterator[str]:
    remove_stale(host, f"{root}/instances")
    instance = made(f"{root}/instances/{own_name(host)}")
    try:
        yield instance
    finally:
        _remove(instance)


def own_name(host: Host, kind: str = "") -> str:
    """The name of an instance that tells whose it is; a ``kind`` ends with a dash."""
    mine = task.stat(host, os.getpid()).id
    return f"whybox-{kind}{mine.pid}-{mine.start_ticks}"


def made(path: str) -> str:
    """Make an instance of that name, or nearly that name where it is taken; its directory."""
    for name in itertools.chain([path], (f"{path}.{n}" for n in range(2, 100))):
        try:
            os.mkdir(name)
        except FileExistsError:
            continue  # this process records something else as well
        return name
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)


def _remove(instance: str) -> None:
    write(f"{instance}/events/enable", "0")
    os.rmdir(instance)


def remove_stale(host: Host, instances: str) -> None:
    """Remove what a whybox that was killed left behind; its pid and start are in the name."""
    for name in os.listdir(instances):
        owner = _owner(name)
        if owner is None or task.is_same(host, owner):
            continue
        try:
            if name.startswith(("whybox-graph-", "whybox-top-")):
                from whybox.kernel import ftrace  # it has changed what is not in the instance

                ftrace.restore(instances, name)
            else:
                _remove(f"{instances}/{name}")
        except OSError:
            continue  # another whybox was quicker, or somebody reads it


def _owner(name: str) -> TaskId | None:
    named = _INSTANCE.fullmatch(name)
    return None if named is None else TaskId(pid=int(named[1]), start_ticks=int(named[2]))


def _layout(file: str) -> Layout:
    descriptor = _open(file, os.O_RDONLY)
    try:
        return layout(os.read(descriptor, 1 << 16))
    finally:
        os.close(descriptor)


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK)


def write(path: str, text: str) -> None:
    """Write a setting; raises OSError with the file's name."""
    descriptor = _open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
    finally:
        os.close(descriptor)


@contextmanager
def directory(host: Host) -> Iterator[str]:
    """The directory of tracefs: where it is mounted, or else in a mount of our own."""
    mounted = next((p for p in PLACES if host.exists(f"{p}/instances")), None)
    if mounted is not None:
        yield mounted
        return
    descriptor = _detached_mount()
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)  # with its last descriptor the mount is gone


def _detached_mount() -> int:
    call = _syscalls()
    context = call(_SYS_FSOPEN, b"tracefs", _CLOEXEC)
    try:
        call(_SYS_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
        return call(_SYS_FSMOUNT, context, _CLOEXEC, 0)
    finally:
        os.close(context)


def _syscalls() -> Callable[..., int]:
    import ctypes  # 5 ms that only a machine without a mounted tracefs pays

    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long

    def call(number: int, *arguments: int | bytes | None) -> int:
        words = [ctypes.c_long(a) if isinstance(a, int) else ctypes.c_char_p(a) for a in arguments]
        result = int(libc.syscall(ctypes.c_long(number), *words))
        if result < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "tracefs")
        return result

    return call
