"""``whybox trace blocked``: known waits in known places, sleep apart from D."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.live.tracing import PATIENCE_SECONDS, Trace, asked
from whybox.kernel import task
from whybox.kernel.host import Host
from whybox.kernel.libc import set_name
from whybox.kernel.target import processes
from whybox.lab import workload
from whybox.lab.box import Box
from whybox.lab.process import called
from whybox.trace.blocked import Answer, Site, Wait, ordered, waiting_by_wchan
from whybox.trace.question import Options

#: vforks TIMES MS: so often vforks a child that ends after so many ms, for which its parent waits
#: in D; then sleeps, or ends if there is another argument.
VFORKS = r"""
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	long ms = atol(argv[2]);
	struct timespec pause_ = { ms / 1000, ms % 1000 * 1000000 };

	for (int times = atoi(argv[1]); times > 0; times--)
		if (!vfork()) {
			nanosleep(&pause_, NULL);
			_exit(0);
		}
	while (argc < 4)
		pause();
	return 0;
}
"""


@pytest.fixture(scope="module")
def vforks(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    directory = tmp_path_factory.mktemp("vforks")
    (directory / "vforks.c").write_text(VFORKS)
    command = ["gcc", "-static", "-O1", "-w", "-o", f"{directory}/vforks", f"{directory}/vforks.c"]
    subprocess.run(command, check=True)
    return (directory / "vforks").read_bytes()


def executed(binary: bytes, *arguments: str) -> Callable[[], None]:
    def program() -> None:
        path = Path("/tmp/vforks")
        path.write_bytes(binary)
        path.chmod(0o755)
        os.execv(path, ["vforks", *arguments])

    return program


def until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def ended(pid: int) -> bool:
    try:
        return task.stat(Host(), pid).state in "ZX"
    except OSError:
        return True


def quiet() -> None:
    """A PID 1 that waits in one place for ever, and in none of those that are asked about."""
    signal.pause()


def traced(program: Callable[[], None]) -> Trace:
    """Trace a program that ends by itself."""
    with Box("trace-blocked") as box:
        box.start(quiet)
        with asked("blocked", box.target()) as trace:
            pid = box.run(program)
            until(lambda: ended(pid), "it did not end")
        return trace


def sites(answer: Answer, part: str, process: str) -> list[Site]:
    return [one for one in answer.sites if part in one.site and process in one.processes]


def named(name: str, body: Callable[[], object]) -> Callable[[], None]:
    def program() -> None:
        set_name(name)
        called(body)

    return program


def test_forty_sleeps_of_50_ms_are_two_seconds_of_nanosleep() -> None:
    def body() -> None:
        for _ in range(40):
            time.sleep(0.05)

    [site] = sites(traced(named("sleeper", body)).answer, "nanosleep", "sleeper")
    assert site.how == "S"
    assert site.waits == 40
    assert site.tasks == 1
    assert site.wait_ns >= 2_000_000_000
    assert site.longest_ns >= 50_000_000


def test_waiting_for_a_pipe_is_told_by_the_pipe() -> None:
    """A child writes 20 times, 30 ms apart."""

    def body() -> None:
        ours, theirs = os.pipe()
        if os.fork() == 0:
            for _ in range(20):
                time.sleep(0.03)
                os.write(theirs, b".")
            os._exit(0)
        for _ in range(20):
            os.read(ours, 1)

    [site] = sites(traced(named("reader", body)).answer, "pipe_read", "reader")
    assert site.how == "S"
    # Where the reader is given a CPU late, the next byte may be there already.
    assert 15 <= site.waits <= 20
    assert site.wait_ns >= 15 * 29_000_000
    assert site.tasks == 1


def test_waiting_for_a_lock_of_user_space_is_told_by_the_futex() -> None:
    def body() -> None:
        lock = threading.Lock()
        for _ in range(10):
            lock.acquire()
            threading.Timer(0.05, lock.release).start()
            lock.acquire()
            lock.release()

    found = sites(traced(named("locker", body)).answer, "futex", "locker")
    assert found
    assert {one.how for one in found} == {"S"}
    assert sum(one.wait_ns for one in found) >= 10 * 49_000_000


def test_a_parent_that_waits_for_its_vfork_is_stuck_in_d(vforks: bytes) -> None:
    with Box("trace-blocked") as box, Box("trace-blocked-other") as other:
        box.start(workload.idle())
        other.start(workload.idle())
        with asked("blocked", box.target()) as trace:
            other.run(executed(vforks, "3", "200"))
            pid = box.run(executed(vforks, "3", "200"))
            until(lambda: len(trace.of(Wait)) >= 3, "its waits were not told")
        waits = [one for one in trace.of(Wait) if one.pid == pid]
        assert len(waits) == 3
        assert {one.pid for one in trace.of(Wait)} == {pid}
        assert all(one.waited_ns >= 200_000_000 and not one.at_least for one in waits)
        # wait_for_vfork_done() is a part of it, but where a compiler keeps it apart.
        assert {one.site for one in waits} <= {"kernel_clone", "wait_for_vfork_done"}
        stuck = [one for one in trace.answer.sites if one.how == "D" and "vforks" in one.processes]
        assert sum(one.waits for one in stuck if one.longest_ns >= 200_000_000) >= 3
        assert sum(one.wait_ns for one in stuck) >= 600_000_000


def test_shorter_waits_in_d_are_summed_and_not_told_one_by_one(vforks: bytes) -> None:
    with Box("trace-blocked") as box:
        box.start(workload.idle())
        with asked("blocked", box.target(), Options(slower_ns=5_000_000_000)) as trace:
            pid = box.run(executed(vforks, "2", "150", "exit"))
            until(lambda: ended(pid), "it did not end")
        assert trace.of(Wait) == []
        stuck = [one for one in trace.answer.sites if one.how == "D" and "vforks" in one.processes]
        assert sum(one.wait_ns for one in stuck) >= 300_000_000


def test_one_that_was_stuck_before_and_still_is_stands_there(vforks: bytes) -> None:
    """Nothing happens to it during the trace, so no event can tell of it."""
    with Box("trace-blocked") as box:
        box.start(workload.idle())
        pid = box.run(executed(vforks, "1", "300000"))
        until(lambda: task.stat(Host(), pid).state == "D", "it is not in D")
        time.sleep(1.0)
        with asked("blocked", box.target()) as trace:
            time.sleep(1.0)
        answer = trace.answer
        assert isinstance(answer, Answer)
        first = answer.now[0]
        assert (first.how, first.pid, first.comm) == ("D", pid, "vforks")
        assert first.at_least
        assert first.waited_ns is not None
        assert 1_000_000_000 <= first.waited_ns <= answer.window_ns
        # It was last on a CPU before the trace began, and the kernel knows when.
        assert first.not_on_cpu_ns is not None
        assert first.not_on_cpu_ns >= first.waited_ns + 900_000_000
        [site] = [one for one in answer.sites if one.how == "D" and one.unfinished]
        assert site.wait_ns >= 1_000_000_000


def test_what_is_stuck_is_found_without_programs_too(vforks: bytes) -> None:
    """What stands in where the kernel has no iterator over tasks."""
    with Box("trace-blocked") as box:
        box.start(quiet)
        pid = box.run(executed(vforks, "1", "300000"))
        until(lambda: task.stat(Host(), pid).state == "D", "it is not in D")
        found = ordered(waiting_by_wchan(Host(), box.target()))
        assert (found[0].how, found[0].pid, found[0].comm) == ("D", pid, "vforks")
        assert {one.how for one in found[1:]} == {"S"}
        assert box.pid in {one.pid for one in found}


def test_one_that_is_preempted_is_not_blocked() -> None:
    """Two that burn share one CPU: they wait for it half of the time, and are blocked never."""
    with Box("trace-blocked") as box:
        box.cpu(cpus="0")
        box.start(workload.idle())
        for _ in range(2):
            box.run(named("burner", burns))
        until(lambda: burners(box) == 2, "they do not run")
        with asked("blocked", box.target()) as trace:
            time.sleep(2)
        answer = trace.answer
        mine = [one for one in answer.sites if "burner" in one.processes]
        assert sum(one.wait_ns for one in mine) < 0.1 * answer.window_ns


def burns() -> None:
    while True:
        pass


def burners(box: Box) -> int:
    """How many tasks of the box burn by now."""
    pids = processes(Host(), box.target())
    return sum(task.stat(Host(), pid).comm == "burner" for pid in pids)


def test_many_short_waits_are_summed_cheaply() -> None:
    """Two that throw a byte to each other: hundreds of thousands of switches."""

    def body() -> None:
        there, back = os.pipe(), os.pipe()
        if os.fork() == 0:
            while os.read(there[0], 1):
                os.write(back[1], b".")
        while os.write(there[1], b"."):
            os.read(back[0], 1)

    with Box("trace-blocked") as box:
        box.cpu(cpus="0")
        box.start(named("thrower", body))
        with asked("blocked", box.target()) as trace:
            time.sleep(2)
        answer = trace.answer
        told = sum(one.waits for one in answer.sites)
        assert told + answer.brief_waits > 1000
        assert trace.end is not None
        assert trace.dropped == 0
        assert trace.programs.runs >= told + answer.brief_waits
