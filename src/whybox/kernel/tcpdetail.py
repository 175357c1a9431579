"""TCP sockets with what their buffers hold, and what was dropped at them (sock_diag(7)).

``INET_DIAG_SKMEMINFO`` is what ``ss -m`` shows. Of a listener its last number counts every
connection request that was dropped at it (``tcp_listendrop()``, include/net/tcp.h), whatever for:
it tells whose queue it was, which the counters of the namespace do not.
"""

import socket
import struct
from collections.abc import Iterator

from msgspec import Struct

from whybox.kernel import netlink
from whybox.kernel.netlink import FAMILIES, Message, attribute, attributes
from whybox.kernel.sock_diag import SOCK_DIAG_BY_FAMILY, TCP_STATES, TcpSocket, parse_tcp_socket

INET_DIAG_REQ_BYTECODE = 1
INET_DIAG_INFO, INET_DIAG_SKMEMINFO = 2, 7
_S_GE, _S_LE = 2, 3

_NUMBERS = {name: number for number, name in TCP_STATES.items()}
_REQUEST = struct.Struct("=BBBxI48x")
_MESSAGE_BYTES = 72
_ENDS = slice(4, 44)  # both ports, both addresses
_SEND_QUEUE = slice(60, 64)
_INODE = struct.Struct("=68xI")
_OP = struct.Struct("=BBH")
#: rmem_alloc, rcvbuf, wmem_alloc, sndbuf, fwd_alloc, wmem_queued, optmem, backlog, drops
#: (include/uapi/linux/sock_diag.h).
_MEMORY = struct.Struct("=9I")


class Memory(Struct, frozen=True, kw_only=True):
    """What the kernel holds for a socket, in bytes of memory, which is more than of data."""

    send_limit_bytes: int
    """SO_SNDBUF as the kernel counts it (``sk_sndbuf``)."""
    send_queued_bytes: int
    """``sk_wmem_queued``: sent and not acknowledged, or not sent yet."""
    receive_limit_bytes: int
    receive_bytes: int
    drops: int


class Detailed(Struct, frozen=True, kw_only=True):
    """One socket with what else was asked for."""

    socket: TcpSocket
    memory: Memory | None
    info: bytes
    """``struct tcp_info``; empty where it was not asked for."""


def detailed(
    sock: netlink.Socket, states: tuple[str, ...], *, info: bool = False, queued: bool = False
) -> Iterator[Detailed]:
    """The TCP sockets of the namespace that are in one of ``states``; with ``queued`` those alone
    whose send queue is not empty.
    """
    wanted = 1 << (INET_DIAG_SKMEMINFO - 1) | (1 << (INET_DIAG_INFO - 1) if info else 0)
    for message in _dump(sock, states, wanted):
        if queued and not any(message.payload[_SEND_QUEUE]):
            continue  # most are idle, and to understand each takes time
        parsed = parse_tcp_socket(message.payload)
        if parsed is None:
            continue
        found = attributes(message.payload, _MESSAGE_BYTES)
        yield Detailed(
            socket=parsed,
            memory=memory(found.get(INET_DIAG_SKMEMINFO, b"")),
            info=found.get(INET_DIAG_INFO, b""),
        )


def memory(raw: bytes) -> Memory | None:
    """``INET_DIAG_SKMEMINFO``; ``None`` from a kernel that does not tell as much.

    >>> memory(struct.pack("=9I", 0, 131072, 0, 16384, 0, 0, 0, 0, 3)).drops
    3
    """
    if len(raw) < _MEMORY.size:
        return None
    read, receive, _, send, _, queued, _, _, drops = _MEMORY.unpack_from(raw)
    return Memory(
        send_limit_bytes=send,
        send_queued_bytes=queued,
        receive_limit_bytes=receive,
        receive_bytes=read,
        drops=drops,
    )


def unclaimed(sock: netlink.Socket, port: int) -> frozenset[bytes]:
    """Connections to a local port that no descriptor belongs to: not yet accepted."""
    states = ("established", "close_wait")
    return frozenset(
        message.payload[_ENDS]
        for message in _dump(sock, states, 0, _of_port(port))
        if len(message.payload) >= _INODE.size and not _INODE.unpack_from(message.payload)[0]
    )


def _dump(
    sock: netlink.Socket, states: tuple[str, ...], wanted: int, filter: bytes = b""
) -> Iterator[Message]:
    mask = sum(1 << _NUMBERS[state] for state in set(states))
    for family, name in FAMILIES.items():
        asked = _REQUEST.pack(family, socket.IPPROTO_TCP, wanted, mask) + filter
        yield from sock.dump(SOCK_DIAG_BY_FAMILY, asked, f"SOCK_DIAG_BY_FAMILY {name} tcp")


def _of_port(port: int) -> bytes:
    """The filter "from this port to this port" (struct inet_diag_bc_op): 16 bytes of program, and
    a step past its end by 4 says no.
    """
    ops = ((_S_GE, 8, 20), (0, 0, port), (_S_LE, 8, 12), (0, 0, port))
    return attribute(INET_DIAG_REQ_BYTECODE, b"".join(_OP.pack(*op) for op in ops))
