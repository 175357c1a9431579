"""memory/page_cache_thrashing on real Docker containers."""

import time

import pytest

from tests.live.engine import Container, Engine
from tests.live.test_docker_cases import (
    MEMORY,
    Diagnose,
    cured_by_printed_commands,
    diagnose,
    found,
)

__all__ = ["diagnose"]

pytestmark = pytest.mark.docker

CASE = "memory/page_cache_thrashing"
#: Written and synced first: dirty pages cannot give way.
WRITE = "dd if=/dev/zero of=/data/f bs=1M count=96 conv=fsync; touch /data/ready; "


def ready(engine: Engine, container: Container) -> None:
    """Once the file is written and read for the first time."""
    deadline = time.monotonic() + 120
    while engine.exec(container, "test", "-e", "/data/ready").returncode:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    time.sleep(1)


def test_a_file_that_is_read_for_ever_and_does_not_fit_and_its_cure(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    loop = WRITE + "while :; do cat /data/f >/dev/null; done"
    container = engine.run(image, "sh", "-c", loop, options=(*MEMORY, "-v", "/data"))
    ready(engine, container)
    findings = diagnose(container, "3s")
    finding = findings[CASE]
    assert finding["verdict"] == "found", finding["summary"]
    assert "64 MiB" in finding["summary"]
    assert found(findings) - {"cpu/starved"} == {CASE}
    cured_by_printed_commands(engine, finding)
    time.sleep(2)
    after = diagnose(container, "3s")[CASE]
    assert after["verdict"] == "clear", after["summary"]


def test_a_file_that_was_read_once_fills_the_limit_and_harms_nobody(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    once = WRITE + "cat /data/f >/dev/null; while :; do sleep 1; done"
    container = engine.run(image, "sh", "-c", once, options=(*MEMORY, "-v", "/data"))
    ready(engine, container)
    finding = diagnose(container, "2s")[CASE]
    assert finding["verdict"] == "clear"
    assert "page cache" in finding["summary"]
    assert "can be given up at once" in finding["summary"]


def test_a_file_in_dev_shm_is_no_cache(engine: Engine, image: str, diagnose: Diagnose) -> None:
    fill = "dd if=/dev/zero of=/dev/shm/f bs=1M count=50; while :; do sleep 1; done"
    container = engine.run(image, "sh", "-c", fill, options=MEMORY)
    time.sleep(2)
    finding = diagnose(container, "1s")[CASE]
    assert finding["verdict"] == "clear"
    assert "tmpfs and shared memory" in finding["summary"]


def test_a_dead_container_is_unknown(engine: Engine, image: str, diagnose: Diagnose) -> None:
    container = engine.run(image, "true")
    engine.wait_exit(container)
    assert diagnose(container, "0s")[CASE]["verdict"] == "unknown"
