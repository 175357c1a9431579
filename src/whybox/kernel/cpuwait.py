"""Which threads of a container waited for a CPU, and for how long (``/proc/TID/schedstat``).

The time of a wait is booked when it ends (kernel/sched/stats.h, ``sched_info_arrive``): a thread
that was kept off for the whole window shows nothing, and is told by its state R at both looks.
"""

from collections.abc import Mapping

from msgspec import Struct

from whybox.kernel import cpudemand, cpuset, task
from whybox.kernel.cgroup import Group
from whybox.kernel.host import Host, ParseError, printable
from whybox.kernel.task import Schedstat

#: So many threads are asked for their state, and so many of those that waited for their CPUs.
MOST_STATES, MOST_DETAILED = 64, 16

_NOTHING = Schedstat(run_ns=0, run_delay_ns=0, timeslices=0)


class Look(Struct, frozen=True, kw_only=True):
    """The threads at one moment."""

    times: Mapping[int, Schedstat]
    queued: frozenset[int]
    """Those that ran or waited to run, among the first."""


class Thread(Struct, frozen=True, kw_only=True):
    """One thread that ran or waited for more than a hundredth of the window."""

    tid: int
    run_ns: int
    wait_ns: int
    comm: str = ""
    """Harmless to print."""
    cpus: tuple[int, ...] | None = None
    """Where it may run; known of those that waited most."""
    stuck: bool = False
    """Whether it waited from the first look to the last."""


def look(host: Host, group: Group) -> Look:
    """The times of all threads, and the states of the first of them."""
    times = cpudemand.sample(host, group)
    queued = frozenset(tid for tid in list(times)[:MOST_STATES] if _queued(host, tid))
    return Look(times=times, queued=queued)


def _queued(host: Host, tid: int) -> bool:
    try:
        return task.stat(host, tid).state == "R"
    except (OSError, ParseError):
        return False


def threads(host: Host, before: Look, after: Look, elapsed_ns: int) -> tuple[Thread, ...]:
    """Those that wanted a CPU, who waited longest first."""
    found = [
        _thread(tid, before.times.get(tid, _NOTHING), now, _stuck(tid, before, after), elapsed_ns)
        for tid, now in after.times.items()
    ]
    active = [one for one in found if (one.run_ns + one.wait_ns) * 100 > elapsed_ns]
    active.sort(key=lambda one: -one.wait_ns)
    detailed = [_detailed(host, one) for one in active[:MOST_DETAILED]]
    return (*detailed, *active[MOST_DETAILED:])


def _stuck(tid: int, before: Look, after: Look) -> bool:
    return (
        tid in before.queued
        and tid in after.queued
        and before.times[tid].timeslices == after.times[tid].timeslices
        and before.times[tid].run_ns == after.times[tid].run_ns
    )


def _thread(tid: int, then: Schedstat, now: Schedstat, stuck: bool, elapsed_ns: int) -> Thread:
    run = min(max(now.run_ns - then.run_ns, 0), elapsed_ns)
    # A wait that began before the window is booked in it as a whole.
    wait = min(max(now.run_delay_ns - then.run_delay_ns, 0), elapsed_ns - run)
    return Thread(tid=tid, run_ns=run, wait_ns=elapsed_ns if stuck else wait, stuck=stuck)


def _detailed(host: Host, one: Thread) -> Thread:
    text = host.optional_text(f"/proc/{one.tid}/comm")
    return Thread(
        tid=one.tid,
        run_ns=one.run_ns,
        wait_ns=one.wait_ns,
        comm="" if text is None else printable(text),
        cpus=cpuset.allowed(host, one.tid),
        stuck=one.stuck,
    )
