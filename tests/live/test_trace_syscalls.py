"""``whybox trace syscalls``: known calls, known errors, and who denied each."""

import ctypes
import mmap
import os
import resource
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from tests.live.conftest import require
from tests.live.gated import (
    EPERM,
    ERRNO,
    KILL_PROCESS,
    KILL_THREAD,
    TRAP,
    gated,
    go,
    in_child,
    libc,
    raw,
    refuse,
    until,
)
from tests.live.tracing import PATIENCE_SECONDS, Trace, asked
from whybox.kernel.capability import DEFAULT, NAMES
from whybox.kernel.host import Host
from whybox.kernel.syscalltable import number
from whybox.lab import workload
from whybox.lab.box import Box
from whybox.trace import load
from whybox.trace.denial import Denial
from whybox.trace.question import Options
from whybox.trace.syscalls import Answer, Call, Denied, Slow


def traced(body: Callable[[], object], options: Options | None = None, **kept: int) -> Trace:
    """The trace of what ``body`` does as root in a box."""
    with Box("trace-syscalls") as box:
        box.user(kept.get("uid", 0), kept.get("uid", 0))
        box.keep_caps(kept.get("caps", DEFAULT))
        box.start(gated(body))
        with asked("syscalls", box.target(), options) as trace:
            go(box)
        assert box.error() is None
    return trace


def call(trace: Trace, name: str) -> Call:
    assert isinstance(trace.answer, Answer)
    return next(one for one in trace.answer.syscalls if one.syscall == name)


def denials(trace: Trace, name: str) -> list[Denial]:
    return [one for one in trace.answer.denials if one.syscall == name]


def times(count: int, name: str, *arguments: object) -> Callable[[], None]:
    def body() -> None:
        for _ in range(count):
            raw(name, *arguments)

    return body


def after(filter: tuple[str, int], body: Callable[[], object]) -> Callable[[], object]:
    """``body`` in a child in which seccomp is set so first."""

    def child() -> None:
        refuse(*filter)
        body()

    return lambda: in_child(child)


def test_calls_and_errors_are_counted_exactly() -> None:
    """``getpriority`` 1000 times well, and 321 times of a kind that there is not."""

    def body() -> None:
        times(1000, "getpriority", 0, 0)()
        times(321, "getpriority", 99, 0)()

    trace = traced(body)
    seen = call(trace, "getpriority")
    assert (seen.calls, seen.errors) == (1321, 321)
    assert [(f.errno, f.count) for f in seen.failures] == [("EINVAL", 321)]
    assert sum(seen.buckets) == 1321
    assert 0 < seen.mean_ns <= seen.p99_ns <= seen.longest_ns <= seen.sum_ns
    assert trace.end is not None
    assert trace.dropped == 0


def test_the_calls_of_others_are_not_counted() -> None:
    with Box("trace-syscalls-other") as other:
        other.start(gated(times(500, "getpriority", 0, 0)))

        def body() -> None:
            times(10, "getpriority", 0, 0)()

        with Box("trace-syscalls") as box:
            box.start(gated(body))
            with asked("syscalls", box.target()) as trace:
                go(other)
                times(300, "getpriority", 0, 0)()
                go(box)
    assert call(trace, "getpriority").calls == 10


def test_a_call_takes_as_long_as_it_takes() -> None:
    """Five sleeps of 50 ms; from 40 ms on each is told."""

    def body() -> None:
        for _ in range(5):
            time.sleep(0.05)

    trace = traced(body, Options(slower_ns=40_000_000))
    slow = [one for one in trace.of(Slow) if "nanosleep" in one.syscall and one.took_ns < 400e6]
    assert len(slow) >= 5
    assert all(one.took_ns >= 40_000_000 and one.result == 0 for one in slow)
    longest = [one for one in trace.answer.syscalls if "nanosleep" in one.syscall]
    assert longest[0].longest_ns >= 50_000_000


def test_a_call_that_does_not_return_is_told_as_well() -> None:
    def body() -> None:
        left, _ = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            left.recv(1)
            os._exit(0)
        time.sleep(0.2)

    trace = traced(body)
    waits = [one for one in trace.answer.unfinished if one.syscall == "recvfrom"]
    assert [one.tasks for one in waits] == [1]
    assert waits[0].longest_ns > 100_000_000


def test_seccomp_a_capability_and_neither_are_told_apart() -> None:
    """``sethostname``: 7 times with a filter against it, 4 times with none and no SYS_ADMIN; and
    more open files than the kernel allows anybody, for which no capability is asked."""
    most = int(Path("/proc/sys/fs/nr_open").read_text())
    limits = ctypes.create_string_buffer(struct.pack("=QQ", most + 1, most + 1))

    def body() -> None:
        after(("sethostname", ERRNO | EPERM), times(7, "sethostname", b"x", 1))()
        times(4, "sethostname", b"x", 1)()
        times(3, "prlimit64", 0, resource.RLIMIT_NOFILE, limits, 0)()

    trace = traced(body)
    seen = {(d.by, d.capabilities): d for d in denials(trace, "sethostname")}
    assert {key: d.count for key, d in seen.items()} == {
        ("seccomp", ()): 7,
        ("capability", ("SYS_ADMIN",)): 4,
    }
    assert all(d.outcome == "EPERM" for d in seen.values())
    other = denials(trace, "prlimit64")
    assert [(d.by, d.count) for d in other] == [("other", 3)]
    # What seccomp refuses is never entered: it is no call that returned.
    assert call(trace, "sethostname").calls == 4


def test_a_denial_storm_is_told_a_few_times_and_counted_wholly() -> None:
    trace = traced(times(2000, "sethostname", b"x", 1))
    assert [d.count for d in denials(trace, "sethostname")] == [2000]
    told = [one for one in trace.of(Denied) if one.syscall == "sethostname"]
    assert 3 <= len(told) <= 3 * (1 + PATIENCE_SECONDS)
    assert {(one.by, one.capabilities) for one in told} == {("capability", ("SYS_ADMIN",))}


def test_seccomp_may_pretend_that_there_is_no_such_call() -> None:
    trace = traced(after(("getpriority", ERRNO | 38), times(5, "getpriority", 0, 0)))
    assert [(d.by, d.outcome, d.count) for d in denials(trace, "getpriority")] == [
        ("seccomp", "ENOSYS", 5)
    ]


@pytest.mark.parametrize(("count", "by"), [(1, "unknown"), (3, "seccomp")])
def test_the_first_that_is_seen_of_a_task_is_doubted_until_it_comes_again(
    count: int, by: str
) -> None:
    """It computes when the trace begins, and the first that it does is what seccomp refuses: that
    might as well have begun before."""

    def program() -> None:
        Path("/tmp/flag").write_bytes(b"0")
        refuse("sethostname", ERRNO | EPERM)
        call = number("sethostname")
        with open("/tmp/flag", "r+b") as file, mmap.mmap(file.fileno(), 1) as flag:
            Path("/tmp/ready").touch()
            while flag[0] != ord("1"):
                pass  # no system call
            for _ in range(count):
                libc.syscall(call, b"x", 1)
        Path("/tmp/done").touch()
        workload.idle()()

    with Box("trace-syscalls") as box:
        box.start(program)
        inside = Path(f"/proc/{box.pid}/root/tmp")
        until(inside / "ready")
        with asked("syscalls", box.target()) as trace:
            with open(inside / "flag", "r+b") as file:
                file.write(b"1")
            until(inside / "done")
    assert [(d.by, d.count) for d in denials(trace, "sethostname")] == [(by, count)]


def test_who_is_killed_by_seccomp_is_told_with_the_call() -> None:
    ends: list[tuple[str, int]] = [("KILL", KILL_PROCESS), ("KILL", KILL_THREAD), ("TRAP", TRAP)]

    def body() -> None:
        for _, action in ends:
            after(("sethostname", action), times(1, "sethostname", b"x", 1))()

    trace = traced(body)
    # SIGSYS has no handler there, so the trap ends it too.
    assert [(d.by, d.outcome, d.count) for d in denials(trace, "sethostname")] == [
        ("seccomp", "killed", 3)
    ]


def test_one_thread_of_several_that_is_killed_is_counted_once() -> None:
    """The others live on, or end along with it."""

    def child(action: int) -> None:
        refuse("sethostname", action)
        for _ in range(3):
            threading.Thread(target=time.sleep, args=(0.3,), daemon=True).start()
        threading.Thread(target=times(1, "sethostname", b"x", 1), daemon=True).start()
        time.sleep(0.3)

    def body() -> None:
        assert in_child(partial(child, KILL_THREAD)) == 0
        assert in_child(partial(child, KILL_PROCESS)) != 0

    trace = traced(body)
    assert [(d.by, d.outcome, d.count) for d in denials(trace, "sethostname")] == [
        ("seccomp", "killed", 2)
    ]


def test_who_handles_the_signal_of_seccomp_lives_on() -> None:
    def child() -> None:
        signal.signal(signal.SIGSYS, lambda *_: None)
        refuse("sethostname", TRAP)
        times(4, "sethostname", b"x", 1)()

    trace = traced(lambda: in_child(child))
    assert [(d.by, d.outcome, d.count) for d in denials(trace, "sethostname")] == [
        ("seccomp", "SIGSYS", 4)
    ]


def test_one_who_may_not_read_a_file_lacks_what_overrides_its_mode() -> None:
    """``openat`` of a file of mode 0 by somebody who is not root, 6 times."""

    def body() -> None:
        descriptor = os.open("/tmp/closed", os.O_CREAT | os.O_WRONLY, 0)
        os.fchmod(descriptor, 0)
        for _ in range(6):
            with suppress(PermissionError):
                os.open("/tmp/closed", os.O_RDONLY)

    trace = traced(body, uid=1000)
    seen = [d for d in denials(trace, "openat") if d.outcome == "EACCES"]
    assert [(d.by, set(d.capabilities), d.count) for d in seen] == [
        ("capability", {"DAC_OVERRIDE", "DAC_READ_SEARCH"}, 6)
    ]


def test_a_capability_that_is_had_denies_nothing() -> None:
    """With SYS_ADMIN the same call is allowed."""
    caps = DEFAULT | 1 << NAMES.index("SYS_ADMIN")
    trace = traced(times(4, "sethostname", b"x", 1), caps=caps)
    assert denials(trace, "sethostname") == []
    assert (call(trace, "sethostname").calls, call(trace, "sethostname").errors) == (4, 0)


#: Call 96 is gettimeofday(2) of 64-bit programs and getpriority(2) of 32-bit ones.
OLD_PROGRAM = """
void _start(void)
{
	int result, n;

	for (n = 0; n < 17; n++)
		__asm__ volatile("int $0x80" : "=a"(result) : "a"(96), "b"(0), "c"(0));
	__asm__ volatile("int $0x80" : "=a"(result) : "a"(1), "b"(0));
}
"""


def test_calls_of_32_bit_programs_have_other_numbers(tmp_path: Path) -> None:
    require(None if os.uname().machine == "x86_64" else "32-bit programs need an x86 machine")
    source, program = tmp_path / "old.c", tmp_path / "old"
    source.write_text(OLD_PROGRAM)
    command = ["gcc", "-m32", "-nostdlib", "-static", "-fno-pie", "-no-pie", "-fno-stack-protector"]
    subprocess.run([*command, "-o", str(program), str(source)], check=True)
    code = program.read_bytes()

    def body() -> None:
        Path("/tmp/old").write_bytes(code)
        os.chmod("/tmp/old", 0o755)
        assert in_child(lambda: os.execv("/tmp/old", ["old"])) == 0

    trace = traced(body)
    assert call(trace, "getpriority (32-bit)").calls == 17


def test_one_that_joins_is_seen_from_then_on() -> None:
    """It runs outside and is known for that, and is then moved into the container's groups."""
    with Box("trace-syscalls") as box:
        box.start(workload.idle())
        with asked("syscalls", box.target()) as trace:
            pid = box.run(times(20, "getpriority", 0, 0))
            deadline = time.monotonic() + PATIENCE_SECONDS
            while Path(f"/proc/{pid}").exists():
                assert time.monotonic() < deadline
                time.sleep(0.02)
    assert call(trace, "getpriority").calls == 20


def test_a_container_that_is_started_anew_is_followed() -> None:
    """It makes calls all the time, so that it is known as nobody's until it is adopted."""
    host = Host(window_seconds=1.0)
    with Box("trace-syscalls") as first, Box("trace-syscalls") as second:
        first.start(gated(times(3, "getpriority", 0, 0)))
        second.start(gated(times(40, "getpriority", 0, 0)))
        with load("syscalls").open(host, first.target(), Options()) as session:
            go(first)
            session.adopt(second.target())
            go(second)
            answer = session.answer()
    assert isinstance(answer, Answer)
    assert {one.syscall: one.calls for one in answer.syscalls}["getpriority"] == 43


def attached(trace: Trace) -> Sequence[str]:
    assert trace.begin is not None
    return trace.begin.attached


def test_what_it_attaches_is_told() -> None:
    with Box("trace-syscalls") as box:
        box.start(workload.idle())
        with asked("syscalls", box.target()) as trace:
            pass
    assert {"tp_btf/sys_enter", "tp_btf/sys_exit"} <= set(attached(trace))
    assert any("cap_capable" in place for place in attached(trace))
