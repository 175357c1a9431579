"""Waiting for CPUs on real Docker containers: for a quota, for others, for oneself."""

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.engine import Engine
from tests.live.test_docker_cases import Diagnose, cured_by_printed_commands, diagnose, found
from whybox.cases.cpu.throttled.lab import HEAVY
from whybox.cases.cpu.throttled.probe import CASE
from whybox.change import CpuBurst, CpuQuota
from whybox.diagnose import diagnose as look
from whybox.kernel import cpu, cpuweight, sizing
from whybox.kernel.finding import from_pid
from whybox.kernel.host import Host
from whybox.kernel.target import Target
from whybox.lab import workload
from whybox.lab.box import Box

__all__ = ["diagnose"]  # the fixture

pytestmark = pytest.mark.docker

ALL = ("--cpu-shares", str(HEAVY))
CPU = {"cpu/throttled", "cpu/starved", "cpu/host_cpus_assumed"}


@pytest.fixture(autouse=True, scope="module")
def _all_containers_are_heavy(engine: Engine, image: str) -> Iterator[None]:
    """What else the machine does is hardly felt: the engine's own group outweighs it, and leaves
    enough to whoever asks."""
    probe = engine.run(image, "sig")
    group = from_pid(Host(), probe.pid).group(Host(), "cpu")
    above = None if group is None else group.parent()
    if above is None or above.path == "/":
        yield
        return
    file = Path(above.file(cpuweight.name(above)))
    before = file.read_text()
    file.write_text(str(8_192 if above.version == 1 else 800))
    yield
    file.write_text(before)


def test_a_neighbour_is_named_and_the_printed_weight_is_enough(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    neighbour = engine.run(image, "spin", "2")
    container = engine.run(image, "spin", "2", options=("--cpu-shares", "64"))
    findings = diagnose(container)
    assert found(findings) & CPU == {"cpu/starved"}
    finding = findings["cpu/starved"]
    assert f"docker {neighbour.id[:12]}" in finding["summary"]
    assert re.search(r"Its weight is \d+ against 1024", finding["summary"])
    cured_by_printed_commands(engine, finding)
    cured = diagnose(container)["cpu/starved"]
    assert cured["verdict"] == "clear", cured["summary"]


def test_more_threads_than_its_cpuset_has_and_more_cpus(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    container = engine.run(image, "spin", "4", options=("--cpuset-cpus", "0", *ALL))
    findings = diagnose(container)
    assert found(findings) & CPU == {"cpu/starved"}
    assert "wait for each other" in findings["cpu/starved"]["summary"]
    cured_by_printed_commands(engine, findings["cpu/starved"])
    cured = diagnose(container)["cpu/starved"]
    assert cured["verdict"] == "clear", cured["summary"]


def test_a_container_that_its_quota_stops_is_not_starved_by_its_neighbour(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    engine.run(image, "spin", "2")
    container = engine.run(image, "spin", options=("--cpus", "0.2"))
    assert found(diagnose(container)) & CPU == {"cpu/throttled"}


def test_an_idle_container_among_busy_ones_is_well(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    engine.run(image, "spin", "2")
    container = engine.run(image, "sig")
    assert not found(diagnose(container)) & CPU


def test_as_many_threads_as_the_machine_has_cpus_are_the_cause_of_being_throttled(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    cpus = cpu.online(Host())
    container = engine.run(image, "spin", str(cpus), options=("--cpus", str(cpus / 2), *ALL))
    findings = diagnose(container)
    assert found(findings) & CPU == {"cpu/throttled", "cpu/host_cpus_assumed"}
    assert findings["cpu/throttled"]["explained_by"] == "cpu/host_cpus_assumed"
    assert f"{cpus} threads of spin" in findings["cpu/host_cpus_assumed"]["summary"]


def test_peaks_of_two_threads_are_throttling_alone_and_the_numbers_are_enough(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    container = engine.run(image, "burst", "2", "60000", "400000", options=("--cpus", "0.5", *ALL))
    findings = diagnose(container, "4s")
    assert found(findings) & CPU == {"cpu/throttled"}
    assert "peaks takes about" in findings["cpu/throttled"]["cures"][0]["advice"]
    cured_by_printed_commands(engine, findings["cpu/throttled"])
    assert _is_hardly_stopped(from_pid(Host(), container.pid))


@pytest.mark.parametrize("kind", [CpuQuota, CpuBurst])
def test_the_quota_and_the_burst_that_are_advised_end_the_throttling(kind: type) -> None:
    """Fewer than 1 % of the periods, as the page promises."""
    with Box("peaks") as box:
        box.cpu(cores=0.5, shares=HEAVY)
        # Not in step with the periods, of which two together might pay for a peak each time.
        box.start(workload.bursts(tasks=2, cpu_ms=38, every_ms=530))
        report = look(Host(window_seconds=8.0), [box.target()], {"cpu/throttled": CASE})
        (finding,) = report.targets[0].findings
        change = next(c.change for c in finding.cures if isinstance(c.change, kind))
        assert change is not None
        assert box.apply(change), change
        assert _is_hardly_stopped(box.target()), (finding, change)


def test_a_pool_of_python_is_known_by_its_semaphores() -> None:
    code = "import multiprocessing as m, time; p = m.Pool(2); print(p._pool[0].pid, flush=True)"
    pool = subprocess.Popen(
        [sys.executable, "-c", f"{code}; time.sleep(60)"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert pool.stdout is not None
        worker = sizing.program(Host(), int(pool.stdout.readline()))
        assert worker is not None
        assert worker.runtime == "Python multiprocessing"
    finally:
        pool.terminate()
        pool.communicate()


def test_a_program_of_go_is_known_by_its_file() -> None:
    """The client of Docker is one, and its version is what it says itself."""
    said = subprocess.run(["docker", "version", "-f", "{{.Client.GoVersion}}"], capture_output=True)
    path = shutil.which("docker")
    assert path is not None
    assert sizing.built_with(path) == said.stdout.decode().strip()


def _is_hardly_stopped(target: Target) -> bool:
    """In fewer than 1 % of its periods; with too small a number it is at every peak.

    A machine that stalls for a moment lets two peaks meet, so it is looked at up to three times.
    """
    return any(_share(target) < 0.01 for _ in range(3))


def _share(target: Target) -> float:
    """In which share of its periods it is stopped, over some seconds."""
    group = target.group(Host(), "cpu")
    assert group is not None
    before = cpu.stat(Host(), group)
    time.sleep(6)
    after = cpu.stat(Host(), group)
    assert before is not None
    assert after is not None
    return (after.nr_throttled - before.nr_throttled) / max(after.nr_periods - before.nr_periods, 1)
