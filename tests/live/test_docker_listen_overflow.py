"""network/listen_overflow on real Docker containers, on the engine's bridge."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.live.boxes import until
from tests.live.engine import Container, Engine
from tests.live.test_docker_cases import (
    Diagnose,
    cured_by_printed_commands,
    diagnose,
    found,
)

__all__ = ["diagnose"]  # a fixture

pytestmark = pytest.mark.docker

CASE = "network/listen_overflow"
PORT = 8080


@contextmanager
def knocking(engine: Engine, container: Container, count: int, every: float) -> Iterator[None]:
    """So many clients on the host, again and again."""
    networks = engine.inspect(container)["NetworkSettings"]["Networks"]
    to, done = (networks["bridge"]["IPAddress"], PORT), threading.Event()

    def run() -> None:
        while not done.is_set():
            asked = [ask(to) for _ in range(count)]
            done.wait(every)
            for one in asked:
                one.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def ask(to: tuple[str, int]) -> socket.socket:
    one = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    with suppress(BlockingIOError, ConnectionRefusedError):
        one.connect(to)
    return one


def counter(container: Container, name: str) -> int:
    text = Path(f"/proc/{container.pid}/net/netstat").read_text()
    names, numbers = (line.split() for line in text.splitlines()[:2])
    return int(numbers[names.index(name)])


def test_a_burst_and_a_longer_queue(engine: Engine, image: str, diagnose: Diagnose) -> None:
    server = ("queueing", str(PORT), "1024", "5")
    short = engine.run(image, *server, options=("--sysctl", "net.core.somaxconn=8"))
    with knocking(engine, short, 40, 0.5):
        findings = diagnose(short)
    assert found(findings) == {CASE}
    assert "8 + 1 may" in findings[CASE]["summary"]
    assert "queueing (pid " in findings[CASE]["summary"]
    commands = [line for cure in findings[CASE]["cures"] for line in cure["commands"]]
    assert len(commands) == 1
    assert commands[0].startswith("docker run --sysctl net.core.somaxconn=")
    option = commands[0].split()[3]
    longer = engine.run(image, *server, options=("--sysctl", option))
    with knocking(engine, longer, 40, 0.5):
        assert diagnose(longer)[CASE]["verdict"] == "clear"


def test_a_program_that_never_accepts(engine: Engine, image: str, diagnose: Diagnose) -> None:
    container = engine.run(image, "queueing", str(PORT), "4", "-1")
    with knocking(engine, container, 3, 0.1):
        assert until(lambda: counter(container, "ListenOverflows") > 0)
        findings = diagnose(container)
    assert found(findings) == {CASE}
    assert findings[CASE]["severity"] == "critical"
    assert "4 + 1 may" in findings[CASE]["summary"]
    assert "accepted none" in findings[CASE]["summary"]


def test_a_paused_one_and_the_printed_command(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    container = engine.run(image, "queueing", str(PORT), "4", "0")
    engine.docker("pause", container.id)
    with knocking(engine, container, 3, 0.1):
        assert until(lambda: counter(container, "ListenOverflows") > 0)
        finding = diagnose(container)[CASE]
        assert "the container is paused" in finding["summary"]
        cured_by_printed_commands(engine, finding)
        assert diagnose(container, "1s")[CASE]["verdict"] == "clear"


def test_those_who_wait_are_not_turned_away(engine: Engine, image: str, diagnose: Diagnose) -> None:
    container = engine.run(image, "queueing", str(PORT), "64", "-1")
    with knocking(engine, container, 10, 60):
        findings = diagnose(container)
    assert findings[CASE]["verdict"] == "clear"
    assert counter(container, "ListenOverflows") == 0


def test_a_port_that_nobody_listens_on(engine: Engine, image: str, diagnose: Diagnose) -> None:
    container = engine.run(image, "queueing", str(PORT + 1), "4", "0")
    with knocking(engine, container, 3, 0.1):
        assert diagnose(container)[CASE]["verdict"] == "clear"
