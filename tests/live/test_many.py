"""Two hundred containers asked about at once: the twenty that are ill are found, and no other."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from whybox.lab import workload
from whybox.lab.box import Box
from whybox.lab.process import Program

BOXES, OF_EACH = 200, 4
WINDOW_SECONDS = 4.0
WHYBOX = str(Path(sys.executable).with_name("whybox"))


def hungry() -> Program:
    """A child wants what it may not have, and is killed; PID 1 lives on."""

    def program() -> None:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        child = os.fork()
        if child == 0:
            bytearray(48 << 20)
            os._exit(0)
        os.waitpid(child, 0)
        while True:
            signal.pause()

    return program


def throttled(box: Box) -> None:
    box.cpu(cores=0.02)
    box.start(workload.burn())


def zombies(box: Box) -> None:
    box.pids(limit=40)
    box.start(workload.zombies(30))


def killed(box: Box) -> None:
    box.memory(limit_bytes=24 << 20)
    box.start(hungry())


def refused(box: Box) -> None:
    box.pids(limit=12)
    box.start(workload.forking(10_000, every_s=0.2))


def full(box: Box) -> None:
    box.open_files(64)
    box.start(opening(64))


def opening(limit: int) -> Program:
    """Opens files until it may not, and keeps them."""

    def program() -> None:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        files = []
        with suppress(OSError):
            for _ in range(limit):
                files.append(os.open("/dev/null", os.O_RDONLY))
        while files:
            signal.pause()

    return program


SICK: dict[str, Callable[[Box], None]] = {
    "cpu/throttled": throttled,
    "process/zombies": zombies,
    "memory/oom_killed": killed,
    "process/pids_exhausted": refused,
    "process/files_exhausted": full,
}


@pytest.fixture
def ward() -> Iterator[dict[str, str]]:
    """Who is ill of what, by name; the others idle."""
    with ExitStack() as stack:
        ill: dict[str, str] = {}
        for _ in range(BOXES - OF_EACH * len(SICK)):
            stack.enter_context(Box("well")).start(workload.idle())
        for case, make in SICK.items():
            for _ in range(OF_EACH):
                box = stack.enter_context(Box("ill"))
                make(box)
                ill[box.name] = case
        yield ill


def causes(found: list[dict[str, Any]]) -> set[str]:
    """What hurts, without what follows from it."""
    return {
        one["case"]
        for one in found
        if one["verdict"] == "found" and one["severity"] != "info" and not one["explained_by"]
    }


def test_of_two_hundred_the_twenty_that_are_ill_are_found_in_one_window(
    ward: dict[str, str],
) -> None:
    words = (WHYBOX, "diagnose", "--all", "--window", f"{WINDOW_SECONDS}s", "-o", "json")
    said = subprocess.run(words, capture_output=True, check=True).stdout
    report = msgspec.json.decode(said)
    found = {
        one["target"]["name"]: causes(one["findings"])
        for one in report["targets"]
        if one["target"]["runtime"] == "whybox"
    }
    assert len(found) >= BOXES
    hit = {name: cases for name, cases in found.items() if cases}
    assert hit == {name: {case} for name, case in ward.items()}
    assert report["window_seconds"] < 3 * WINDOW_SECONDS
    assert report["cost"]["cpu_ms"] > 0


def test_its_cost_is_told(ward: dict[str, str]) -> None:
    words = (WHYBOX, "diagnose", "--all", "--window", "0s")
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert "ms CPU" in said
