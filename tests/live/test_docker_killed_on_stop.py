"""process/killed_on_stop on real Docker containers: stopped while watched, foretold, and dead."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.live.engine import Container, Engine
from tests.live.test_docker_cases import Diagnose, diagnose, start_seconds

__all__ = ["diagnose", "start_seconds"]

pytestmark = pytest.mark.docker

CASE = "process/killed_on_stop"
DEAF = "process/pid1_ignores_signals"
GRACE = ("stop", "--time", "1")
SLOW = "trap 'sleep 4; exit 0' TERM; while :; do sleep 0.1; done"
FOREGROUND = "trap 'exit 0' TERM; sleep 1000; :"
Found = dict[str, dict[str, Any]]
While = Callable[..., Found]


@pytest.fixture
def while_watched(engine: Engine, diagnose: Diagnose, start_seconds: float) -> While:
    """What is diagnosed of a container that a docker command befalls in the middle of it."""
    slack = 1 + 2 * start_seconds

    def run(container: Container, *command: str) -> Found:
        arguments = [*command, container.id]
        timer = threading.Timer(slack, engine.docker, arguments)
        timer.start()
        try:
            return diagnose(container, f"{3 + 2 * slack:.0f}s", "--case", CASE, "--case", DEAF)
        finally:
            timer.join()

    return run


def inspected(engine: Engine, container: Container) -> list[str]:
    """What a stop will do to it."""
    done = subprocess.run(
        [sys.executable, "-m", "whybox", "inspect", container.name, "-o", "json"],
        env=dict(os.environ, DOCKER_HOST=engine.host),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout)["stop"])


def test_children_left_behind_by_an_init_that_exits_with_0(
    engine: Engine, image: str, while_watched: While
) -> None:
    container = engine.run(image, "sigh", "2")
    finding = while_watched(container, *GRACE)[CASE]
    assert (finding["verdict"], finding["certainty"]) == ("found", "confirmed")
    assert finding["severity"] == "warning"
    assert "the kernel killed 2 processes (sigh " in finding["summary"]
    assert engine.wait_exit(container) == 0
    assert "child graceful" not in engine.logs(container)


def test_an_init_that_forwards_and_waits_is_clear(
    engine: Engine, image: str, while_watched: While
) -> None:
    container = engine.run(image, "sigh", "2", "fwd")
    finding = while_watched(container, *GRACE)[CASE]
    assert finding["verdict"] == "clear", finding["summary"]
    assert engine.logs(container).count("child graceful") == 2


def test_tini_tells_its_child_alone(engine: Engine, image: str, while_watched: While) -> None:
    container = engine.run(image, "sigh", "2", options=("--init",))
    finding = while_watched(container, *GRACE)[CASE]
    assert finding["verdict"] == "found"
    assert "killed 2 processes" in finding["summary"]
    assert "only sigh (PID " in finding["summary"]
    assert "TINI_KILL_PROCESS_GROUP" in finding["cures"][0]["advice"]


@pytest.mark.parametrize("program", ["sig", "signalfd"])
@pytest.mark.parametrize("options", [(), ("--init",)])
def test_one_process_that_ends_in_order_is_clear(
    engine: Engine, image: str, while_watched: While, program: str, options: tuple[str, ...]
) -> None:
    container = engine.run(image, program, options=options)
    finding = while_watched(container, *GRACE)[CASE]
    assert finding["verdict"] == "clear", finding["summary"]


def test_a_deaf_one_is_killed_when_its_time_is_over_and_told_when_it_is_dead(
    engine: Engine, image: str, while_watched: While, diagnose: Diagnose
) -> None:
    container = engine.run(image, "nosig")
    before = diagnose(container, "0s")[CASE]
    assert (before["verdict"], before["severity"]) == ("found", "info")
    seen = while_watched(container, *GRACE)
    assert seen[CASE]["verdict"] == "found"
    assert " s after SIGTERM runc" in seen[CASE]["summary"]
    assert seen[CASE]["explained_by"] == DEAF
    dead = diagnose(container, "0s")[CASE]
    assert (dead["verdict"], dead["certainty"]) == ("found", "confirmed")
    assert dead["summary"].startswith("Its engine stopped it: 1.")


def test_a_slow_handler_is_given_longer_and_is_clear(
    engine: Engine, image: str, while_watched: While
) -> None:
    slow = engine.run(image, "sh", "-c", SLOW)
    finding = while_watched(slow, *GRACE)[CASE]
    assert finding["verdict"] == "found"
    assert "not done in time" in finding["summary"]
    change = finding["cures"][0]["change"]
    assert (change["type"], change["seconds"]) == ("StopTimeout", 30)
    assert "--stop-timeout 30" in finding["cures"][0]["commands"][0]
    cured = engine.run(image, "sh", "-c", SLOW, options=("--stop-timeout", "30"))
    engine.docker("stop", cured.id)
    assert engine.wait_exit(cured) == 0


def test_a_shell_whose_trap_waits_for_its_foreground(
    engine: Engine, image: str, while_watched: While
) -> None:
    container = engine.run(image, "sh", "-c", FOREGROUND, options=("--stop-timeout", "0"))
    told = inspected(engine, container)
    assert told[0].startswith("SIGTERM to its first process, SIGKILL after 0 s")
    assert "its trap waits until sleep" in told[1]
    finding = while_watched(container, *GRACE)[CASE]
    assert finding["verdict"] == "found"
    assert "runs only when its foreground command ends" in finding["summary"]


@pytest.mark.parametrize(
    ("command", "options", "says"),
    [
        (("kill",), (), "killed outright by runc"),
        (GRACE, ("--stop-signal", "SIGKILL"), "Its stop signal is SIGKILL"),
    ],
)
def test_killed_at_once_is_no_stop_that_took_too_long(
    engine: Engine,
    image: str,
    while_watched: While,
    diagnose: Diagnose,
    command: tuple[str, ...],
    options: tuple[str, ...],
    says: str,
) -> None:
    container = engine.run(image, "sigh", "2", options=options)
    finding = while_watched(container, *command)[CASE]
    assert (finding["verdict"], says in finding["summary"]) == ("clear", True), finding["summary"]
    dead = diagnose(container, "0s")[CASE]
    assert dead["verdict"] == "clear", dead["summary"]


def test_what_an_exec_started_is_nobodys_child(
    engine: Engine, image: str, while_watched: While
) -> None:
    container = engine.run(image, "sig")
    engine.docker("exec", "-d", container.id, "sig")
    finding = while_watched(container, *GRACE)[CASE]
    assert finding["verdict"] == "clear", finding["summary"]
    assert "started from outside" in finding["summary"]


def test_without_a_pid_namespace_the_engine_kills_who_is_left(
    engine: Engine, image: str, while_watched: While
) -> None:
    container = engine.run(image, "sigh", "2", options=("--pid", "host"))
    finding = while_watched(container, *GRACE)[CASE]
    assert finding["verdict"] == "found", finding["summary"]
    assert "killed 2 processes (sigh " in finding["summary"]
    assert "that were left" in finding["summary"]


def test_of_a_clean_stop_the_record_does_not_tell_of_the_children(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    container = engine.run(image, "sigh", "2")
    engine.docker(*GRACE, container.id)
    finding = diagnose(container, "0s")[CASE]
    assert finding["verdict"] == "unknown"
    assert finding["summary"].startswith("Stopped by SIGTERM, it ended ")


def test_inspect_tells_each_process_its_fate(engine: Engine, image: str) -> None:
    container = engine.run(image, "sigh", "2", options=("--stop-timeout", "3"))
    told = inspected(engine, container)
    assert told[0] == "SIGTERM to its first process, SIGKILL after 3 s"
    assert told[1].endswith("(inside 1) sigh: has a handler for SIGTERM")
    assert len(told) == 4
