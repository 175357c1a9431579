"""What is said of a disk that others fill: who, how much, and what the container waits for it."""

from collections.abc import Sequence

from whybox.kernel.iocontention import Contention
from whybox.kernel.iorivals import Rival
from whybox.kernel.iothrottle import numbered
from whybox.model import Evidence, RuledOut

from .queue import Queue

_MIB = 1 << 20


def summary(worst: Queue, seen: Contention, named: Sequence[Rival]) -> str:
    """Who fills it, and what its own IO waits."""
    disk = worst.disk.name
    who = "Others fill" if not named else f"{named[0].name} fills"
    share = worst.others if not named else worst.share(named[0])
    more = f" ({len(named) - 1} more do much of the rest)" if len(named) > 1 else ""
    return (
        f"{who} the queue of {disk}, with {share:.0%} of all that it moved{more}: "
        f"{_own(worst, seen)}, behind {worst.others_queue:.0f} IOs of others at a time, while it "
        f"moved {1 - worst.others:.0%} itself."
    )


def _own(worst: Queue, seen: Contention) -> str:
    if not worst.own_wait_ns:
        return f"its tasks waited {seen.waited or 0.0:.0%} of these {seen.seconds:.1f} s for IO"
    return f"each of its {worst.own_count} IOs waited {ms(worst.each_ns)} there"


def quick(worst: Queue, seen: Contention) -> str:
    """Its own IO does not wait for long."""
    return (
        f"Its IO waits little at {worst.disk.name}: {ms(worst.each_ns)} each, "
        f"{worst.wait_share:.0%} of the window in all, though others did {worst.others:.0%} of "
        "what it moved."
    )


def alone(worst: Queue, seen: Contention) -> str:
    """It waits, and nobody is in its way."""
    each = worst.each_ns or worst.disk_each_ns
    return (
        f"It waits for {worst.disk.name} ({ms(each)} each), and nobody is in its way: others did "
        f"{worst.others:.0%} of what it moved, {worst.others_queue:.1f} IOs at a time."
    )


def evidence(worst: Queue, seen: Contention) -> tuple[Evidence, ...]:
    """What the disk did, what of that was its own, and whose the rest was."""
    disk, device = worst.disk, numbered(worst.disk.device)
    work = disk.work
    busy = work.busy_ms / 10 / seen.seconds
    found = [
        Evidence(
            "/proc/diskstats",
            f"{device} {disk.name}: IOs +{work.count}, {mib(work.bytes)}, busy {busy:.0f} % of the "
            f"time, {work.waited_ms} ms waited by all of them",
        )
    ]
    if worst.own_wait_ns:
        says = (
            f"its own: {worst.own_count} IOs, {mib(worst.own_bytes)}, in the queue and the device "
            f"{ms(worst.own_wait_ns)} in all"
        )
        found.append(Evidence("block:block_rq_issue, block_rq_complete", says))
    for one in disk.rivals[:3]:
        says = f"{one.name}: {one.count} IOs, {mib(one.bytes)} = {worst.share(one):.0%}"
        found.append(Evidence(one.source, says))
    if seen.waited_usec is not None:
        found.append(Evidence("io.pressure", f"some +{seen.waited_usec} us"))
    return tuple(found)


def ruled_out(worst: Queue, seen: Contention) -> tuple[RuledOut, ...]:
    """The look-alikes."""
    held = f"a limit held its IO back {worst.held_share:.0%} of what it waited"
    return (
        RuledOut("storage/io_throttled", held),
        RuledOut("its own IO alone", f"others did {worst.others:.0%} of what the disk moved"),
        RuledOut(
            "a busy neighbour that harms nobody",
            f"one of its IOs takes {ms(worst.each_ns or worst.disk_each_ns)}",
        ),
    )


def ms(ns: float) -> str:
    """A length of time.

    >>> ms(64_000), ms(20_500_000)
    ('0.064 ms', '20 ms')
    """
    return f"{ns / 1e6:.0f} ms" if ns >= 10_000_000 else f"{ns / 1e6:.3g} ms"


def mib(size: float) -> str:
    """A size."""
    return f"{size / _MIB:.0f} MiB" if size >= 10 * _MIB else f"{size / _MIB:.1f} MiB"
