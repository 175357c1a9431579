"""``whybox trace softirq``: compared with the kernel's counts, and with timers of known number."""

import os
import shutil
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.live.conftest import require
from tests.live.tracing import PATIENCE_SECONDS, Trace, asked
from whybox.kernel.bpf import objects
from whybox.lab import workload
from whybox.lab.box import Box, Program
from whybox.trace.question import Options
from whybox.trace.softirq import Answer, Called, Counts, Long, counts

DATAGRAMS = 3000

#: A softirq that runs while a trace begins or ends is in one of the two counts, on each CPU.
EDGE = 4


def when_told(what: Callable[[], object]) -> Program:
    """A program that does it once a signal comes, and says by a file that it is done."""

    def program() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        Path("/tmp/ready").touch()
        signal.sigwait({signal.SIGUSR1})
        what()
        Path("/tmp/done").touch()
        signal.sigwait({signal.SIGUSR1})

    return program


@contextmanager
def told(what: Callable[[], object], options: Options | None = None) -> Iterator[Trace]:
    """A box whose process does it while it is traced."""
    with Box("trace-softirq") as box:
        box.start(workload.idle())
        pid = box.run(when_told(what))
        until(box, pid, "ready")
        with asked("softirq", box.target(), options) as trace:
            os.kill(pid, signal.SIGUSR1)
            until(box, pid, "done")
            yield trace


def until(box: Box, pid: int, name: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not os.path.exists(f"/proc/{pid}/root/tmp/{name}"):
        assert time.monotonic() < deadline, f"never {name}: {box.error()}"
        time.sleep(0.02)


def flood() -> None:
    """Datagrams over the loopback device of the box: each is received in a softirq."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind(("127.0.0.1", 0))
        sender.connect(receiver.getsockname())
        for _ in range(DATAGRAMS):
            sender.send(b"x")
            receiver.recv(16)


def now() -> Counts:
    return counts(Path("/proc/softirqs").read_text())


def gains(before: Counts, after: Counts) -> dict[str, int]:
    names = {name for name, _ in after}
    return {
        name: sum(after[key] - before.get(key, 0) for key in after if key[0] == name)
        for name in names
    }


def test_counts_are_those_of_the_kernel_and_a_flood_is_the_containers() -> None:
    before = now()
    with told(flood) as trace:
        pass
    outer = gains(before, now())
    answer = trace.answer
    assert isinstance(answer, Answer)
    found = {vector.name: vector.count for vector in answer.vectors}
    edge = EDGE * (os.cpu_count() or 1)
    for name, count in found.items():
        assert count <= outer[name] + edge, name
    assert found["NET_RX"] >= DATAGRAMS
    taken = {one.by: one for one in answer.interrupted or ()}
    assert taken["NET_RX"].count >= DATAGRAMS / 2
    assert 0 < taken["NET_RX"].sum_ns <= vector(answer, "NET_RX")
    assert trace.programs.runs >= 2 * DATAGRAMS


def vector(answer: Answer, name: str) -> int:
    """How long that softirq took in all."""
    return next(v.sum_ns or 0 for v in answer.vectors if v.name == name)


def test_nothing_is_left_out_between_two_readings() -> None:
    """What the kernel counts while the trace is attached is what the trace counts."""
    with Box("trace-softirq") as box:
        box.start(workload.idle())
        with asked("softirq", box.target()) as trace:
            before = now()
            time.sleep(1)
            inner = gains(before, now())
        found = {vector.name: vector.count for vector in trace.answer.vectors}
        edge = EDGE * (os.cpu_count() or 1)
        for name, count in inner.items():
            assert found.get(name, 0) >= count - edge, name
        for one in trace.answer.vectors:
            assert one.count == sum(one.buckets) == sum(cpu.count for cpu in one.cpus)


TIMEOUTS, ALARMS = 40, 30


def time_out() -> None:
    """Waits of which each ends by a timer of the wheel."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("=qq", 0, 20_000))
        for _ in range(TIMEOUTS):
            try:
                sock.recv(16)
            except BlockingIOError:
                continue


def be_alarmed() -> None:
    """Signals of which each is sent by a high-resolution timer."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
    signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
    for _ in range(ALARMS):
        signal.sigwait({signal.SIGALRM})
    signal.setitimer(signal.ITIMER_REAL, 0)


def test_timers_of_known_number_are_counted_by_function() -> None:
    def both() -> None:
        time_out()
        be_alarmed()

    with told(both) as trace:
        pass
    # Others wait with timers too, but nobody else lets himself be alarmed.
    assert called(trace, "timer", "process_timeout").count >= TIMEOUTS
    assert ALARMS <= called(trace, "hrtimer", "it_real_fn").count <= ALARMS + 2
    for one in trace.answer.called:
        assert 0 < one.longest_ns <= one.sum_ns


def called(trace: Trace, kind: str, name: str) -> Called:
    """The one of that name."""
    [found] = [c for c in trace.answer.called if (c.kind, c.name) == (kind, name)]
    assert isinstance(found, Called)
    return found


def test_single_ones_are_told_from_a_length_on() -> None:
    with told(flood, Options(slower_ns=1)) as trace:
        pass
    assert trace.end is not None
    events = trace.of(Long)
    found = [e for e in events if e.what == "softirq NET_RX" and e.on_target]
    assert len(found) + trace.end.lost >= DATAGRAMS / 2
    assert all(e.took_ns >= 1 and e.pid for e in found)
    with told(flood, Options(slower_ns=3600 * 10**9)) as trace:
        pass
    assert trace.of(Long) == []


SERVICES = 1000


@pytest.fixture
def ipvs() -> Iterator[None]:
    """Many services with two servers each, so three estimators each (kernel facts B1)."""
    if subprocess.run(["modprobe", "-q", "ip_vs"], check=False).returncode:
        pytest.skip("this kernel was built without IPVS")
    require(None if shutil.which("ipvsadm") else "not installed: ipvsadm")
    rules = []
    for n in range(SERVICES):
        service = f"10.{100 + n // 250}.{n % 250}.1:80"
        rules.append(f"-A -t {service} -s rr")
        rules += [f"-a -t {service} -r 10.9.9.{server}:80 -m" for server in (1, 2)]
    subprocess.run(["ipvsadm", "-R"], input="\n".join(rules) + "\n", text=True, check=True)
    try:
        yield
    finally:
        subprocess.run(["ipvsadm", "-C"], check=False)


def test_the_estimators_of_ipvs_are_named_with_their_period(ipvs: None) -> None:
    """They are one timer of each network namespace (measured on 6.1), or threads of their own on
    newer kernels."""
    with Box("trace-softirq") as box:
        box.start(workload.idle())
        with asked("softirq", box.target(), Options(slower_ns=100_000)) as trace:
            time.sleep(8.5)
        namespaces = network_namespaces()
    found = [c for c in trace.answer.called if c.name == "estimation_timer"]
    threads = [comm for comm in comms() if comm.startswith("ipvs-e:")]
    assert bool(found) != bool(threads)
    if threads:
        return
    [timer] = found
    assert (timer.kind, timer.module) == ("timer", "ip_vs")
    assert 3 <= timer.count <= 5 * len(namespaces)
    assert timer.longest_ns > 100_000
    assert timer.period_ns is not None
    assert 1.9e9 < timer.period_ns < 2.1e9
    assert [e for e in trace.of(Long) if e.what == "timer estimation_timer"]


def network_namespaces() -> set[str]:
    found = set()
    for link in Path("/proc").glob("[0-9]*/ns/net"):
        with suppress(OSError):
            found.add(os.readlink(link))
    return found


def comms() -> list[str]:
    found = []
    for file in Path("/proc").glob("[0-9]*/comm"):
        try:
            found.append(file.read_text().strip())
        except OSError:
            continue
    return found


def test_without_a_program_the_kernels_counts_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "SENSORS", Path("/nonexistent"))
    with told(flood) as trace:
        pass
    assert trace.begin is not None
    assert "instead: the counts of /proc/softirqs" in trace.begin.notes[0]
    found = {vector.name: vector for vector in trace.answer.vectors}
    assert found["NET_RX"].count >= DATAGRAMS
    assert found["NET_RX"].sum_ns is None
    assert trace.answer.interrupted is None
