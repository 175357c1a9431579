"""network/conntrack_full on real Docker containers with a bridge, whose NAT tracks connections."""

import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from tests.live.engine import Container, Engine
from tests.live.test_docker_cases import Diagnose, diagnose
from whybox.change import HostSysctl
from whybox.kernel.namespace import FIRST_NET
from whybox.kernel.netns import call_in
from whybox.lab.machine import set_sysctl

__all__ = ["diagnose"]  # a fixture

pytestmark = pytest.mark.docker

CASE = "network/conntrack_full"
LARGEST = 2000
GATEWAY = "172.17.0.1"


@pytest.fixture
def small_table() -> Iterator[None]:
    """Few entries for the whole machine, while the test lasts."""
    with ExitStack() as closing:
        set_sysctl(HostSysctl("net.netfilter.nf_conntrack_max", str(LARGEST)), closing)
        yield


@contextmanager
def sending(container: Container, first: int) -> Iterator[None]:
    """So many datagrams from the container to as many ports, and then a few more all the time."""
    sock = call_in(
        f"/proc/{container.pid}/ns/net",
        lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
    )
    end = threading.Event()

    def send(port: int) -> None:
        with suppress(OSError):
            sock.sendto(b"x", (GATEWAY, port))

    def more() -> None:
        port = 40_000
        while not end.wait(0.05):
            send(port)
            port += 1

    for port in range(10_000, 10_000 + first):
        send(port)
    thread = threading.Thread(target=more, daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join(10)
        sock.close()


@pytest.mark.usefixtures("small_table")
def test_a_full_table_of_the_host_and_the_printed_command(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    container, neighbour = engine.run(image, "sig"), engine.run(image, "sig")
    with sending(container, LARGEST + 100):
        finding = diagnose(container)[CASE]
        assert (finding["verdict"], finding["severity"]) == ("found", "critical")
        assert f"of the host is full: {LARGEST} of {LARGEST} entries" in finding["summary"]
        assert "% of them itself" in finding["summary"]
        # Whoever opens a connection on this host suffers from it.
        other = diagnose(neighbour)[CASE]
        assert other["verdict"] == "found"
        assert "and this container 0 %" in other["summary"]
        (command,) = finding["cures"][0]["commands"]
        assert command == f"sysctl -w net.netfilter.nf_conntrack_max={2 * LARGEST}"
        subprocess.run(["nsenter", f"--net={FIRST_NET}", *command.split()], check=True)
        assert diagnose(container)[CASE]["verdict"] == "clear"


@pytest.mark.usefixtures("small_table")
def test_a_firewalls_rule_is_not_a_full_table(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    container = engine.run(image, "sig")
    rule = ["INPUT", "-i", "docker0", "-p", "udp", "-j", "DROP"]
    subprocess.run(["iptables", "-I", *rule], check=True)
    try:
        with sending(container, 100):
            finding = diagnose(container)[CASE]
    finally:
        subprocess.run(["iptables", "-D", *rule], check=True)
    assert finding["verdict"] == "clear", finding["summary"]
    assert "have room" in finding["summary"]


def test_an_ordinary_container_and_one_with_the_hosts_network_are_clear(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    for network in ("bridge", "host", "none"):
        container = engine.run(image, "sig", options=("--network", network))
        finding = diagnose(container, "0s")[CASE]
        assert finding["verdict"] == "clear", finding["summary"]
