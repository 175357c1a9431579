r"""The segments of one TCP connection as they arrive, and in which order they were sent.

A receiver sees a hole and later what fills it: a segment that was late, or one that was lost and
sent again. The sender's own marks tell them apart. Linux numbers the packets of a connection as it
sends them, retransmits too (the IPv4 identification, ``ip_select_ident_segs()``), and stamps them
with a clock (TSval, RFC 7323, section 3.2): what was late has older marks than what overtook it,
what was sent again has newer ones, and what was doubled has the same.

>>> order([Arrival(1, 1, 7, 5), Arrival(2, 1, 8, 5), Arrival(4, 1, 10, 5), Arrival(3, 1, 9, 5)])
Order(seen=4, late=1, again=0, doubled=0, unmarked=0)
>>> order([Arrival(1, 1, 7, 5), Arrival(3, 1, 9, 5), Arrival(2, 1, 10, 6), Arrival(1, 1, 7, 5)])
Order(seen=4, late=0, again=1, doubled=1, unmarked=0)
"""

import ctypes
import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from typing import NamedTuple

from whybox.kernel.netns import call_in
from whybox.kernel.tcpinfo import Connection

#: include/uapi/linux/if_packet.h, asm-generic/socket.h
SOL_PACKET, PACKET_IGNORE_OUTGOING = 263, 23
SO_ATTACH_FILTER, SO_RCVBUFFORCE = 26, 33
ETHERTYPES = {"inet": 0x0800, "inet6": 0x86DD}

#: Beyond so much the kernel keeps no more: the first packets of the window are looked at.
BUFFER_BYTES = 512 << 10
MOST_KEPT = 2000
#: Of each the headers: IP, TCP and its options.
_HEAD_BYTES = 128

TCP_SYN, TCP_RST = 0x02, 0x04

# struct sock_filter and the classic BPF that is needed (include/uapi/linux/bpf_common.h).
_STATEMENT = struct.Struct("=HBBI")
_LDB, _LDH, _LDH_X, _LDX_MSH, _JEQ, _RET = 0x30, 0x28, 0x48, 0xB1, 0x15, 0x06


class Arrival(NamedTuple):
    """One segment with data."""

    sequence: int
    length: int
    id: int | None
    """The IPv4 identification; ``None``: IPv6."""
    stamp: int | None
    """TSval; ``None``: the connection has none."""


class Order(NamedTuple):
    """What became of some segments."""

    seen: int
    late: int
    """Came after a later one, and were sent before it."""
    again: int
    """Came after a later one, and were sent after it."""
    doubled: int
    """Came a second time, the very same."""
    unmarked: int
    """Came after a later one, and nothing tells when they were sent."""


def order(arrivals: Iterable[Arrival]) -> Order:
    """Compare each that comes behind with the foremost."""
    arrivals = tuple(arrivals)
    numbered, known = _numbered(arrivals), set[Arrival]()
    late = again = doubled = unmarked = 0
    foremost: Arrival | None = None
    for one in arrivals:
        if one in known:
            doubled += 1
        elif foremost is None or _before(foremost.sequence, one.sequence, 32):
            foremost = one
        elif (older := _is_older(one, foremost, numbered)) is None:
            unmarked += 1
        elif older:
            late += 1
        else:
            again += 1
        known.add(one)
    return Order(len(arrivals), late, again, doubled, unmarked)


def _numbered(arrivals: tuple[Arrival, ...]) -> bool:
    """Whether the sender counts its packets: some systems number at random, or with zeros."""
    steps = counted = 0
    for one, other in pairwise(arrivals):
        if one.id is None or other.id is None:
            return False
        # In order and without a gap, so one was sent just before the other.
        if (one.sequence + one.length) % (1 << 32) == other.sequence:
            steps += 1
            counted += 0 < (other.id - one.id) % (1 << 16) <= 64
    return steps > 0 and counted >= 0.9 * steps


def _is_older(one: Arrival, foremost: Arrival, numbered: bool) -> bool | None:
    if one.stamp is not None and foremost.stamp is not None and one.stamp != foremost.stamp:
        return _before(one.stamp, foremost.stamp, 32)
    if numbered and one.id is not None and foremost.id is not None and one.id != foremost.id:
        return _before(one.id, foremost.id, 16)
    return None


def _before(one: int, other: int, bits: int) -> bool:
    """Whether a number that wraps around is before another."""
    return 0 < (other - one) % (1 << bits) < 1 << (bits - 1)


@contextmanager
def watched(ns_path: str, connection: Connection) -> Iterator[Callable[[], tuple[Arrival, ...]]]:
    """Keep what arrives of a connection in the namespace; asked for what has come so far.

    Raises OSError where that is not allowed (CAP_NET_RAW in the namespace).
    """
    end = call_in(ns_path, lambda: _opened(connection))
    with end:
        yield lambda: tuple(_arrived(end, connection))


def _opened(connection: Connection) -> socket.socket:
    kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    # Of every interface; what comes before the filter is there is told apart by its ports.
    end = socket.socket(socket.AF_PACKET, kind, socket.htons(ETHERTYPES[connection.family]))
    try:
        _attach(end, _program(connection))
        end.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        with suppress(OSError):
            end.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
    except BaseException:
        end.close()
        raise
    return end


def _program(connection: Connection) -> tuple[bytes, ...]:
    """TCP, and from and to those ports; where the packet begins with its IP header."""
    ports = ((0, connection.remote_port), (2, connection.local_port))
    if connection.family == "inet6":
        checks = ((_LDB, 6, socket.IPPROTO_TCP), *((_LDH, 40 + at, port) for at, port in ports))
        begin: tuple[bytes, ...] = ()
    else:
        checks = ((_LDB, 9, socket.IPPROTO_TCP), *((_LDH_X, at, port) for at, port in ports))
        begin = (_STATEMENT.pack(_LDX_MSH, 0, 0, 0),)
    body: list[bytes] = []
    for number, (load, at, value) in enumerate(checks):
        left = 2 * (len(checks) - number - 1)
        body += [
            _STATEMENT.pack(load, 0, 0, at),
            # Equal: go on; else past the rest and the statement that keeps it.
            _STATEMENT.pack(_JEQ, 0, left + 1, value),
        ]
    return (*begin, *body, _STATEMENT.pack(_RET, 0, 0, _HEAD_BYTES), _STATEMENT.pack(_RET, 0, 0, 0))


def _attach(end: socket.socket, program: tuple[bytes, ...]) -> None:
    code = ctypes.create_string_buffer(b"".join(program))
    # struct sock_fprog: a length, and where the statements are.
    end.setsockopt(
        socket.SOL_SOCKET,
        SO_ATTACH_FILTER,
        struct.pack("@HP", len(program), ctypes.addressof(code)),
    )


def _arrived(end: socket.socket, connection: Connection) -> Iterator[Arrival]:
    for _ in range(MOST_KEPT):
        try:
            packet = end.recv(_HEAD_BYTES)
        except BlockingIOError:
            return
        if (found := parse(packet, connection)) is not None:
            yield found


def parse(packet: bytes, connection: Connection) -> Arrival | None:
    """The marks of a packet of the connection that carries data; ``None`` for any other."""
    inet = connection.family == "inet"
    if len(packet) < (20 if inet else 40):
        return None
    head = 4 * (packet[0] & 0xF) if inet else 40
    total = int.from_bytes(packet[2:4], "big") if inet else 40 + int.from_bytes(packet[4:6], "big")
    source = packet[12:16] if inet else packet[8:24]
    family = socket.AF_INET if inet else socket.AF_INET6
    segment = packet[head:]
    ports = connection.remote_port.to_bytes(2, "big") + connection.local_port.to_bytes(2, "big")
    if len(segment) < 20 or source != _packed(family, connection.remote) or segment[:4] != ports:
        return None
    offset = 4 * (segment[12] >> 4)
    # A packet that was put together from several (GRO, BIG TCP) may say it has no length.
    length = total - head - offset if total else 1
    if segment[13] & (TCP_SYN | TCP_RST) or length <= 0:
        return None
    return Arrival(
        sequence=int.from_bytes(segment[4:8], "big"),
        length=length,
        id=int.from_bytes(packet[4:6], "big") if inet else None,
        stamp=_stamp(segment[20:offset]),
    )


def _packed(family: int, address: str) -> bytes:
    return socket.inet_pton(family, address.removeprefix("::ffff:") if "." in address else address)


def _stamp(options: bytes) -> int | None:
    """TSval among the options (RFC 7323, section 3.2)."""
    at = 0
    while at < len(options) and options[at]:
        if options[at] == 1:
            at += 1
            continue
        length = options[at + 1] if at + 1 < len(options) else 0
        if options[at] == 8 and length == 10 and at + 6 <= len(options):
            return int.from_bytes(options[at + 2 : at + 6], "big")
        if length < 2:
            return None
        at += length
    return None
