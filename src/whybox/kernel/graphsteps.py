"""What the tracer ``function_graph`` has recorded: who entered and left which function, and when.

Read from the pages of its buffer, one buffer for each CPU (``tracepages``).
"""

import errno
import os
import time
from collections.abc import Iterable

from msgspec import Struct

from whybox.kernel import tracepages
from whybox.kernel.tracepages import Format, Record

#: So much is read at once: a storm must not hold up its reader.
_MOST_BYTES_AT_ONCE = 2 << 20

#: So many steps wait at most until all CPUs are read equally far.
_MOST_PENDING = 200_000

#: A page may be as large as this (``buffer_subbuf_size_kb``, v6.8).
_LARGEST_PAGE = 1 << 16

#: The processor's own counter as the trace clock, and how long it is compared with another clock.
TSC = "x86-tsc"
_CALIBRATION_SECONDS = 0.05


class Formats(Struct, frozen=True, kw_only=True):
    """How the events of the tracer lie in its buffer, and a mark that was written by hand."""

    enter: Format
    leave: Format
    mark: Format


class Step(Struct, frozen=True, kw_only=True):
    """A task entered or left a function."""

    at_ns: int
    """Since some time in the past."""
    pid: int
    """The thread's, by the host."""
    function: int
    """Its address."""
    depth: int
    """How many of the traced functions it is in, on its way in."""
    enters: bool


class Graph:
    """The tracer while it runs: steps of the tasks that it watches."""

    def __init__(self, own: str, clock: str, formats: Formats, *, in_instance: bool) -> None:
        self.own, self.clock, self.in_instance = own, clock, in_instance
        self._formats = formats
        self._zero, self._ns_per_tick = 0, 1.0
        self._pids: set[int] = set()
        self._pending: list[Step] = []
        self._pipes: list[int] = []
        self._lost = 0

    @property
    def lost(self) -> int:
        """Steps that were overwritten before they were read."""
        return self._lost

    def watch(self, pids: Iterable[int]) -> None:
        """Watch these threads as well; what they fork is watched by itself."""
        new = sorted(set(pids) - self._pids)
        # Few at a time: the kernel copies what is written word by word.
        for at in range(0, len(new), 64):
            words = " ".join(map(str, new[at : at + 64]))
            _append(f"{self.own}/set_ftrace_pid", f"{words}\n".encode())
        self._pids.update(new)

    def open(self) -> None:
        """Open its buffers, one for each CPU."""
        cpus = sorted(n for n in os.listdir(f"{self.own}/per_cpu") if n.startswith("cpu"))
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        for cpu in cpus:
            self._pipes.append(os.open(f"{self.own}/per_cpu/{cpu}/trace_pipe_raw", flags))

    def calibrate(self) -> None:
        """Find out what a tick of the processor's counter is, by two marks in our own buffer."""
        if self.clock != TSC:
            return
        began = self._mark()
        time.sleep(_CALIBRATION_SECONDS)
        ended = self._mark()
        self.open()
        try:
            records = [record for pipe in self._pipes for record in self._pages(pipe, 1)[0]]
        finally:
            self.close()  # no tracer is switched on while somebody reads
        marks = sorted(r.at for r in records if r.kind == self._formats.mark.kind)
        if len(marks) < 2 or marks[-1] == marks[0]:
            raise OSError(errno.EIO, "the kernel's trace buffer does not keep marks")
        self._zero, self._ns_per_tick = marks[0], (ended - began) / (marks[-1] - marks[0])

    def read(self) -> list[Step]:
        """The steps since the last call in the order of their time.

        What is read now may lie behind what another CPU has yet to show, so it is kept for the next
        call.
        """
        known = max((step.at_ns for step in self._pending), default=0)
        budget = max(_MOST_BYTES_AT_ONCE // max(len(self._pipes), 1), _LARGEST_PAGE)
        drained = [self._drain(pipe, budget) for pipe in self._pipes]
        self._pending.sort(key=lambda step: step.at_ns)
        if not all(drained) and len(self._pending) < _MOST_PENDING:
            return []  # CPUs are not read equally far
        ready = [step for step in self._pending if step.at_ns <= known]
        self._pending = self._pending[len(ready) :]
        return ready

    def rest(self) -> list[Step]:
        """All that is left, after the tracer has stopped."""
        for _ in range(64):
            if all(self._drain(pipe, _MOST_BYTES_AT_ONCE) for pipe in self._pipes):
                break
        ready, self._pending = sorted(self._pending, key=lambda step: step.at_ns), []
        return ready

    def close(self) -> None:
        """Close its buffers: an instance whose buffer is open cannot be removed."""
        while self._pipes:
            os.close(self._pipes.pop())

    def _mark(self) -> float:
        """Write a mark; the time at which that was, in ns."""
        before = time.monotonic_ns()
        _append(f"{self.own}/trace_marker", b"whybox\n")
        return (before + time.monotonic_ns()) / 2

    def _drain(self, pipe: int, budget: int) -> bool:
        """Read a CPU's pages; whether that was all of them."""
        records, whole = self._pages(pipe, budget)
        self._pending += filter(None, map(self._step, records))
        return whole

    def _pages(self, pipe: int, budget: int) -> tuple[list[Record], bool]:
        records: list[Record] = []
        while budget > 0:
            try:
                raw = os.read(pipe, _LARGEST_PAGE)
            except BlockingIOError:
                return records, True
            if not raw:
                return records, True
            budget -= len(raw)
            page = tracepages.parsed(raw)
            self._lost += page.lost
            records += page.records
        return records, False

    def _step(self, record: Record) -> Step | None:
        # Others may write into the machine's own buffer: what is no step is not ours.
        formats = self._formats
        for format, enters in ((formats.enter, True), (formats.leave, False)):
            if record.kind == format.kind:
                return Step(
                    at_ns=round((record.at - self._zero) * self._ns_per_tick),
                    pid=record.pid,
                    function=format.get(record.body, "func") or 0,
                    depth=format.get(record.body, "depth") or 0,
                    enters=enters,
                )
        return None


def _append(path: str, text: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    try:
        os.write(descriptor, text)
    finally:
        os.close(descriptor)
