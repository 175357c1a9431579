"""network/packets_lost on real Docker containers, on the engine's bridge."""

import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from tests.live.engine import Container, Engine
from tests.live.test_docker_cases import (
    Diagnose,
    _host_end,
    cured_by_printed_commands,
    diagnose,
    found,
)
from whybox.kernel.netns import call_in
from whybox.lab.network import Wires

__all__ = ["diagnose"]  # a fixture

pytestmark = pytest.mark.docker

CASE = "network/packets_lost"
PORT, SIZE = 7000, 1000


def address(engine: Engine, container: Container, what: str = "IPAddress") -> str:
    networks = engine.inspect(container)["NetworkSettings"]["Networks"]
    return str(networks["bridge"][what])


@contextmanager
def taker(to: str) -> Iterator[None]:
    """Somebody on the host takes what is sent to the port."""
    done = threading.Event()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taking:
        taking.bind((to, PORT))
        taking.settimeout(0.1)

        def take() -> None:
            while not done.is_set():
                with suppress(TimeoutError):
                    taking.recv(1 << 16)

        thread = threading.Thread(target=take)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def sender(engine: Engine, image: str, size: int = SIZE) -> Container:
    """A container that sends to the gateway of its network."""
    container = engine.run(image, "sh", "-c", "sleep 1000")
    gateway = address(engine, container, "Gateway")
    engine.rm(container)
    return engine.run(image, "datagrams", "to", gateway, str(PORT), str(size))


def shape(place: str | None, interface: str) -> None:
    """A queue of 4 kB and 200 kbit/s."""

    def add() -> None:
        with Wires() as wires:
            wires.add_queue(interface, bits_per_second=200_000, bytes=4000)

    add() if place is None else call_in(place, add)


def test_a_slow_queue_and_the_printed_command(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    container = sender(engine, image)
    with taker(address(engine, container, "Gateway")):
        healthy = diagnose(container, "1s")[CASE]
        assert healthy["verdict"] == "clear", healthy["summary"]
        shape(f"/proc/{container.pid}/ns/net", "eth0")
        time.sleep(0.5)
        findings = diagnose(container)
        assert CASE in found(findings)
        assert "the queue (tbf) of eth0" in findings[CASE]["summary"]
        assert findings[CASE]["certainty"] == "confirmed"
        cured_by_printed_commands(engine, findings[CASE])
        time.sleep(0.5)
        assert diagnose(container, "1s")[CASE]["verdict"] == "clear"


def test_the_host_s_end_takes_smaller_packets(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    container = sender(engine, image, 1400)
    end = _host_end(container)
    subprocess.run(["ip", "link", "set", end, "mtu", "1300"], check=True)
    with taker(address(engine, container, "Gateway")):
        finding = diagnose(container)[CASE]
        assert finding["verdict"] == "found"
        assert f"larger than {end} takes" in finding["summary"]
        cured_by_printed_commands(engine, finding)
        time.sleep(0.5)
        assert diagnose(container, "1s")[CASE]["verdict"] == "clear"


def test_a_program_that_does_not_read(engine: Engine, image: str, diagnose: Diagnose) -> None:
    container = engine.run(image, "datagrams", "at", str(PORT))
    to, done = (address(engine, container), PORT), threading.Event()

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending:
            while not done.is_set():
                sending.sendto(b"x" * SIZE, to)
                done.wait(0.01)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        findings = diagnose(container)
    finally:
        done.set()
        thread.join()
    assert CASE in found(findings)
    assert f"UDP port {PORT} of datagrams (pid " in findings[CASE]["summary"]


def test_a_rule_of_the_host(engine: Engine, image: str, diagnose: Diagnose) -> None:
    container = sender(engine, image)
    rule = ("INPUT", "-s", address(engine, container), "-p", "udp", "-j", "DROP")
    subprocess.run(["iptables", "-I", *rule], check=True)
    try:
        finding = diagnose(container)[CASE]
    finally:
        subprocess.run(["iptables", "-D", *rule], check=True)
    assert finding["verdict"] == "found"
    assert "() at docker0 (" in finding["summary"]


def test_a_closed_port_is_no_loss(engine: Engine, image: str, diagnose: Diagnose) -> None:
    container = sender(engine, image)
    assert diagnose(container)[CASE]["verdict"] == "clear"
