"""What two looks at a container's way, and the sensor between them, say of packets that got lost.

Pure. A drop is no loss where the sender is told (a closed port), where nobody is there (routes,
neighbours: that is ``network/path_broken``), or where few of many are dropped.
"""

from collections.abc import Iterator
from enum import StrEnum

from msgspec import Struct

from whybox.kernel.netcounters import Shares
from whybox.kernel.pathloss import Drop, Hop, Look, Watched
from whybox.kernel.socketowner import Owners
from whybox.kernel.udpdrops import UdpSocket

#: Fewer are no trouble, however few were sent; nor is a smaller share.
LEAST, LEAST_SHARE = 10, 0.001
#: These drop on purpose, to tell senders to slow down.
SIGNALLING = frozenset(("fq_codel", "codel", "cake", "fq_pie", "pie", "red", "gred", "sfb"))
SIGNAL_SHARE = 0.02
#: From here on it is critical.
MUCH = 0.05
#: A rule, or a size: it drops each of its kind, so a few tell.
FEW = 5
#: So many segments sent again, and such a share of all, when no place on the way lost any.
AGAIN, AGAIN_SHARE = 50, 0.005


class Kind(StrEnum):
    """What lost them."""

    QUEUE = "queue"
    BACKLOG = "backlog"
    SOCKET = "socket"
    SIZE = "size"
    RULE = "rule"
    BROKEN = "broken"
    BEYOND = "beyond"


_BY_REASON = {
    **dict.fromkeys(("QDISC_DROP", "QDISC_OVERLIMIT", "QDISC_CONGESTED", "FULL_RING"), Kind.QUEUE),
    **dict.fromkeys(("FQ_BAND_LIMIT", "FQ_HORIZON_LIMIT", "FQ_FLOW_LIMIT"), Kind.QUEUE),
    "CPU_BACKLOG": Kind.BACKLOG,
    **dict.fromkeys(("SOCKET_RCVBUFF", "SOCKET_BACKLOG", "PROTO_MEM", "NOMEM"), Kind.SOCKET),
    "PKT_TOO_BIG": Kind.SIZE,
    **dict.fromkeys(
        (
            "NETFILTER_DROP", "XDP", "TC_INGRESS", "TC_EGRESS", "BPF_CGROUP_EGRESS",
            "SOCKET_FILTER", "IP_RPFILTER", "XFRM_POLICY", "SECURITY_HOOK",
        ),
        Kind.RULE,
    ),
    **dict.fromkeys(
        ("IP_CSUM", "TCP_CSUM", "UDP_CSUM", "ICMP_CSUM", "IP_INHDR", "FRAG_REASM_TIMEOUT"),
        Kind.BROKEN,
    ),
}  # fmt: skip

#: Where no reason is told, or one that says nothing.
_BY_FUNCTION = {
    **dict.fromkeys(("enqueue_to_backlog", "netif_rx_internal"), Kind.BACKLOG),
    **dict.fromkeys(
        ("__udp_queue_rcv_skb", "udp_queue_rcv_one_skb", "udpv6_queue_rcv_one_skb"), Kind.SOCKET
    ),
    **dict.fromkeys(("__dev_forward_skb", "__dev_forward_skb2"), Kind.SIZE),
    **dict.fromkeys(("nft_do_chain", "nf_hook_slow"), Kind.RULE),
    "br_handle_frame_finish": Kind.RULE,
}
_SILENT = ("NOT_SPECIFIED", None)

#: What ``conntrackdrops`` says of a full table; the case for that is another.
CONNTRACK = "the table of connection tracking is full"


class Lost(Struct, frozen=True, kw_only=True):
    """Both looks, and what was seen between them."""

    before: Look
    after: Look
    watched: Watched
    partly: str | None = None
    """What of the way could not be seen."""
    shared: bool = False
    """It uses the host's network."""
    max_backlog: int | None = None
    """``net.core.netdev_max_backlog``."""
    udp: tuple[UdpSocket, ...] = ()
    """UDP sockets that dropped something in the window, the worst first, with how much."""
    owners: Owners | None = None


class Loss(Struct, frozen=True, kw_only=True):
    """Packets that were lost at one place."""

    kind: Kind
    where: str
    packets: int
    share: float | None
    """Of those that came there."""
    why: str
    source: str
    says: str
    certain: bool
    hop: Hop | None = None
    drop: Drop | None = None


def kind(drop: Drop) -> Kind | None:
    """Which loss a drop is; ``None``: it is none."""
    if drop.means == CONNTRACK:
        return None
    if drop.reason not in _SILENT:
        return _BY_REASON.get(str(drop.reason))
    return _BY_FUNCTION.get(drop.function.partition(".")[0])


def losses(seen: Lost) -> tuple[Loss, ...]:
    """All of them: what the kernel said of this container first, then the most."""
    found = [*_queues(seen), *_sockets(seen), *_sizes(seen), *_backlog(seen)]
    found += _sensed(seen, {one.kind for one in found})
    if not found:
        found += _beyond(seen.before, seen.after)
    return tuple(sorted(found, key=lambda one: (not one.certain, -one.packets)))


def pairs(seen: Lost) -> Iterator[tuple[Hop, Hop]]:
    """The interfaces of the way at both ends."""
    known = {one.key: one for one in seen.before.hops}
    for one in seen.after.hops:
        if one.key in known:
            yield known[one.key], one


def grown(seen: Lost, name: str) -> int:
    """By how much a counter of its namespace grew."""
    return seen.after.counters.get(name, 0) - seen.before.counters.get(name, 0)


def passed(seen: Lost) -> int:
    """Packets that its own interfaces saw, both ways."""
    own = [pair for pair in pairs(seen) if pair[1].stage == "container"]
    return sum(new.received + new.sent - old.received - old.sent for old, new in own)


def _queues(seen: Lost) -> Iterator[Loss]:
    for old, new in pairs(seen):
        if old.queue is None or new.queue is None or not new.up:
            continue
        dropped = new.queue.drops - old.queue.drops
        share = _share(dropped, new.queue.sent - old.queue.sent)
        least = SIGNAL_SHARE if new.queue.kind in SIGNALLING else LEAST_SHARE
        if dropped < LEAST or share < least:
            continue
        own = new.stage in ("container", "wire")
        of_it = _of(seen, Kind.QUEUE, new)
        if not own and seen.watched.reason is None and not of_it:
            continue  # others' packets: the sensor was there, and saw none of its own
        yield Loss(
            kind=Kind.QUEUE,
            where=f"the queue ({new.queue.kind}) of {new.interface}, {_side(new)}",
            packets=dropped if own else of_it or dropped,
            share=share,
            why="the queue is full: more comes than may go out",
            source=f"tc -s qdisc show dev {new.interface} ({new.namespace})",
            says=f"{new.queue.kind} dropped +{dropped}, sent +{new.queue.sent - old.queue.sent}",
            certain=own or bool(of_it),
            hop=new,
        )


def _side(hop: Hop) -> str:
    words = {
        "container": "its own interface",
        "wire": "the host's end of its wire",
        "bridge": "the bridge",
    }
    return words.get(hop.stage, f"an interface of {hop.namespace}")


def _of(seen: Lost, wanted: Kind, hop: Hop | None = None) -> int:
    """How many of its packets the sensor saw dropped so."""
    drops = (one for one in seen.watched.drops if kind(one) is wanted)
    return sum(one.packets for one in drops if hop is None or one.interface == hop.interface)


def _sockets(seen: Lost) -> Iterator[Loss]:
    dropped = grown(seen, "Udp.RcvbufErrors") + grown(seen, "Udp6.UdpRcvbufErrors")
    share = _share(dropped, grown(seen, "Udp.InDatagrams") + grown(seen, "Udp6.UdpInDatagrams"))
    if dropped < LEAST or share < LEAST_SHARE:
        return
    worst = seen.udp[0] if seen.udp else None
    if worst is not None and _anothers(seen, worst):
        return  # another container of the same pod
    yield Loss(
        kind=Kind.SOCKET,
        where=f"the receive buffer of {_socket(seen, worst)}",
        packets=dropped,
        share=share,
        why="the program does not read as fast as they come",
        source="/proc/PID/net/snmp",
        says=f"Udp RcvbufErrors +{dropped}, InDatagrams +{grown(seen, 'Udp.InDatagrams')}",
        certain=True,
    )


def _anothers(seen: Lost, socket: UdpSocket) -> bool:
    owners = seen.owners
    return owners is not None and owners.complete and socket.inode not in owners.of


def _socket(seen: Lost, socket: UdpSocket | None) -> str:
    if socket is None:
        return "a UDP socket"
    owner = None if seen.owners is None else seen.owners.of.get(socket.inode)
    who = "" if owner is None else f" of {owner.comm} (pid {owner.pid})"
    return f"UDP port {socket.port}{who}"


def _sizes(seen: Lost) -> Iterator[Loss]:
    """What is larger than the other end of the wire takes counts at both ends (measured)."""
    by_stage = {new.stage: (old, new) for old, new in pairs(seen)}
    if "container" not in by_stage or "wire" not in by_stage:
        return
    (old, own), (was, far) = by_stage["container"], by_stage["wire"]
    sent, received = own.send_dropped - old.send_dropped, far.receive_dropped - was.receive_dropped
    if min(sent, received) < FEW or own.mtu_bytes <= far.mtu_bytes:
        return
    yield Loss(
        kind=Kind.SIZE,
        where=f"the wire between {own.interface} and {far.interface}",
        packets=min(sent, received),
        share=_share(sent, own.sent - old.sent),
        why=(
            f"they are larger than {far.interface} takes: its MTU is {far.mtu_bytes}, and that of "
            f"{own.interface} {own.mtu_bytes}"
        ),
        source=f"ip -s link show {own.interface} (in the container), {far.interface}",
        says=f"TX dropped +{sent} inside, RX dropped +{received} outside",
        certain=True,
        hop=far,
    )


def _backlog(seen: Lost) -> Iterator[Loss]:
    dropped, of_it = grown(seen, "softnet dropped"), _of(seen, Kind.BACKLOG)
    watched = seen.watched.reason is None
    if dropped < LEAST or (watched and of_it < LEAST):
        return
    yield Loss(
        kind=Kind.BACKLOG,
        where="the backlog of a CPU, where received packets wait",
        packets=of_it or dropped,
        share=None,
        why="it is full: packets come faster than the CPU takes them up"
        + ("" if watched else "; whose they are is not known"),
        source="/proc/net/softnet_stat (the whole machine)",
        says=f"column 2, dropped +{dropped}" + (f"; {of_it} of them its own" if of_it else ""),
        certain=of_it > 0,
    )


def _sensed(seen: Lost, told: set[Kind]) -> Iterator[Loss]:
    """What only the sensor knows of."""
    for drop in seen.watched.drops:
        what = kind(drop)
        least = FEW if what in (Kind.RULE, Kind.SIZE) else LEAST
        if what is None or what in told or drop.packets < least:
            continue
        if what is Kind.QUEUE and not _up(seen, drop):
            continue  # no carrier: network/path_broken
        place = drop.namespace if drop.interface is None else f"{drop.interface} ({drop.namespace})"
        yield Loss(
            kind=what,
            where=f"{drop.function}() at {place}",
            packets=drop.packets,
            share=None,
            why=drop.means or "the kernel gave them up",
            source=f"skb:kfree_skb reason {drop.reason} location {drop.function}",
            says=f"{drop.packets} {drop.protocol}" + (f", {drop.example}" if drop.example else ""),
            certain=True,
            drop=drop,
        )


def _up(seen: Lost, drop: Drop) -> bool:
    return all(one.up for one in seen.after.hops if one.interface == drop.interface)


def _beyond(before: Look, after: Look) -> Iterator[Loss]:
    """No place on the way lost any, and yet they had to be sent again."""

    def by(*names: str) -> int:
        return sum(after.counters.get(n, 0) - before.counters.get(n, 0) for n in names)

    # What a listener or a connecting program repeats is a question without an answer, not a loss.
    again = by("Tcp.RetransSegs") - by("TcpExt.TCPSynRetrans")
    shares = Shares(
        retransmitted=again,
        reordered=by("TcpExt.TCPSACKReorder", "TcpExt.TCPTSReorder", "TcpExt.TCPRenoReorder"),
        duplicates=by("TcpExt.TCPDSACKRecv"),
        sent=by("Tcp.OutSegs"),
    )
    share = again / max(shares.sent, 1)
    if again < AGAIN or share < AGAIN_SHARE or shares.verdict() != "lost":
        return
    yield Loss(
        kind=Kind.BEYOND,
        where="the way beyond this host, or at the other side",
        packets=again,
        share=share,
        why="no place on its way through this host gave up one of them",
        source="/proc/PID/net/netstat and snmp",
        says=f"Tcp RetransSegs +{again} of OutSegs +{shares.sent}, TCPDSACKRecv "
        f"+{shares.duplicates}, late and not lost {shares.reordered}",
        certain=False,
    )


def _share(lost: int, passed: int) -> float:
    return lost / max(lost + passed, 1)
