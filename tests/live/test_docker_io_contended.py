"""storage/io_contended on Docker containers: one floods the disk of another, and look-alikes."""

import itertools
import os
import time
from collections.abc import Iterator

import pytest

from tests.live.conftest import require
from tests.live.engine import Engine
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

CASE = "storage/io_contended"
#: With pauses: whoever frees a request and wants one at once is first to get it.
SMALL = (
    "while :; do dd if=/dev/zero of=/data/own bs=4k count=1 oflag=direct conv=notrunc; "
    "usleep 2000; done"
)
FILE = "dd if=/dev/zero of=/data/big bs=1M count=64 oflag=direct"
ONE = "while :; do dd if=/data/big of=/dev/null bs=4M iflag=direct; done"
READERS = " ".join(map(str, range(24)))
FLOOD = f"{FILE}; for i in {READERS}; do sh -c '{ONE}' & done; wait"

_numbers = itertools.count(1)


@pytest.fixture
def volume() -> Iterator[Disk]:
    """A file system on a disk of its own with a short queue."""
    require(disk.missing(Host()))
    made = Disk(f"docker-{os.getpid()}-{next(_numbers)}", mib=96)
    made.shorten_queue(4)
    yield made
    made.remove()


def test_the_neighbour_is_named_and_the_printed_limit_on_it_helps(
    engine: Engine, image: str, diagnose: Diagnose, volume: Disk
) -> None:
    mount = ("-v", f"{volume.mountpoint}:/data")
    container = engine.run(image, "sh", "-c", SMALL, options=mount)
    neighbour = engine.run(image, "sh", "-c", FLOOD, options=mount)
    time.sleep(3)
    finding = diagnose(container)[CASE]
    assert finding["verdict"] == "found", finding["summary"]
    assert f"docker {neighbour.id[:12]} fills the queue of loop" in finding["summary"]
    cured_by_printed_commands(engine, finding)
    time.sleep(1)
    after = diagnose(container)[CASE]
    assert after["verdict"] == "clear", after["summary"]


@pytest.mark.parametrize("program", [SMALL, FLOOD], ids=["alone", "it fills the queue itself"])
def test_a_disk_of_its_own_has_no_neighbour(
    engine: Engine, image: str, diagnose: Diagnose, volume: Disk, program: str
) -> None:
    mount = ("-v", f"{volume.mountpoint}:/data")
    container = engine.run(image, "sh", "-c", program, options=mount)
    time.sleep(2)
    finding = diagnose(container)[CASE]
    assert finding["verdict"] == "clear", finding["summary"]
