"""A program that asks a machine behind its node again and again, over ways that differ."""

import os
import re
import signal
import socket
import time
from collections.abc import Callable

from whybox.kernel.host import Host
from whybox.kernel.netns import call_in
from whybox.kernel.task import status
from whybox.lab import middle, packetfilter
from whybox.lab.box import Box, BoxError
from whybox.lab.lab import Lab, Scenario
from whybox.lab.middle import ADDRESS
from whybox.lab.network import Network, Wires
from whybox.lab.process import Program
from whybox.model import Finding

PORT = 5300
RULES = 20_000
#: A packet of an asking program stands so long at 200 kbit/s: 5000 bytes pass at once.
SLOW_BITS, SLOW_BYTES = 200_000, 100_000
EVERY_SECONDS = 0.02
#: So many answers, and the wire is one that is used.
ENOUGH = 25
PATIENCE_SECONDS = 30.0


def answering(after_s: float = 0.0) -> Program:
    """Answers every datagram, at once or after a while."""

    def program() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
            end.bind(("0.0.0.0", PORT))
            while True:
                data, peer = end.recvfrom(2000)
                time.sleep(after_s)
                end.sendto(data, peer)

    return program


def asking(size: int = 64, *, busy: bool = False) -> Program:
    """Sends a datagram, waits for the answer, and so on; ``busy`` keeps a CPU besides."""

    def program() -> None:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        end.settimeout(0.5)
        while True:
            try:
                end.sendto(bytes(size), (ADDRESS, PORT))
                end.recv(2000)
            except OSError:
                pass
            until = time.monotonic() + EVERY_SECONDS
            while busy and time.monotonic() < until:
                pass
            time.sleep(0 if busy else EVERY_SECONDS)

    return program


def over(
    prepare: Callable[[Box, str], None] = lambda box, node: None,
    *,
    program: Program | None = None,
    answer: Program | None = None,
    cores: float | None = None,
) -> Scenario:
    """The box asks over a node that was prepared."""

    def scenario(box: Box) -> None:
        box.network()
        if cores is not None:
            box.cpu(cores=cores)
        box.start(program or asking())
        prepare(box, f"/proc/{status(Host(), box.pid).ppid}/ns/net")
        middle.between(box, answer or answering())
        _answered(box)

    return scenario


def _answered(box: Box) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while _received(box) < ENOUGH:
        if time.monotonic() > deadline:
            raise BoxError("nobody answers")
        time.sleep(0.02)


def _received(box: Box) -> int:
    with open(f"/proc/{box.pid}/net/snmp", encoding="ascii") as file:
        rows = [line.split() for line in file if line.startswith("Udp:")]
    return int(rows[1][rows[0].index("InDatagrams")])


def with_rules(box: Box, node: str) -> None:
    """Many rules that every packet passes."""
    packetfilter.many(node, RULES)


def slow_queue(interface: str, *, in_box: bool) -> Callable[[Box, str], None]:
    """A token bucket that the program's packets fill."""

    def prepare(box: Box, node: str) -> None:
        def add() -> None:
            with Wires() as wires:
                wires.add_queue(interface, bits_per_second=SLOW_BITS, bytes=SLOW_BYTES)

        call_in(f"/proc/{box.pid}/ns/net" if in_box else node, add)

    return prepare


def numbers(finding: Finding) -> str | None:
    """Rules cost in forwarding and queues in queueing, and each more than the rest together."""
    said = re.search(r"costs (\S+) (\S+) a round trip .* for (\S+) (\S+)\.$", finding.summary)
    if said is None:
        return f"no numbers in {finding.summary!r}"
    scale = {"µs": 1.0, "ms": 1000.0}
    cost, worst = (float(said[n]) * scale[said[n + 1]] for n in (1, 3))
    if worst < 0.4 * cost:
        return f"{worst} µs of {cost} µs is not the cause"
    wired = Network()
    places = ("filtered and forwarded", wired.interface, wired.peer)
    return None if any(p in finding.summary for p in places) else "it does not say where"


LAB = Lab(
    healthy=over(),
    reproduce=over(slow_queue("veth0", in_box=False), program=asking(1400)),
    cured=over(),
    look_alikes={
        "the other side takes its time": over(answer=answering(0.02)),
        "it has too little CPU": over(program=asking(busy=True), cores=0.2),
        "some rules": over(lambda box, node: packetfilter.many(node, 50)),
    },
    variants={
        "many rules": over(with_rules),
        "a queue at its own end": over(slow_queue("eth0", in_box=True), program=asking(1400)),
    },
    numbers=numbers,
)
