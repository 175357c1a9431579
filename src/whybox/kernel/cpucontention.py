"""For whom threads waited for a CPU: throttling, the container's own threads, or others.

The kernel books only that a thread waited (``run_delay``), not for whom. So the time is divided
among those who could have been the reason, each by what it can explain at most.
"""

from collections.abc import Sequence

from msgspec import Struct

from whybox.kernel.cpustat import Used
from whybox.kernel.cpuwait import Thread


class Contention(Struct, frozen=True, kw_only=True):
    """One container over one window; all times summed over its threads, ns."""

    elapsed_ns: int
    cpus: tuple[int, ...]
    """On which it may run."""
    threads: int
    """Those that wanted a CPU."""
    run_ns: int
    wait_ns: int
    """In all, for whatever reason."""
    by_others_ns: int
    by_itself_ns: int
    """Its threads wanted the same CPU at once."""
    unexplained_ns: int
    """Nobody used the CPUs meanwhile: something stopped it that is not seen."""
    others_used_ns: int
    """CPU time that others used on those CPUs."""
    by_observer_ns: int = 0
    """While whybox itself looked."""

    def matters(self, wait_ns: int, least_of_window: float, least_of_work: float) -> bool:
        """Whether so much waiting is felt: a part of the window, and of what was to be done."""
        long = wait_ns >= least_of_window * self.elapsed_ns
        return long and wait_ns >= least_of_work * (self.run_ns + wait_ns)


def contention(
    threads: Sequence[Thread],
    cpus: Sequence[Used],
    *,
    elapsed_ns: int,
    used_ns: int,
    stopped_ns: int,
    observer_ns: int = 0,
) -> Contention:
    """Divide up the waiting; ``cpus`` are those on which it may run.

    ``stopped_ns`` is how long a quota stopped it, summed over run queues: no thread can have
    waited longer for that reason (measured: one thread waits just as long). ``observer_ns`` is
    what whybox itself used of those CPUs: who waits for it alone is well again when it is gone.
    """
    waits = [max(one.wait_ns - stopped_ns, 0) for one in threads]
    wait, run = sum(waits), sum(one.run_ns for one in threads)
    busy = sum(cpu.busy_ns for cpu in cpus)
    others = max(busy - max(used_ns, run), 0)
    count = _wanting(threads)
    behind = min(_by_others(wait, others, busy, count, len(cpus)), wait)
    by_observer = behind * min(observer_ns, others) // max(others, 1)
    # Whoever waits has its CPU run somebody else.
    seen = max(waits, default=0) <= busy * 1.1 + elapsed_ns * 0.05
    own = wait - behind if seen and count > 1 else 0
    return Contention(
        elapsed_ns=elapsed_ns,
        cpus=tuple(cpu.cpu for cpu in cpus),
        threads=count,
        run_ns=run,
        wait_ns=sum(one.wait_ns for one in threads),
        by_others_ns=behind - by_observer,
        by_itself_ns=own,
        unexplained_ns=wait - behind - own,
        others_used_ns=max(others - observer_ns, 0),
        by_observer_ns=by_observer,
    )


def _wanting(threads: Sequence[Thread]) -> int:
    """How many there are that matter: who wants a tenth of what another wants is a timer."""
    wanted = [one.run_ns + one.wait_ns for one in threads]
    return sum(10 * one >= max(wanted) for one in wanted)


def _by_others(wait: int, others: int, busy: int, threads: int, cpus: int) -> int:
    """While one of theirs runs, at most all of its threads wait."""
    if threads <= cpus:
        return min(wait, others * threads)
    # It waits while its CPU runs somebody: one of theirs as often as they run there.
    return min(wait * others // max(busy, 1), others * threads)
