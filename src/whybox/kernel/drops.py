"""Dropped packets, merged by their hop and their cause, in words."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from msgspec import Struct, structs

from whybox.kernel.dropcauses import Cause
from whybox.kernel.hops import STAGES, Hop
from whybox.kernel.sensors import packets as sensor

ETHERTYPES = {0x0800: "IPv4", 0x0806: "ARP", 0x86DD: "IPv6", 0x8100: "VLAN", 0: "unknown"}
PROTOCOLS = {
    1: "ICMP", 2: "IGMP", 6: "TCP", 17: "UDP", 33: "DCCP", 47: "GRE", 50: "ESP", 58: "ICMPv6",
    132: "SCTP", 136: "UDP-Lite",
}  # fmt: skip
_ICMPS = (1, 58)
_IP, _IP6, _TCP = 0x0800, 0x86DD, 6


class Flow(Struct, frozen=True, kw_only=True):
    """Who sends to whom; what the headers do not tell is ``None``."""

    protocol: str
    """``TCP``, ``UDP``, ``ICMP``, ``ARP``, …"""
    source: str | None
    destination: str | None
    source_port: int | None
    destination_port: int | None
    icmp_type: int | None
    icmp_code: int | None


class Drop(Struct, frozen=True, kw_only=True):
    """Packets that were dropped at one hop for one reason."""

    hop: Hop
    reason: str | None
    """The kernel's name for it; ``None``: this kernel tells none."""
    function: str
    """Of the kernel: which gave the packets up."""
    protocol: str
    whose: str
    """Why they are the container's, in words."""
    packets: int
    bytes: int
    first_ns: int
    last_ns: int
    example: Flow
    """The last one that was told, else the first."""
    means: str
    """In words; empty: not known."""
    look: str
    """What to look at next."""


class Merged(Struct, frozen=True, kw_only=True):
    """What is told as one."""

    hop: Hop
    reason: str | None
    function: str
    ethertype: int
    protocol: int
    why: int
    cause: Cause


def protocol_name(ethertype: int, protocol: int) -> str:
    """What people call it.

    >>> protocol_name(0x0800, 17), protocol_name(0x86DD, 6), protocol_name(0x0806, 0)
    ('UDP', 'TCP', 'ARP')
    >>> protocol_name(0x0800, 99), protocol_name(0x88CC, 0)
    ('IP protocol 99', 'ethertype 0x88cc')
    """
    if ethertype in (_IP, _IP6):
        return PROTOCOLS.get(protocol, f"IP protocol {protocol}")
    return ETHERTYPES.get(ethertype, f"ethertype {ethertype:#06x}")


def flow(seen: sensor.Flow) -> Flow:
    """Ports, or type and code."""
    is_icmp = seen.protocol in _ICMPS and seen.ethertype in (_IP, _IP6)
    first = seen.source_port
    return Flow(
        protocol=protocol_name(seen.ethertype, seen.protocol),
        source=seen.source,
        destination=seen.destination,
        source_port=None if is_icmp else seen.source_port,
        destination_port=None if is_icmp else seen.destination_port,
        icmp_type=first >> 8 if is_icmp and first is not None else None,
        icmp_code=first & 0xFF if is_icmp and first is not None else None,
    )


def merged(
    seen: Iterable[tuple[Merged, sensor.Sum]], examples: Mapping[Merged, Flow]
) -> tuple[tuple[Drop, ...], tuple[Drop, ...]]:
    """The faults and what is usual, each in the order of the hops, the most frequent first."""
    sums: dict[Merged, list[sensor.Sum]] = {}
    for where, one in seen:
        sums.setdefault(where, []).append(one)
    faults: list[Drop] = []
    usual: list[Drop] = []
    for where, ones in sums.items():
        (usual if where.cause.usual else faults).append(_drop(where, ones, examples.get(where)))
    return tuple(sorted(faults, key=_order)), tuple(sorted(usual, key=_order))


def _drop(where: Merged, ones: Sequence[sensor.Sum], example: Flow | None) -> Drop:
    return Drop(
        hop=where.hop,
        reason=where.reason,
        function=where.function,
        protocol=protocol_name(where.ethertype, where.protocol),
        whose=whose(where.why),
        packets=sum(one.packets for one in ones),
        bytes=sum(one.bytes for one in ones),
        first_ns=min(one.first_ns for one in ones),
        last_ns=max(one.last_ns for one in ones),
        example=example or flow(ones[0].flow),
        means=where.cause.means,
        look=where.cause.look,
    )


def settled(place: sensor.Place, net: int) -> sensor.Place:
    """The same place, with its namespace where the kernel has forgotten it.

    Only TCP takes both device and route from a packet that it has received (``tcp_v4_rcv``,
    ``tcp_add_backlog``), so one for the container's address is in the container's namespace.
    """
    forgotten = place.net == 0 and place.protocol == _TCP and place.why & sensor.TO_IT
    return structs.replace(place, net=net) if forgotten else place


def whose(why: int) -> str:
    """Why packets are the container's.

    >>> whose(sensor.FROM_IT | sensor.IN_NETNS), whose(sensor.TO_IT), whose(sensor.ON_WIRE)
    ('from it', 'to it', 'on its wire')
    """
    if why & sensor.FROM_IT and why & sensor.TO_IT:
        return "from it to itself"
    words = (
        (sensor.FROM_IT, "from it"),
        (sensor.TO_IT, "to it"),
        (sensor.BY_NAT, "of its connection, under another address (NAT)"),
        (sensor.ON_WIRE, "on its wire"),
    )
    return next((says for bit, says in words if why & bit), "in its namespace")


def _order(drop: Drop) -> tuple[int, str, int, int]:
    return *_place(drop.hop), -drop.packets


def _place(hop: Hop) -> tuple[int, str, int]:
    """What is at no interface yet, or at lo, comes before what has left."""
    return STAGES.index(hop.stage), hop.namespace, hop.ifindex


def along(
    path: Iterable[Hop], drops: Iterable[Drop], name: Callable[[int], str]
) -> tuple[Hop, ...]:
    """The hops of the way out, and those besides at which something was dropped, in their order."""
    hops = {
        (hop.inode, hop.ifindex): structs.replace(hop, namespace=name(hop.inode)) for hop in path
    }
    for drop in drops:
        hops.setdefault((drop.hop.inode, drop.hop.ifindex), drop.hop)
    return tuple(sorted(hops.values(), key=_place))
