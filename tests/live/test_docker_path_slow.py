"""network/path_slow on real Docker containers behind a bridge with real rules."""

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.live.engine import Container, Engine
from tests.live.test_docker_cases import (
    Diagnose,
    _host_end,
    cured_by_printed_commands,
    diagnose,
    found,
)
from whybox.lab import middle, workload
from whybox.lab.middle import ADDRESS

__all__ = ["diagnose"]  # a fixture

pytestmark = pytest.mark.docker

CASE = "network/path_slow"
ASKING = f"trap 'exit 0' TERM; while :; do ping -c 1 -s 1000 -W 1 {ADDRESS}; sleep 0.02; done"
RULES = 10_000


@contextmanager
def behind(engine: Engine, image: str) -> Iterator[Container]:
    """A bridged container that asks a machine behind its host again and again."""
    here = f"/proc/{os.getpid()}/task/{threading.get_native_id()}/ns/net"
    with middle.wired(here, workload.idle()):
        container = engine.run(image, "sh", "-c", ASKING)
        time.sleep(1)
        yield container
        engine.rm(container)


@contextmanager
def rules(count: int) -> Iterator[None]:
    """So many rules in front of the others that every forwarded packet is compared with."""
    made = "".join(f"-A many -d 203.{n >> 8}.{n & 255}.7/32 -j DROP\n" for n in range(count))
    _restore(f"*filter\n:many - [0:0]\n-I FORWARD -j many\n{made}COMMIT\n")
    try:
        yield
    finally:
        _restore("*filter\n-D FORWARD -j many\n-F many\n-X many\nCOMMIT\n")


def _restore(text: str) -> None:
    command = ["iptables-restore", "--noflush"]
    subprocess.run(command, input=text, text=True, check=True, capture_output=True)


def test_what_is_inherent_and_thousands_of_rules(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    with behind(engine, image) as container:
        healthy = diagnose(container)[CASE]
        assert healthy["verdict"] == "clear", healthy["summary"]
        assert "inherent" in healthy["summary"]
        with rules(RULES):
            slow = diagnose(container)
        assert CASE in found(slow), slow[CASE]["summary"]
        assert "filtered and forwarded" in slow[CASE]["summary"]
        again = diagnose(container)[CASE]
        assert again["verdict"] == "clear", again["summary"]


def test_a_bandwidth_limit_at_the_host_end_and_the_printed_command(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    with behind(engine, image) as container:
        end = _host_end(container)
        # Seven of them in a second: emulated, a program asks no more than ten times.
        limit = ["root", "tbf", "rate", "60kbit", "burst", "2000", "limit", "100000"]
        subprocess.run(["tc", "qdisc", "add", "dev", end, *limit], check=True)
        slow = diagnose(container, "5s")[CASE]
        assert slow["verdict"] == "found", slow["summary"]
        assert f"{end} (tbf)" in slow["summary"]
        assert slow["cures"][0]["commands"] == [f"tc qdisc del dev {end} root"]
        cured_by_printed_commands(engine, slow)
        cured = diagnose(container)[CASE]
        assert cured["verdict"] == "clear", cured["summary"]


def test_with_the_host_network_the_way_is_the_hosts(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    container = engine.run(image, "sig", options=("--network", "host"))
    assert diagnose(container, "1s")[CASE]["verdict"] == "clear"
