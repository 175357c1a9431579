"""``whybox trace signals``: 23 signals of which 7 are ignored, and nobody else's."""

import os
import signal
from pathlib import Path

import pytest

from tests.live.conftest import require
from tests.live.tracing import PATIENCE_SECONDS, asked
from whybox.kernel import signals, tracefs
from whybox.kernel.bpf import objects
from whybox.kernel.host import Host
from whybox.lab import workload
from whybox.lab.box import Box
from whybox.trace.signals import Answer, Signal


def test_of_23_signals_7_are_ignored() -> None:
    """SIGUSR1 has no handler there, so the kernel drops it for PID 1; SIGTERM has one."""
    with Box("trace-signals") as box, Box("trace-signals-other") as other:
        box.start(workload.ignoring())
        other.start(workload.ignoring())
        with asked("signals", box.target()) as trace:
            for _ in range(7):
                box.signal(signal.SIGTERM)
                other.signal(signal.SIGTERM)
            for _ in range(16):
                box.signal(signal.SIGCONT)
        answer = trace.answer
        assert isinstance(answer, Answer)
        told = [one for one in trace.of(Signal) if one.from_pid == os.getpid()]
        assert len(told) == 23
        ignored = [one for one in told if one.fate == "ignored" and one.signal == "SIGTERM"]
        assert len(ignored) == 7
        assert {one.to_pid for one in told} == {box.pid}
        assert trace.end is not None
        assert trace.dropped == 0


def test_when_pid_1_dies_the_kernel_kills_the_others_and_the_trace_goes_on() -> None:
    """The kernel sends SIGKILL in the context of the dying PID 1: it is not PID 1 that sends."""
    with Box("trace-signals") as box:
        box.start(workload.idle())
        joined = box.run(workload.idle())
        with asked("signals", box.target()) as trace:
            os.kill(box.pid, signal.SIGKILL)
            assert box.wait(PATIENCE_SECONDS) is not None
        kills = [(one.to_pid, one.from_comm) for one in trace.of(Signal) if one.signal == "SIGKILL"]
        assert (joined, "the kernel") in kills
        assert any(to == box.pid and sender != "the kernel" for to, sender in kills)


def test_a_storm_is_counted_and_does_not_hold_it_up() -> None:
    """40,000 signals as fast as they go: told or counted as lost, and none of them twice."""
    with Box("trace-signals") as box:
        box.start(workload.ignoring())
        with asked("signals", box.target()) as trace:
            for _ in range(40_000):
                os.kill(box.pid, signal.SIGTERM)
        assert trace.end is not None
        assert trace.answer.ignored + trace.end.lost == 40_000
        assert trace.end.seconds < 60


def test_a_case_shares_one_sensor_among_all_its_targets() -> None:
    host = Host(window_seconds=1.0)
    with Box("trace-signals") as one, Box("trace-signals") as other:
        one.start(workload.ignoring())
        other.start(workload.ignoring())
        with (
            signals.watch(host, one.target()) as watched,
            signals.watch(host, other.target()) as beside,
        ):
            for _ in range(3):
                one.signal(signal.SIGTERM)
            other.signal(signal.SIGTERM)
            assert len(watched.sent_to(one.pid)) == 3
            assert len(beside.sent_to(other.pid)) == 1
            assert watched.sent_to(other.pid) == ()
            assert watched.complete


def test_without_a_program_the_tracepoints_text_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    require(tracefs.why_not(Host()))
    monkeypatch.setattr(objects, "SENSORS", Path("/nonexistent"))
    with Box("trace-signals") as box:
        box.start(workload.ignoring())
        with asked("signals", box.target()) as trace:
            for _ in range(7):
                box.signal(signal.SIGTERM)
        assert trace.begin is not None
        assert "was not built" in trace.begin.notes[0]
        ignored = [one for one in trace.of(Signal) if one.from_pid == os.getpid()]
        assert [one.fate for one in ignored] == ["ignored"] * 7
        assert trace.answer.ignored == 7
