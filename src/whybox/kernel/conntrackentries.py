"""Tracked connections (include/uapi/linux/netfilter/nfnetlink_conntrack.h).

What a rule once translated goes on being translated by its entry, whatever becomes of the rule.
"""

import errno
import socket
import struct
import time
from collections.abc import Iterable, Iterator, Mapping

from msgspec import Struct

from whybox.kernel import netlink
from whybox.kernel.netlink import (
    NETLINK_NETFILTER,
    NFGENMSG,
    attribute,
    attributes,
    ip_address,
    nested,
)

#: (NFNL_SUBSYS_CTNETLINK << 8) | IPCTNL_MSG_CT_GET
CT_GET = 1 << 8 | 1
TUPLE_ORIGINAL, TUPLE_REPLY, STATUS, FILTER = 1, 2, 3, 25
TUPLE_IP, TUPLE_PROTOCOL = 1, 2
V4_SOURCE, V4_DESTINATION, V6_SOURCE, V6_DESTINATION = 1, 2, 3, 4
PROTOCOL_NUMBER, SOURCE_PORT, DESTINATION_PORT = 1, 2, 3
FILTER_ORIGINAL = 1
#: CTA_FILTER_FLAG: compare the protocol's number and the destination port.
FILTER_BITS = 1 << 3 | 1 << 5
SEEN_REPLY, SNAT, DNAT = 0x2, 0x10, 0x20
#: So much of a table is read where the kernel cannot pick out a port (before 5.8).
LIMIT_BYTES = 16 << 20
#: Enough to tell who holds a table; the kernel lists it by hash, so the first are like the rest.
MOST_SAMPLED = 10_000
_MOST_SECONDS = 0.5


class Tuple(Struct, frozen=True, kw_only=True):
    """One direction of a connection."""

    source: str
    destination: str
    protocol: int
    sport: int | None
    """``None``: the protocol has no ports."""
    dport: int | None


class Opened(Struct, frozen=True, kw_only=True):
    """One connection as it came."""

    original: Tuple
    answered: bool


class Entry(Opened, frozen=True, kw_only=True):
    """The same, and how its answers look."""

    reply: Tuple
    snat: bool
    dnat: bool


def opened(payloads: Iterable[bytes]) -> Iterator[Opened]:
    """One of each IPCTNL_MSG_CT_NEW; what is neither IPv4 nor IPv6 is left out."""
    for payload in payloads:
        found = attributes(payload, NFGENMSG.size)
        original = _tuple(found.get(TUPLE_ORIGINAL))
        if original is not None:
            yield Opened(original=original, answered=bool(_number(found, STATUS) & SEEN_REPLY))


def parse(payload: bytes) -> Entry | None:
    """One IPCTNL_MSG_CT_NEW; ``None`` where it has no ports."""
    found = attributes(payload, NFGENMSG.size)
    original, reply = _tuple(found.get(TUPLE_ORIGINAL)), _tuple(found.get(TUPLE_REPLY))
    if original is None or original.sport is None or reply is None or reply.sport is None:
        return None
    status = _number(found, STATUS)
    return Entry(
        original=original,
        reply=reply,
        answered=bool(status & SEEN_REPLY),
        snat=bool(status & SNAT),
        dnat=bool(status & DNAT),
    )


def _tuple(value: bytes | None) -> Tuple | None:
    found = attributes(value or b"")
    ip, protocol = attributes(found.get(TUPLE_IP, b"")), attributes(found.get(TUPLE_PROTOCOL, b""))
    source = ip.get(V4_SOURCE) or ip.get(V6_SOURCE)
    destination = ip.get(V4_DESTINATION) or ip.get(V6_DESTINATION)
    if source is None or destination is None:
        return None
    return Tuple(
        source=ip_address(source),
        destination=ip_address(destination),
        protocol=_number(protocol, PROTOCOL_NUMBER),
        sport=_port(protocol.get(SOURCE_PORT)),
        dport=_port(protocol.get(DESTINATION_PORT)),
    )


def _number(found: Mapping[int, bytes], kind: int) -> int:
    return int.from_bytes(found.get(kind, b""), "big")


def _port(value: bytes | None) -> int | None:
    return None if value is None else int.from_bytes(value, "big")


def sample() -> list[Opened]:
    """The first connections of the namespace that the thread is in, as far as there is time.

    Needs CAP_NET_ADMIN over it.
    """
    found: list[Opened] = []
    deadline = time.monotonic() + _MOST_SECONDS
    # A socket of its own, closed in the midst of the answer: the table may be long.
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as sock:
        sock.settimeout(_MOST_SECONDS)
        body = NFGENMSG.pack(socket.AF_UNSPEC, 0, 0)
        sock.send(netlink.request(CT_GET, netlink.NLM_F_DUMP, 1, body))
        done = False
        while not done and len(found) < MOST_SAMPLED and time.monotonic() < deadline:
            part = netlink.portion(sock.recv(netlink.DATAGRAM_BYTES), 1, "CT_GET")
            found += opened(message.payload for message in part.messages)
            done = part.done
    return found


def to_port(port: int, protocol: int, family: int = socket.AF_INET) -> tuple[Entry, ...]:
    """The connections that were made to a port, of the namespace that the thread is in."""
    with netlink.Socket(NETLINK_NETFILTER, limit_bytes=LIMIT_BYTES) as sock:
        try:
            found = _dump(sock, family, _filter(port, protocol))
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
            found = _dump(sock, family, b"")
    parsed = (parse(message.payload) for message in found)
    return tuple(
        each
        for each in parsed
        if each is not None and (each.original.dport, each.original.protocol) == (port, protocol)
    )


def _dump(sock: netlink.Socket, family: int, body: bytes) -> list[netlink.Message]:
    return sock.dump(CT_GET, NFGENMSG.pack(family, 0, 0) + body, "IPCTNL_MSG_CT_GET")


def _filter(port: int, protocol: int) -> bytes:
    numbers = attribute(PROTOCOL_NUMBER, bytes([protocol]))
    numbers += attribute(DESTINATION_PORT, struct.pack(">H", port))
    wanted = nested(TUPLE_ORIGINAL, nested(TUPLE_PROTOCOL, numbers))
    return wanted + nested(FILTER, attribute(FILTER_ORIGINAL, struct.pack("=I", FILTER_BITS)))
