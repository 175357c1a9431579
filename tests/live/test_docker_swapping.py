"""memory/swapping on real Docker containers. Swap is the machine's: only in a machine of ours."""

import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.live.engine import Engine
from tests.live.test_docker_cases import (
    Diagnose,
    cured_by_printed_commands,
    diagnose,
    found,
)
from tests.live.test_labs import OURS
from whybox.lab import swap as lab_swap

__all__ = ["diagnose"]

pytestmark = pytest.mark.docker

CASE = "memory/swapping"
ALLOWED = ("--memory", "40m", "--memory-swap", "-1")


@pytest.fixture
def swap() -> Iterator[None]:
    """Swap, for one test."""
    if not OURS:
        pytest.skip("swap is the whole machine's: make vm VMTESTS=tests/live runs it")
    with ExitStack() as closing:
        lab_swap.file(closing)
        yield


def test_memory_that_is_wanted_from_swap_and_its_cure(
    swap: None, engine: Engine, image: str, diagnose: Diagnose
) -> None:
    container = engine.run(image, "touchloop", "64", options=ALLOWED)
    try:
        time.sleep(3)
        findings = diagnose(container, "3s")
        finding = findings[CASE]
        assert finding["verdict"] == "found", finding["summary"]
        assert "touchloop" in finding["summary"]
        assert found(findings) - {"cpu/starved"} <= {CASE, "memory/reclaim_stalled"}
        cured_by_printed_commands(engine, finding)
        after = diagnose(container, "3s")[CASE]
        assert after["verdict"] == "clear", after["summary"]
    finally:
        engine.rm(container)  # before swap is switched off


def test_memory_that_lies_in_swap_idle(
    swap: None, engine: Engine, image: str, diagnose: Diagnose
) -> None:
    container = engine.run(image, "touchloop", "64", "1", options=ALLOWED)
    try:
        time.sleep(4)
        finding = diagnose(container, "2s")[CASE]
        assert finding["verdict"] == "clear"
        assert "stay there" in finding["summary"]
    finally:
        engine.rm(container)


def test_killed_though_swap_is_free(
    swap: None, engine: Engine, image: str, diagnose: Diagnose
) -> None:
    options = ("--memory", "40m", "--memory-swap", "40m")
    container = engine.run(image, "memchild", "90", options=options)
    time.sleep(3)
    findings = diagnose(container, "1s")
    assert findings["memory/oom_killed"]["verdict"] == "found"
    assert findings[CASE]["verdict"] == "clear"
    assert "It may not swap" in findings[CASE]["summary"]


def test_a_host_without_swap_says_so(engine: Engine, image: str, diagnose: Diagnose) -> None:
    container = engine.run(image, "sig", options=ALLOWED)
    finding = diagnose(container, "0s")[CASE]
    assert finding["verdict"] == "clear"
    assert "There is no swap on this host" in finding["summary"]
