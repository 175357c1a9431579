"""What TCP connections of a network namespace have sent and not seen acknowledged, or not sent yet.

``ss -tinm`` shows the same: Send-Q, ``unacked``, ``w`` and ``tb`` of ``skmem``, and of ``struct
tcp_info`` (include/uapi/linux/tcp.h) what the peer acknowledged so far. Since that only grows, two
looks tell whether anything moved between them.
"""

import struct

from msgspec import Struct

from whybox.kernel import netlink
from whybox.kernel.host import Host, ParseError
from whybox.kernel.netns import call_in
from whybox.kernel.netpath import own_counters, place
from whybox.kernel.target import Target
from whybox.kernel.tcpdetail import Detailed, detailed
from whybox.kernel.tcpinfo import field

#: States in which something may still have to go out.
STATES = ("established", "close_wait", "fin_wait1", "closing", "last_ack")
MOST_BYTES = 32 << 20
MOST_KEPT = 5_000

_NAMES = {
    "too_big": "TcpExt.TCPWqueueTooBig",
    "timeouts": "TcpExt.TCPTimeouts",
    "pressures": "TcpExt.TCPMemoryPressures",
    "cuts_failed": "Ip.FragFails",
}
_HEAD = struct.Struct("=BBBBBxxxI12xIII32xI")
_ACKED, _PEER_WINDOW = 120, 228
_BYTES = struct.Struct("=Q")


class Sending(Struct, frozen=True, kw_only=True):
    """One connection that has something in its send queue."""

    local: str
    remote: str
    """With their ports."""
    inode: int | None
    queue_bytes: int
    """Send-Q: not acknowledged, or not sent yet."""
    unacked: int
    """Segments that are out."""
    sacked: int
    lost: int
    acked_bytes: int | None
    """Acknowledged since it began; ``None`` before Linux 4.1."""
    peer_window: int | None
    """How much the peer has room for; ``None``: this kernel does not tell (before 5.4)."""
    probes: int
    """Sent to a peer that had no room, without one that said it has."""
    timeouts: int
    """In a row, without an answer."""
    rto_usec: int
    rtt_usec: int
    memory_bytes: int
    """``w``: the memory that its queue takes."""
    limit_bytes: int
    """``tb``: SO_SNDBUF, as the kernel counts it."""

    @property
    def key(self) -> tuple[str, str, int | None]:
        """The same connection at another moment."""
        return self.local, self.remote, self.inode

    @property
    def closed_window(self) -> bool:
        """The peer has no room: its program does not read."""
        if self.peer_window is not None:
            return self.peer_window == 0
        return self.probes > 0

    @property
    def over(self) -> bool:
        """Its queue takes more than twice its limit: the kernel refuses to cut what is in it."""
        return self.memory_bytes > 2 * self.limit_bytes


class Counts(Struct, frozen=True, kw_only=True):
    """Of the whole namespace, since it was made."""

    too_big: int | None
    """A segment of a queue was not cut, for the queue is over its limit. ``None``: not counted."""
    timeouts: int
    pressures: int
    """How often TCP of the whole machine came under memory pressure."""
    cuts_failed: int
    """Packets larger than the next link takes, that may not be cut (``FragFails``)."""


class Look(Struct, frozen=True, kw_only=True):
    """The send queues of a namespace at one moment."""

    at_ns: int
    sending: tuple[Sending, ...]
    counts: Counts
    wmem: tuple[int, ...]
    """``net.ipv4.tcp_wmem``: least, default, most that the kernel lets a send queue take."""


def look(host: Host, target: Target) -> Look:
    """The send queues of its network namespace; raises OSError where they cannot be seen."""
    if not host.live:
        raise OSError("a tree of files has no network namespace to look into")
    name, inode = place(target), target.namespaces.get("net")
    now = host.monotonic_ns()
    try:
        # The containers of a pod, and all that use the host's network, share one.
        return host.remembered(
            f"send queues {inode or name}", lambda: call_in(name, lambda: _look(now))
        )
    except PermissionError as error:
        raise OSError("its network namespace may not be entered: run as root") from error


def _look(now: int) -> Look:
    """Runs in the namespace."""
    with netlink.Socket(netlink.NETLINK_SOCK_DIAG, limit_bytes=MOST_BYTES) as sock:
        found = detailed(sock, STATES, info=True, queued=True)
        queued = [one for each in found if (one := sending(each)) is not None]
    queued.sort(key=lambda one: -one.queue_bytes)
    return Look(at_ns=now, sending=tuple(queued[:MOST_KEPT]), counts=_counts(), wmem=_wmem())


def sending(one: Detailed) -> Sending | None:
    """A socket as a sender; ``None`` where the kernel tells too little of it."""
    if len(one.info) < _HEAD.size or one.memory is None:
        return None
    _, _, timeouts, probes, _, rto, unacked, sacked, lost, rtt = _HEAD.unpack_from(one.info)
    its = one.socket
    return Sending(
        local=f"{its.local_address}:{its.local_port}",
        remote=f"{its.remote_address}:{its.remote_port}",
        inode=its.inode,
        queue_bytes=its.wqueue,
        unacked=unacked,
        sacked=sacked,
        lost=lost,
        acked_bytes=field(one.info, _ACKED, _BYTES),
        peer_window=field(one.info, _PEER_WINDOW),
        probes=probes,
        timeouts=timeouts,
        rto_usec=rto,
        rtt_usec=rtt,
        memory_bytes=one.memory.send_queued_bytes,
        limit_bytes=one.memory.send_limit_bytes,
    )


def _counts() -> Counts:
    found = own_counters("netstat", "snmp")
    if _NAMES["timeouts"] not in found:
        raise ParseError("/proc/net/netstat", "no TcpExt TCPTimeouts")
    told = {field: found.get(name, 0) for field, name in _NAMES.items() if field != "too_big"}
    return Counts(too_big=found.get(_NAMES["too_big"]), **told)


def _wmem() -> tuple[int, ...]:
    with open("/proc/sys/net/ipv4/tcp_wmem", encoding="ascii") as file:
        return tuple(int(word) for word in file.read(256).split())
