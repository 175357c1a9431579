"""storage/write_stalled on Docker containers: syncs that a limit holds back, and look-alikes."""

import time

import pytest

from tests.live.engine import Engine
from tests.live.test_docker_cases import (
    Diagnose,
    cured_by_printed_commands,
    diagnose,
)
from tests.live.volumes import device, volume
from whybox.lab.disk import Disk

__all__ = ["diagnose", "volume"]

pytestmark = pytest.mark.docker

CASE = "storage/write_stalled"
SYNCED = "while :; do dd if=/dev/zero of=/data/f bs=1M count=1 conv=fsync 2>/dev/null; done"
DIRECT = "while :; do dd if=/dev/zero of=/data/f bs=64k count=256 oflag=direct conv=notrunc; done"
PIPE = "yes | while read -r line; do sleep 1; done"


def test_syncs_that_a_limit_holds_back_are_slow_for_that_and_cured_by_the_printed_command(
    engine: Engine, image: str, diagnose: Diagnose, volume: Disk
) -> None:
    options = (
        *("-v", f"{volume.mountpoint}:/data"),
        *("--device-write-bps", f"{device(volume)}:2mb"),
    )
    container = engine.run(image, "sh", "-c", SYNCED, options=options)
    time.sleep(3)
    findings = diagnose(container, "3s")
    finding = findings[CASE]
    assert finding["verdict"] == "found", finding["summary"]
    assert "held back by its limit on disk IO" in finding["summary"]
    assert finding["explained_by"] == "storage/io_throttled"
    cured_by_printed_commands(engine, finding)
    time.sleep(1)
    after = diagnose(container, "2s")[CASE]
    assert after["verdict"] == "clear", after["summary"]


@pytest.mark.parametrize(
    "program",
    [SYNCED, PIPE, DIRECT],
    ids=["syncs without a limit", "a pipe that is read slowly", "direct writes"],
)
def test_what_only_looks_so_is_clear(
    engine: Engine, image: str, diagnose: Diagnose, volume: Disk, program: str
) -> None:
    options = ("-v", f"{volume.mountpoint}:/data")
    container = engine.run(image, "sh", "-c", program, options=options)
    time.sleep(1)
    finding = diagnose(container)[CASE]
    assert finding["verdict"] == "clear", finding["summary"]
