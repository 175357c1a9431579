"""What programs cost that run on every system call or switch: timed at first, then only counted.

To time it the kernel reads a clock before and after each run. For programs as short as these that
costs more than they do (measured on 6.18, a read() of one byte by a task that is not watched takes
208 ns untraced, 373 ns traced, 525 ns traced and timed).
"""

import os
import struct
from collections.abc import Callable

from whybox.kernel.bpf import libbpf
from whybox.kernel.bpf.objects import Cost, Object

_RUN_TIME = 0  # include/uapi/linux/bpf.h, enum bpf_stats_type
_COUNT = struct.Struct("=Q")


class Meter:
    """Times so many ticks, and reckons from them.

    It is switched off once and not on again: each time the kernel patches its own text. ``runs``:
    how often the programs ran, by their own count.
    """

    def __init__(self, object: Object, runs: Callable[[Object], int], *, ticks: int = 10) -> None:
        self._object, self._runs = object, runs
        self._left = ticks
        self._descriptor: int | None = None
        self._timed: Cost | None = None
        object.on_close(self.stop)
        try:
            self._descriptor = libbpf.call("bpf_enable_stats", _RUN_TIME)
        except OSError:
            return  # before v5.8, or not allowed: then nothing is told

    def tick(self) -> None:
        """Called again and again."""
        self._left -= 1
        if self._left <= 0:
            self.stop()

    def stop(self) -> None:
        """Time no more."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor, self._timed = None, self._object.counted()

    def cost(self) -> Cost | None:
        """What the programs have cost so far: runs by their own count, time by what was timed."""
        timed = self._object.counted() if self._descriptor is not None else self._timed
        if timed is None:
            return None
        runs = max(self._runs(self._object), timed.runs)
        each = timed.run_ns / timed.runs if timed.runs else 0
        return Cost(run_ns=round(runs * each), runs=runs, missed=self._object.missed())


def counted(object: Object, map: str, at: int = 0) -> int:
    """The sum over all CPUs of a counter, which is so many bytes into a map's only element."""
    rows = object.map(map).per_cpu(struct.pack("=I", 0))
    return sum(_COUNT.unpack_from(row, at)[0] for row in rows)
