"""What was seen of a container that may be waiting for CPUs, and for whom it waited."""

from msgspec import Struct

from whybox.kernel.cpucontention import Contention, contention
from whybox.kernel.cpurivals import Rival
from whybox.kernel.cpustat import Used
from whybox.kernel.cpustops import Stops
from whybox.kernel.cpuwait import Thread

#: Waiting for less of the window, or for less of what its threads wanted, is not felt.
LEAST_SHARE_OF_WINDOW = 0.05
LEAST_SHARE_OF_WORK = 0.10


class Observation(Struct, frozen=True, kw_only=True):
    """Who waited, who was stopped, and who used the CPUs meanwhile."""

    elapsed_ns: int
    group: str
    """Its path in the tree of the cpu controller."""
    threads: tuple[Thread, ...]
    used_ns: int
    pressure_usec: int | None
    """``cpu.pressure``, some: of short-lived processes it is all that is left."""
    levels: tuple[Stops, ...]
    """Those that have a quota: above it, and within it."""
    local_file: str | None
    local_stopped_usec: int | None
    """How long its own run queues stood still, whoever's quota it was; newer kernels tell."""
    cpus: tuple[Used, ...]
    group_cpus: tuple[int, ...] | None
    """What its cpuset allows."""
    rivals: tuple[Rival, ...]
    hidden: bool
    """Whether there may be groups above it that cannot be seen from here."""
    observer_ns: int = 0
    """What whybox itself used meanwhile, on whichever CPU."""


def contended(seen: Observation) -> Contention:
    """For whom it waited."""
    allowed = _allowed(seen)
    cpus = [one for one in seen.cpus if one.cpu in allowed]
    return contention(
        wanting(seen),
        cpus,
        elapsed_ns=seen.elapsed_ns,
        used_ns=seen.used_ns,
        stopped_ns=stopped_ns(seen),
        # It moves about, so each CPU had its part.
        observer_ns=seen.observer_ns * len(cpus) // max(len(seen.cpus), 1),
    )


def matters(it: Contention, wait_ns: int) -> bool:
    """Whether so much waiting is felt."""
    return it.matters(wait_ns, LEAST_SHARE_OF_WINDOW, LEAST_SHARE_OF_WORK)


def taken(it: Contention) -> bool:
    """Whether others took so much of its CPUs that it is felt.

    Where more of its threads want to run than there are CPUs, all of them wait at once while one
    of theirs runs: the sum of that is long, and what it could not do meanwhile is little.
    """
    lost = it.others_used_ns
    return it.threads <= len(it.cpus) or lost >= LEAST_SHARE_OF_WORK * (it.run_ns + lost)


def wanting(seen: Observation) -> tuple[Thread, ...]:
    """Its threads, and one that stands for all those that came and went within the window."""
    run = sum(one.run_ns for one in seen.threads)
    gone, waited = seen.used_ns - run, (seen.pressure_usec or 0) * 1000
    if gone <= max(run, 0.05 * seen.elapsed_ns):
        return seen.threads
    wait = max(waited - max((one.wait_ns for one in seen.threads), default=0), 0)
    short = Thread(tid=0, run_ns=gone, wait_ns=wait, comm="short-lived processes")
    return (*seen.threads, short)


def _allowed(seen: Observation) -> frozenset[int]:
    """Where its threads may run, which is their own affinity and their group's set in one."""
    sets = [one.cpus for one in seen.threads if one.cpus]
    whole = seen.group_cpus or tuple(one.cpu for one in seen.cpus)
    return frozenset(cpu for cpus in sets or [whole] for cpu in cpus)


def stopped_ns(seen: Observation) -> int:
    """At most so long a quota kept any one thread: the last stop may not be booked yet."""
    throttled = [level for level in seen.levels if level.throttled > 0]
    known = max(sum(level.stopped_usec for level in throttled), seen.local_stopped_usec or 0)
    return 1000 * (known + max((level.period_usec for level in throttled), default=0))


def limited(seen: Observation, it: Contention) -> bool:
    """Whether it is a quota that it lacks CPU for, whatever else is going on.

    Where it is stopped it had all of its quota, so nobody kept it from that. Only of what is left
    can others be the reason, and only where that is the larger part.
    """
    stops = [level for level in seen.levels if level.matters(seen.elapsed_ns)]
    often = any(2 * level.throttled >= level.periods for level in stops)
    return often or (bool(stops) and stopped_ns(seen) >= max(it.by_others_ns, it.by_itself_ns))


def stolen(seen: Observation, it: Contention) -> float:
    """The share of its CPUs that the hypervisor kept, where it wanted any."""
    if not it.cpus or it.run_ns + it.wait_ns < LEAST_SHARE_OF_WINDOW * it.elapsed_ns:
        return 0.0
    kept = sum(one.steal_ns for one in seen.cpus if one.cpu in it.cpus)
    return kept / (it.elapsed_ns * len(it.cpus))


def rivals(seen: Observation, it: Contention) -> list[Rival]:
    """Those who could use the CPUs on which it waits, by how much of that was there."""

    def there(rival: Rival) -> float:
        if not rival.cpus:
            return rival.used_ns
        return rival.used_ns * len(set(rival.cpus) & set(it.cpus)) / len(rival.cpus)

    return sorted((r for r in seen.rivals if there(r) > 0), key=lambda r: -there(r))


def main_rival(seen: Observation, it: Contention) -> Rival | None:
    """The one to be named: who used a quarter at least of what others did."""
    first = next(iter(rivals(seen, it)), None)
    return first if first is not None and 4 * first.used_ns >= it.others_used_ns else None


def idle_ns(seen: Observation, it: Contention) -> int:
    """How long the CPUs that it may use had nothing to do."""
    return sum(one.idle_ns for one in seen.cpus if one.cpu in it.cpus)


def mostly_interrupts(seen: Observation, it: Contention) -> bool:
    """Whether interrupts took half of what others used there."""
    handled = sum(one.interrupt_ns for one in seen.cpus if one.cpu in it.cpus)
    return 2 * handled >= it.others_used_ns


def for_it(seen: Observation, it: Contention) -> bool:
    """Whether it is the kernel that it waited for, on CPUs that were idle for as long.

    What it asks of disks and networks is done by interrupts and workers of the kernel on the very
    CPU that it asks from, while others are idle (measured: four that sync to one disk, 7 % each).
    """
    top = main_rival(seen, it)
    kernel = mostly_interrupts(seen, it) if top is None else top.kernel and not top.realtime
    return kernel and idle_ns(seen, it) >= it.by_others_ns


def could_go_elsewhere(seen: Observation, it: Contention) -> bool:
    """Whether CPUs that it may not use were idle for half of what it lacks."""
    idle = sum(one.idle_ns for one in seen.cpus if one.cpu not in it.cpus)
    lacks = min(it.by_others_ns + it.by_itself_ns, it.elapsed_ns)
    return 2 * idle >= lacks and idle > 0.2 * it.elapsed_ns


def cores(it: Contention, ns: int) -> str:
    """So much time as a number of CPUs."""
    return f"{ns / it.elapsed_ns:.2f}"
