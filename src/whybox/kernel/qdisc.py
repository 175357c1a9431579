"""The queueing discipline at the root of each interface (struct tcmsg, rtnetlink(7))."""

import struct
from collections.abc import Iterator, Mapping

from msgspec import Struct

from whybox.kernel import netlink
from whybox.kernel.netns import call_in

RTM_GETQDISC = 38
TCA_KIND, TCA_STATS2, TCA_STATS_BASIC, TCA_STATS_QUEUE = 1, 7, 1, 3
TC_H_ROOT = 0xFFFFFFFF

#: Packets do not stand in these longer than the interface is busy: what interfaces have by default.
PLAIN = frozenset(("noqueue", "mq", "pfifo_fast", "fq_codel", "fq", "pfifo", "bfifo", "noop"))

# Family, the interface's index, handle, the parent's handle, info.
TCMSG = struct.Struct("=BxxxiIII")
#: struct gnet_stats_basic: bytes, packets; gnet_stats_queue: length, backlog, drops, …
_BASIC, _QUEUE = struct.Struct("=QI"), struct.Struct("=5I")


class Queue(Struct, frozen=True, kw_only=True):
    """What a queueing discipline has counted since it was made, in packets."""

    kind: str
    sent: int
    drops: int
    waiting: int


def roots(sock: netlink.Socket) -> Iterator[tuple[int, bytes]]:
    """The interface's index, and the RTM_NEWQDISC of its root; raises OSError."""
    for message in sock.dump(RTM_GETQDISC, TCMSG.pack(0, 0, 0, 0, 0), "RTM_GETQDISC"):
        _, index, _, parent, _ = netlink.fields(TCMSG, message.payload, "tcmsg")
        if parent == TC_H_ROOT:
            yield index, message.payload


def kinds(ns_path: str) -> Mapping[int, str]:
    """Kinds by the interface's index, such as ``{2: "tbf"}``; raises OSError."""

    def asked() -> dict[int, str]:
        with netlink.Socket() as sock:
            return {index: kind(payload) for index, payload in roots(sock)}

    return call_in(ns_path, asked)


def kind(payload: bytes) -> str:
    """Of one RTM_NEWQDISC."""
    return netlink.text(netlink.attributes(payload, TCMSG.size).get(TCA_KIND, b""))


def queue(payload: bytes) -> Queue | None:
    """One RTM_NEWQDISC; ``None``: there is no queue (``noqueue``), or nothing is told of it."""
    found = netlink.attributes(payload, TCMSG.size)
    stats = netlink.attributes(found.get(TCA_STATS2, b""))
    named = netlink.text(found.get(TCA_KIND, b""))
    if named == "noqueue" or TCA_STATS_BASIC not in stats or TCA_STATS_QUEUE not in stats:
        return None
    _, sent = _BASIC.unpack_from(stats[TCA_STATS_BASIC])
    waiting, _, drops, _, _ = _QUEUE.unpack_from(stats[TCA_STATS_QUEUE])
    return Queue(kind=named, sent=sent, drops=drops, waiting=waiting)
