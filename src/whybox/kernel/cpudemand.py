"""How much CPU a container used and how much it wanted: ``schedstat`` of its threads.

What a thread wanted is what it ran plus what it waited on a run queue (scheduler/sched-stats.rst);
throttling and contention both make it wait, so this is demand, not a cause.
"""

from collections.abc import Mapping

from msgspec import Struct

from whybox.kernel import cgroup
from whybox.kernel.cgroup import Group
from whybox.kernel.host import Host, ParseError
from whybox.kernel.task import Schedstat, schedstat

#: Enough threads to tell demand; a container with more is measured by the first of them.
MOST_THREADS = 512


_NOTHING = Schedstat(run_ns=0, run_delay_ns=0, timeslices=0)


class Demand(Struct, frozen=True, kw_only=True):
    """What the threads did that were there at the end of the window."""

    run_ns: int
    run_delay_ns: int
    active_threads: int
    """Threads that ran or waited for a CPU, for more than a hundredth of the window."""


def sample(host: Host, group: Group) -> dict[int, Schedstat]:
    """The times of every thread in the group, by the host's tid."""
    found = {}
    for tid in cgroup.threads(host, group)[:MOST_THREADS]:
        try:
            found[tid] = schedstat(host, tid)
        except (OSError, ParseError):
            continue  # it ended, or the kernel keeps no such times
    return found


def demand(
    before: Mapping[int, Schedstat], after: Mapping[int, Schedstat], elapsed_ns: int
) -> Demand | None:
    """The difference; ``None`` if there are no threads, or none that tell."""
    if not after:
        return None
    # A thread that began within the window began at nothing.
    pairs = [(before.get(tid, _NOTHING), now) for tid, now in after.items()]
    ran = [now.run_ns - then.run_ns for then, now in pairs]
    waited = [now.run_delay_ns - then.run_delay_ns for then, now in pairs]
    # Less is a timer or a health check, not work.
    busy = sum(1 for r, w in zip(ran, waited, strict=True) if (r + w) * 100 > elapsed_ns)
    return Demand(run_ns=sum(ran), run_delay_ns=sum(waited), active_threads=busy)
