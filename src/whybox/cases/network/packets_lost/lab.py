"""A sender whose interface was given a queue of 4 kB and 200 kbit/s, and that sends 2 Mbit/s."""

import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress

from whybox.kernel.netpath import counters
from whybox.lab import outside, workload
from whybox.lab.box import Box, Network
from whybox.lab.lab import Lab, Scenario
from whybox.lab.network import Wires
from whybox.lab.process import Program
from whybox.model import Finding

PORT, REMOTE, NOBODY = 7000, "10.99.1.2", "10.99.1.99"
BITS, ROOM_BYTES = 200_000, 4_000
SIZE, COUNT, EVERY_SECONDS = 1000, 25, 0.1
#: Of the host's end, where the container's has 1500.
SMALL_MTU = 1300
PATIENCE_SECONDS = 10.0


def sending(to: str, size: int = SIZE, count: int = COUNT, times: int | None = None) -> Program:
    """Sends so many datagrams again and again."""

    def program() -> None:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            left = times
            while left is None or left > 0:
                for _ in range(count):
                    with suppress(OSError):  # refused, or no room
                        sender.sendto(b"x" * size, (to, PORT))
                left = None if left is None else left - 1
                time.sleep(EVERY_SECONDS)
        while True:
            signal.pause()

    return program


def reading(reads: bool) -> Program:
    """Has a UDP port, and reads what comes there, or not."""

    def program() -> None:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taker:
            taker.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << (17 if reads else 13))
            taker.bind(("0.0.0.0", PORT))
            while True:
                if reads:
                    taker.recv(1 << 16)
                else:
                    signal.pause()

    return program


def until(condition: Callable[[], bool]) -> None:
    """Wait for a state, not for a time."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("what the lab waits for did not come")
        time.sleep(0.02)


def counted(pid: int, *names: str) -> int:
    """Counters of a process' network namespace, together."""
    with open(f"/proc/{pid}/net/snmp", encoding="ascii") as file:
        said = counters(file.read())
    return sum(said[name] for name in names)


def tried(box: Box) -> int:
    """How many datagrams its programs sent, or had no room for."""
    return counted(box.pid, "Udp.OutDatagrams", "Udp.SndbufErrors")


def inside(box: Box) -> str:
    """The network namespace of the box."""
    return f"/proc/{box.pid}/ns/net"


def shaped(place: str, interface: str, bits: int = BITS) -> None:
    """Give an interface a queue that is emptied slowly."""

    def add() -> None:
        with Wires() as wires:
            wires.add_queue(interface, bits_per_second=bits, bytes=ROOM_BYTES)

    outside.opened(place, add)


def taken(box: Box, place: str) -> None:
    """Somebody takes what is sent to the port there."""

    def bound() -> socket.socket:
        taker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        taker.bind(("0.0.0.0", PORT))
        return taker

    taker = outside.opened(place, bound)

    def take() -> None:
        with suppress(BlockingIOError):
            while True:
                taker.recv(1 << 16)

    outside.held(box, [taker])
    outside.repeated(box, take, 0.05)


def sends(program: Program, prepared: Callable[[Box], None] = lambda _: None) -> Scenario:
    """A box that sends to the remote machine, where somebody takes it."""

    def scenario(box: Box) -> None:
        box.network()
        box.start(workload.idle())
        prepared(box)
        taken(box, outside.remote(box))
        box.run(program)
        until(lambda: tried(box) >= COUNT)

    return scenario


def receives(program: Program, prepared: Callable[[Box], None] = lambda _: None) -> Scenario:
    """A box that is sent to from its node."""

    def scenario(box: Box) -> None:
        box.network()
        box.start(program)
        prepared(box)
        sent_to(box, outside.node(box), outside.address(box))
        until(lambda: counted(box.pid, "Udp.InDatagrams", "Udp.RcvbufErrors") > 0)

    return scenario


def sent_to(box: Box, place: str, to: str) -> None:
    """Somebody sends to the port there, again and again."""
    sender = outside.opened(place, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    outside.held(box, [sender])

    def send() -> None:
        for _ in range(COUNT):
            sender.sendto(b"x" * SIZE, (to, PORT))

    outside.repeated(box, send, EVERY_SECONDS)


def once_lost(box: Box) -> None:
    """Something was lost in the past, so that it is worth watching."""

    def overflow() -> None:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taker,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        ):
            taker.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            taker.bind(("127.0.0.1", 0))
            for _ in range(20):
                sender.sendto(b"x" * SIZE, taker.getsockname())

    outside.opened(inside(box), overflow)


def small_mtu(box: Box) -> None:
    """The host's end of the wire takes less than the box's."""

    def shrink() -> None:
        with Wires() as wires:
            wires.set_mtu(Network().peer, SMALL_MTU)

    outside.opened(outside.node(box), shrink)


def to_nobody(to: str) -> Scenario:
    """It sends to a port, or an address, that nobody has."""

    def scenario(box: Box) -> None:
        box.network()
        box.start(workload.idle())
        once_lost(box)
        before = tried(box)
        box.run(sending(to))
        until(lambda: tried(box) > before)

    return scenario


def in_the_past(box: Box) -> None:
    """The queue was full, and nothing is sent any more."""
    sends(sending(REMOTE, times=2), lambda box: shaped(inside(box), "eth0"))(box)
    until(lambda: tried(box) >= 2 * COUNT)
    time.sleep(2 * EVERY_SECONDS)


def others(box: Box) -> None:
    """Datagrams of the node get lost in a socket of the node; those of the box do not."""
    sends(sending(REMOTE), once_lost)(box)
    place = outside.node(box)

    def deaf() -> socket.socket:
        taker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        taker.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 13)
        taker.bind(("0.0.0.0", PORT))
        return taker

    outside.held(box, [outside.opened(place, deaf)])
    sent_to(box, place, "127.0.0.1")


def overflowing(box: Box) -> None:
    """Connections are turned away since an accept queue is full: those clients ask again."""
    box.network()
    box.start(workload.listen(port=PORT, backlog=1))
    once_lost(box)
    outside.keep_connecting(box, outside.node(box), PORT, count=5, every_s=0.3)


def numbers(finding: Finding) -> str | None:
    """The place of each."""
    known = (
        "queue (tbf) of eth0, its own interface",
        "queue (tbf) of veth0, the host's end of its wire",
        f"UDP port {PORT} of reading (pid ",
        f"its MTU is {SMALL_MTU}, and that of eth0 1500",
    )
    if not any(words in finding.summary for words in known):
        return f"none of the known places is in: {finding.summary}"
    return None


def narrow(box: Box) -> None:
    """Its own interface gets the slow queue."""
    shaped(inside(box), "eth0")


LAB = Lab(
    healthy=sends(sending(REMOTE)),
    reproduce=sends(sending(REMOTE), narrow),
    variants={
        "the host's end of its wire has a slow queue": receives(
            reading(reads=True), lambda box: shaped(outside.node(box), Network().peer)
        ),
        "the program does not read": receives(reading(reads=False)),
        "the host's end takes smaller packets": sends(sending(REMOTE, size=1400), small_mtu),
    },
    look_alikes={
        "a queue that is fast enough": sends(
            sending(REMOTE, count=2), lambda box: shaped(inside(box), "eth0", 100 * BITS)
        ),
        "it was lost in the past": in_the_past,
        "a closed port": to_nobody(REMOTE),
        "nobody has that address": to_nobody(NOBODY),
        "what others lose": others,
        "an accept queue that is full": overflowing,
    },
    numbers=numbers,
    # Before a queue drops, packets stand in it.
    also=("network/path_slow",),
    window_seconds=1.0,
)
