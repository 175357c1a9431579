"""Tracepoints of the running kernel, against signals and forks that the test itself makes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.conftest import require
from whybox.kernel import signals, task, tracefs, zombie
from whybox.kernel.bpf import objects
from whybox.kernel.finding import myself
from whybox.kernel.host import Host
from whybox.kernel.libc import set_name
from whybox.kernel.mountinfo import mounts
from whybox.kernel.tracefs import events

GENERATE = "signal/signal_generate"


@pytest.fixture(autouse=True)
def _tracepoints() -> None:
    require(tracefs.why_not(Host()))


@pytest.fixture(autouse=True)
def _sigwinch_is_ignored() -> Iterator[None]:
    """What we send ourselves is dropped, res=1, and we live to tell."""
    before = signal.signal(signal.SIGWINCH, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGWINCH, before)


def instances() -> list[str]:
    with tracefs.directory(Host()) as root:
        return sorted(n for n in os.listdir(f"{root}/instances") if n.startswith("whybox-"))


def test_every_signal_of_a_known_number_is_recorded_with_its_time() -> None:
    mine = os.getpid()
    began = time.monotonic()
    with events(Host(), [GENERATE], {GENERATE: f"sig == {int(signal.SIGWINCH)}"}) as recorder:
        for _ in range(7):
            os.kill(mine, signal.SIGWINCH)
        os.kill(mine, signal.SIGURG)  # filtered out
        found = [e for e in recorder.read() if e.fields["pid"] == str(mine)]
        assert recorder.complete
    assert [(e.pid, e.fields["res"], e.fields["sig"]) for e in found] == [(mine, "1", "28")] * 7
    assert all(began <= e.seconds <= time.monotonic() for e in found)


def test_a_name_with_a_line_feed_hides_nothing() -> None:
    name = Path("/proc/self/comm").read_text().strip()
    set_name("a\nb pid=1 res")
    try:
        with events(Host(), [GENERATE], {GENERATE: "sig == 28"}) as recorder:
            os.kill(os.getpid(), signal.SIGWINCH)
    finally:
        set_name(name)
    found = [e.fields for e in recorder.read() if e.fields["pid"] == str(os.getpid())]
    assert [(f["comm"], f["res"]) for f in found] == [("a\nb pid=1 res", "1")]
    assert len(recorder.lines()) == len(recorder.read())


def test_an_instance_goes_with_its_block_on_every_way_out() -> None:
    before, mounted = instances(), len(mounts(Host(), "self"))

    def interrupted() -> None:
        with events(Host(), [GENERATE]):
            (mine,) = set(instances()) - set(before)
            assert mine == f"whybox-{os.getpid()}-{task.stat(Host(), os.getpid()).start_ticks}"
            assert len(mounts(Host(), "self")) == mounted
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert instances() == before


def test_one_process_may_record_twice() -> None:
    with events(Host(), [GENERATE]), events(Host(), ["sched/sched_process_fork"]) as forks:
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        assert str(child) in {e.fields["child_pid"] for e in forks.read()}
    assert zombie.Forks(recorder=forks).forkers()[child] == os.getpid()


def test_what_a_killed_one_left_behind_is_removed_by_the_next() -> None:
    code = (
        "import sys, time\n"
        "from whybox.kernel.host import Host\n"
        "from whybox.kernel.tracefs import events\n"
        f"with events(Host(), ['{GENERATE}']):\n"
        "    print('up', flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"up\n"
        with events(Host(), [GENERATE]):
            assert any(n.startswith(f"whybox-{other.pid}-") for n in instances()), "it lives"
        other.kill()
    assert any(n.startswith(f"whybox-{other.pid}-") for n in instances())
    with events(Host(), [GENERATE]):
        assert not any(n.startswith(f"whybox-{other.pid}-") for n in instances())


def test_a_tracepoint_that_is_not_there_is_a_reason_and_leaves_nothing() -> None:
    before = instances()
    with tracefs.attempt(Host(), ["signal/no_such"]) as attempt:
        assert attempt.recorder is None
        assert attempt.reason is not None
        assert "no such tracepoint" in attempt.reason
    with tracefs.attempt(Host(), [GENERATE], {GENERATE: "nonsense"}) as attempt:
        assert attempt.reason is not None
    assert instances() == before


def test_without_a_sensor_the_signals_of_a_window_are_read_as_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where there is no BPF: shared, kept, and gone with the last who watches."""
    monkeypatch.setattr(objects, "SENSORS", Path("/nonexistent"))
    host, me = Host(window_seconds=1.0), myself(Host())
    before = instances()
    with signals.watch(host, me) as one, signals.watch(host, me) as other:
        assert len(instances()) == len(before) + 1
        os.kill(os.getpid(), signal.SIGWINCH)
        for watched in (one, other):
            (sent,) = [s for s in watched.sent_to(os.getpid()) if s.signal == signal.SIGWINCH]
            assert (sent.sender_pid, sent.result, sent.code) == (os.getpid(), 1, 0)
        assert one.complete
    assert instances() == before


def test_a_window_of_no_length_attaches_nothing() -> None:
    before = instances()
    with signals.watch(Host(), myself(Host())) as watched:
        assert watched.reason is not None
        assert instances() == before
    assert watched.sent_to(os.getpid()) == ()


def test_without_privileges_there_is_a_reason_and_a_way_out() -> None:
    """In a child, since there is no way back from another user."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.setuid(1000)
        os.write(writing, (tracefs.why_not(Host()) or "none").encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading) as said:
        assert "run whybox as root" in said.read()
