"""process/pids_exhausted on real Docker containers: found, told from its look-alikes, cured."""

import time

import pytest

from tests.live.engine import Engine
from tests.live.test_docker_cases import Diagnose, cured_by_printed_commands, diagnose, found

__all__ = ["diagnose"]

pytestmark = pytest.mark.docker

CASE = "process/pids_exhausted"


def test_a_container_that_may_not_fork_and_its_cure(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    container = engine.run(image, "forks", "62", options=("--pids-limit", "40"))
    time.sleep(1)
    findings = diagnose(container)
    assert found(findings) == {CASE}
    finding = findings[CASE]
    assert (finding["certainty"], finding["severity"]) == ("confirmed", "critical")
    assert "of 40 tasks; 40 of 40 are taken" in finding["summary"]
    assert "called forks" in finding["summary"]
    assert engine.exec(container, "sh", "-c", "(true); true").returncode != 0
    cured_by_printed_commands(engine, finding)
    time.sleep(3)  # ten times a second it asks for one of those that it did not get
    cured = diagnose(container)
    assert cured[CASE]["verdict"] == "clear", cured[CASE]["summary"]
    assert "63 of " in cured[CASE]["summary"]


def test_threads_fill_it_as_processes_do(engine: Engine, image: str, diagnose: Diagnose) -> None:
    container = engine.run(image, "idlethreads", "200", options=("--pids-limit", "100"))
    time.sleep(1)
    finding = diagnose(container, "1s")[CASE]
    assert finding["verdict"] == "found"
    assert "by the threads of idlethreads" in finding["summary"]


def test_zombies_that_fill_it_are_the_cause(engine: Engine, image: str, diagnose: Diagnose) -> None:
    container = engine.run(image, "zombie", "100", options=("--pids-limit", "50"))
    time.sleep(1)
    findings = diagnose(container)
    assert found(findings) == {CASE, "process/zombies"}
    assert findings[CASE]["explained_by"] == "process/zombies"


def test_a_limit_of_the_user_is_not_the_containers(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    options = ("--user", "61043", "--ulimit", "nproc=40:40")
    container = engine.run(image, "forks", "62", options=options)
    time.sleep(1)
    finding = diagnose(container, "1s")[CASE]
    assert finding["verdict"] == "unknown", finding["summary"]
    assert "uid 61043 has 40 of the 40 tasks" in finding["summary"]


def test_a_container_that_has_ended_is_told_by_the_kernel_log(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    refused = engine.run(image, "forks", "62", options=("--pids-limit", "40"))
    well = engine.run(image, "forks", "5", options=("--pids-limit", "40"))
    time.sleep(1)
    for container in (refused, well):
        engine.docker("kill", container.id)
        engine.wait_exit(container)
    finding = diagnose(refused, "0s")[CASE]
    assert (finding["verdict"], finding["certainty"]) == ("found", "likely")
    assert "fork rejected by pids controller" in finding["evidence"][0]["says"]
    assert diagnose(well, "0s")[CASE]["verdict"] == "clear"
