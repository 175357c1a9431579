"""One busy task under a fifth of a CPU."""

import re
import time

from whybox.lab import workload
from whybox.lab.box import Box
from whybox.lab.lab import Lab
from whybox.lab.process import Program
from whybox.model import Finding

#: So much weight that what else the machine does is not felt.
HEAVY = 131_072


def healthy(box: Box) -> None:
    """The same task without a quota."""
    box.start(workload.burn())


def reproduce(box: Box) -> None:
    """The quota is a fifth of what it wants."""
    box.cpu(cores=0.2, shares=HEAVY)
    box.start(workload.burn())


def bursty(box: Box) -> None:
    """A third of the quota on average, all of it in the periods in which it works."""
    box.cpu(cores=0.5, shares=HEAVY)
    box.start(workload.bursts(tasks=2, cpu_ms=60, every_ms=400))


def two_at_once(box: Box) -> None:
    """Two tasks that never rest spend half a CPU's quota in a quarter of each period."""
    box.cpu(cores=0.5, shares=HEAVY)
    box.start(workload.burn(2))


def under_parent(box: Box) -> None:
    """The quota is the parent's, as a pod's is: the box itself has none and counts no period."""
    box.cpu(parent_cores=0.3)
    box.start(workload.burn())


def contended(box: Box) -> None:
    """More tasks than CPUs, all on one: waiting for a CPU throttles nothing."""
    box.cpu(cpus="0")
    box.start(workload.burn(4))


def low_shares(box: Box) -> None:
    """A small weight: slow among others, never stopped."""
    box.cpu(shares=2)
    box.start(workload.burn())


def ample(box: Box) -> None:
    """A quota that is larger than what it uses."""
    box.cpu(cores=1.5)
    box.start(workload.bursts(tasks=1, cpu_ms=20, every_ms=400))


def one_at_a_time(box: Box) -> None:
    """Smaller peaks, of one task: each fits into the quota of a period."""
    box.cpu(cores=0.5, shares=HEAVY)
    box.start(workload.bursts(tasks=1, cpu_ms=20, every_ms=400))


def saved_up(box: Box) -> None:
    """Peaks above the quota, which it may save for."""
    box.cpu(cores=0.5, burst_usec=50_000, shares=HEAVY)
    box.start(workload.bursts(tasks=2, cpu_ms=28, every_ms=500))


def in_the_past(box: Box) -> None:
    """Stopped while it started, and at rest now: the totals stay."""
    box.cpu(cores=0.2, shares=HEAVY)
    box.start(_starting(0.4))
    time.sleep(2.5)


def blocked(box: Box) -> None:
    """Slow, with a quota that is not spent: it waits for something else than a CPU."""
    box.cpu(cores=0.5)
    box.start(workload.idle())


def _starting(cpu_s: float) -> Program:
    """Burns so much CPU at first, and then does nothing."""

    def program() -> None:
        while time.process_time() < cpu_s:
            pass
        workload.idle()()

    return program


def numbers(finding: Finding) -> str | None:
    """A task that never rests is stopped in (almost) every period, the bursty one in a third."""
    moved = dict(re.findall(r"(\w+) \+(\d+)", finding.evidence[0].says))
    periods, throttled = int(moved["nr_periods"]), int(moved["nr_throttled"])
    if periods < 5 or throttled * 5 < periods:
        return f"stopped in {throttled} of {periods} periods, expected a fifth of them at least"
    return None


LAB = Lab(
    healthy=healthy,
    reproduce=reproduce,
    variants={"bursty": bursty, "two at once": two_at_once, "parent's quota": under_parent},
    look_alikes={
        "contention on one CPU": contended,
        "a small weight": low_shares,
        "a quota that is ample": ample,
        "peaks that fit": one_at_a_time,
        "peaks that were saved for": saved_up,
        "throttled in the past": in_the_past,
        "waiting for something else": blocked,
    },
    numbers=numbers,
)
