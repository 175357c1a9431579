"""network/send_queue_stuck on real Docker containers: through the engine's bridge to a peer that
the test plays itself.
"""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from tests.live.boxes import until
from tests.live.engine import Container, Engine
from tests.live.test_docker_cases import Diagnose, diagnose, found
from whybox.cases.network.send_queue_stuck import lab
from whybox.lab import tcppeer

__all__ = ["diagnose"]  # a fixture

pytestmark = pytest.mark.docker

CASE = "network/send_queue_stuck"
FAR, WIRE = f"whybox-peer-{os.getpid()}", f"peer{os.getpid() % 100000}"
#: A second timeout comes late where a machine is emulated.
PATIENCE_SECONDS = 40.0


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@pytest.fixture
def far() -> Iterator[str]:
    """A network namespace behind the host, to which the peer's address leads."""
    ip("netns", "add", FAR)
    try:
        ip("link", "add", WIRE, "type", "veth", "peer", "name", "eth0", "netns", FAR)
        ip("address", "add", "10.98.0.1/30", "dev", WIRE)
        ip("link", "set", WIRE, "up")
        ip("-n", FAR, "address", "add", "10.98.0.2/30", "dev", "eth0")
        ip("-n", FAR, "link", "set", "eth0", "up")
        ip("-n", FAR, "route", "add", "default", "via", "10.98.0.1")
        ip("route", "add", f"{tcppeer.ADDRESS}/32", "via", "10.98.0.2")
        yield f"/run/netns/{FAR}"
    finally:
        # A namespace's devices go some time after its name: the next one's would meet this one.
        subprocess.run(["ip", "link", "del", WIRE], check=False)
        ip("netns", "del", FAR)


@contextmanager
def sending(
    engine: Engine,
    image: str,
    far: str,
    peer: lab.Taking,
    sndbuf: int,
    *states: Callable[[int], bool],
) -> Iterator[Container]:
    """A container that fills its send queue to that peer, when those states are reached in turn."""
    with tcppeer.playing(far, "eth0", peer.came, peer.tick):
        to = (tcppeer.ADDRESS, str(tcppeer.PORT), str(sndbuf))
        container = engine.run(image, "fillsend", *to)
        pid = container.pid
        for state in states:
            assert until(partial(state, pid), PATIENCE_SECONDS), engine.logs(container)
            peer.begun = True
        yield container
        engine.rm(container)


def test_a_queue_made_small_and_left_alone(
    engine: Engine, image: str, diagnose: Diagnose, far: str
) -> None:
    states = (lab.small, lab.cut_refused)
    with sending(engine, image, far, lab.Losing(), lab.SMALL, *states) as container:
        findings = diagnose(container)
    finding = findings[CASE]
    assert found(findings) == {CASE}, (finding["summary"], finding["evidence"])
    assert finding["severity"] == "critical"
    assert f"its limit is {lab.LIMIT}" in finding["summary"]
    assert "fillsend (pid " in finding["summary"]
    assert "leave SO_SNDBUF alone" in finding["cures"][0]["advice"]
    # The very same losses, and the program as it was told to be.
    with sending(engine, image, far, lab.Losing(), 0, lab.unanswered, lab.sends) as container:
        assert diagnose(container)[CASE]["verdict"] == "clear"


def test_a_peer_that_does_not_read(
    engine: Engine, image: str, diagnose: Diagnose, far: str
) -> None:
    with sending(engine, image, far, lab.Closed(), lab.SMALL, lab.closed) as container:
        finding = diagnose(container)[CASE]
    assert finding["verdict"] == "clear"
    assert "the window of the peer is closed" in finding["summary"]


def test_nothing_comes_through(engine: Engine, image: str, diagnose: Diagnose, far: str) -> None:
    states = (lab.small, lab.unanswered)
    with sending(engine, image, far, lab.Silent(), lab.SMALL, *states) as container:
        finding = diagnose(container)[CASE]
    assert finding["verdict"] == "clear"
    assert "lost on the way" in finding["summary"]
