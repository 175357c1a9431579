"""process/files_exhausted on real Docker containers: found, told from its look-alikes, cured."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.engine import Engine
from tests.live.test_docker_cases import Diagnose, cured_by_printed_commands, diagnose, found

__all__ = ["diagnose"]

pytestmark = pytest.mark.docker

CASE = "process/files_exhausted"
INSTANCES = Path("/proc/sys/fs/inotify/max_user_instances")


@pytest.fixture
def inotify_instances() -> Iterator[int]:
    """How many a user may have; put back when the test has raised it."""
    before = INSTANCES.read_text()
    yield int(before)
    INSTANCES.write_text(before)


def test_a_process_at_its_limit_and_the_options_that_cure_it(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    container = engine.run(image, "fds", "300", options=("--ulimit", "nofile=256:256"))
    time.sleep(0.5)
    findings = diagnose(container, "1s")
    assert found(findings) == {CASE}
    finding = findings[CASE]
    assert finding["certainty"] == "confirmed"
    assert "256 of 256 descriptors in use, mostly sockets" in finding["summary"]
    (command,) = finding["cures"][0]["commands"]
    option = "--ulimit nofile=512:512"
    assert option in command
    cured = engine.run(image, "fds", "300", options=tuple(option.split()))
    time.sleep(0.5)
    after = diagnose(cured, "1s")[CASE]
    assert after["verdict"] == "clear", after["summary"]
    assert "303 of 512" in after["summary"]


def test_one_file_again_and_again_is_told_as_a_leak(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    container = engine.run(image, "fds", "300", "same", options=("--ulimit", "nofile=256:256"))
    time.sleep(0.5)
    finding = diagnose(container, "0s")[CASE]
    assert finding["verdict"] == "found"
    assert "/etc/passwd" in finding["cures"][0]["advice"]


def test_a_low_limit_and_little_open_is_no_finding(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    container = engine.run(image, "sig", options=("--ulimit", "nofile=64:64"))
    assert diagnose(container, "0s")[CASE]["verdict"] == "clear"


def test_inotify_is_told_from_the_limit_of_files_and_cured_on_the_machine(
    engine: Engine, image: str, diagnose: Diagnose, inotify_instances: int
) -> None:
    container = engine.run(image, "fds", "100000", "inotify", options=("--user", "61044"))
    other = engine.run(image, "sig", options=("--user", "61045"))
    same = engine.run(image, "sig", options=("--user", "61044"))
    time.sleep(0.5)
    finding = diagnose(container, "1s")[CASE]
    assert finding["verdict"] == "found"
    assert f"{inotify_instances} are held here" in finding["summary"]
    assert diagnose(other, "0s")[CASE]["verdict"] == "clear"
    neighbour = diagnose(same, "0s")[CASE]
    assert neighbour["severity"] == "info"
    assert container.id in neighbour["summary"]
    cured_by_printed_commands(engine, finding)
    after = diagnose(container, "0s")[CASE]
    assert after["verdict"] == "clear", after["summary"]


def test_a_process_that_forbids_itself_to_open_is_well(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    container = engine.run(image, "sig")
    subprocess.run(["prlimit", "--pid", str(container.pid), "--nofile=3:3"], check=False)
    assert diagnose(container, "0s")[CASE]["verdict"] == "clear"
