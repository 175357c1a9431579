"""``whybox trace runqueue``: compared with the kernel's own sums."""

import time
from pathlib import Path

import pytest

from tests.live.tracing import PATIENCE_SECONDS, asked
from whybox.kernel import task
from whybox.kernel.bpf import objects
from whybox.kernel.host import Host
from whybox.lab import workload
from whybox.lab.box import Box
from whybox.trace.runqueue import Answer


def waited_ns(pids: list[int]) -> int:
    return sum(task.schedstat(Host(), pid).run_delay_ns for pid in pids)


def test_three_spinners_on_one_cpu_wait_for_each_other() -> None:
    """Three that never sleep share one CPU: each runs a third, so they wait two of three seconds;
    and the sum is what the kernel counts for them, but for the waits that are not over yet."""
    with Box("trace-runqueue") as box:
        box.cpu(cpus="0")
        box.start(workload.burn())
        pids = [box.pid, box.run(workload.burn()), box.run(workload.burn())]
        children = [child for pid in pids for child in both(pid)]
        before = waited_ns(children)
        with asked("runqueue", box.target()) as trace:
            attached = waited_ns(children)
            time.sleep(2)
            latest = waited_ns(children)
        after = waited_ns(children)
        answer = trace.answer
        assert isinstance(answer, Answer)
        slack = 0.2e9  # a wait counts when it is over: at each end one of each task is not
        assert latest - attached - slack < answer.wait_ns < after - before + slack
        assert answer.waits == sum(answer.buckets)
        own = [n for n in answer.behind if n.who.startswith("its own")]
        assert sum(n.wait_ns for n in own) > 0.5 * answer.wait_ns


def test_one_that_sleeps_waits_for_nobody() -> None:
    with Box("trace-runqueue") as box:
        box.start(workload.idle())
        with asked("runqueue", box.target()) as trace:
            time.sleep(0.5)
        assert trace.answer.wait_ns < 0.2e9


def test_what_it_attaches_and_costs_is_told() -> None:
    with Box("trace-runqueue") as box:
        box.start(workload.burn())
        with asked("runqueue", box.target()) as trace:
            time.sleep(0.5)
        assert trace.begin is not None
        assert trace.begin.attached == ("tp_btf/sched_switch",)
        assert trace.programs.runs > 0
        assert trace.end is not None
        assert trace.dropped == 0


def below(pid: int) -> list[int]:
    """The tasks that the workload of a process is: itself, and what it has forked."""
    host = Host()
    found = [pid]
    for other in task.pids(host):
        try:
            if task.stat(host, other).ppid == pid:
                found.append(other)
        except OSError:
            continue
    return found


def both(pid: int) -> list[int]:
    """The two tasks of a workload, once it has forked."""
    until = time.monotonic() + PATIENCE_SECONDS
    while len(found := below(pid)) < 2:
        assert time.monotonic() < until
        time.sleep(0.01)
    return found


def test_without_a_program_the_sums_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "SENSORS", Path("/nonexistent"))
    with Box("trace-runqueue") as box:
        box.cpu(cpus="0")
        box.start(workload.burn())
        box.run(workload.burn())
        with asked("runqueue", box.target()) as trace:
            time.sleep(1)
        assert trace.begin is not None
        assert "instead: the sums" in trace.begin.notes[0]
        assert trace.answer.wait_ns > 0.5e9
        assert trace.answer.buckets == ()
