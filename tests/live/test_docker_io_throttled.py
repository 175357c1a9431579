"""storage/io_throttled on Docker containers: --device-write-bps on a volume, and look-alikes."""

import time

import pytest

from tests.live.engine import Engine
from tests.live.test_docker_cases import (
    Diagnose,
    cured_by_printed_commands,
    diagnose,
    found,
)
from tests.live.volumes import device, volume
from whybox.lab.disk import Disk

__all__ = ["diagnose", "volume"]

pytestmark = pytest.mark.docker

CASE = "storage/io_throttled"
DIRECT = "while :; do dd if=/dev/zero of=/data/f bs=64k count=256 oflag=direct conv=notrunc; done"
SLOWLY = "while :; do dd if=/dev/zero of=/data/f bs=64k count=1 oflag=direct; usleep 100000; done"


def test_a_limit_on_a_volumes_disk_is_found_and_taken_off_by_the_printed_command(
    engine: Engine, image: str, diagnose: Diagnose, volume: Disk
) -> None:
    options = (
        *("-v", f"{volume.mountpoint}:/data"),
        *("--device-write-bps", f"{device(volume)}:4mb"),
    )
    container = engine.run(image, "sh", "-c", DIRECT, options=options)
    time.sleep(1)
    findings = diagnose(container)
    finding = findings[CASE]
    assert finding["verdict"] == "found", finding["summary"]
    assert "of 4.0 MiB/s for writing to" in finding["summary"]
    assert finding["certainty"] == "confirmed"
    unexplained = {n for n in found(findings) if findings[n].get("explained_by") != CASE}
    assert unexplained - {"cpu/starved"} == {CASE}
    cured_by_printed_commands(engine, finding)
    after = diagnose(container)[CASE]
    assert after["verdict"] == "clear", after["summary"]


@pytest.mark.parametrize(
    ("program", "limit"),
    [(SLOWLY, "4mb"), (DIRECT, None)],
    ids=["far from its limit", "without a limit"],
)
def test_what_only_looks_so_is_clear(
    engine: Engine,
    image: str,
    diagnose: Diagnose,
    volume: Disk,
    program: str,
    limit: str | None,
) -> None:
    limits = () if limit is None else ("--device-write-bps", f"{device(volume)}:{limit}")
    options = ("-v", f"{volume.mountpoint}:/data", *limits)
    container = engine.run(image, "sh", "-c", program, options=options)
    time.sleep(1)
    finding = diagnose(container)[CASE]
    assert finding["verdict"] == "clear", finding["summary"]
