"""A container's slow writes in a window, each divided into the places where its time went.

The parts of one call add up to it: what is no wait, no reclaim and no want of a CPU, it was
running. Calls are timed only where something says that its tasks wait: pressure, or tasks in D.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Literal

from msgspec import Struct

from whybox.kernel import addressnames, blocked, waiting, waitsite
from whybox.kernel.host import Host, printable
from whybox.kernel.target import Target

if TYPE_CHECKING:
    from whybox.kernel.sensors.kept import Kept
    from whybox.kernel.sensors.writes import Call, Lengths

SENSOR = "slow writes"
#: A write that takes this long is looked at.
SLOWER_NS = 20_000_000
#: So many calls are told, the longest.
MOST_CALLS = 500

Part = Literal["reclaim", "dirty", "journal", "device", "lock", "elsewhere", "cpu", "running"]

#: Where a task waited, by what ``waitsite`` calls it.
_PARTS: Mapping[str, Part] = {
    "memory": "reclaim",
    "journal": "journal",
    "device": "device",
    "lock": "lock",
}
#: How every stack of a sleeping task begins: that says nothing.
_SCHEDULER = ("bpf_", "__bpf_", "__traceiter_", "__schedule", "schedule", "preempt_schedule")
#: So many writes that had begun before are followed; the numbers of their stacks count down.
MOST_BEGUN, _FIRST_BEGUN = 16, -1000


class Slow(Struct, frozen=True, kw_only=True):
    """One slow call."""

    tid: int
    comm: str
    call: str
    kind: str
    """``buffered write``, ``synced write`` (O_DIRECT or O_SYNC), ``sync``."""
    took_ns: int
    over: bool
    parts: Mapping[Part, int]
    """Nanoseconds; they add up to ``took_ns``."""
    where: str
    """The kernel's functions where it slept longest, the innermost first; empty: it did not."""


class Ordinary(Struct, frozen=True, kw_only=True):
    """How long all calls of one kind took."""

    kind: str
    count: int
    buckets: tuple[int, ...]

    @property
    def half_ns(self) -> int:
        """Half of them took less."""
        seen = 0
        for power, count in enumerate(self.buckets):
            seen += count
            if 2 * seen >= self.count:
                return int(2 ** (power + 1) * 1000)
        return 0


class Writes(Struct, frozen=True, kw_only=True):
    """What was seen of a container's writes, or why nothing was."""

    slow: tuple[Slow, ...] = ()
    ordinary: tuple[Ordinary, ...] = ()
    lost: int = 0
    reason: str | None = None
    """Why they were not timed, though it was worth it."""
    idle: bool = False
    """They were not timed, since nothing waited."""
    late: str | None = None
    """Then: a task that is in D when the window ends all the same."""


@contextmanager
def watch(host: Host, target: Target) -> Iterator[Callable[[], Writes]]:
    """Time a container's writes, if that is worth it; asked for those so far."""
    if host.window_seconds <= 0:
        yield lambda: Writes(reason="nothing can be timed in a window of no length")
        return
    if not waiting.lately(host, target, ("io", "memory")):
        yield lambda: Writes(idle=True, late=_late(host, target))
        return
    with ExitStack() as stack:
        yield _sensed(host, target, stack)


def _late(host: Host, target: Target) -> str | None:
    found = blocked.look(host, target).blocked
    return None if not found else f"{printable(found[0].comm)} (pid {found[0].tid})"


def _sensed(host: Host, target: Target, stack: ExitStack) -> Callable[[], Writes]:
    from whybox.kernel.sensors import writes as sensor  # loads libbpf: only for a window

    try:
        kept = stack.enter_context(host.sensor(SENSOR, lambda: sensor.attached(host, SLOWER_NS)))
        slot = kept.scope.add(host, target)
        begun = _begun(host, target, kept, slot)
    except OSError as error:
        refused = Writes(reason=str(error.strerror or error))
        return lambda: refused

    def writes() -> Writes:
        calls = [one for one in kept.all() if one.slot == slot]
        now = host.monotonic_ns()
        calls += [c for c in sensor.under_way(kept.object, now, SLOWER_NS) if c.slot == slot]
        calls = sorted(calls, key=lambda call: -call.took_ns)[:MOST_CALLS]
        stacks = {**_named(host, kept, calls), **begun}
        return told(calls, stacks, sensor.lengths(kept.object, slot), kept.lost)

    return writes


def _begun(
    host: Host, target: Target, kept: "Kept[Call]", slot: int
) -> Mapping[int, tuple[str, ...]]:
    """Tell the sensor of writes that sleep now; their stacks by the numbers that it is given."""
    from whybox.kernel.sensors import writes as sensor

    known: dict[int, tuple[str, ...]] = {}
    for one in blocked.look(host, target).blocked[:MOST_BEGUN]:
        detail = blocked.detail(host, one.tid)
        kind = _kind(host, one.tid, detail)
        if kind is None or detail.call is None:
            continue
        number = _FIRST_BEGUN - len(known)
        pid = one.tid if detail.process is None else detail.process
        begun = sensor.Begun(
            tid=one.tid, pid=pid, comm=one.comm, call=detail.call, kind=kind, stack=number
        )
        sensor.begin(kept.object, begun, slot, host.monotonic_ns())
        if _ran(one):
            sensor.forget(kept.object, one.tid)  # it may be in another call by now
        else:
            known[number] = detail.stack
    return known


def _kind(host: Host, tid: int, detail: blocked.Detail) -> str | None:
    """What kind of a write it is in; ``None``: in none to a file."""
    from whybox.kernel.sensors import writes as sensor

    if detail.call not in sensor.CALLS or not detail.arguments:
        return None
    descriptor = detail.arguments[0]
    try:
        if not host.link(f"/proc/{tid}/fd/{descriptor}").startswith("/"):
            return None  # a pipe, a socket
        said = host.text(f"/proc/{tid}/fdinfo/{descriptor}")
    except OSError:
        return None
    if sensor.CALLS[detail.call] == 2:
        return "sync"
    flags = next((line for line in said.splitlines() if line.startswith("flags:")), "flags: 0")
    synced = int(flags.split()[1], 8) & (os.O_DSYNC | os.O_DIRECT)
    return "synced write" if synced else "buffered write"


def _ran(one: blocked.Blocked) -> bool:
    """Whether it was given a CPU since it was looked at; read past what the host remembers."""
    try:
        with open(f"/proc/{one.tid}/task/{one.tid}/schedstat", encoding="ascii") as file:
            return int(file.read().split()[2]) != one.timeslices
    except (OSError, ValueError, IndexError):
        return True


def _named(
    host: Host, kept: "Kept[Call]", calls: "Iterable[Call]"
) -> Mapping[int, tuple[str, ...]]:
    """Each stack by its number, in the names of the kernel's functions."""
    from whybox.kernel.sensors import writes as sensor

    stacks = sensor.stacks(kept.object)
    numbers = {place.stack for call in calls for place in call.places}
    found = {number: stacks.get(number) for number in numbers}
    names = addressnames.names(host, {one for stack in found.values() for one in stack})
    return {
        number: tuple(names[one] for one in stack if one in names)
        for number, stack in found.items()
    }


def told(
    calls: "Iterable[Call]",
    stacks: Mapping[int, tuple[str, ...]],
    lengths: "Iterable[Lengths]",
    lost: int,
) -> Writes:
    """The calls as a case is told of them."""
    return Writes(
        slow=tuple(_slow(call, stacks) for call in calls),
        ordinary=tuple(
            Ordinary(kind=one.kind, count=one.count, buckets=one.buckets) for one in lengths
        ),
        lost=lost,
    )


def _slow(call: "Call", stacks: Mapping[int, tuple[str, ...]]) -> Slow:
    parts: dict[Part, int] = {}
    for place in call.places:
        part = part_of(stacks.get(place.stack, ()))
        parts[part] = parts.get(part, 0) + place.ns
    others: tuple[tuple[Part, int], ...] = (
        ("reclaim", call.reclaim_ns),
        ("elsewhere", call.other_ns),
        ("cpu", call.cpu_ns),
    )
    for part, spent in others:
        if spent:
            parts[part] = parts.get(part, 0) + spent
    parts["running"] = max(call.took_ns - sum(parts.values()), 0)
    longest = max(call.places, key=lambda place: place.ns, default=None)
    stack = () if longest is None else asleep(stacks.get(longest.stack, ()))
    return Slow(
        tid=call.tid,
        comm=printable(call.comm),
        call=call.call,
        kind=call.kind,
        took_ns=call.took_ns,
        over=call.over,
        parts=parts,
        where=waitsite.shortened(stack),
    )


def asleep(stack: tuple[str, ...]) -> tuple[str, ...]:
    """A stack without how every sleep begins.

    >>> asleep(("bpf_prog_1_on_switch", "__schedule", "schedule", "io_schedule", "folio_wait_bit"))
    ('io_schedule', 'folio_wait_bit')
    """
    for at, name in enumerate(stack):
        if not name.startswith(_SCHEDULER):
            return stack[at:]
    return ()


def part_of(stack: tuple[str, ...]) -> Part:
    """What a sleeping write waits for.

    >>> part_of(("schedule", "io_schedule_timeout", "balance_dirty_pages", "ext4_buffered_write"))
    'dirty'
    >>> part_of(("schedule", "jbd2_log_wait_commit", "ext4_sync_file")), part_of(())
    ('journal', 'elsewhere')
    """
    here = asleep(stack)
    if any(name.startswith("balance_dirty_pages") for name in here):
        return "dirty"
    return _PARTS.get(waitsite.kind(here), "elsewhere") if here else "elsewhere"
