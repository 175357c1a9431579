"""How long tasks wait for a CPU: a histogram for each container, and who ran meanwhile.

The wait is the kernel's own: from ``sched_info.last_queued`` to the switch to the task
(kernel/sched/stats.h, ``sched_info_arrive``), so their sum is what ``/proc/PID/schedstat`` counts.
"""

import struct
from collections.abc import Iterator

from msgspec import Struct

from whybox.kernel.bpf.objects import Object, Spec
from whybox.kernel.host import c_string
from whybox.kernel.sensors.meter import counted

SPEC = Spec(
    name="runqueue",
    programs=(("on_switch",),),
    falls_back="the sums of /proc/PID/schedstat, without a histogram and without names",
)

BUCKETS = 32
_WAITS = struct.Struct(f"=QQ{BUCKETS}I")
_AHEAD = struct.Struct("=II")
_BEHIND = struct.Struct("=QQQ16s")


class Waits(Struct, frozen=True, kw_only=True):
    """The waits of one container."""

    count: int
    sum_ns: int
    longest_ns: int
    buckets: tuple[int, ...]
    """``buckets[n]``: waits of 2^n to 2^(n+1) µs; the first, everything below 2 µs."""


class Ahead(Struct, frozen=True, kw_only=True):
    """A process that ran while tasks of the container waited, of waits from 100 µs on."""

    pid: int
    comm: str
    count: int
    sum_ns: int
    """The whole length of those waits: it need not have run all that time."""


def waits(object: Object, slot: int) -> Waits:
    """The waits of the container in that slot, on all CPUs."""
    rows = [_WAITS.unpack(raw) for raw in object.map("waits").per_cpu(struct.pack("=I", slot))]
    buckets = tuple(sum(column) for column in zip(*(row[2:] for row in rows), strict=True))
    return Waits(
        count=sum(buckets),
        sum_ns=sum(row[0] for row in rows),
        longest_ns=max(row[1] for row in rows),
        buckets=buckets,
    )


def runs(object: Object) -> int:
    """How often the program ran, by its own count."""
    return counted(object, "remembered")


def ahead(object: Object, slot: int) -> Iterator[Ahead]:
    """Who ran meanwhile, in no order."""
    for key, value in object.map("behind").items():
        whose, pid = _AHEAD.unpack(key)
        if whose == slot:
            count, sum_ns, _, comm = _BEHIND.unpack(value[: _BEHIND.size])
            name = c_string(comm)
            yield Ahead(pid=pid, comm=name, count=count, sum_ns=sum_ns)
