"""One busy task under a fifth of a CPU."""

import re

from whybox.lab import workload
from whybox.lab.box import Box
from whybox.lab.lab import Lab
from whybox.model import Finding


def healthy(box: Box) -> None:
    """The same task without a quota."""
    box.start(workload.burn())


def reproduce(box: Box) -> None:
    """The quota is a fifth of what it wants."""
    box.cpu(cores=0.2)
    box.start(workload.burn())


def bursty(box: Box) -> None:
    """A third of the quota on average, all of it in the periods in which it works."""
    box.cpu(cores=0.5)
    box.start(workload.bursts(tasks=2, cpu_ms=60, every_ms=400))


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
    variants={"bursty": bursty, "parent's quota": under_parent},
    look_alikes={
        "contention on one CPU": contended,
        "a small weight": low_shares,
        "a quota that is ample": ample,
    },
    numbers=numbers,
)
