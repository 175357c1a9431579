"""Two machines, one that sends batches of segments, and one between that changes their order."""

import os
import re
import signal
import socket
import time
from collections.abc import Callable

from whybox.kernel import netlink, tcpinfo
from whybox.kernel.netns import call_in
from whybox.lab import middle
from whybox.lab.box import Box, BoxError
from whybox.lab.lab import Lab, Scenario
from whybox.lab.middle import ADDRESS, Held, Manner, doubling, in_order, lossy, stalling
from whybox.lab.process import Program
from whybox.model import Finding

PORT = 5201
#: A batch is so many segments. One of so many is held until so many have overtaken it, or the batch
#: is over.
BATCH, SEGMENT_BYTES = 10, 1000
NTH, BEHIND = 7, 4
EVERY_SECONDS = 0.01
#: Once so many packets came to the box, whatever happens to them has happened.
ENOUGH = 60
PATIENCE_SECONDS = 30.0


def send(connection: socket.socket) -> None:
    """Batch after batch, each answered by one byte."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while True:
        began = time.monotonic()
        for _ in range(BATCH):
            connection.sendall(bytes(SEGMENT_BYTES))
        if not connection.recv(1):
            return
        # On a slow machine longer: nobody shall wait for a CPU.
        time.sleep(max(EVERY_SECONDS, 1.5 * (time.monotonic() - began)))


def receive(connection: socket.socket) -> None:
    """The other side."""
    missing = BATCH * SEGMENT_BYTES
    while data := connection.recv(missing):
        missing -= len(data)
        if not missing:
            connection.sendall(b".")
            missing = BATCH * SEGMENT_BYTES


def serving(sends: bool = False) -> Program:
    """The machine behind."""

    def program() -> None:
        with socket.create_server(("0.0.0.0", PORT)) as server:
            connection, _ = server.accept()
            send(connection) if sends else receive(connection)

    return program


def asking(sends: bool = True) -> Program:
    """The program in the box: it tries until the machine behind is there."""

    def program() -> None:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        while True:
            connection = socket.socket()
            connection.settimeout(0.5)
            try:
                connection.connect((ADDRESS, PORT))
                break
            except OSError:
                connection.close()
                time.sleep(0.05)
        connection.settimeout(None)
        (send if sends else receive)(connection)

    return program


def exchange(out: Manner = in_order, back: Manner = in_order, *, sends: bool = True) -> Scenario:
    """The box speaks with the machine behind the one in the middle."""

    def scenario(box: Box) -> None:
        box.network()
        box.start(asking(sends))
        middle.between(box, serving(not sends), out=out, back=back)
        _connected(box)

    return scenario


def fresh(
    out: Callable[[], Manner] = lambda: in_order,
    back: Callable[[], Manner] = lambda: in_order,
    *,
    sends: bool = True,
) -> Scenario:
    """The same with manners that count from the beginning each time."""
    return lambda box: exchange(out(), back(), sends=sends)(box)


def _connected(box: Box) -> None:
    """Wait until some batches went over."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not any(_is_going(one) for one in call_in(f"/proc/{box.pid}/ns/net", _all)):
        if time.monotonic() > deadline:
            raise BoxError("nothing goes over the wire")
        time.sleep(0.02)


def _all() -> tuple[tcpinfo.Connection, ...]:
    with netlink.Socket(netlink.NETLINK_SOCK_DIAG) as sock:
        return tuple(tcpinfo.connections(sock))


def _is_going(one: tcpinfo.Connection) -> bool:
    return one.remote_port == PORT and (one.received or 0) > ENOUGH


def held() -> Held:
    """Now and then a segment comes behind four others."""
    return Held(nth=NTH, behind=BEHIND)


def numbers(finding: Finding) -> str | None:
    """One in seven is held, and about six of ten such are not too near to the end of a batch."""
    said = re.search(r"(\d+) times in (\d+) segments", finding.summary)
    if said is None:
        looked = re.search(r"of (\d+) that were looked at (\d+) came after", finding.summary)
        if looked is None:
            return f"no numbers in {finding.summary!r}"
        sent, late = map(int, looked.groups())
    else:
        late, sent = map(int, said.groups())
    share = sent / late
    return None if 0.7 * NTH <= share <= NTH * 6 else f"one late segment in {share:.1f}"


LAB = Lab(
    healthy=exchange(),
    reproduce=fresh(out=held),
    cured=exchange(),
    look_alikes={
        "segments are lost": fresh(out=lambda: lossy(37)),
        "segments are lost on the way to it": fresh(back=lambda: lossy(37), sends=False),
        "segments arrive twice": fresh(out=lambda: doubling(5)),
        "segments arrive twice at it": fresh(back=lambda: doubling(5), sends=False),
        "the way stands still now and then": fresh(out=lambda: stalling(150, 0.5)),
    },
    variants={
        "on the way to it": fresh(back=held, sends=False),
        "some are lost besides": fresh(out=lambda: Held(NTH, BEHIND, lost=51)),
    },
    numbers=numbers,
)
