"""cpu/blocked_in_kernel on real Docker containers: vfork, a frozen volume, and what looks alike."""

import itertools
import os
import time
from collections.abc import Iterator

import pytest

from tests.live.conftest import require
from tests.live.engine import Container, Engine
from tests.live.test_docker_cases import (
    Diagnose,
    cured_by_printed_commands,
    diagnose,
)
from whybox.kernel.host import Host
from whybox.lab import disk
from whybox.lab.disk import Disk

__all__ = ["diagnose"]

pytestmark = pytest.mark.docker

CASE = "cpu/blocked_in_kernel"
WRITE = "while :; do echo x > /data/w$i; sleep 0.1; done"
WRITERS = f"for i in 1 2 3 4 5; do ({WRITE}) & done; wait"

_numbers = itertools.count(1)


@pytest.fixture
def volume() -> Iterator[Disk]:
    """A file system of its own on the host; thawed before the container is removed."""
    require(disk.missing(Host()))
    made = Disk(f"docker-{os.getpid()}-{next(_numbers)}")
    try:
        yield made
    finally:
        made.remove()


def until_blocked(container: Container, count: int) -> None:
    """Wait until so many of its tasks are in D."""
    deadline = time.monotonic() + 60
    while _blocked(container) < count and time.monotonic() < deadline:
        time.sleep(0.1)


def _blocked(container: Container) -> int:
    top = container.engine.docker("top", container.id, "-eo", "pid,stat")
    return sum(line.split()[1].startswith("D") for line in top.splitlines()[1:])


def test_tasks_whose_vfork_children_execute_nothing(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    container = engine.run(image, "vforkd", "6", "600")
    until_blocked(container, 6)
    finding = diagnose(container)[CASE]
    assert finding["verdict"] == "found", finding["summary"]
    assert "6 of its 13 tasks" in finding["summary"]
    assert "vfork" in finding["summary"]
    assert any("kernel_clone" in one["says"] for one in finding["evidence"])
    assert finding["cures"][0]["change"]["type"] == "InProgram"


def test_a_frozen_volume_is_named_and_the_printed_command_thaws_it(
    engine: Engine, image: str, diagnose: Diagnose, volume: Disk
) -> None:
    container = engine.run(
        image, "sh", "-c", WRITERS, options=("-v", f"{volume.mountpoint}:/data", "--cpus", "0.5")
    )
    time.sleep(1)
    before = diagnose(container)[CASE]
    assert before["verdict"] == "clear", before["summary"]
    volume.freeze()
    until_blocked(container, 5)
    finding = diagnose(container)[CASE]
    assert finding["verdict"] == "found", finding["summary"]
    assert "5 of its " in finding["summary"]
    assert f" at {volume.mountpoint}, which is frozen" in finding["summary"]
    assert any("/data/w" in one["says"] for one in finding["evidence"])
    cured_by_printed_commands(engine, finding)
    after = diagnose(container)[CASE]
    assert after["verdict"] == "clear", after["summary"]


def test_a_paused_container_is_not_blocked(engine: Engine, image: str, diagnose: Diagnose) -> None:
    container = engine.run(image, "sh", "-c", "while :; do sleep 0.1; done")
    engine.docker("pause", container.id)
    finding = diagnose(container)[CASE]
    assert finding["verdict"] == "clear", finding["summary"]
    assert "paused" in finding["summary"]
    engine.docker("unpause", container.id)


def test_throttled_threads_are_not_blocked(engine: Engine, image: str, diagnose: Diagnose) -> None:
    container = engine.run(image, "threads", "20", options=("--cpus", "0.2"))
    finding = diagnose(container)[CASE]
    assert finding["verdict"] == "clear", finding["summary"]


def test_a_disk_in_use_is_not_stuck(engine: Engine, image: str, diagnose: Diagnose) -> None:
    write = "while :; do dd if=/dev/zero of=/data/x bs=64k count=16 conv=fsync; done"
    container = engine.run(image, "sh", "-c", write)
    finding = diagnose(container)[CASE]
    assert finding["verdict"] == "clear", finding["summary"]
