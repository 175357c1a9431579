"""``whybox trace exec``: 17 commands, failed ones, who came in from outside, storms."""

import os
import time
from collections.abc import Callable

import pytest
from msgspec import structs

from tests.live.engine import Engine
from tests.live.tracing import PATIENCE_SECONDS, asked
from whybox.kernel.host import Host
from whybox.kernel.sensors import exec as sensor
from whybox.kernel.target import described
from whybox.lab import workload
from whybox.lab.box import Box
from whybox.trace.exec import Answer, Command, Exit

TRUE = "/usr/bin/true"


def in_child(body: Callable[[], None]) -> int:
    """Runs in a child, which ends with 127 if ``body`` comes back; its status."""
    child = os.fork()
    if child == 0:
        try:
            body()
        except OSError:
            pass
        finally:
            os._exit(127)
    return os.waitpid(child, 0)[1]


def done(box: Box, program: Callable[[], None]) -> int:
    """Run it in the box and wait until it has ended."""
    pid = box.run(program)
    until = time.monotonic() + PATIENCE_SECONDS
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < until:
        time.sleep(0.02)
    return pid


def executing(*arguments: str) -> Callable[[], None]:
    return lambda: os.execv(arguments[0], arguments)


def test_17_commands_are_told_with_who_started_them() -> None:
    def program() -> None:
        for number in range(17):
            in_child(executing(TRUE, str(number)))

    with Box("trace-exec") as box, Box("trace-exec-other") as other:
        box.start(workload.idle())
        other.start(workload.idle())
        with asked("exec", box.target()) as trace:
            starter = done(box, program)
            done(other, program)
        told = trace.of(Command)
        assert [one.arguments for one in told] == [(TRUE, str(n)) for n in range(17)]
        assert {(one.parent_pid, one.inside, one.error) for one in told} == {(starter, True, None)}
        assert all(0 < one.nspid < one.pid for one in told)
        answer = trace.answer
        assert isinstance(answer, Answer)
        assert (answer.executed, answer.failed, answer.from_outside) == (17, 0, 0)
        (kind,) = answer.commands
        assert (kind.name, kind.count, kind.ended, kind.bad) == ("true", 17, 17, 0)
        assert trace.end is not None
        assert trace.dropped == 0


def test_a_search_along_path_is_no_failure_and_what_cannot_be_executed_is() -> None:
    def search() -> None:
        os.environ["PATH"] = "/nowhere:/opt/none:/tmp:/usr/bin"
        os.execvp("true", ["true"])

    def vain() -> None:
        os.environ["PATH"] = "/nowhere:/opt/none:/tmp"
        os.execvp("whatever", ["whatever", "argument"])

    def program() -> None:
        in_child(search)
        in_child(vain)
        in_child(executing("/srv/data"))
        in_child(executing("/srv/text"))

    with Box("trace-exec") as box:
        box.lower_file("/srv/data", bytes=100, mode=0o644)
        box.lower_file("/srv/text", bytes=100, mode=0o755)
        box.start(workload.idle())
        with asked("exec", box.target()) as trace:
            done(box, program)
        failed = {(f.name, f.error, f.count) for f in trace.answer.failures if f.name != "python3"}
        assert failed == {
            ("whatever", "ENOENT", 1),
            ("data", "EACCES", 1),
            ("text", "ENOEXEC", 1),
        }
        assert trace.answer.executed == 1
        told = {one.name: one for one in trace.of(Command)}
        assert (told["whatever"].tried, told["whatever"].path) == (3, "/tmp/whatever")
        assert told["whatever"].arguments == ("whatever", "argument")
        assert told["true"].error is None


def test_who_comes_in_from_outside_is_told_as_such_and_how_it_ended() -> None:
    with Box("trace-exec") as box:
        box.start(workload.idle())
        with asked("exec", box.target()) as trace:
            pid = done(box, executing("/usr/bin/false"))
        (one,) = trace.of(Command)
        assert (one.pid, one.name, one.inside) == (pid, "false", False)
        (end,) = trace.of(Exit)
        assert (end.pid, end.status, end.name) == (pid, 1, "false")
        assert end.lasted_ns > 0
        assert trace.answer.from_outside == 1


def test_hostile_and_very_long_arguments_come_as_they_are_and_are_cut() -> None:
    hostile = "\x1b[31m\n→ 1: rm -rf /"

    def program() -> None:
        in_child(executing(TRUE, hostile, "x" * 100_000))

    with Box("trace-exec") as box:
        box.start(workload.idle())
        with asked("exec", box.target()) as trace:
            done(box, program)
        (one,) = trace.of(Command)
        assert one.arguments[1] == hostile
        assert one.cut
        assert set(one.arguments[2]) == {"x"}
        assert len(one.arguments[2]) < sensor.ARGS_BYTES


def test_a_storm_is_counted_and_does_not_hold_it_up() -> None:
    count = 2000

    def program() -> None:
        for _ in range(count):
            os.posix_spawn(TRUE, ["true"], {})
            while True:
                try:
                    if os.waitpid(-1, os.WNOHANG)[0] == 0:
                        break
                except ChildProcessError:
                    break

    with Box("trace-exec") as box:
        box.start(workload.idle())
        with asked("exec", box.target()) as trace:
            done(box, program)
        assert trace.end is not None
        assert trace.answer.executed <= count
        # Of what is lost some may be ends.
        assert trace.answer.executed + trace.end.lost >= count
        assert trace.end.seconds < PATIENCE_SECONDS
        (storm,) = trace.answer.storms
        assert storm.name == "true"
        assert storm.most_per_second >= 20


def test_without_bpf_the_text_of_the_tracepoint_tells_what_still_lives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sensor, "SPEC", structs.replace(sensor.SPEC, name="not-built"))
    with Box("trace-exec") as box:
        box.start(workload.idle())
        with asked("exec", box.target()) as trace:
            sleeper = box.run(executing("/usr/bin/sleep", "1000"))
            until = time.monotonic() + PATIENCE_SECONDS
            while not trace.of(Command) and time.monotonic() < until:
                time.sleep(0.05)
        (one,) = trace.of(Command)
        assert (one.pid, one.inside) == (sleeper, False)
        assert one.arguments == ("/usr/bin/sleep", "1000")
        assert trace.begin is not None
        assert "was not built" in trace.begin.notes[0]


@pytest.mark.docker
def test_docker_exec_comes_from_outside_and_busybox_is_told_by_its_applet(
    engine: Engine, image: str
) -> None:
    container = engine.run(image, "nosig")
    target = described(Host(), container.pid, id=container.id, runtime="docker")
    with asked("exec", target) as trace:
        engine.exec(container, "sh", "-c", "ls / >/dev/null; sleep 0; true")
    told = [one for one in trace.of(Command) if not one.runtime and one.error is None]
    (shell,) = [one for one in told if one.name == "sh"]
    assert not shell.inside
    assert "runc" in shell.parent_comm or "containerd" in shell.parent_comm
    assert shell.arguments[0] == "sh"
    # ``ls`` is run by busybox's shell itself; ``sleep`` it executes, through its own file.
    (applet,) = [one for one in told if one.inside]
    assert (applet.name, applet.path, applet.arguments) == (
        "sleep",
        "/proc/self/exe",
        ("sleep", "0"),
    )
    assert applet.parent_pid == shell.pid
