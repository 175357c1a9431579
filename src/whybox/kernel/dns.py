r"""DNS over UDP as it passes an interface: questions, answers, and refusals by ICMP.

RFC 1035 (messages), RFC 792 and RFC 4443 (unreachable). Nothing here is trusted: a name is at most
255 bytes, and what is no letter in it is spelled out.

>>> message(query("Example.com", 7))
Message(id=7, response=False, rcode=0, records=0, name='example.com', qtype=1)
"""

import socket
import struct

from msgspec import Struct

PORT = 53
QTYPES = {1: "A", 2: "NS", 5: "CNAME", 6: "SOA", 12: "PTR", 15: "MX", 16: "TXT", 28: "AAAA",
          33: "SRV", 65: "HTTPS"}  # fmt: skip
#: RFC 1035 4.1.1 and the IANA registry.
RCODES = {0: "NOERROR", 1: "FORMERR", 2: "SERVFAIL", 3: "NXDOMAIN", 4: "NOTIMP", 5: "REFUSED"}
NOERROR, NXDOMAIN = 0, 3

_HEAD = struct.Struct("!HHHHHH")
_QUESTION = struct.Struct("!HH")
_UDP = struct.Struct("!HHHH")
_RESPONSE = 0x8000
_MOST_NAME = 255

_ICMP_UNREACHABLE, _ICMP6_UNREACHABLE = 3, 1
#: What the codes of "unreachable" mean, of IPv4 and IPv6.
CODES = {
    4: {0: "net unreachable", 1: "host unreachable", 3: "port unreachable",
        9: "prohibited", 10: "prohibited", 13: "prohibited"},
    6: {0: "no route", 1: "prohibited", 3: "host unreachable", 4: "port unreachable"},
}  # fmt: skip
PORT_UNREACHABLE = "port unreachable"


class Message(Struct, frozen=True):
    """The head of a message and its first question."""

    id: int
    response: bool
    rcode: int
    records: int
    """Answers in it; 0 with ``NOERROR``: the name exists and has none of this type."""
    name: str
    qtype: int


class Packet(Struct, frozen=True, kw_only=True):
    """One datagram, or an ICMP error about one."""

    source: str
    destination: str
    source_port: int
    destination_port: int
    message: Message | None
    """``None``: an ICMP error that does not repeat so much."""
    unreachable: str | None = None
    """Of an ICMP error, whose addresses and ports are then those of what it is about."""
    told_by: str | None = None
    """Who sent the ICMP error."""


def message(data: bytes) -> Message | None:
    """Parse a message; ``None``: it is none, or has not one question."""
    if len(data) < _HEAD.size:
        return None
    id, flags, questions, answers, _, _ = _HEAD.unpack_from(data)
    # The opcode is 0: a query as everybody makes it.
    if questions != 1 or flags >> 11 & 0xF:
        return None
    found = _name(data, _HEAD.size)
    if found is None or len(data) < found[1] + _QUESTION.size:
        return None
    name, at = found
    qtype, _ = _QUESTION.unpack_from(data, at)
    return Message(id, bool(flags & _RESPONSE), flags & 0xF, answers, name, qtype)


def _name(data: bytes, at: int) -> tuple[str, int] | None:
    labels: list[str] = []
    start = at
    while at < len(data) and at - start <= _MOST_NAME:
        length = data[at]
        if length == 0:
            return ".".join(labels) or ".", at + 1
        if length > 63 or at + 1 + length > len(data):
            return None  # the first question refers to nothing before it
        labels.append("".join(map(_letter, data[at + 1 : at + 1 + length])))
        at += 1 + length
    return None


def _letter(byte: int) -> str:
    letter = chr(byte).lower()
    return letter if letter.isascii() and (letter.isalnum() or letter in "-_") else f"\\{byte:03d}"


def is_name(text: str) -> bool:
    """Whether it can be asked for.

    >>> is_name("example.com."), is_name("a..b"), is_name("x" * 64), is_name("")
    (True, False, False, False)
    """
    labels = text.removesuffix(".").split(".")
    try:
        encoded = [_encoded(label) for label in labels]
    except UnicodeError:
        return False
    return all(0 < len(label) < 64 for label in encoded) and sum(map(len, encoded)) < 200


def _encoded(label: str) -> bytes:
    """As it is sent; Python's module for other letters is loaded only where there are any."""
    return label.encode("ascii" if label.isascii() else "idna")


def query(name: str, id: int, qtype: int = 1) -> bytes:
    """A question as a resolver asks it, recursion desired."""
    labels = [_encoded(label) for label in name.strip(".").split(".") if label]
    body = b"".join(bytes([len(label)]) + label for label in labels)
    head = _HEAD.pack(id, 0x0100, 1, 0, 0, 0)
    return head + body + b"\0" + _QUESTION.pack(qtype, 1)


def packet(data: bytes) -> Packet | None:
    """From the network header on; ``None``: it is nothing that concerns names."""
    if len(data) < 20:
        return None
    ip = _ipv4(data) if data[0] >> 4 == 4 else _ipv6(data) if data[0] >> 4 == 6 else None
    if ip is None:
        return None
    version, protocol, source, destination, body = ip
    if protocol == socket.IPPROTO_UDP:
        return _datagram(source, destination, body)
    if len(body) >= 8 and (
        (protocol, body[0])
        in (
            (socket.IPPROTO_ICMP, _ICMP_UNREACHABLE),
            (socket.IPPROTO_ICMPV6, _ICMP6_UNREACHABLE),
        )
    ):
        return _unreachable(version, source, body)
    return None


_Ip = tuple[int, int, str, str, bytes]


def _ipv4(data: bytes) -> _Ip | None:
    start = (data[0] & 0xF) * 4
    if start < 20 or int.from_bytes(data[6:8], "big") & 0x1FFF:
        return None  # not the first fragment
    source, destination = (socket.inet_ntop(socket.AF_INET, data[at : at + 4]) for at in (12, 16))
    return 4, data[9], source, destination, data[start:]


def _ipv6(data: bytes) -> _Ip | None:
    if len(data) < 40:
        return None
    source, destination = (socket.inet_ntop(socket.AF_INET6, data[a : a + 16]) for a in (8, 24))
    return 6, data[6], source, destination, data[40:]


def _datagram(source: str, destination: str, body: bytes) -> Packet | None:
    if len(body) < _UDP.size:
        return None
    source_port, destination_port, *_ = _UDP.unpack_from(body)
    return Packet(
        source=source,
        destination=destination,
        source_port=source_port,
        destination_port=destination_port,
        message=message(body[_UDP.size :]),
    )


def _unreachable(version: int, told_by: str, body: bytes) -> Packet | None:
    about = body[8:]
    if len(about) < 20:
        return None
    ip = _ipv4(about) if version == 4 else _ipv6(about)
    if ip is None or ip[1] != socket.IPPROTO_UDP:
        return None
    inner = _datagram(ip[2], ip[3], ip[4])
    if inner is None:
        return None
    return Packet(
        source=inner.source,
        destination=inner.destination,
        source_port=inner.source_port,
        destination_port=inner.destination_port,
        message=inner.message,
        unreachable=CODES[version].get(body[1], f"unreachable, code {body[1]}"),
        told_by=told_by,
    )
