"""As many busy threads as the machine has CPUs, under a quota of half of them."""

import hashlib
import os
import re
import threading

from whybox.change import CpuWeight
from whybox.lab import workload
from whybox.lab.box import Box
from whybox.lab.lab import Lab
from whybox.lab.process import Program
from whybox.model import Finding

#: What a program is told that asks for the number of CPUs, whatever its quota or cpuset.
CPUS = os.cpu_count() or 1
#: Whole, so that as many threads as it pays for are never stopped.
QUOTA = float(max(CPUS // 2, 1))
#: So much weight that what else the machine does is not felt.
HEAVY = 131_072


def healthy(box: Box) -> None:
    """Sized for the machine, and the machine is its own."""
    box.start(sized(CPUS))


def reproduce(box: Box) -> None:
    """Half of what it was sized for."""
    box.cpu(cores=QUOTA, shares=HEAVY)
    box.start(sized(CPUS))


def cured(box: Box) -> None:
    """As many threads as the quota pays for."""
    box.cpu(cores=QUOTA, shares=HEAVY)
    box.start(sized(int(QUOTA)))


def twice(box: Box) -> None:
    """Two threads for each CPU, as servers for networks have it."""
    box.cpu(cores=QUOTA, shares=HEAVY)
    box.start(sized(2 * CPUS))


def under_parent(box: Box) -> None:
    """The quota is the parent's."""
    box.cpu(parent_cores=QUOTA)
    box.start(sized(CPUS))
    assert box.groups is not None
    box.groups.apply(CpuWeight(HEAVY, cgroup="the parent"))


def single(box: Box) -> None:
    """One thread that wants more than its quota: no number of threads is to blame."""
    box.cpu(cores=0.5, shares=HEAVY)
    box.start(sized(1))


def peaks(box: Box) -> None:
    """Two tasks at once now and then, and nothing that shows that they were counted."""
    box.cpu(cores=0.5, shares=HEAVY)
    box.start(workload.bursts(tasks=2, cpu_ms=60, every_ms=400))


def resting(box: Box) -> None:
    """Many threads, which sleep: they harm nobody."""
    box.cpu(cores=0.5, shares=HEAVY)
    box.start(workload.threads_idle(4 * CPUS))


def unhurt(box: Box) -> None:
    """More busy threads than the quota has cores, which together want less than it."""
    box.cpu(cores=QUOTA, shares=HEAVY)
    box.start(workload.bursts(tasks=2 * CPUS, cpu_ms=4, every_ms=400))


def squeezed(box: Box) -> None:
    """Threads on one CPU that wait for each other: it is the cpuset, which runtimes do see."""
    box.cpu(cpus="0", shares=HEAVY)
    box.start(workload.burn(3))


def sized(count: int) -> Program:
    """Threads of one process that never rest."""

    def turns() -> None:
        while True:
            hashlib.pbkdf2_hmac("sha256", b"", b"", 200_000)  # outside of Python's lock

    def program() -> None:
        for _ in range(count):
            threading.Thread(target=turns, daemon=True).start()
        workload.handling()()

    return program


def numbers(finding: Finding) -> str | None:
    """Stopped in (almost) every period, by as many threads as there are CPUs, or twice as many."""
    said = re.search(
        r": (\d+) threads .* on (\d+) CPUs.*in (\d+) of (\d+) periods", finding.summary
    )
    if said is None:
        return f"it should have told threads, CPUs and periods: {finding.summary}"
    threads, cpus, throttled, periods = map(int, said.groups())
    if threads not in (cpus, 2 * cpus) or cpus != CPUS:
        return f"{threads} threads on {cpus} CPUs, expected {CPUS} or {2 * CPUS} on {CPUS}"
    return None if 2 * throttled >= periods else f"stopped in {throttled} of {periods} periods"


def _one_cpu(host: object) -> str | None:
    return "on a machine of one CPU nobody can assume more than one" if CPUS < 2 else None


LAB = Lab(
    healthy=healthy,
    reproduce=reproduce,
    cured=cured,
    variants={"two threads for each CPU": twice, "the parent's quota": under_parent},
    look_alikes={
        "one thread that wants more": single,
        "peaks of tasks that nobody counted": peaks,
        "many threads that sleep": resting,
        "many threads within the quota": unhurt,
        "a cpuset of one CPU": squeezed,
    },
    numbers=numbers,
    also=("cpu/throttled",),
    needs=(_one_cpu,),
)
