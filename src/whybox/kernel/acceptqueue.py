"""The accept queues of a network namespace: who listens, how many wait, how many were turned away.

A connection that is complete waits in its listener's accept queue until the program accepts it.
Where that is full (``sk_acceptq_is_full()``: more wait than may) the kernel drops what comes, and
counts TcpExt ``ListenOverflows``; ``ListenDrops`` counts every request that is dropped at a
listener, for whatever reason (net/ipv4/tcp_input.c ``tcp_conn_request()``, tcp_ipv4.c
``tcp_v4_syn_recv_sock()``).
"""

import hashlib
from contextlib import suppress

from msgspec import Struct, structs

from whybox.kernel import netlink
from whybox.kernel.host import Host, ParseError
from whybox.kernel.netns import call_in
from whybox.kernel.netpath import own_counters, place
from whybox.kernel.target import Target
from whybox.kernel.tcpdetail import Detailed, detailed, unclaimed

#: So many full queues are looked into, and an answer of so many bytes is taken.
MOST_FULL, MOST_BYTES = 8, 8 << 20

#: So much of the room is as good as all of it.
NEARLY = 0.9

_COUNTED = {
    "overflows": "ListenOverflows",
    "drops": "ListenDrops",
    "cookies": "TCPReqQFullDoCookies",
    "refused": "TCPReqQFullDrop",
}


class Queue(Struct, frozen=True, kw_only=True):
    """One listener and its accept queue."""

    address: str
    port: int
    inode: int | None
    uid: int
    waiting: int
    room: int
    """The smaller of what the program asked for and ``somaxconn``, when it began to listen; one
    more than this gets in."""
    drops: int | None
    """Requests dropped at it since it began to listen, for whatever reason."""
    who: str | None = None
    """A mark of who waits in it: the same as long as nobody came or was accepted. Of a full one."""

    @property
    def full(self) -> bool:
        """Whether the next connection is dropped."""
        return self.waiting > self.room

    @property
    def crammed(self) -> bool:
        """As good as full: a program that accepts too slowly takes one now and then."""
        return self.waiting >= max(1, NEARLY * self.room)


class Counts(Struct, frozen=True, kw_only=True):
    """Of the whole namespace, since it was made."""

    overflows: int
    drops: int
    cookies: int
    """The queue of half-open connections was full, and a cookie was answered instead."""
    refused: int
    """The same without cookies: the request was dropped."""
    opened: int
    """Connections that came into accept queues (Tcp ``PassiveOpens``)."""


class Look(Struct, frozen=True, kw_only=True):
    """The accept queues of a namespace at one moment."""

    queues: tuple[Queue, ...]
    counts: Counts
    somaxconn: int | None
    resets: bool | None
    """``tcp_abort_on_overflow``: who finds the queue full is told so."""


def look(host: Host, target: Target) -> Look:
    """The listeners of its network namespace; raises OSError where they cannot be seen."""
    if not host.live:
        raise OSError("a tree of files has no network namespace to look into")
    name, inode = place(target), target.namespaces.get("net")
    try:
        # The containers of a pod, and all that use the host's network, share one.
        return host.remembered(f"accept queues {inode or name}", lambda: call_in(name, _look))
    except PermissionError as error:
        raise OSError("its network namespace may not be entered: run as root") from error


def _look() -> Look:
    """Runs in the namespace."""
    with netlink.Socket(netlink.NETLINK_SOCK_DIAG, limit_bytes=MOST_BYTES) as sock:
        queues = [_queue(one) for one in detailed(sock, ("listen",))]
        looked = [one for one in queues if one.full][:MOST_FULL]
        queues = [structs.replace(q, who=_who(sock, q.port)) if q in looked else q for q in queues]
    return Look(
        queues=tuple(queues),
        counts=_counts(),
        somaxconn=_number("net/core/somaxconn"),
        resets=None if (said := _number("net/ipv4/tcp_abort_on_overflow")) is None else said > 0,
    )


def _queue(one: Detailed) -> Queue:
    return Queue(
        address=one.socket.local_address,
        port=one.socket.local_port,
        inode=one.socket.inode,
        uid=one.socket.uid,
        waiting=one.socket.rqueue,
        room=one.socket.wqueue,
        drops=None if one.memory is None else one.memory.drops,
    )


def _who(sock: netlink.Socket, port: int) -> str | None:
    with suppress(OSError):  # too many to be told apart
        waiting = sorted(unclaimed(sock, port))
        return hashlib.blake2b(b"".join(waiting), digest_size=8).hexdigest()
    return None


def _counts() -> Counts:
    found = own_counters("netstat", "snmp")
    if "TcpExt.ListenOverflows" not in found:
        raise ParseError("/proc/net/netstat", "no TcpExt ListenOverflows")
    told = {field: found.get(f"TcpExt.{name}", 0) for field, name in _COUNTED.items()}
    return Counts(**told, opened=found.get("Tcp.PassiveOpens", 0))


def _number(name: str) -> int | None:
    # Opened by a thread that is in the namespace, /proc/sys/net is that namespace's.
    with suppress(OSError, ValueError), open(f"/proc/sys/{name}", encoding="ascii") as file:
        return int(file.read(64))
    return None
