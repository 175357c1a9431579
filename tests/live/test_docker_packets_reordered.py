"""network/packets_reordered on real Docker containers behind a bridge."""

import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.live.engine import Container, Engine
from tests.live.test_docker_cases import Diagnose, diagnose, found
from whybox.lab import middle
from whybox.lab.middle import ADDRESS, Held, Manner, in_order, lossy
from whybox.lab.process import Program

__all__ = ["diagnose"]  # a fixture

pytestmark = pytest.mark.docker

CASE = "network/packets_reordered"
PORT = 5201
UPLOAD = f"while :; do dd if=/dev/zero bs=20k count=1; sleep 0.02; done | nc {ADDRESS} {PORT}"
DOWNLOAD = f"nc {ADDRESS} {PORT} > /dev/null"


def taking() -> None:
    with socket.create_server(("0.0.0.0", PORT)) as server:
        connection, _ = server.accept()
        while connection.recv(1 << 16):
            pass


def giving() -> None:
    """Small writes, each a segment."""
    with socket.create_server(("0.0.0.0", PORT)) as server:
        connection, _ = server.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            for _ in range(10):
                connection.sendall(bytes(1000))
            time.sleep(0.02)


@contextmanager
def behind(
    engine: Engine,
    image: str,
    program: Program,
    shell: str,
    *,
    out: Manner = in_order,
    back: Manner = in_order,
) -> Iterator[Container]:
    """A bridged container that speaks with a machine behind the one in the middle."""
    here = f"/proc/{os.getpid()}/task/{threading.get_native_id()}/ns/net"
    with middle.wired(here, program, out=out, back=back):
        started = engine.run(image, "sh", "-c", f"sleep 1; trap 'exit 0' TERM; {shell} & wait")
        # Each segment is a packet of its own, as on a wire.
        wire = ["ip", "link", "set", "dev", "eth0", "gso_max_segs", "1"]
        subprocess.run(["nsenter", "-t", str(started.pid), "-n", *wire], check=True)
        time.sleep(3)
        yield started
        engine.rm(started)


def test_an_upload_whose_segments_overtake_each_other_and_its_cure(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    with behind(engine, image, taking, UPLOAD, out=Held(7, 4)) as container:
        findings = diagnose(container)
        assert CASE in found(findings), findings[CASE]["summary"]
        finding = findings[CASE]
        assert finding["certainty"] == "confirmed"
        assert any(ADDRESS in evidence["says"] for evidence in finding["evidence"])
        cure = finding["cures"][0]
        assert cure["change"] == {"type": "InNetwork", "do": "keep each connection on one way"}
        assert cure["commands"] == []
    with behind(engine, image, taking, UPLOAD) as container:
        cured = diagnose(container)[CASE]
        assert cured["verdict"] == "clear", cured["summary"]


def test_a_download_whose_segments_overtake_each_other(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    with behind(engine, image, giving, DOWNLOAD, back=Held(7, 4)) as container:
        finding = diagnose(container)[CASE]
        assert (finding["verdict"], finding["certainty"]) == ("found", "confirmed")


@pytest.mark.parametrize("direction", ["out", "back"])
def test_loss_is_not_taken_for_it(
    engine: Engine, image: str, diagnose: Diagnose, direction: str
) -> None:
    lost = lossy(37)
    up = direction == "out"
    with behind(
        engine,
        image,
        taking if up else giving,
        UPLOAD if up else DOWNLOAD,
        out=lost if up else in_order,
        back=in_order if up else lost,
    ) as container:
        finding = diagnose(container)[CASE]
        assert finding["verdict"] == "clear", finding["summary"]
        assert "lost, not late" in finding["summary"]
