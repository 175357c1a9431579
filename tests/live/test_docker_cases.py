"""Every case on real Docker containers: found, told from its look-alikes, clear after the cure."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.live.engine import Container, Engine

pytestmark = pytest.mark.docker

INFO_ALWAYS = "security/root_is_host_root"
MEMORY = ("--memory", "64m", "--memory-swap", "64m")
Findings = dict[str, dict[str, Any]]
Diagnose = Callable[..., Findings]


@pytest.fixture
def diagnose(engine: Engine) -> Diagnose:
    """What ``whybox diagnose NAME -o json`` says, by case."""

    def run(container: Container, window: str = "2s", *options: str) -> Findings:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "whybox", "diagnose", container.name),
                *("-o", "json", "--window", window, *options),
            ],
            env=dict(os.environ, DOCKER_HOST=engine.host),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        (target,) = json.loads(done.stdout)["targets"]
        return {finding["case"]: finding for finding in target["findings"]}

    return run


def found(findings: Findings, *, info: bool = False) -> set[str]:
    """The cases that were found; those of mere information only when asked for."""
    return {
        name
        for name, finding in findings.items()
        if finding["verdict"] == "found" and (info or finding["severity"] != "info")
    }


def cured_by_printed_commands(engine: Engine, finding: dict[str, Any]) -> None:
    """Run the very commands that the first cure prints."""
    commands = finding["cures"][0]["commands"]
    assert commands
    for command in commands:
        done = subprocess.run(
            command,
            shell=True,
            env=dict(os.environ, DOCKER_HOST=engine.host),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"


def test_half_a_cpu_for_a_program_that_spins(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    container = engine.run(image, "spin", options=("--cpus", "0.5"))
    findings = diagnose(container)
    assert found(findings, info=True) == {"cpu/throttled", INFO_ALWAYS}
    finding = findings["cpu/throttled"]
    assert finding["certainty"] == "confirmed"
    assert any("nr_throttled +" in evidence["says"] for evidence in finding["evidence"])
    cured_by_printed_commands(engine, finding)
    assert found(diagnose(container)) == set()


def test_contention_without_a_limit_is_not_throttling(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    container = engine.run(image, "spin", "4", options=("--cpuset-cpus", "0"))
    assert diagnose(container)["cpu/throttled"]["verdict"] == "clear"


def test_a_container_killed_for_its_memory_is_told_when_it_is_dead(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    container = engine.run(image, "memalloc", "200", options=MEMORY)
    assert engine.wait_exit(container) == 137
    finding = diagnose(container, "0s")["memory/oom_killed"]
    assert (finding["verdict"], finding["certainty"]) == ("found", "confirmed")
    assert "memalloc" in finding["summary"]
    assert "64" in finding["summary"]


def test_a_container_killed_by_hand_is_not_taken_for_it(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    container = engine.run(image, "memalloc", "40", "0", "600", options=MEMORY)
    time.sleep(1)
    engine.docker("kill", container.id)
    assert engine.wait_exit(container) == 137
    assert diagnose(container, "0s")["memory/oom_killed"]["verdict"] == "clear"


def test_a_child_killed_for_its_memory_under_a_living_init_and_its_cure(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    container = engine.run(image, "memchild", "90", options=MEMORY)
    time.sleep(2)
    finding = diagnose(container, "1s")["memory/oom_killed"]
    assert finding["verdict"] == "found"
    assert "memchild" in finding["summary"]
    cured_by_printed_commands(engine, finding)
    assert diagnose(container, "1s")["memory/oom_killed"]["verdict"] == "clear"


def test_a_deaf_pid_1_is_told_before_and_after_it_was_sent_a_signal(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    container = engine.run(image, "nosig")
    before = diagnose(container, "0s")["process/pid1_ignores_signals"]
    assert (before["verdict"], before["severity"]) == ("found", "info")
    engine.docker("kill", "--signal", "TERM", container.id)
    after = diagnose(container, "0s")["process/pid1_ignores_signals"]
    assert (after["verdict"], after["certainty"]) == ("found", "confirmed")
    assert after["severity"] == "warning"


@pytest.mark.parametrize("program", ["sig", "signalfd", "golike"])
def test_a_pid_1_that_listens_is_not_deaf(
    engine: Engine, image: str, diagnose: Diagnose, program: str
) -> None:
    container = engine.run(image, program)
    time.sleep(0.5)
    finding = diagnose(container, "0s")["process/pid1_ignores_signals"]
    assert finding["verdict"] == "clear", finding["summary"]


def test_an_init_cures_a_deaf_program(engine: Engine, image: str, diagnose: Diagnose) -> None:
    container = engine.run(image, "nosig", options=("--init",))
    time.sleep(0.5)
    finding = diagnose(container, "0s")["process/pid1_ignores_signals"]
    assert finding["verdict"] == "clear", finding["summary"]


def test_orphans_that_nobody_waits_for_are_counted_and_an_init_cures_them(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    sick = engine.run(image, "orphan", "17")
    cured = engine.run(image, "orphan", "17", options=("--init",))
    time.sleep(2)
    finding = diagnose(sick)["process/zombies"]
    assert finding["verdict"] == "found"
    assert "17" in finding["summary"]
    assert diagnose(cured)["process/zombies"]["verdict"] == "clear"


@pytest.mark.parametrize("program", [("zombie", "20", "wait"), ("idlethreads", "30")])
def test_children_that_are_waited_for_and_threads_are_no_zombies(
    engine: Engine, image: str, diagnose: Diagnose, program: tuple[str, ...]
) -> None:
    container = engine.run(image, *program)
    time.sleep(1)
    assert diagnose(container)["process/zombies"]["verdict"] == "clear"


def test_a_dead_thread_group_leader_is_no_zombie(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    container = engine.run(image, "forkleader")
    time.sleep(1)
    assert diagnose(container)["process/zombies"]["verdict"] == "clear"


@pytest.fixture(scope="module")
def start_seconds() -> float:
    """How long whybox takes here until it watches: many times as long in an emulated machine."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "whybox", "cases", "-o", "json"], capture_output=True)
    return time.monotonic() - began


def test_a_byte_appended_to_a_baked_in_file_copies_all_of_it(
    engine: Engine, image: str, diagnose: Diagnose, start_seconds: float
) -> None:
    slack = 2 * start_seconds
    container = engine.run(image, "touchfile", "/big", f"{2 + slack:.0f}")
    finding = diagnose(container, f"{5 + slack:.0f}s")["storage/copy_up"]
    assert finding["verdict"] == "found"
    assert "64" in finding["summary"]
    # Once per file: what is in the upper layer already is as fast as anywhere.
    again = diagnose(container, "1s")["storage/copy_up"]
    assert again["verdict"] == "clear", again["summary"]


def test_new_files_and_files_on_a_volume_are_not_copied_up(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    write = "while :; do dd if=/dev/zero of=/data/x bs=1M count=32; sleep 0.3; done"
    for options in ((), ("-v", "/data")):
        container = engine.run(image, "sh", "-c", write, options=options)
        assert diagnose(container)["storage/copy_up"]["verdict"] == "clear"


def test_a_bridged_container_is_reachable_until_its_host_end_is_unplugged(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    container = engine.run(
        image, "listen", "0.0.0.0", "8080", options=("-p", "127.0.0.1:18080:8080")
    )
    healthy = diagnose(container, "1s")["network/path_broken"]
    assert healthy["verdict"] == "clear", healthy["summary"]
    port = _host_end(container)
    subprocess.run(["ip", "link", "set", port, "nomaster"], check=True)
    broken = diagnose(container, "1s")["network/path_broken"]
    assert broken["verdict"] == "found"
    assert port in broken["summary"]
    cured_by_printed_commands(engine, broken)
    assert diagnose(container, "1s")["network/path_broken"]["verdict"] == "clear"


def test_a_published_port_that_listens_on_loopback_only(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    container = engine.run(
        image, "listen", "127.0.0.1", "8080", options=("-p", "127.0.0.1:18081:8080")
    )
    time.sleep(0.5)
    finding = diagnose(container, "1s")["network/path_broken"]
    assert finding["verdict"] == "found"
    assert "8080" in finding["summary"]


@pytest.mark.parametrize("network", ["none", "host"])
def test_a_network_that_was_not_given_is_not_broken(
    engine: Engine, image: str, diagnose: Diagnose, network: str
) -> None:
    container = engine.run(image, "sig", options=("--network", network))
    assert diagnose(container, "1s")["network/path_broken"]["verdict"] == "clear"


def test_root_inside_is_root_outside_unless_it_is_somebody_else(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    root = engine.run(image, "sig")
    user = engine.run(image, "sig", options=("--user", "1000:1000"))
    seen = diagnose(root, "0s")[INFO_ALWAYS]
    assert (seen["verdict"], seen["severity"]) == ("found", "info")
    assert diagnose(user, "0s")[INFO_ALWAYS]["verdict"] == "clear"


def test_the_socket_of_the_engine_makes_root_a_danger(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    mount = f"{engine.host.removeprefix('unix://')}:/var/run/docker.sock"
    container = engine.run(image, "sig", options=("-v", mount))
    assert diagnose(container, "0s")[INFO_ALWAYS]["severity"] == "warning"


def _host_end(container: Container) -> str:
    """The host's interface that is the other end of the container's eth0."""
    enter = ("nsenter", "-t", str(container.pid), "-n")
    index = _links(*enter, "ip", "-j", "link", "show", "eth0")[0]["link_index"]
    return next(str(one["ifname"]) for one in _links("ip", "-j", "link") if one["ifindex"] == index)


def _links(*command: str) -> list[dict[str, Any]]:
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    return list(json.loads(said.stdout))
