"""``whybox trace packets``: connections that send something again, or are reset."""

import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.live.flows import (
    GATEWAY,
    INSIDE,
    MANY,
    PORT,
    REMOTE,
    boxed,
    counted,
    inside,
    node,
    run,
    symbols,
    until,
)
from tests.live.tracing import PATIENCE_SECONDS, asked
from whybox.kernel.netns import call_in
from whybox.lab.box import Box
from whybox.trace.packets import Again, Broken


@pytest.fixture(autouse=True)
def _symbols(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whybox.kernel.dropsites.KernelSymbols", symbols)


def test_31_connections_to_a_closed_port_are_31_drops_and_31_resets() -> None:
    def connecting() -> None:
        for _ in range(MANY):
            with socket.socket() as sock:
                assert sock.connect_ex((REMOTE, PORT)) != 0

    with boxed() as box:
        with asked("packets", box.target()) as trace:
            call_in(inside(box), connecting, PATIENCE_SECONDS)
        answer = trace.answer
        (drop,) = answer.drops
        assert drop.packets == MANY
        assert (drop.protocol, drop.hop.stage) == ("TCP", "elsewhere")
        assert drop.function == "tcp_v4_rcv"
        assert "nobody listens" in drop.means
        assert sum(one.count for one in answer.resets if not one.sent) == MANY
        assert not any(one.sent for one in answer.resets)
        assert all(one.remote == f"{REMOTE}:{PORT}" for one in answer.resets)
        assert len(trace.of(Broken)) == MANY


class Talk:
    """A connection from the box to its node, over which the box sends and the node reads."""

    def __init__(self, box: Box) -> None:
        self.box = box
        self.server = call_in(node(box), lambda: socket.create_server((GATEWAY, PORT)))
        self.client = call_in(
            inside(box), lambda: socket.create_connection((GATEWAY, PORT)), PATIENCE_SECONDS
        )
        self.peer, _ = self.server.accept()
        self.got = 0
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def send(self, size: int) -> None:
        self.client.sendall(b"x" * size)

    def close(self) -> None:
        for one in (self.client, self.server):
            one.close()
        self._reader.join(PATIENCE_SECONDS)
        self.peer.close()

    def _read(self) -> None:
        while part := self.peer.recv(1 << 16):
            self.got += len(part)


@contextmanager
def talking(box: Box) -> Iterator[Talk]:
    talk = Talk(box)
    try:
        yield talk
    finally:
        talk.close()


def test_segments_that_are_sent_again_are_counted_as_the_kernel_counts() -> None:
    """A firewall swallows what the box sends, until it was sent again four times."""
    rule = ("INPUT", "-p", "tcp", "--dport", str(PORT), "-j", "DROP")
    with boxed() as box, talking(box) as talk:
        before = counted(box, "Tcp.RetransSegs")
        with asked("packets", box.target()) as trace:
            run(node(box), "iptables", "-A", *rule)
            talk.send(100)
            until(lambda: counted(box, "Tcp.RetransSegs") - before >= 4, "it is sent again")
            run(node(box), "iptables", "-D", *rule)
            until(lambda: talk.got == 100, "it arrived at last")
        again = counted(box, "Tcp.RetransSegs") - before
        (one,) = trace.answer.connections
        assert one.retransmitted == again
        assert one.retransmits == again, (trace.programs.missed, trace.answer, trace.happened)
        assert (one.local, one.remote, one.remote_port) == (INSIDE, GATEWAY, PORT)
        assert one.local_port == talk.client.getsockname()[1]
        assert one.state == "established"
        assert one.in_a_row >= 2
        (drop,) = trace.answer.drops
        assert again <= drop.packets <= again + 1
        assert (drop.hop.stage, drop.protocol) == ("bridge", "TCP")
        assert [e.remote for e in trace.of(Again)] == [f"{GATEWAY}:{PORT}"] * again


def test_a_connection_that_ended_meanwhile_is_told_with_its_port() -> None:
    rule = ("INPUT", "-p", "tcp", "--dport", str(PORT), "-j", "DROP")
    with boxed() as box, asked("packets", box.target()) as trace:
        with talking(box) as talk:
            port = talk.client.getsockname()[1]
            run(node(box), "iptables", "-A", *rule)
            talk.send(100)
            until(lambda: counted(box, "Tcp.RetransSegs") >= 1, "it is sent again")
            run(node(box), "iptables", "-D", *rule)
            until(lambda: talk.got == 100, "it arrived at last")
        until(lambda: port_is_free(box, port), "the connection ended")
    (one,) = trace.answer.connections
    assert (one.local_port, one.remote_port) == (port, PORT)
    assert one.retransmitted >= 1


def port_is_free(box: Box, port: int) -> bool:
    """Nothing but a TIME_WAIT (06) has the port."""
    lines = Path(f"/proc/{box.pid}/net/tcp").read_text().splitlines()[1:]
    return all(f":{port:04X} " not in line or line.split()[3] == "06" for line in lines)


def netem(box: Box, *words: str) -> None:
    tc = ["nsenter", f"--net={inside(box)}", "tc", "qdisc", "add", "dev", "eth0", "root", "netem"]
    done = subprocess.run([*tc, *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"this kernel has no netem: {done.stderr.strip()}")
    run(inside(box), "ip", "link", "set", "eth0", "gso_max_segs", "1")


@pytest.mark.parametrize(
    ("words", "size", "verdicts"),
    [
        # Where timers fire late some are sent again that were only late: that is told too.
        (("loss", "3%"), 3_000_000, ("lost", "mixed")),
        (("delay", "5ms", "reorder", "75%"), 3_000_000, ("reordered",)),
    ],
    ids=["loss", "reordering"],
)
def test_loss_and_reordering_are_told_apart(
    words: tuple[str, ...], size: int, verdicts: tuple[str, ...]
) -> None:
    with boxed() as box, talking(box) as talk:
        netem(box, *words)
        before = counted(box, "Tcp.RetransSegs")
        with asked("packets", box.target()) as trace:
            talk.send(size)
            until(lambda: talk.got == size, "all arrived")
            time.sleep(0.1)
            again = counted(box, "Tcp.RetransSegs") - before
        found = [c for c in trace.answer.connections if c.local == INSIDE]
        assert len(found) == 1, (again, trace.answer, trace.end)
        assert found[0].retransmitted == again
        assert found[0].verdict in verdicts
        assert any("of all its TCP" in says for says in trace.answer.conclusions)
