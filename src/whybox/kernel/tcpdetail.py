"""TCP sockets with what their buffers hold, and what was dropped at them (sock_diag(7)).

``INET_DIAG_SKMEMINFO`` is what ``ss -m`` shows. Of a listener its last number counts every
connection request that was dropped at it (``tcp_listendrop()``, include/net/tcp.h), whatever for:
it tells whose queue it was, which the counters of the namespace do not.
"""

import struct
from collections.abc import Iterable, Iterator

from msgspec import Struct

from whybox.kernel import netlink
from whybox.kernel.netlink import attribute
from whybox.kernel.sock_diag import (
    ENDS,
    INET_DIAG_INFO,
    INET_DIAG_SKMEMINFO,
    INODE,
    MESSAGE,
    WQUEUE,
    TcpSocket,
    answers,
    with_attributes,
)

INET_DIAG_REQ_BYTECODE = 1
_S_GE, _S_LE = 2, 3

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
    sock: netlink.Socket, states: Iterable[str], *, info: bool = False, queued: bool = False
) -> Iterator[Detailed]:
    """The TCP sockets of the namespace that are in one of ``states``; with ``queued`` those alone
    whose send queue is not empty.
    """
    more = (INET_DIAG_SKMEMINFO, INET_DIAG_INFO) if info else (INET_DIAG_SKMEMINFO,)
    for message in answers(sock, states, more):
        if queued and not any(message.payload[WQUEUE]):
            continue  # most are idle, and to understand each takes time
        found = with_attributes(message.payload)
        if found is None:
            continue
        its, said = found
        yield Detailed(
            socket=its,
            memory=memory(said.get(INET_DIAG_SKMEMINFO, b"")),
            info=said.get(INET_DIAG_INFO, b""),
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
        message.payload[ENDS]
        for message in answers(sock, states, filter=_of_port(port))
        if len(message.payload) >= MESSAGE.size and not any(message.payload[INODE])
    )


def _of_port(port: int) -> bytes:
    """The filter "from this port to this port" (struct inet_diag_bc_op): 16 bytes of program, and
    a step past its end by 4 says no.
    """
    ops = ((_S_GE, 8, 20), (0, 0, port), (_S_LE, 8, 12), (0, 0, port))
    return attribute(INET_DIAG_REQ_BYTECODE, b"".join(_OP.pack(*op) for op in ops))
