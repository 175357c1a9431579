"""What the kernel has counted of each TCP connection (struct tcp_info, include/uapi/linux/tcp.h).

Asked for by ``sock_diag``; the structure only ever grew at its end, so what an older kernel does
not tell is ``None``.
"""

import struct
from collections.abc import Iterable, Iterator

from msgspec import Struct

from whybox.kernel import netlink
from whybox.kernel.netlink import Family
from whybox.kernel.sock_diag import INET_DIAG_INFO, answers, with_attributes

#: All in which a connection can have data on the way: established to closing, without listeners.
STATES = ("established", "fin_wait1", "fin_wait2", "close_wait", "last_ack", "closing")
#: So much of the kernel's table is read; a machine with more connections is judged by its counters.
LIMIT_BYTES = 16 << 20

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
    """Of its socket, in hexadecimal; never given twice."""
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
    for message in answers(sock, STATES, (INET_DIAG_INFO,)):
        found = parse(message.payload)
        if found is not None:
            yield found


def parse(payload: bytes) -> Connection | None:
    """One ``inet_diag_msg``; ``None`` for a family that is neither IPv4 nor IPv6."""
    found = with_attributes(payload)
    if found is None:
        return None
    its, info = found[0], found[1].get(INET_DIAG_INFO, b"")
    return Connection(
        cookie=its.cookie,
        family=its.family,
        local=its.local_address,
        local_port=its.local_port,
        remote=its.remote_address,
        remote_port=its.remote_port,
        **{name: field(info, at) for name, at in _AT.items()},
    )


def field(info: bytes, at: int, layout: struct.Struct = _WORD) -> int | None:
    """A field of ``struct tcp_info``; ``None`` from a kernel whose structure ends before it."""
    return layout.unpack_from(info, at)[0] if len(info) >= at + layout.size else None


def is_loopback(one: Connection) -> bool:
    """Whether it does not leave the namespace."""
    return one.local == one.remote or one.remote.startswith("127.") or one.remote == "::1"


def most(found: Iterable[Connection], limit: int) -> tuple[Connection, ...]:
    """Those that repeated or reordered most."""

    def weight(one: Connection) -> int:
        counts = (one.retransmitted, one.duplicates, one.reordered, one.early)
        return sum(count or 0 for count in counts)

    return tuple(sorted(found, key=weight, reverse=True)[:limit])
