"""How a box ends, and that nothing is left of it, whatever ends the lab."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.live.boxes import (
    children,
    directory,
    gone,
    handles_term,
    is_v1,
    leftovers,
    status,
    until,
)
from whybox.kernel.host import Host
from whybox.lab import groups, rootfs, workload
from whybox.lab.box import Box, BoxError

MIB = 1 << 20


def test_the_oom_killer_ends_what_allocates_too_much() -> None:
    with Box() as box:
        box.memory(limit_bytes=48 * MIB)
        box.start(workload.allocate(128 * MIB))
        assert box.wait(20) == 137
        assert not box.target().alive
        assert directory_of_the_dead(box).exists(), "its counters can still be read"


def directory_of_the_dead(box: Box) -> Path:
    group = box.target().group(Host(), "memory")
    assert group is not None
    return Path(group.directory)


def test_a_dead_box_is_a_target_with_its_exit() -> None:
    with Box() as box:
        box.start(workload.deaf())
        paths = box.target().cgroups
        box.signal(signal.SIGKILL)
        assert box.wait(10) == 137
        target = box.target()
        assert (target.init, target.cgroups) == (None, paths)
        assert target.exit is not None
        assert (target.exit.status, target.exit.exit_code) == ("exited", 137)
        assert target.exit.source == f"whybox box {box.name}"
        started, finished = target.exit.started_at_ns, target.exit.finished_at_ns
        assert started is not None
        assert finished is not None
        assert started < finished <= time.time_ns()


def test_wait_is_none_while_it_runs() -> None:
    with Box() as box:
        box.start(workload.idle())
        assert box.wait(0) is None
        assert until(lambda: handles_term(box.pid))
        box.signal(signal.SIGTERM)
        assert box.wait(5) == 0


def test_what_a_program_raises_is_told() -> None:
    def program() -> None:
        raise ValueError("no such luck")

    with Box() as box:
        box.start(program)
        assert box.wait(5) == 70
        assert "no such luck" in (box.error() or "")


def test_a_set_up_that_fails_says_why_and_leaves_nothing() -> None:
    box = Box("failing")
    box.sysctl("net.no.such.thing", "1")
    with pytest.raises(BoxError, match=r"/proc/sys/net/no/such/thing"):
        box.start(workload.idle())
    assert leftovers(box.name) == []


@pytest.mark.parametrize("program", [workload.burn(2), workload.reaping(3), workload.forking(3)])
def test_term_ends_a_program_and_its_children(program: Callable[[], None]) -> None:
    with Box() as box:
        box.start(program)
        assert until(lambda: handles_term(box.pid))
        box.signal(signal.SIGTERM)
        assert box.wait(5) == 0, box.error()


def test_without_a_pid_namespace_it_is_no_pid_1_and_goes_all_the_same() -> None:
    with Box() as box:
        box.start(workload.burn(2), clone_pid_namespace=False)
        assert status(box.pid, "NSpid").split() == [str(box.pid)]
        assert until(lambda: len(children(box.pid)) == 2)
        spinning = children(box.pid)
    assert until(lambda: all(gone(pid) for pid in spinning))


def test_nothing_is_left_after_close_and_closing_again_is_nothing() -> None:
    before = set(children(os.getpid()))
    box = Box("leaving")
    box.cpu(parent_cores=0.5)
    box.lower_file("/data/big", bytes=MIB)
    box.volume("/vol")
    box.network()
    box.start(workload.burn())
    box.run(workload.deaf())
    pids = [box.pid, *children(box.pid)]
    assert leftovers(box.name), "there is something to look for"
    box.close()
    box.close()
    assert leftovers(box.name) == []
    assert all(gone(pid) for pid in pids)
    assert set(children(os.getpid())) == before
    assert not {"br0", "veth0", "up0"} & set(os.listdir("/sys/class/net"))


def test_a_frozen_box_can_be_closed() -> None:
    with Box() as box:
        box.start(workload.idle())
        v1 = is_v1("freezer")
        file = directory(box, "freezer") / ("freezer.state" if v1 else "cgroup.freeze")
        file.write_text("FROZEN" if v1 else "1")
    assert leftovers(box.name) == []


LAB = """
import sys, time
from whybox.lab import workload
from whybox.lab.box import Box
with Box("orphaned") as box:
    box.network()
    box.start(workload.burn())
    print(box.name, box.pid, flush=True)
    time.sleep(60)
"""


def lab() -> tuple["subprocess.Popen[str]", str, int]:
    """A lab in a process of its own: (it, the box's name, PID 1)."""
    process = subprocess.Popen([sys.executable, "-c", LAB], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    name, pid = process.stdout.readline().split()
    return process, name, int(pid)


def test_a_killed_lab_takes_its_box_along_and_the_next_one_sweeps() -> None:
    process, name, pid = lab()
    shim = int(status(pid, "PPid"))
    with process:
        process.kill()
    assert until(lambda: gone(pid) and gone(shim))
    assert leftovers(name), "a killed process cannot clear up"
    assert until(lambda: swept(name)), leftovers(name)


def swept(name: str) -> bool:
    groups.sweep()
    rootfs.sweep()
    return leftovers(name) == []


def test_ctrl_c_leaves_nothing() -> None:
    process, name, pid = lab()
    with process:
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == -signal.SIGINT
    assert gone(pid)
    assert leftovers(name) == []
