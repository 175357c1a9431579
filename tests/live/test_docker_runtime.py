"""What a real Docker says of its containers, and what is left to say when it is dead or hangs."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.live.conftest import require
from tests.live.engine import Container, Engine, EngineError, missing
from tests.live.footprint import cgroups, until
from tests.live.image import load
from whybox.change import (
    AddAddress,
    Change,
    CpuBurst,
    CpuQuota,
    DefaultRoute,
    LinkUp,
    MemoryLimit,
)
from whybox.kernel import finding
from whybox.kernel.host import Host
from whybox.kernel.target import Exit, Port, Target
from whybox.runtimes.commands import commands
from whybox.runtimes.docker import Docker
from whybox.runtimes.resolve import TargetError, everything, resolve

pytestmark = pytest.mark.docker


@pytest.fixture(autouse=True)
def _docker_host(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", engine.host)


def one(word: str) -> Target:
    """The target that a word means, about which the engine said all it should."""
    found = resolve(Host(), [word])
    assert found.notes == ()
    (target,) = found.targets
    return target


def ended(container: Container) -> Exit:
    target = one(container.name)
    assert not target.alive
    assert target.exit is not None
    return target.exit


def test_a_living_container_is_described(engine: Engine, image: str) -> None:
    before = time.time_ns()
    container = engine.run(image, "spin", "1", options=("--stop-signal", "SIGUSR1"))
    target = one(container.name)
    assert target.init is not None
    assert target.init.pid == container.pid
    assert (target.id, target.name, target.runtime) == (container.id, container.name, "docker")
    assert (target.image, target.command, target.stop_signal) == (image, "spin 1", "SIGUSR1")
    assert target.created_at_ns is not None
    assert before - 10**9 < target.created_at_ns < time.time_ns()
    assert target.exit is not None
    assert (target.exit.status, target.exit.exit_code) == ("running", None)
    assert target.exit.events == ("start",)


@pytest.mark.parametrize("word", ["{name}", "{id}", "docker://{name}", "pid://{pid}"])
def test_every_word_for_it_means_the_same(engine: Engine, image: str, word: str) -> None:
    container = engine.run(image, "nosig", name="web-1")
    said = word.format(name=container.name, id=container.id, pid=container.pid)
    target = one(said)
    assert (target.id, target.name) == (container.id, "web-1")


def test_a_published_port_is_meant_to_be_reached(engine: Engine, image: str) -> None:
    options = ("-p", "127.0.0.1:18080:80", "-p", "127.0.0.1:15353:53/udp", "--expose", "99")
    container = engine.run(image, "nosig", options=options)
    assert sorted(one(container.id).ports, key=lambda port: port.port) == [
        Port(port=53, protocol="udp", host_address="127.0.0.1", host_port=15353),
        Port(port=80, protocol="tcp", host_address="127.0.0.1", host_port=18080),
    ]


def test_who_was_oom_killed_died_of_it(engine: Engine, image: str) -> None:
    # Docker learns of it beside the exit, and once in 41 it had not when that was over (measured).
    records = (_oom_killed(engine, image) for _ in range(3))
    record = next(record for record in records if record.oom_killed)
    assert (record.status, record.exit_code) == ("exited", 137)
    assert sorted(record.events) == ["die exitCode=137", "oom", "start"]
    assert record.started_at_ns is not None
    assert record.finished_at_ns is not None
    assert record.started_at_ns < record.finished_at_ns


def _oom_killed(engine: Engine, image: str) -> Exit:
    limits = ("-m", "64m", "--memory-swap", "64m")
    container = engine.run(image, "memalloc", "200", options=limits)
    engine.wait_exit(container)
    return ended(container)


def test_a_stop_that_was_not_heard_is_two_signals(engine: Engine, image: str) -> None:
    container = engine.run(image, "nosig")
    engine.docker("stop", "-t", "1", container.id)
    record = ended(container)
    assert record.events == (
        *("start", "kill signal=15", "kill signal=9", "die exitCode=137", "stop"),
    )
    assert record.oom_killed is False


def test_a_kill_is_one_signal_and_no_stop(engine: Engine, image: str) -> None:
    container = engine.run(image, "nosig")
    engine.docker("kill", container.id)
    engine.wait_exit(container)
    assert ended(container).events == ("start", "kill signal=9", "die exitCode=137")


def test_only_the_last_life_is_told(engine: Engine, image: str) -> None:
    container = engine.run(image, "sig")
    engine.docker("restart", container.id)
    target = one(container.id)
    assert target.exit is not None
    assert "die exitCode=0" not in target.exit.events
    assert target.exit.events[0] == "start"


def test_who_fails_again_and_again_is_counted(engine: Engine, image: str) -> None:
    container = engine.run(image, "sh", "-c", "exit 7", options=("--restart", "on-failure:2"))
    assert until(lambda: engine.inspect(container)["RestartCount"] == 2, 30)
    engine.wait_exit(container)
    record = ended(container)
    assert (record.exit_code, record.restarts) == (7, 2)


def test_who_was_never_started_has_no_exit_code(engine: Engine, image: str) -> None:
    id = engine.docker("create", "--name", "unborn", image, "nosig").strip()
    try:
        target = one("unborn")
    finally:
        engine.docker("rm", id)
    assert target.exit is not None
    assert (target.exit.status, target.exit.exit_code) == ("created", None)


@pytest.mark.parametrize("options", [(), ("--cgroup-parent", "/live-parent")])
def test_the_dead_are_left_the_groups_in_which_they_lived(
    engine: Engine, image: str, options: tuple[str, ...]
) -> None:
    container = engine.run(image, "nosig", options=options)
    living = one(container.id).cgroups
    engine.docker("kill", container.id)
    engine.wait_exit(container)
    dead = one(container.id).cgroups
    assert {name: living[name] for name in dead} == dead
    for group in cgroups("live-parent") if options else ():
        group.rmdir()


def test_everything_is_named_by_one_list(engine: Engine, image: str) -> None:
    container = engine.run(image, "nosig")
    found = everything(Host())
    (target,) = [target for target in found.targets if target.id == container.id]
    assert (target.name, target.image, target.command) == (container.name, image, "nosig")


def test_a_name_that_nobody_has_is_answered_with_the_nearest(engine: Engine, image: str) -> None:
    engine.run(image, "nosig", name="database")
    with pytest.raises(TargetError, match=r"^No such container: databse; nearest: database$"):
        resolve(Host(), ["databse"])


def test_an_engine_that_hangs_costs_a_second_and_the_names(engine: Engine, image: str) -> None:
    container = engine.run(image, "nosig")
    with _hanging(engine):
        began = time.monotonic()
        found = resolve(Host(), [container.id])
        assert time.monotonic() - began < 2.5
        with pytest.raises(TargetError, match="no engine answered, so give an id"):
            resolve(Host(), [container.name])
    assert [target.id for target in found.targets] == [container.id]
    assert found.notes == (
        "docker did not answer within 1 s: names, images and exit records may be missing",
    )
    assert one(container.name).id == container.id


def test_an_engine_that_is_dead_leaves_its_containers_to_the_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    require(missing())
    with pytest.raises(EngineError, match="Cannot connect"):
        _resolve_without(Engine(), monkeypatch)


def _resolve_without(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with engine:
        monkeypatch.setenv("DOCKER_HOST", engine.host)
        container = engine.run(load(engine), "nosig")
        pid = container.pid
        os.kill(int((engine.directory / "pid").read_text()), signal.SIGKILL)
        assert until(lambda: not _listens(engine), 10)
        found = resolve(Host(), [container.id[:20]])
        (target,) = found.targets
        assert target.init is not None
        assert target.init.pid == pid
        assert found.notes[0].startswith("docker is not running: names")


def _listens(engine: Engine) -> bool:
    try:
        Docker(Host(), engine.host.removeprefix("unix://")).list()
    except OSError:
        return False
    return True


@contextmanager
def _hanging(engine: Engine) -> Iterator[None]:
    pid = int((engine.directory / "pid").read_text())
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def _paste(target: Target, change: Change) -> tuple[str, ...]:
    lines = commands(target, change, Host())
    assert lines
    for line in lines:
        subprocess.run(["sh", "-ec", line], check=True, capture_output=True, timeout=60)
    return lines


def _says(target: Target, controller: str, v1: str, v2: str) -> str:
    host = Host()
    group = target.group(host, controller)
    assert group is not None
    return host.text(group.file(v1 if group.version == 1 else v2))


def test_the_quota_that_is_printed_is_the_quota_that_is_set(engine: Engine, image: str) -> None:
    target = one(engine.run(image, "nosig", options=("--cpus", "0.5")).id)
    _paste(target, CpuQuota(0.9))
    assert _says(target, "cpu", "cpu.cfs_quota_us", "cpu.max").split()[0] == "90000"
    _paste(target, CpuBurst(50_000))
    assert _says(target, "cpu", "cpu.cfs_burst_us", "cpu.max.burst") == "50000"
    _paste(target, CpuBurst(0))
    _paste(target, CpuQuota(None))
    assert _says(target, "cpu", "cpu.cfs_quota_us", "cpu.max").split()[0] in ("-1", "max")


@pytest.mark.parametrize(
    ("options", "swap_bytes"),
    [
        (("-m", "64m"), 64 << 20),
        (("-m", "64m", "--memory-swap", "64m"), 0),
        (("-m", "64m", "--memory-swap", "-1"), None),
        ((), None),
    ],
)
def test_the_memory_that_is_printed_is_the_limit_that_is_set(
    engine: Engine, image: str, options: tuple[str, ...], swap_bytes: int | None
) -> None:
    container = engine.run(image, "nosig", options=options)
    target = one(container.id)
    _paste(target, MemoryLimit(256 << 20))
    limit = _says(target, "memory", "memory.limit_in_bytes", "memory.max")
    assert int(limit) == 256 << 20
    set_ = engine.inspect(container)["HostConfig"]["MemorySwap"]
    assert set_ == (-1 if swap_bytes is None else (256 << 20) + swap_bytes)


def test_a_network_is_repaired_with_the_lines_that_are_printed(engine: Engine, image: str) -> None:
    container = engine.run(image, "nosig")
    settings = engine.inspect(container)["NetworkSettings"]
    address, gateway = settings["IPAddress"], settings["Gateway"]
    inside = ("nsenter", "-t", str(container.pid), "-n", "ip")
    subprocess.run([*inside, "address", "flush", "dev", "eth0"], check=True)
    subprocess.run([*inside, "link", "set", "eth0", "down"], check=True)
    target = one(container.id)
    _paste(target, LinkUp("eth0"))
    _paste(target, AddAddress("eth0", f"{address}/{settings['IPPrefixLen']}"))
    _paste(target, DefaultRoute(gateway, "eth0"))
    assert engine.exec(container, "ping", "-c", "1", "-W", "5", gateway).returncode == 0


def test_a_container_is_found_by_the_kernel_under_its_engines_id(
    engine: Engine, image: str
) -> None:
    container = engine.run(image, "nosig")
    assert container.id in {target.id for target in finding.containers(Host())}
