"""What a lab of process/* cannot show: states in which a box cannot be closed, or has ended."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from whybox import cases
from whybox.diagnose import diagnose
from whybox.kernel.cgroup import unified
from whybox.kernel.host import Host
from whybox.kernel.signals import has
from whybox.kernel.task import status
from whybox.lab import workload
from whybox.lab.box import Box
from whybox.model import Certainty, Finding, Verdict

DEAF = "process/pid1_ignores_signals"
ZOMBIES = "process/zombies"


def asked(box: Box, case: str, seconds: float = 1.5) -> Finding:
    """What one case says of the box."""
    report = diagnose(Host(window_seconds=seconds), [box.target()], {case: cases.load(case)})
    return report.targets[0].findings[0]


def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def handles_term(box: Box) -> bool:
    return has(status(Host(), box.pid).sig_cgt, signal.SIGTERM)


@contextmanager
def paused(box: Box) -> Iterator[None]:
    host, target = Host(), box.target()
    group = target.group(host, "freezer")
    v1 = group is not None and group.version == 1
    group = group if v1 else unified(host, target.cgroups)
    assert group is not None
    file = group.file("freezer.state" if v1 else "cgroup.freeze")
    on, off = ("FROZEN", "THAWED") if v1 else ("1", "0")
    _write(file, on)
    try:
        time.sleep(0.2)
        yield
    finally:
        _write(file, off)  # or it could not be killed


def _write(file: str, text: str) -> None:
    with open(file, "w", encoding="ascii") as opened:
        opened.write(text)


def test_a_paused_one_is_never_called_deaf() -> None:
    with Box("paused") as box:
        box.start(workload.handling())
        until(lambda: handles_term(box))
        with paused(box):
            assert asked(box, DEAF).verdict is Verdict.CLEAR
    with Box("paused") as box:
        box.start(workload.deaf())
        with paused(box):
            finding = asked(box, DEAF)
    assert (finding.verdict, "paused" in finding.summary) == (Verdict.UNKNOWN, True)


def test_seven_signals_in_the_window_are_seven() -> None:
    with Box("seven") as box:
        box.start(workload.deaf())

        def send() -> None:
            time.sleep(0.7)
            for _ in range(7):
                os.kill(box.pid, signal.SIGTERM)

        sender = threading.Thread(target=send)
        sender.start()
        finding = asked(box, DEAF, 3.0)
        sender.join()
    assert "ignored 7 of 7 SIGTERM" in finding.summary
    assert finding.certainty is Certainty.CONFIRMED


def test_under_an_init_the_same_program_ends_at_once() -> None:
    """The cure, from the other side: SIGTERM from outside, and 143."""
    with Box("init") as box:
        box.init()
        box.start(workload.deaf())
        time.sleep(0.5)
        box.signal(signal.SIGTERM)
        assert box.wait(10) == 128 + signal.SIGTERM


def test_one_that_had_to_be_killed_is_found_and_one_that_obeyed_is_not() -> None:
    for program, verdict in ((workload.deaf, Verdict.FOUND), (workload.handling, Verdict.CLEAR)):
        with Box("ended") as box:
            box.start(program())
            timers = [threading.Timer(0.8, box.signal, [signal.SIGTERM])]
            if verdict is Verdict.FOUND:
                timers.append(threading.Timer(1.6, box.signal, [signal.SIGKILL]))
            for timer in timers:
                timer.start()
            finding = asked(box, DEAF, 3.0)
        assert finding.verdict is verdict, finding.summary


@pytest.mark.parametrize("orphans", [False, True])
def test_growing_zombies_are_told_apart_by_who_forked_them(orphans: bool) -> None:
    """Five a second; whose they are is known though PID 1 did wait for others."""

    def program() -> None:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        waited = os.fork()
        if waited == 0:
            os._exit(0)
        os.waitpid(waited, 0)
        while True:
            child = os.fork()
            if child == 0:
                if orphans and os.fork() == 0:
                    time.sleep(0.05)
                os._exit(0)
            if orphans:
                os.waitpid(child, 0)
            time.sleep(0.2)

    with Box("growing") as box:
        box.start(program)
        time.sleep(1.0)
        finding = asked(box, ZOMBIES, 2.0)
    assert finding.verdict is Verdict.FOUND
    assert "more a minute" in finding.summary
    assert type(finding.cures[0].change).__name__ == ("WithInit" if orphans else "InProgram")


def test_from_inside_as_nobody_it_still_counts() -> None:
    """PID 1 asks about itself, and says what it learnt by failing."""

    def program() -> None:
        for _ in range(3):
            if os.fork() == 0:
                os._exit(0)
        time.sleep(0.5)
        from whybox.kernel import finding

        host = Host(window_seconds=1.2)
        loaded = {name: cases.load(name) for name in (DEAF, ZOMBIES)}
        report = diagnose(host, [finding.myself(host)], loaded)
        raise RuntimeError(" ".join(f.summary for f in report.targets[0].findings))

    for name in (DEAF, ZOMBIES):
        cases.load(name)  # inside there is no library to load it from
    with Box("self") as box:
        box.start(program)
        assert box.wait(30) is not None
        said = box.error() or ""
    assert "does not hear SIGTERM" in said
    assert "3 zombies stay" in said
