"""The engine is a real Docker, and when it has gone nothing shows that it was there."""

import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.live import footprint
from tests.live.conftest import require
from tests.live.engine import Container, Engine, EngineError, missing
from tests.live.image import MANY_FILES, NAME, load

pytestmark = pytest.mark.docker

LIMITS = ("-m", "64m", "--memory-swap", "64m")


def test_a_stopped_engine_leaves_nothing() -> None:
    require(missing())
    before = _machine()
    with Engine() as engine:
        engine.docker("network", "create", "other")
        engine.run(load(engine), "sh", "-c", "spin & nosig", options=("--network", "other"))
        assert _machine() != before
        assert _left(engine) != []
    assert _left(engine) == []
    assert _machine() == before


def test_an_engine_which_is_killed_leaves_nothing() -> None:
    require(missing())
    before = _machine()
    engine = Engine()
    with pytest.raises(EngineError, match="Cannot connect"):
        _kill_with_a_container(engine)
    assert _left(engine) == []
    assert _machine() == before


def test_a_quota_of_half_a_cpu_throttles_a_busy_loop(engine: Engine, image: str) -> None:
    container = engine.run(image, "spin", "2", options=("--cpus", "0.5"))
    time.sleep(1)
    said = " ".join(_text(container, "cpu.stat"))
    assert max(int(count) for count in re.findall(r"nr_throttled (\d+)", said)) > 0


def test_update_changes_the_limit_of_a_running_container(engine: Engine, image: str) -> None:
    container = engine.run(image, "nosig", options=("--pids-limit", "20"))
    engine.update(container, "--pids-limit", "30")
    assert _text(container, "pids.max") == ["30"]


def test_an_allocation_above_the_limit_is_oom_killed(engine: Engine, image: str) -> None:
    assert engine.wait_exit(engine.run(image, "memalloc", "200", options=LIMITS)) == 137


def test_an_oom_kill_shows_in_the_exit_record(engine: Engine, image: str) -> None:
    """Of a child: if it kills PID 1, the record may miss it (measured: 1 of 30 on a busy host)."""
    container = engine.run(image, "sh", "-c", "memalloc 200; sleep 1; exit 0", options=LIMITS)
    assert engine.wait_exit(container) == 0
    assert engine.inspect(container)["State"]["OOMKilled"]


def test_containers_reach_each_other_over_the_bridge(engine: Engine, image: str) -> None:
    server = engine.run(image, "listen", "0.0.0.0", "8080")
    client = engine.run(image, "nosig")
    address = engine.inspect(server)["NetworkSettings"]["IPAddress"]
    assert engine.exec(client, "nc", address, "8080").stdout == "hello\n"


def test_a_published_port_answers_on_the_host(engine: Engine, image: str) -> None:
    port = _free_port()
    engine.run(image, "listen", "0.0.0.0", f"{port}", options=("-p", f"127.0.0.1:{port}:{port}"))
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        assert client.recv(64) == b"hello\n"


def test_init_is_pid_1_and_the_program_its_child(engine: Engine, image: str) -> None:
    container = engine.run(image, "nosig", options=("--init",))
    pid = container.pid
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert Path(f"/proc/{pid}/comm").read_text() == "docker-init\n"
    assert Path(f"/proc/{child}/comm").read_text() == "nosig\n"


def test_the_init_that_forwards_lets_its_children_finish(engine: Engine, image: str) -> None:
    container = engine.run(image, "sigh", "2", "fwd")
    engine.docker("stop", container.id)
    assert engine.wait_exit(container) == 0
    assert engine.logs(container).count("child graceful") == 2


def test_opening_a_file_of_the_image_copies_it_up(engine: Engine, image: str) -> None:
    container = engine.run(image, "touchfile", "/big", "0")
    assert footprint.until(lambda: "open took" in engine.logs(container), 30)
    assert engine.docker("diff", container.id).split() == ["C", "/big"]


def test_a_mode_changed_copies_each_file_up(engine: Engine, image: str) -> None:
    container = engine.run(image, "chmodmany", "/many", "0")
    assert footprint.until(lambda: "changed" in engine.logs(container), 60)
    assert engine.docker("diff", container.id).count("/many/") == MANY_FILES


def _kill_with_a_container(engine: Engine) -> None:
    with engine:
        load(engine)
        engine.run(NAME, "nosig")
        os.kill(int((engine.directory / "pid").read_text()), signal.SIGKILL)


def _machine() -> dict[str, object]:
    """All that an engine could leave beyond its own directory."""
    alone = not footprint.NOTE.exists()  # else another engine's, which comes and goes
    return {
        "rules": re.findall(r"^-A .*", _said("iptables-save"), re.MULTILINE),
        "links": re.findall(r"^\d+: ([^@:]+)", _said("ip", "link"), re.MULTILINE),
        "forwarding": Path("/proc/sys/net/ipv4/ip_forward").read_text(),
        "network": os.readlink("/proc/thread-self/ns/net"),
        "paths": [path for path in footprint.made() if path.exists()] if alone else [],
    }


def _said(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _left(engine: Engine) -> list[object]:
    directory = engine.directory
    found: list[object] = [*footprint.processes(directory), *footprint.mounts(directory)]
    return found + ([directory] if directory.exists() else [])


def _text(container: Container, name: str) -> list[str]:
    """What that cgroup file says in each hierarchy which has one."""
    files = [cgroup / name for cgroup in footprint.cgroups(f"docker/{container.id}")]
    return [file.read_text().strip() for file in files if file.exists()]


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])
