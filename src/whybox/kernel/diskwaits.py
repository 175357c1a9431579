"""Where a container's block IO waited in a window: held back by a limit, queued, in the device.

By the sensor of ``whybox trace disk``, which all cases and containers of a run share. It is told
apart whether a task of the container submitted what was held back, or the kernel wrote it back in
the background, for which nobody need wait.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from msgspec import Struct

from whybox.kernel import cgroup
from whybox.kernel.host import Host
from whybox.kernel.target import Target, place

if TYPE_CHECKING:
    from whybox.kernel.sensors.disk import SlowIo, Totals

SENSOR = "disk waits"
#: Single IOs are told from this length on.
SLOWER_NS = 20_000_000


class Kind(Struct, frozen=True, kw_only=True):
    """The IO of one kind on one device that was completed within the window."""

    device: tuple[int, int]
    kind: str
    """``read``, ``write``, ``flush``, ``discard``, ``other``."""
    count: int
    bytes: int
    held: int
    """How many a limit held back."""
    held_ns: int
    """How long, summed over all of them."""
    queued_ns: int
    device_ns: int
    longest_ns: int
    """The longest from submission to completion."""
    before_buckets: tuple[int, ...] = ()
    """``[n]``: issued to the device 2^n to 2^(n+1) µs after submission; ``[0]`` is below 2 µs."""


class Waits(Struct, frozen=True, kw_only=True):
    """What the sensor saw, or why there was none."""

    kinds: tuple[Kind, ...] = ()
    held_of_tasks: int | None = None
    """Of those that took 20 ms or more and were held: how many a task of the container submitted;
    ``None``: this kernel does not let that be seen."""
    reason: str | None = None

    def of(self, device: tuple[int, int], way: str) -> Kind | None:
        """Its reads, or writes, on one device."""
        found = (one for one in self.kinds if (one.device, one.kind) == (device, way))
        return next(found, None)


NOT_WATCHED = Waits(reason="it was not watched")


@contextmanager
def watch(host: Host, target: Target, *, worth: bool) -> Iterator[Callable[[], Waits]]:
    """Watch a container's IO where that is ``worth`` the sensor; asked for what was seen so far."""
    if not worth or host.window_seconds <= 0:
        yield lambda: NOT_WATCHED
        return
    with ExitStack() as stack:
        yield _sensed(host, target, stack)


def _sensed(host: Host, target: Target, stack: ExitStack) -> Callable[[], Waits]:
    from whybox.kernel.sensors import disk as sensor  # loads libbpf: only for a window

    try:
        kept = stack.enter_context(host.sensor(SENSOR, lambda: sensor.attached(host, SLOWER_NS)))
        slot = kept.scope.add(host, target)
        sensor.watch_group(host, kept.object, target, slot)
    except OSError as error:
        refused = Waits(reason=str(error.strerror or error))
        return lambda: refused
    exact = "on_timer" not in kept.object.choice.taken

    def waits() -> Waits:
        mine = [one for one in sensor.totals(kept.object) if one.slot == slot]
        slow = [one for one in kept.all() if one.slot == slot]
        return told(mine, slow, members(host, target) if exact else None)

    return waits


def members(host: Host, target: Target) -> frozenset[int]:
    """The processes of the container now."""
    group = place(host, target.cgroups)
    return frozenset() if group is None else frozenset(cgroup.members(host, group))


def told(
    totals: "Iterable[Totals]", slow: "Iterable[SlowIo]", members: frozenset[int] | None
) -> Waits:
    """The sums as a case is told of them; ``members`` is ``None`` where submitters are not seen."""
    kinds = tuple(
        Kind(
            device=one.device,
            kind=one.kind,
            count=one.count,
            bytes=one.bytes,
            held=one.throttled,
            held_ns=one.throttled_ns,
            queued_ns=one.queued_ns,
            device_ns=one.device_ns,
            longest_ns=one.longest_ns,
            before_buckets=one.wait_buckets,
        )
        for one in totals
    )
    held = [one for one in slow if 2 * one.throttled_ns >= one.queued_ns + one.device_ns]
    of_tasks = None if members is None else sum(one.pid in members for one in held)
    return Waits(kinds=kinds, held_of_tasks=of_tasks)


def percentile_ns(buckets: tuple[int, ...], share: float) -> int:
    """Up to which time that share of them was issued, by the upper end of its bucket.

    >>> percentile_ns((90, 0, 0, 10), 0.5), percentile_ns((90, 0, 0, 10), 0.99)
    (2000, 16000)
    """
    total, seen = sum(buckets), 0
    for power, count in enumerate(buckets):
        seen += count
        if seen >= share * total:
            return int(2 ** (power + 1) * 1000)
    return 0
