"""How a published port of a real Docker gets in, with its NAT rules and after they were flushed."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.live.boxes import until
from tests.live.engine import Container, Engine

pytestmark = pytest.mark.docker

SERVE = "while :; do nc -l -p 8080 -e cat; done"


def whybox(engine: Engine, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "whybox", *words],
        env=dict(os.environ, DOCKER_HOST=engine.host),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def entrance(engine: Engine, container: Container) -> dict[str, Any]:
    said = json.loads(whybox(engine, "inspect", container.name, "--net", "-o", "json"))
    # Docker publishes on IPv6 as well, where there is no NAT rule.
    return next(dict(each) for each in said["entrances"] if each["host_address"] == "0.0.0.0")


def kinds(found: dict[str, Any]) -> list[str]:
    return [way["kind"] for way in found["ways"]]


@pytest.fixture
def flushed() -> Iterator[Callable[[], None]]:
    """Flush NAT, and put back what was there."""
    saved = subprocess.run(["iptables-save", "-t", "nat"], capture_output=True, check=True).stdout

    def flush() -> None:
        subprocess.run(["iptables", "-t", "nat", "-F"], check=True)

    yield flush
    subprocess.run(["iptables-restore"], input=saved, check=True)


def answers(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=2).close()
    except OSError:
        return False
    return True


def first_connection(address: str, port: int) -> socket.socket:
    """Once the program listens; it serves one at a time."""
    made: list[socket.socket] = []

    def connected() -> bool:
        try:
            made.append(socket.create_connection((address, port), timeout=2))
        except OSError:
            return False
        return True

    assert until(connected)
    return made[0]


def test_a_flush_of_nat_leaves_the_proxy(
    engine: Engine, image: str, flushed: Callable[[], None]
) -> None:
    container = engine.run(image, "sh", "-c", SERVE, options=("-p", "18090:8080"))
    assert until(lambda: answers("172.17.0.1", 18090))
    before = entrance(engine, container)
    assert kinds(before)[:2] == ["dnat", "proxy"], before
    assert "chain DOCKER" in before["ways"][0]["says"]
    assert ":8080" in before["ways"][0]["says"]
    assert "docker-proxy" in before["ways"][1]["says"]
    assert "flushing NAT does not close the port" in before["says"]
    flushed()
    after = entrance(engine, container)
    assert "dnat" not in kinds(after)
    assert "proxy" in kinds(after)
    assert "and yet it answers" in after["says"]
    assert answers("172.17.0.1", 18090), "what the sentence says is so"
    assert "published ports" in whybox(engine, "inspect", container.name, "--net")


def test_a_container_that_was_started_after_the_flush_has_a_rule_that_nobody_asks(
    engine: Engine, image: str, flushed: Callable[[], None]
) -> None:
    flushed()
    container = engine.run(image, "sh", "-c", SERVE, options=("-p", "18091:8080"))
    found = entrance(engine, container)
    assert {"proxy", "orphan"} <= set(kinds(found)), found
    assert "dnat" not in kinds(found)
    assert "asked by nobody" in found["says"]


def test_in_the_hosts_network_the_program_itself_listens(engine: Engine, image: str) -> None:
    container = engine.run(
        image, "listen", "0.0.0.0", "18092", options=("--network", "host", "--expose", "18092")
    )
    said = json.loads(whybox(engine, "inspect", container.name, "--net", "-o", "json"))
    for found in said["entrances"]:
        assert kinds(found) == ["host"]


def test_without_net_nobody_looks(engine: Engine, image: str) -> None:
    container = engine.run(image, "sh", "-c", SERVE, options=("-p", "18093:8080"))
    said = json.loads(whybox(engine, "inspect", container.name, "-o", "json"))
    assert said.get("entrances") is None


def test_a_tracked_connection_is_seen(
    engine: Engine, image: str, flushed: Callable[[], None]
) -> None:
    server = engine.run(image, "sh", "-c", SERVE, options=("-p", "18094:8080"))
    with first_connection("172.17.0.1", 18094) as client:
        before = entrance(engine, server)
        assert "tracked" in kinds(before), before
        flushed()
        after = entrance(engine, server)
        assert {"tracked", "proxy"} == set(kinds(after)), after
        assert "go on as they were" in after["says"]
        client.sendall(b"still here\n")
        client.settimeout(5)
        assert client.recv(64) == b"still here\n", "what the sentence says is so"


def test_whom_a_container_asks_for_is_walked_to(engine: Engine, image: str) -> None:
    server = engine.run(image, "sh", "-c", SERVE, options=("-p", "18095:8080"))
    client = engine.run(image, "sig")
    there = engine.inspect(server)["NetworkSettings"]["IPAddress"]

    def diagnosed(to: str) -> dict[str, Any]:
        return judged(engine, client, "--to", to)

    healthy = diagnosed(f"{there}:8080")
    assert healthy["verdict"] == "clear", healthy
    assert [hop["name"] for hop in healthy["hops"]]
    published = diagnosed("172.17.0.1:18095")
    assert published["verdict"] == "clear", published
    closed = diagnosed(f"{there}:81")
    assert closed["verdict"] == "found"
    assert "no socket listens" in closed["summary"]
    rule = ("-d", there, "-p", "tcp", "--dport", "8080", "-j", "DROP")
    subprocess.run(["iptables", "-I", "DOCKER-USER", *rule], check=True)
    try:
        dropped = diagnosed(f"{there}:8080")
        assert dropped["verdict"] == "found"
        assert "rule 1 of chain DOCKER-USER" in dropped["summary"]
        (command,) = dropped["cures"][0]["commands"]
        subprocess.run(command, shell=True, check=True)
        assert diagnosed(f"{there}:8080")["verdict"] == "clear"
    finally:
        subprocess.run(["iptables", "-D", "DOCKER-USER", *rule], capture_output=True, check=False)


def judged(engine: Engine, container: Container, *options: str) -> dict[str, Any]:
    words = ("--case", "network/path_broken", "--window", "1s", "-o", "json", *options)
    said = json.loads(whybox(engine, "diagnose", container.name, *words))
    (found,) = said["targets"][0]["findings"]
    return dict(found)


def test_the_engines_isolation_between_networks_is_named(engine: Engine, image: str) -> None:
    engine.docker("network", "create", "apart")
    try:
        server = engine.run(image, "listen", "0.0.0.0", "8080", options=("--network", "apart"))
        client = engine.run(image, "sig")
        there = engine.inspect(server)["NetworkSettings"]["Networks"]["apart"]["IPAddress"]
        found = judged(engine, client, "--to", f"{there}:8080")
        assert found["verdict"] == "found"
        assert "DOCKER-ISOLATION-STAGE-2" in found["summary"], found["summary"]
        assert judged(engine, client)["verdict"] == "clear", "nobody asked for that network"
        engine.rm(server)
    finally:
        engine.docker("network", "rm", "apart")


def test_what_the_hosts_filter_says_to_all_is_found_without_a_name(
    engine: Engine, image: str
) -> None:
    container = engine.run(image, "listen", "0.0.0.0", "8080", options=("-p", "18096:8080"))
    assert until(lambda: answers("172.17.0.1", 18096))
    assert judged(engine, container)["verdict"] == "clear"
    subprocess.run(["iptables", "-I", "DOCKER-USER", "-i", "docker0", "-j", "DROP"], check=True)
    try:
        found = judged(engine, container)
        assert (found["verdict"], found["severity"]) == ("found", "warning")
        assert "DOCKER-USER" in found["summary"]
        for command in found["cures"][0]["commands"]:
            subprocess.run(command, shell=True, check=True)
        assert judged(engine, container)["verdict"] == "clear"
    finally:
        rule = ("-D", "DOCKER-USER", "-i", "docker0", "-j", "DROP")
        subprocess.run(["iptables", *rule], capture_output=True, check=False)


def test_the_hosts_own_ports(engine: Engine, image: str) -> None:
    client = engine.run(image, "sig")
    closed = judged(engine, client, "--to", "172.17.0.1:18097")
    assert "no socket listens" in closed["summary"]
    with socket.create_server(("172.17.0.1", 18097)):
        assert judged(engine, client, "--to", "172.17.0.1:18097")["verdict"] == "clear"
    within = judged(engine, client, "--to", "127.0.0.1:18097")
    assert "127.0.0.1:18097 is reached in the container" in within["summary"]
