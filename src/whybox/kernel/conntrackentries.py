"""Tracked connections (include/uapi/linux/netfilter/nfnetlink_conntrack.h).

What a rule once translated goes on being translated by its entry, whatever becomes of the rule.
"""

import errno
import struct
from collections.abc import Mapping

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

CT_GET = 1 << 8 | 1
TUPLE_ORIGINAL, TUPLE_REPLY, STATUS, FILTER = 1, 2, 3, 25
TUPLE_IP, TUPLE_PROTOCOL = 1, 2
PROTOCOL_NUMBER, SOURCE_PORT, DESTINATION_PORT = 1, 2, 3
FILTER_ORIGINAL = 1
#: CTA_FILTER_FLAG: compare the protocol's number and the destination port.
FILTER_BITS = 1 << 3 | 1 << 5
SEEN_REPLY, SNAT, DNAT = 0x2, 0x10, 0x20
#: So much of a table is read where the kernel cannot pick out a port (before 5.8).
LIMIT_BYTES = 16 << 20


class Tuple(Struct, frozen=True, kw_only=True):
    """One direction of a connection."""

    source: str
    destination: str
    protocol: int
    sport: int
    dport: int


class Entry(Struct, frozen=True, kw_only=True):
    """One connection as it came, and as its answers look."""

    original: Tuple
    reply: Tuple
    answered: bool
    snat: bool
    dnat: bool


def parse(payload: bytes) -> Entry | None:
    """One IPCTNL_MSG_CT_NEW; ``None`` where it has no ports."""
    found = attributes(payload, NFGENMSG.size)
    original, reply = _tuple(found.get(TUPLE_ORIGINAL)), _tuple(found.get(TUPLE_REPLY))
    if original is None or reply is None:
        return None
    status = int.from_bytes(found.get(STATUS, b""), "big")
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
    source, destination = ip.get(1, ip.get(3)), ip.get(2, ip.get(4))
    if source is None or destination is None or SOURCE_PORT not in protocol:
        return None
    return Tuple(
        source=ip_address(source),
        destination=ip_address(destination),
        protocol=_number(protocol, PROTOCOL_NUMBER),
        sport=_number(protocol, SOURCE_PORT),
        dport=_number(protocol, DESTINATION_PORT),
    )


def _number(found: Mapping[int, bytes], kind: int) -> int:
    return int.from_bytes(found.get(kind, b""), "big")


def to_port(port: int, protocol: int, family: int = 2) -> tuple[Entry, ...]:
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
