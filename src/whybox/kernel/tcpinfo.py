"""What the kernel has counted of each TCP connection (struct tcp_info, include/uapi/linux/tcp.h).

Asked for by ``sock_diag``; the structure only ever grew at its end, so what an older kernel does
not tell is ``None``.
"""

import socket
import struct
from collections.abc import Iterable, Iterator

from msgspec import Struct

from whybox.kernel import netlink
from whybox.kernel.netlink import FAMILIES, Family
from whybox.kernel.sock_diag import SOCK_DIAG_BY_FAMILY

INET_DIAG_INFO = 2
#: All in which a connection can have data on the way: established to closing, without listeners.
_STATES = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11
#: So much of the kernel's table is read; a machine with more connections is judged by its counters.
LIMIT_BYTES = 16 << 20

_REQUEST = struct.Struct("=BBBxI48x")
_MESSAGE = struct.Struct("=BBxx2s2s16s16s4x8s4x4x4x4x4x")

# Where each is in struct tcp_info, all u32.
_AT = {
    "rtt_us": 68,
    "retransmitted": 100,
    "sent": 136,
    "received": 140,
    "min_rtt_us": 148,
    "duplicates": 216,
    "reordered": 220,
    "early": 224,
}
_WORD = struct.Struct("=I")


class Connection(Struct, frozen=True, kw_only=True):
    """One TCP connection, and its counters since it began."""

    cookie: str
    """What the kernel calls the socket, in hexadecimal; never given twice."""
    family: Family
    local: str
    local_port: int
    remote: str
    remote_port: int
    rtt_us: int | None = None
    """Smoothed (``tcpi_rtt``)."""
    retransmitted: int | None = None
    """Segments (``tcpi_total_retrans``)."""
    sent: int | None = None
    """Segments, retransmits among them (``tcpi_segs_out``)."""
    received: int | None = None
    """Segments (``tcpi_segs_in``)."""
    min_rtt_us: int | None = None
    """The least in the last minutes (``tcpi_min_rtt``)."""
    duplicates: int | None = None
    """Times the other side said it had a segment already (``tcpi_dsack_dups``, Linux 4.19)."""
    reordered: int | None = None
    """Times a segment was seen to be late and not lost (``tcpi_reord_seen``, Linux 4.19)."""
    early: int | None = None
    """Packets that came before an earlier one (``tcpi_rcv_ooopack``, Linux 5.4)."""


def connections(sock: netlink.Socket) -> Iterator[Connection]:
    """Those of the socket's namespace; raises OSError where there are more than can be read."""
    for family, name in FAMILIES.items():
        asked = f"SOCK_DIAG_BY_FAMILY {name} tcp, with its counters"
        payload = _REQUEST.pack(family, socket.IPPROTO_TCP, 1 << (INET_DIAG_INFO - 1), _STATES)
        for message in sock.dump(SOCK_DIAG_BY_FAMILY, payload, asked):
            found = parse(message.payload)
            if found is not None:
                yield found


def parse(payload: bytes) -> Connection | None:
    """One ``inet_diag_msg``; ``None`` for a family that is neither IPv4 nor IPv6."""
    if len(payload) < _MESSAGE.size:
        raise netlink.malformed(f"inet_diag_msg of {len(payload)} bytes")
    number, _, sport, dport, source, destination, cookie = _MESSAGE.unpack_from(payload)
    family = FAMILIES.get(number)
    if family is None:
        return None
    width = 4 if family == "inet" else 16
    info = netlink.attributes(payload, _MESSAGE.size).get(INET_DIAG_INFO, b"")
    return Connection(
        cookie=cookie.hex(),
        family=family,
        local=netlink.ip_address(source[:width]),
        local_port=int.from_bytes(sport, "big"),
        remote=netlink.ip_address(destination[:width]),
        remote_port=int.from_bytes(dport, "big"),
        **{name: _word(info, at) for name, at in _AT.items()},
    )


def _word(info: bytes, at: int) -> int | None:
    return _WORD.unpack_from(info, at)[0] if len(info) >= at + _WORD.size else None


def is_loopback(one: Connection) -> bool:
    """Whether it does not leave the namespace."""
    return one.local == one.remote or one.remote.startswith("127.") or one.remote == "::1"


def most(found: Iterable[Connection], limit: int) -> tuple[Connection, ...]:
    """Those that repeated or reordered most."""

    def weight(one: Connection) -> int:
        counts = (one.retransmitted, one.duplicates, one.reordered, one.early)
        return sum(count or 0 for count in counts)

    return tuple(sorted(found, key=weight, reverse=True)[:limit])
