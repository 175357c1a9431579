"""TCP sockets of a network namespace, as ``ss`` sees them (include/uapi/linux/inet_diag.h).

To a stranger a listener on 127.0.0.1 and no listener at all look alike; only this list tells them
apart. For a listener the fields that otherwise hold bytes are ``sk_ack_backlog`` (rqueue) and
``sk_max_ack_backlog`` (wqueue).
"""

import socket
import struct
from collections.abc import Iterable, Iterator, Mapping

from msgspec import Struct

from whybox.kernel import netlink
from whybox.kernel.netlink import FAMILIES, Family, Message

SOCK_DIAG_BY_FAMILY = 20
INET_DIAG_INFO, INET_DIAG_SKMEMINFO, INET_DIAG_SKV6ONLY = 2, 7, 11

#: include/net/tcp_states.h
TCP_STATES = {
    1: "established",
    2: "syn_sent",
    3: "syn_recv",
    4: "fin_wait1",
    5: "fin_wait2",
    6: "time_wait",
    7: "close",
    8: "close_wait",
    9: "last_ack",
    10: "listen",
    11: "closing",
    12: "new_syn_recv",
}
_NUMBERS = {name: number for number, name in TCP_STATES.items()}

# inet_diag_req_v2: family, protocol, extensions, states, and an inet_diag_sockid that says "any"
_REQUEST = struct.Struct("=BBBxI48x")
# inet_diag_msg: family, state, ports and addresses (network order), interface, cookie, ..., rqueue,
# wqueue, uid, inode
MESSAGE = struct.Struct("=BBxx2s2s16s16sI8s4xIIII")
#: Of it, for who need not understand all: ports, addresses and interface; some numbers.
ENDS, WQUEUE, INODE = slice(4, 44), slice(60, 64), slice(68, 72)


class TcpSocket(Struct, frozen=True, kw_only=True):
    """One TCP socket."""

    cookie: str
    """What the kernel calls the socket, in hexadecimal; never given twice."""
    family: Family
    state: str
    local_address: str
    local_port: int
    remote_address: str
    remote_port: int
    ifindex: int | None
    """The interface that the socket is bound to."""
    uid: int
    inode: int | None
    """None where no descriptor belongs to it: in time_wait, or before accept()."""
    rqueue: int
    """Bytes not yet read; of a listener: connections not yet accepted."""
    wqueue: int
    """Bytes not yet acknowledged; of a listener: how many connections may wait."""
    v6only: bool | None


class Listener(Struct, frozen=True, kw_only=True):
    """A TCP socket that accepts connections."""

    family: Family
    address: str
    port: int
    ifindex: int | None
    uid: int
    inode: int | None
    ack_backlog: int
    """Connections that wait to be accepted."""
    max_ack_backlog: int
    """The queue is full when more than this many wait: one more than asked for gets in."""
    v6only: bool | None
    """False: an IPv6 socket that takes IPv4 too. None: an IPv4 socket."""


def parse_tcp_socket(payload: bytes) -> TcpSocket | None:
    """One ``inet_diag_msg``; None for a family that is neither IPv4 nor IPv6."""
    found = with_attributes(payload)
    return None if found is None else found[0]


def with_attributes(payload: bytes) -> tuple[TcpSocket, Mapping[int, bytes]] | None:
    """The same, with what else was asked for."""
    if len(payload) < MESSAGE.size:
        raise netlink.malformed(f"inet_diag_msg of {len(payload)} bytes")
    number, state, sport, dport, source, destination, *rest = MESSAGE.unpack_from(payload)
    ifindex, cookie, rqueue, wqueue, uid, inode = rest
    family = FAMILIES.get(number)
    if family is None:
        return None
    width = 4 if family == "inet" else 16
    more = netlink.attributes(payload, MESSAGE.size)
    v6only = more.get(INET_DIAG_SKV6ONLY)
    found = TcpSocket(
        cookie=cookie.hex(),
        family=family,
        state=TCP_STATES.get(state, str(state)),
        local_address=netlink.ip_address(source[:width]),
        local_port=int.from_bytes(sport, "big"),
        remote_address=netlink.ip_address(destination[:width]),
        remote_port=int.from_bytes(dport, "big"),
        ifindex=ifindex or None,
        uid=uid,
        inode=inode or None,
        rqueue=rqueue,
        wqueue=wqueue,
        v6only=None if v6only is None else bool(netlink.unsigned(v6only)),
    )
    return found, more


def answers(
    sock: netlink.Socket, states: Iterable[str], more: Iterable[int] = (), filter: bytes = b""
) -> Iterator[Message]:
    """An ``inet_diag_msg`` for each TCP socket, IPv4 then IPv6, in one of ``states`` (words of
    TCP_STATES); with what else is asked for (``INET_DIAG_INFO``, …) as attributes.
    """
    mask = sum(1 << _NUMBERS[state] for state in set(states))
    extensions = sum(1 << (each - 1) for each in more)
    for family, name in FAMILIES.items():
        payload = _REQUEST.pack(family, socket.IPPROTO_TCP, extensions, mask) + filter
        yield from sock.dump(SOCK_DIAG_BY_FAMILY, payload, f"SOCK_DIAG_BY_FAMILY {name} tcp")


def tcp_sockets(sock: netlink.Socket, states: Iterable[str]) -> tuple[TcpSocket, ...]:
    """The TCP sockets, IPv4 then IPv6, that are in one of ``states``."""
    parsed = (parse_tcp_socket(message.payload) for message in answers(sock, states))
    return tuple(each for each in parsed if each is not None)


def listeners(sock: netlink.Socket) -> tuple[Listener, ...]:
    """Who accepts TCP connections in the socket's namespace."""
    return tuple(
        Listener(
            family=each.family,
            address=each.local_address,
            port=each.local_port,
            ifindex=each.ifindex,
            uid=each.uid,
            inode=each.inode,
            ack_backlog=each.rqueue,
            max_ack_backlog=each.wqueue,
            v6only=each.v6only,
        )
        for each in tcp_sockets(sock, ("listen",))
    )
