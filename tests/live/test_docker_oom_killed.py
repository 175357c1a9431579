"""memory/oom_killed on real Docker containers: what status and flag of the engine do not tell."""

import time

import pytest

from tests.live.engine import Engine
from tests.live.test_docker_cases import MEMORY, Diagnose, diagnose

__all__ = ["diagnose"]  # a fixture

pytestmark = pytest.mark.docker

CASE = "memory/oom_killed"


def test_one_that_is_started_again_and_again(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    options = (*MEMORY, "--restart", "on-failure:3")
    container = engine.run(image, "memalloc", "200", options=options)
    deadline = time.monotonic() + 60
    while engine.inspect(container)["RestartCount"] < 3 and time.monotonic() < deadline:
        time.sleep(0.2)
    engine.wait_exit(container)
    finding = diagnose(container, "0s")[CASE]
    assert finding["verdict"] == "found"
    assert "64 MiB" in finding["summary"]


def test_a_child_was_killed_and_the_container_ended_well(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    container = engine.run(image, "sh", "-c", "memalloc 200; exit 0", options=MEMORY)
    assert engine.wait_exit(container) == 0
    finding = diagnose(container, "0s")[CASE]
    assert (finding["verdict"], finding["certainty"]) == ("found", "confirmed")
    assert "memalloc" in finding["summary"]


def test_a_shell_that_relays_the_status_names_the_child(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    container = engine.run(image, "sh", "-c", "memalloc 200; exit $?", options=MEMORY)
    assert engine.wait_exit(container) == 137
    assert "memalloc" in diagnose(container, "0s")[CASE]["summary"]


def test_what_came_in_by_exec_was_killed(engine: Engine, image: str, diagnose: Diagnose) -> None:
    container = engine.run(image, "sig", options=MEMORY)
    assert engine.exec(container, "memalloc", "200").returncode == 137
    finding = diagnose(container, "1s")[CASE]
    assert finding["verdict"] == "found"
    assert "memalloc" in finding["summary"]
    assert "its first process" not in finding["summary"]


@pytest.mark.parametrize("command", ["exit 137", "ulimit -v 20000; memalloc 200; exit 3"])
def test_a_status_by_itself_or_a_refused_malloc_is_no_kill(
    engine: Engine, image: str, diagnose: Diagnose, command: str
) -> None:
    container = engine.run(image, "sh", "-c", command, options=MEMORY)
    assert engine.wait_exit(container) in (3, 137)
    assert diagnose(container, "0s")[CASE]["verdict"] == "clear"


def test_a_stop_that_ran_into_its_timeout_is_no_kill(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    container = engine.run(image, "nosig", options=MEMORY)
    engine.docker("stop", "-t", "1", container.id)
    assert engine.wait_exit(container) == 137
    assert diagnose(container, "0s")[CASE]["verdict"] == "clear"
