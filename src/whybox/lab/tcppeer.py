"""A TCP peer that the lab plays itself, packet by packet, at an address that no kernel has.

What it acknowledges and what it lets go lost is up to the lab, and every kernel sees the same. It
sits on the remote machine behind a box's node, which knows nothing of its address and so does not
answer for it (packet(7), raw(7)).
"""

import random
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeAlias

from msgspec import Struct

from whybox.lab import outside
from whybox.lab.box import Box, Network
from whybox.lab.network import Wires

ADDRESS, PORT = "10.99.7.7", 7777
WINDOW_SCALE = 8
MOST_WINDOW = 0xFFFF << WINDOW_SCALE

FIN, SYN, RST, ACK = 1, 2, 4, 16
_IP, _TCP = struct.Struct("!BBHHHBBH4s4s"), struct.Struct("!HHIIBBHHH")
_ETH_P_IP = 0x0800


class Segment(Struct, frozen=True, kw_only=True):
    """One TCP segment that came; offsets count from the first byte of the connection."""

    flags: int
    start: int
    end: int


class Peer:
    """One connection, of which it is the passive end."""

    def __init__(self, wire: socket.socket) -> None:
        self._wire = wire
        self._theirs = self._mine = self._port = 0
        self._address = ""
        self.window = MOST_WINDOW
        """How many bytes more than was acknowledged it takes."""

    @property
    def connected(self) -> bool:
        """Whether somebody has come."""
        return self._port != 0

    def acknowledge(self, upto: int, sacked: tuple[tuple[int, int], ...] = ()) -> None:
        """Say what has come: everything before ``upto``, and these ranges behind it."""
        blocks = b"".join(
            struct.pack("!II", self._sequence(start), self._sequence(end)) for start, end in sacked
        )
        options = b"" if not blocks else struct.pack("!BBBB", 1, 1, 5, 2 + len(blocks)) + blocks
        self._send(ACK, self._mine + 1, self._sequence(upto), options)

    def segment(self, packet: bytes) -> Segment | None:
        """A packet, if it is of this connection; a SYN begins one, and is answered."""
        head = (packet[0] & 0xF) * 4
        if packet[9] != socket.IPPROTO_TCP or packet[16:20] != socket.inet_aton(ADDRESS):
            return None
        port, to, sequence, _, offset, flags, *_ = _TCP.unpack_from(packet, head)
        if to != PORT:
            return None
        length = len(packet) - head - (offset >> 4) * 4
        if flags & SYN:
            self._theirs, self._port = sequence + 1, port
            self._address = socket.inet_ntoa(packet[12:16])
            self._mine = random.getrandbits(31)
            mss_sack_scale = struct.pack("!BBHBBBBBB", 2, 4, 1460, 4, 2, 1, 3, 3, WINDOW_SCALE)
            self._send(SYN | ACK, self._mine, self._theirs & 0xFFFFFFFF, mss_sack_scale + b"\0")
            return None
        start = (sequence - self._theirs) & 0xFFFFFFFF
        return Segment(flags=flags, start=start, end=start + length)

    def _sequence(self, offset: int) -> int:
        return (self._theirs + offset) & 0xFFFFFFFF

    def _send(self, flags: int, sequence: int, acknowledged: int, options: bytes) -> None:
        options += bytes(-len(options) % 4)
        window = min(0xFFFF, self.window >> (0 if flags & SYN else WINDOW_SCALE))
        tcp = _TCP.pack(
            *(PORT, self._port, sequence & 0xFFFFFFFF, acknowledged),
            *(((_TCP.size + len(options)) // 4) << 4, flags, window, 0, 0),
        )
        packet = outside.with_ip(ADDRESS, self._address, tcp + options)
        self._wire.sendto(packet, (self._address, 0))


Came: TypeAlias = Callable[[Peer, Segment], None]
Tick: TypeAlias = Callable[[Peer], None]

#: So often ``tick`` is called.
TICK_SECONDS = 0.1


def play(box: Box, came: Came, tick: Tick = lambda _: None) -> None:
    """Play the peer behind the box's node until the box is closed."""
    remote = outside.remote(box)
    outside.opened(outside.node(box), _routed)
    stack = ExitStack()
    stack.enter_context(playing(remote, "eth0", came, tick))
    box.closing.callback(stack.close)


@contextmanager
def playing(place: str, interface: str, came: Came, tick: Tick) -> Iterator[None]:
    """Play it in a network namespace, where its packets come in: ``came`` for each segment,
    ``tick`` now and then.
    """
    wire, answers = outside.opened(place, lambda: _sockets(interface))
    done = threading.Event()
    thread = threading.Thread(
        target=_play, args=(Peer(answers), wire, done, came, tick), name="peer", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(10.0)
        wire.close()
        answers.close()


def _play(peer: Peer, wire: socket.socket, done: threading.Event, came: Came, tick: Tick) -> None:
    due = time.monotonic()
    while not done.is_set():
        ready, _, _ = select.select([wire], [], [], TICK_SECONDS)
        try:
            segment = peer.segment(wire.recv(1 << 17)) if ready else None
            if segment is not None:
                came(peer, segment)
            if time.monotonic() >= due and peer.connected:
                due = time.monotonic() + TICK_SECONDS
                tick(peer)
        except OSError:
            return  # the box is going


def _sockets(interface: str) -> tuple[socket.socket, socket.socket]:
    """Runs where the peer is, which must not forward what is for the peer."""
    with open("/proc/sys/net/ipv4/ip_forward", "w", encoding="ascii") as file:
        file.write("0")
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_IP))
    wire.bind((interface, _ETH_P_IP))
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    return wire, socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)


def _routed() -> None:
    """Runs on the node."""
    with Wires() as wires:
        wires.add_route("up0", Network().remote.partition("/")[0], f"{ADDRESS}/32")
