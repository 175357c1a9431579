"""Two busy tasks beside two others that weigh sixteen times as much."""

import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from whybox.change import CpuWeight
from whybox.kernel.libc import PR_SET_PDEATHSIG, prctl
from whybox.lab import workload
from whybox.lab.box import Box
from whybox.lab.lab import Lab
from whybox.lab.process import Program
from whybox.model import Finding

#: What others have; a sixteenth of it; and so much that what else the machine does is hardly felt,
#: and whybox still gets to look.
ORDINARY, SMALL, HEAVY = 1024, 64, 16_384


def healthy(box: Box) -> None:
    """A task that wants little waits for little, whoever else is there."""
    box.start(workload.bursts(tasks=1, cpu_ms=4, every_ms=200))


def reproduce(box: Box) -> None:
    """Both want every CPU, and the neighbour weighs sixteen times as much."""
    _neighbour(box, workload.burn(2))
    box.cpu(shares=SMALL)
    box.start(workload.burn(2))


def fair(box: Box) -> None:
    """Both weigh the same, and each gets half of what it wants."""
    _neighbour(box, workload.burn(2))
    box.cpu(shares=ORDINARY)
    box.start(workload.burn(2))


def light_parent(box: Box) -> None:
    """Its own weight is ordinary; its parent's is small, and that is where they meet."""
    _neighbour(box, workload.burn(2))
    box.cpu(parent_cores=64.0)
    box.start(workload.burn(2))
    assert box.groups is not None
    box.groups.apply(CpuWeight(SMALL, cgroup="the parent"))


def squeezed(box: Box) -> None:
    """Three tasks, and one CPU that they may use: they wait for each other."""
    box.cpu(cpus="0", shares=HEAVY)
    box.start(workload.burn(3))


def crowded_cpu(box: Box) -> None:
    """It and its neighbour may use CPU 0 alone, and another one is idle."""
    _neighbour(box, workload.burn(1), cpus="0")
    box.cpu(cpus="0", shares=ORDINARY)
    box.start(workload.burn(1))


def behind_realtime(box: Box) -> None:
    """A real-time task of the host takes two thirds of the CPU: no weight helps."""
    box.closing.enter_context(_on_the_host(_realtime))
    box.cpu(cpus="0", shares=ORDINARY)
    box.start(workload.burn(1))


def throttled(box: Box) -> None:
    """It waits just as long, for its own quota."""
    box.cpu(cores=0.2)
    box.start(workload.burn(2))


def throttled_beside(box: Box) -> None:
    """Its quota stops it, and a neighbour is busy as well."""
    _neighbour(box, workload.burn(2))
    box.cpu(cores=0.2)
    box.start(workload.burn(1))


def throttled_above(box: Box) -> None:
    """The quota is its parent's: its own counters stand still."""
    box.cpu(parent_cores=0.3)
    box.start(workload.burn(2))


def oversubscribed(box: Box) -> None:
    """Four tasks on the whole machine wait for each other."""
    box.cpu(shares=HEAVY)
    box.start(workload.burn(max(4, 2 * (os.cpu_count() or 2))))


def light_alone(box: Box) -> None:
    """A tiny weight, and nobody who wants the CPU."""
    box.cpu(shares=2)
    box.start(workload.burn(1))


def apart(box: Box) -> None:
    """A busy neighbour on another CPU."""
    _neighbour(box, workload.burn(1), cpus="1")
    box.cpu(cpus="0", shares=HEAVY)
    box.start(workload.burn(1))


def idle(box: Box) -> None:
    """Others are busy, and it wants nothing."""
    _neighbour(box, workload.burn(2))
    box.start(workload.idle())


def _neighbour(box: Box, program: Program, *, cpus: str | None = None) -> None:
    """Another box, which ends with this one."""
    other = box.closing.enter_context(Box("neighbour"))
    other.cpu(cpus=cpus, shares=ORDINARY)
    other.start(program)


@contextmanager
def _on_the_host(body: Program) -> Iterator[None]:
    """A process in no container, which ends with us."""
    pid = os.fork()
    if not pid:
        try:
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            body()
        finally:
            os._exit(0)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _realtime() -> None:
    os.sched_setaffinity(0, {0})
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    while True:
        until = time.monotonic() + 0.02
        while time.monotonic() < until:
            pass
        time.sleep(0.01)


def _one_cpu(host: object) -> str | None:
    few = (os.cpu_count() or 1) < 2
    return "a machine of one CPU has no other one to be idle" if few else None


def numbers(finding: Finding) -> str | None:
    """Whoever shares a CPU with one of his weight waits for half of his time."""
    said = re.search(r"waited ([\d.]+) s in these ([\d.]+) s, (\d+)%", finding.summary)
    if said is None or int(said[3]) < 30:
        return f"it should have waited for a third of its time at least: {finding.summary}"
    return None


LAB = Lab(
    healthy=healthy,
    reproduce=reproduce,
    variants={
        "a neighbour of the same weight": fair,
        "the parent's weight": light_parent,
        "more threads than its cpuset has CPUs": squeezed,
        "a neighbour on its only CPU": crowded_cpu,
        "a real-time task": behind_realtime,
    },
    look_alikes={
        "its own quota": throttled,
        "its own quota beside a busy neighbour": throttled_beside,
        "its parent's quota": throttled_above,
        "more threads than the machine has CPUs": oversubscribed,
        "a small weight without a rival": light_alone,
        "a busy neighbour on another CPU": apart,
        "idle among busy neighbours": idle,
    },
    numbers=numbers,
    needs=(_one_cpu,),
)
