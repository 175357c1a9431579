"""Where the tasks of a container wait, and how long: off-CPU time by the kernel's stack.

From the switch away from a task that does not want to run to the switch back to it
(``sched:sched_switch``), so its wait for a CPU after it was woken is part of it.
"""

import struct
from collections.abc import Iterator

from msgspec import Struct

from whybox.kernel.bpf.objects import Object, Spec
from whybox.kernel.host import c_string
from whybox.kernel.sensors.hot import Stacks, addresses
from whybox.kernel.usersymbols import ImageKey

SPEC = Spec(
    name="blocked",
    programs=(("on_switch",),),
    optional=("on_task",),
    falls_back="/proc/PID/task/*/wchan, for what is blocked at the end alone",
)

FRAMES = 32
HOWS = ("S", "D", "T")
"""``enum how``: sleeps, is stuck (uninterruptible), is stopped."""

_WAIT = struct.Struct(f"=IIIIiI{FRAMES}Q")
_WAITED = struct.Struct("=QQQ")
_SLOW = struct.Struct("=QQII16s")
_PRESENT = struct.Struct("=QQII16s")
_SETTINGS, _ZERO = struct.Struct("=QQ"), struct.pack("=I", 0)


class Place(Struct, frozen=True, kw_only=True):
    """Who waits, and where. Stacks begin with the innermost function."""

    tid: int
    key: ImageKey
    how: str
    """Of ``HOWS``."""
    kernel: tuple[int, ...]
    user: int
    """The number of its stack in user space; negative: it was not taken."""


class Sum(Struct, frozen=True, kw_only=True):
    """Waits."""

    count: int
    sum_ns: int
    longest_ns: int


class Slow(Struct, frozen=True, kw_only=True):
    """One long wait that is over."""

    place: Place
    comm: str
    at_ns: int
    """When it was over, of the monotonic clock."""
    waited_ns: int
    before: bool
    """It had begun before the trace: it was longer."""


class Present(Struct, frozen=True, kw_only=True):
    """One wait that is not over."""

    place: Place
    comm: str
    waited_ns: int | None
    """As far as it was watched; ``None``: it was not."""
    before: bool
    """It had begun before the trace: it is longer."""
    not_on_cpu_ns: int | None
    """How long ago the task was given a CPU for the last time: it waits no longer than that."""


def settings(worth_ns: int, slow_ns: int) -> dict[str, list[tuple[bytes, bytes]]]:
    """What the programs must know before they run: which waits are worth a stack, and an event."""
    return {"settings": [(_ZERO, _SETTINGS.pack(worth_ns, slow_ns))]}


def place(raw: bytes) -> Place:
    """Decode ``struct wait``."""
    tid, tgid, exec, how, user, _, *frames = _WAIT.unpack(raw)
    return Place(
        tid=tid,
        key=ImageKey(tgid=tgid, exec=exec),
        how=HOWS[how] if how < len(HOWS) else "S",
        kernel=addresses(struct.pack(f"={FRAMES}Q", *frames)),
        user=user,
    )


def waits(object: Object) -> Iterator[tuple[Place, Sum]]:
    """All waits that are over and were worth a stack, in no order."""
    for key, value in object.map("waits").items():
        count, sum_ns, longest_ns = _WAITED.unpack(value)
        yield place(key), Sum(count=count, sum_ns=sum_ns, longest_ns=longest_ns)


def elsewhere(object: Object) -> tuple[Sum, Sum]:
    """The sums of waits without a place: the short ones, and those for which there was no room."""
    found = [
        [_WAITED.unpack(raw) for raw in object.map("elsewhere").per_cpu(struct.pack("=I", index))]
        for index in range(2 * len(HOWS))
    ]
    brief, crowded = found[: len(HOWS)], found[len(HOWS) :]
    return _summed([row for rows in brief for row in rows]), _summed(
        [row for rows in crowded for row in rows]
    )


def _summed(rows: list[tuple[int, ...]]) -> Sum:
    return Sum(
        count=sum(row[0] for row in rows),
        sum_ns=sum(row[1] for row in rows),
        longest_ns=max((row[2] for row in rows), default=0),
    )


def stacks(object: Object) -> Stacks:
    """The stacks in user space."""
    return Stacks(object.map("stacks"))


def slow(raw: bytes) -> Slow:
    """Decode ``struct slow``."""
    at_ns, waited_ns, before, _, comm = _SLOW.unpack(raw[: _SLOW.size])
    return Slow(
        place=place(raw[_SLOW.size : _SLOW.size + _WAIT.size]),
        comm=c_string(comm),
        at_ns=at_ns,
        waited_ns=waited_ns,
        before=bool(before),
    )


def presents(object: Object) -> tuple[Present, ...]:
    """All that wait at this moment. Whoever is not known yet is watched from now on."""
    raw = object.read_iterator("on_task")
    size = _PRESENT.size + _WAIT.size
    return tuple(present(raw[at : at + size]) for at in range(0, len(raw) - size + 1, size))


def present(raw: bytes) -> Present:
    """Decode ``struct present``."""
    waited_ns, not_on_cpu_ns, before, known, comm = _PRESENT.unpack(raw[: _PRESENT.size])
    return Present(
        place=place(raw[_PRESENT.size :]),
        comm=c_string(comm),
        waited_ns=waited_ns if known else None,
        before=bool(before),
        not_on_cpu_ns=not_on_cpu_ns or None,
    )
