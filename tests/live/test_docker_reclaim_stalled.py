"""memory/reclaim_stalled on Docker containers: memory.high (v2), no killer (v1), look-alikes."""

import time
from pathlib import Path

import pytest

from tests.live.engine import Container, Engine
from tests.live.test_docker_cases import (
    Diagnose,
    cured_by_printed_commands,
    diagnose,
    found,
)
from whybox.kernel import cgroup
from whybox.kernel.host import Host

__all__ = ["diagnose"]

pytestmark = pytest.mark.docker

CASE = "memory/reclaim_stalled"
MIB = 1 << 20
V1 = any("memory" in tree.controllers for tree in cgroup.hierarchies(Host()))
EXPLAINED = {CASE, "cpu/blocked_in_kernel"}


def group(container: Container) -> Path:
    """The directory of its memory group."""
    host = Host()
    found = cgroup.group(host, cgroup.membership_of(host, container.pid), "memory")
    assert found is not None
    return Path(found.directory)


def held(container: Container) -> int:
    """Bytes that are charged to it."""
    name = "memory.usage_in_bytes" if V1 else "memory.current"
    return int((group(container) / name).read_text())


def until_held(container: Container, size: int) -> None:
    """Wait until it holds that much."""
    deadline = time.monotonic() + 60
    while held(container) < size and time.monotonic() < deadline:
        time.sleep(0.1)


@pytest.mark.skipif(V1, reason="cgroup v1 has no memory.high")
def test_above_memory_high_it_crawls_and_the_printed_command_lets_it_run(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    container = engine.run(image, "memalloc", "80", "100", "600", options=("-m", "256m"))
    (group(container) / "memory.high").write_text(str(32 * MIB))
    until_held(container, 33 * MIB)
    findings = diagnose(container, "3s")
    finding = findings[CASE]
    assert finding["verdict"] == "found", finding["summary"]
    assert "memory.high is 32 MiB" in finding["summary"]
    assert found(findings) <= EXPLAINED
    cured_by_printed_commands(engine, finding)
    # A task that sleeps above memory.high sleeps to the end of it.
    time.sleep(3)
    after = diagnose(container, "2s")[CASE]
    assert after["verdict"] == "clear", after["summary"]


@pytest.mark.skipif(not V1, reason="cgroup v2 cannot switch the OOM killer off")
def test_without_an_oom_killer_it_stands_still_until_it_may_hold_more(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    container = engine.run(
        image,
        *("memalloc", "80", "0", "600"),
        options=("-m", "64m", "--memory-swap", "64m", "--oom-kill-disable"),
    )
    until_held(container, 63 * MIB)
    time.sleep(0.5)
    findings = diagnose(container, "2s")
    finding = findings[CASE]
    assert finding["verdict"] == "found", finding["summary"]
    assert "64 MiB" in finding["summary"]
    assert found(findings) <= EXPLAINED
    assert findings["cpu/blocked_in_kernel"]["explained_by"] == CASE
    cured_by_printed_commands(engine, finding)
    time.sleep(1)
    after = diagnose(container, "1s")[CASE]
    assert after["verdict"] == "clear", after["summary"]


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (("memalloc", "40", "0", "600"), ("-m", "64m", "--memory-swap", "64m")),
        (("threads", "4"), ("--cpus", "0.2")),
        (("memchild", "90"), ("-m", "64m", "--memory-swap", "64m")),
    ],
    ids=["close to its limit", "slow for want of CPU", "killed at its limit"],
)
def test_what_only_looks_so_is_clear(
    engine: Engine,
    image: str,
    diagnose: Diagnose,
    command: tuple[str, ...],
    options: tuple[str, ...],
) -> None:
    container = engine.run(image, *command, options=options)
    time.sleep(1)
    finding = diagnose(container)[CASE]
    assert finding["verdict"] == "clear", finding["summary"]


def test_a_page_cache_that_is_only_full_is_clear(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    fill = "dd if=/dev/zero of=/data/f bs=1M count=200 conv=fsync; cat /data/f > /dev/null"
    rest = "touch /data/ready; sleep 600"
    options = ("-m", "100m", "-v", "/data")
    container = engine.run(image, "sh", "-c", f"{fill}; {rest}", options=options)
    deadline = time.monotonic() + 120
    while engine.exec(container, "test", "-e", "/data/ready").returncode:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    finding = diagnose(container)[CASE]
    assert finding["verdict"] == "clear", finding["summary"]
