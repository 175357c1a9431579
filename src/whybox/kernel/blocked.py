"""Tasks that are blocked in the kernel (state D): looked at twice, and sampled in between.

``/proc/TID/task/TID/stat`` says the state of one thread and no sum of its process; ``wchan`` the
function it waits in (for the same user or with ptrace rights), ``stack`` all of them (for
CAP_SYS_ADMIN of the host alone), ``schedstat`` how often it was given a CPU: as often at both looks
and it has not moved at all. None of these files waits for a lock that the task may hold.
"""

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from msgspec import Struct

from whybox.kernel import cgroup, syscalltable, task, waitsite
from whybox.kernel.host import Host, ParseError
from whybox.kernel.target import Target, place, processes

#: So many threads are looked at, and so many of those that are blocked are looked at closely.
MOST_THREADS = 2000
MOST_SAMPLED = 64
MOST_DETAILED = 16

#: Twenty samples a second of each, fewer where there are many: at most about 1 % of a CPU.
_EVERY_SECONDS = 0.05
_EVERY_SECONDS_EACH = 0.002

_SIGKILL_BIT = 1 << 8


class Blocked(Struct, frozen=True, kw_only=True):
    """One thread in D at one look."""

    tid: int
    start_ticks: int
    comm: str
    site: str | None
    """``wchan``; ``None``: it may not be read here."""
    timeslices: int | None
    """How often it was given a CPU; ``None``: this kernel does not count."""


class Look(Struct, frozen=True, kw_only=True):
    """All threads at one moment."""

    threads: int
    running: int
    """In R: on a CPU or waiting for one; throttled ones are among them (measured)."""
    blocked: tuple[Blocked, ...]
    left_out: int
    """Threads that were not looked at, because there are too many."""


class Sampled(Struct, frozen=True, kw_only=True):
    """How often a thread was looked at in the window, and found in D."""

    samples: int
    blocked: int


class Child(Struct, frozen=True, kw_only=True):
    """The youngest child of a thread: of one that waits in vfork, the one it waits for."""

    pid: int
    comm: str
    state: str
    site: str | None


class Detail(Struct, frozen=True, kw_only=True):
    """What is known of a thread that stays blocked."""

    process: int | None
    """Whose thread it is."""
    stack: tuple[str, ...]
    """Innermost first; empty: it may not be read here."""
    call: str | None
    """The system call that it is in; ``None``: a page fault, or unknown."""
    arguments: tuple[int, ...]
    killed: bool
    """A SIGKILL is pending, and it cannot end."""
    child: Child | None


def look(host: Host, target: Target) -> Look:
    """Every thread's state at this moment, once for all cases."""
    key = f"blocked tasks {target.runtime} {target.id}"
    return host.remembered(key, lambda: _look(host, target))


def _look(host: Host, target: Target) -> Look:
    tids = _threads(host, target)
    running = 0
    blocked = []
    for tid in tids[:MOST_THREADS]:
        try:
            found = _stat(host, tid)
        except (OSError, ParseError):
            continue  # it has ended
        running += found.state == "R"
        if found.state == "D":
            blocked.append(_blocked(host, tid, found))
    left_out = max(0, len(tids) - MOST_THREADS)
    return Look(threads=len(tids), running=running, blocked=tuple(blocked), left_out=left_out)


def _threads(host: Host, target: Target) -> Sequence[int]:
    group = place(host, target.cgroups)
    if group is not None and target.runtime != "process":
        return cgroup.threads(host, group)
    found: list[int] = []
    for pid in processes(host, target):
        try:
            found.extend(task.thread_ids(host, pid))
        except OSError:
            continue
    return found


def _stat_file(tid: int) -> str:
    # /proc/TID/stat sums up its whole process, thread by thread: not so the thread's own file.
    return f"/proc/{tid}/task/{tid}/stat"


def _stat(host: Host, tid: int) -> task.Stat:
    file = _stat_file(tid)
    return task.parse_stat(host.read(file), file)


def _blocked(host: Host, tid: int, found: task.Stat) -> Blocked:
    try:
        timeslices = task.schedstat(host, tid, tid).timeslices
    except (OSError, ParseError):
        timeslices = None
    return Blocked(
        tid=tid,
        start_ticks=found.start_ticks,
        comm=found.comm,
        site=task.wait_channel(host, tid, tid),
        timeslices=timeslices,
    )


class Sampler:
    """Looks at a few threads again and again, in a thread of its own."""

    def __init__(self, host: Host, suspects: Sequence[Blocked]) -> None:
        self._files = {one.tid: host.path(_stat_file(one.tid)) for one in suspects}
        self._samples = 0
        self._blocked = dict.fromkeys(self._files, 0)
        self._ended = threading.Event()
        self._every = max(_EVERY_SECONDS, _EVERY_SECONDS_EACH * len(self._files))

    def run(self) -> None:
        """Until it is told to end."""
        while not self._ended.wait(self._every):
            for tid, file in self._files.items():
                self._blocked[tid] += _state(file) == b"D"
            self._samples += 1

    def end(self) -> None:
        """Tell it to end."""
        self._ended.set()

    def sampled(self, tid: int) -> Sampled | None:
        """What it saw of one thread; ``None``: nothing."""
        if tid not in self._files or not self._samples:
            return None
        return Sampled(samples=self._samples, blocked=self._blocked[tid])


def _state(file: str) -> bytes:
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            raw = os.read(descriptor, 512)
        finally:
            os.close(descriptor)
    except OSError:
        return b""
    return raw[raw.rfind(b")") + 2 :][:1]


class Watch:
    """What was blocked before the window, and how often within it."""

    def __init__(self, host: Host, before: Look) -> None:
        self.before = before
        suspects = before.blocked[:MOST_SAMPLED] if host.live and host.window_seconds else ()
        self.sampler = Sampler(host, suspects)
        self._thread: threading.Thread | None = None
        if suspects:  # nothing is blocked in most containers: then nothing is spent
            self._thread = threading.Thread(target=self.sampler.run, name="blocked", daemon=True)
            self._thread.start()

    def end(self) -> None:
        """Stop sampling."""
        self.sampler.end()
        if self._thread is not None:
            self._thread.join()
            self._thread = None


@contextmanager
def watching(host: Host, target: Target) -> Iterator[Watch]:
    """One watch of a target for all cases that ask."""
    with host.sensor(f"blocked {target.runtime} {target.id}", lambda: _watch(host, target)) as one:
        yield one


@contextmanager
def _watch(host: Host, target: Target) -> Iterator[Watch]:
    watch = Watch(host, look(host, target))
    try:
        yield watch
    finally:
        watch.end()


def detail(host: Host, tid: int) -> Detail:
    """One thread, as closely as we may look."""
    status = _status(host, tid)
    call, arguments = _call(host.optional_text(f"/proc/{tid}/task/{tid}/syscall") or "")
    return Detail(
        process=None if status is None else status.tgid,
        stack=waitsite.frames(host.optional_text(f"/proc/{tid}/task/{tid}/stack") or ""),
        call=call,
        arguments=arguments,
        killed=status is not None and bool((status.sig_pnd | status.shd_pnd) & _SIGKILL_BIT),
        child=_youngest(host, tid),
    )


def _status(host: Host, tid: int) -> task.Status | None:
    try:
        return task.status(host, tid)
    except (OSError, ParseError):
        return None


def _call(text: str) -> tuple[str | None, tuple[int, ...]]:
    """Parse ``/proc/PID/syscall``: the number, six arguments, and two more.

    >>> _call("58 0x0 0x1 0x2 0x3 0x4 0x5 0x7ffc 0x7f00")
    ('vfork', (0, 1, 2, 3, 4, 5))
    >>> _call("running"), _call("-1 0x7ffc 0x7f00")
    ((None, ()), (None, ()))
    """
    words = text.split()
    if len(words) < 7 or not words[0].isdigit():
        return None, ()
    try:
        arguments = tuple(int(word, 16) for word in words[1:7])
    except ValueError:
        return None, ()
    return syscalltable.name(int(words[0])), arguments


def _youngest(host: Host, tid: int) -> Child | None:
    """By ``children``, where the kernel has such a file (CONFIG_PROC_CHILDREN)."""
    said = host.optional_text(f"/proc/{tid}/task/{tid}/children") or ""
    found = []
    for word in said.split()[-64:]:
        try:
            found.append(_stat(host, int(word)))
        except (OSError, ValueError):
            continue
    if not found:
        return None
    last = max(found, key=lambda one: (one.start_ticks, one.pid))
    site = task.wait_channel(host, last.pid, last.pid)
    return Child(pid=last.pid, comm=last.comm, state=last.state, site=site)
