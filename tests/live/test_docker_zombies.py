"""process/zombies on real Docker containers: whose they are, and what an init changes."""

import time

import pytest

from tests.live.engine import Engine
from tests.live.test_docker_cases import Diagnose, diagnose

__all__ = ["diagnose"]

pytestmark = pytest.mark.docker

CASE = "process/zombies"


def test_a_shell_that_became_sleep_reaps_no_orphan(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    """The last command of ``ash -c`` takes the shell's place, and with it PID 1."""
    container = engine.run(image, "sh", "-c", "orphan 20 & sleep 1000")
    time.sleep(2)
    finding = diagnose(container, "2s", "--case", CASE)[CASE]
    assert finding["verdict"] == "found"
    assert "sleep (PID 1" in finding["summary"]
    assert "nanosleep" in finding["summary"]


def test_a_shell_that_loops_reaps_them(engine: Engine, image: str, diagnose: Diagnose) -> None:
    container = engine.run(image, "sh", "-c", "orphan 20 & while :; do sleep 0.2; done")
    time.sleep(2)
    finding = diagnose(container, "2s", "--case", CASE)[CASE]
    assert finding["verdict"] == "clear", finding["summary"]


def test_an_init_does_not_help_where_the_parent_is_not_pid_1(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    container = engine.run(image, "zombie", "20", options=("--init", "--pids-limit", "100"))
    time.sleep(2)
    finding = diagnose(container, "2s", "--case", CASE)[CASE]
    assert finding["verdict"] == "found"
    assert "20 zombies stay: zombie (PID " in finding["summary"]
    assert "of 100 tasks are taken" in finding["summary"]
    assert all("WithInit" not in str(cure["change"]) for cure in finding["cures"])
    limits = [e for e in finding["evidence"] if e["source"].endswith("pids.max")]
    assert [e["says"].startswith("100, of which ") for e in limits] == [True]


def test_a_parent_that_is_restarted_gives_its_zombies_to_the_init(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    """What the advice says: ended, it leaves them to PID 1, which reaps them."""
    script = "while :; do zombie 20; sleep 1000; done"
    container = engine.run(image, "sh", "-c", script, options=("--init",))
    time.sleep(2)
    assert diagnose(container, "2s", "--case", CASE)[CASE]["verdict"] == "found"
    engine.exec(container, "sh", "-c", "kill -9 $(pidof zombie)")
    time.sleep(1)
    finding = diagnose(container, "2s", "--case", CASE)[CASE]
    assert finding["verdict"] == "clear", finding["summary"]
