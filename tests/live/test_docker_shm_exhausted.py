"""memory/shm_exhausted on real Docker containers."""

import subprocess
import time

import pytest

from tests.live.engine import Engine
from tests.live.test_docker_cases import (
    Diagnose,
    cured_by_printed_commands,
    diagnose,
    found,
)

__all__ = ["diagnose"]  # a fixture

pytestmark = pytest.mark.docker

CASE = "memory/shm_exhausted"
FILLING = (
    "trap 'exit 0' TERM; while :; do dd if=/dev/zero of=/dev/shm/x bs=1M count=100; sleep 0.3; done"
)


def test_a_full_dev_shm_and_a_larger_one(engine: Engine, image: str, diagnose: Diagnose) -> None:
    container = engine.run(image, "sh", "-c", FILLING)
    time.sleep(1)
    findings = diagnose(container)
    assert CASE in found(findings)
    assert "64 MiB" in findings[CASE]["summary"]
    assert "was refused a page in /dev/shm" in findings[CASE]["summary"]
    (command,) = findings[CASE]["cures"][0]["commands"]
    assert command.startswith("docker run --shm-size 128m ")
    larger = engine.run(image, "sh", "-c", FILLING, options=("--shm-size", "128m"))
    time.sleep(1)
    assert diagnose(larger)[CASE]["verdict"] == "clear"


def test_a_full_dev_shm_that_is_made_larger_while_it_runs(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    container = engine.run(image, "sh", "-c", f"dd if=/dev/zero of=/dev/shm/x bs=1M; {FILLING}")
    time.sleep(1)
    assert diagnose(container)[CASE]["severity"] == "critical"
    remount = ["mount", "-o", "remount,size=128m", "/dev/shm"]
    subprocess.run(["nsenter", "-t", str(container.pid), "-m", "-p", *remount], check=True)
    time.sleep(0.5)
    assert diagnose(container)[CASE]["verdict"] == "clear"


def test_no_more_segments_and_the_printed_command(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    options = ("--sysctl", "kernel.shmmni=3")
    container = engine.run(image, "shmgets", "4096", "5", options=options)
    time.sleep(1)
    findings = diagnose(container)
    assert found(findings) == {CASE}
    assert "3 segments exist and 3 may" in findings[CASE]["summary"]
    assert "3 of 3 segments" in findings[CASE]["summary"]
    cured_by_printed_commands(engine, findings[CASE])
    assert diagnose(container, "1s")[CASE]["verdict"] == "clear"


def test_too_large_a_segment_and_the_printed_command(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    options = ("--sysctl", "kernel.shmmax=1048576")
    container = engine.run(image, "shmgets", str(2 << 20), options=options)
    finding = diagnose(container)[CASE]
    assert "one may have 1.0 MiB, and 2.0 MiB were wanted" in finding["summary"]
    cured_by_printed_commands(engine, finding)
    assert diagnose(container, "1s")[CASE]["verdict"] == "clear"


def test_a_size_of_nothing_is_no_limit(engine: Engine, image: str, diagnose: Diagnose) -> None:
    container = engine.run(image, "shmgets", "0")
    assert diagnose(container, "1s")[CASE]["verdict"] == "clear"


def test_a_memory_limit_below_dev_shm_is_the_oom_killers(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    memory = ("--memory", "32m", "--memory-swap", "32m", "--shm-size", "256m")
    # Of more than ten kills in five seconds the kernel does not say what the memory was.
    slowly = FILLING.replace("sleep 0.3", "sleep 1")
    container = engine.run(image, "sh", "-c", slowly, options=memory)
    time.sleep(1)
    findings = diagnose(container)
    assert findings["memory/oom_killed"]["verdict"] == "found"
    assert "tmpfs and shared memory" in findings["memory/oom_killed"]["summary"]
    assert findings[CASE]["verdict"] != "found"
