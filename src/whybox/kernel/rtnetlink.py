"""Links, addresses, routes and neighbours of a network namespace (include/uapi/linux/rtnetlink.h).

What ``ip link``, ``ip address``, ``ip route`` and ``ip neighbour`` show, in the words they use.
"""

import socket
import struct
from collections.abc import Iterator, Mapping

from msgspec import Struct

from whybox.kernel import netlink
from whybox.kernel.netlink import FAMILIES, Family, attribute, attributes, ip_address, unsigned

RTM_GETLINK, RTM_GETADDR, RTM_GETROUTE, RTM_GETNEIGH, RTM_GETNSID = 18, 22, 26, 30, 90

IFF_UP, IFF_LOOPBACK, IFF_RUNNING, IFF_LOWER_UP = 0x1, 0x8, 0x40, 0x10000
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_MASTER = 1, 3, 4, 5, 10
IFLA_OPERSTATE, IFLA_LINKINFO, IFLA_STATS64, IFLA_CARRIER, IFLA_LINK_NETNSID = 16, 18, 23, 33, 37
IFLA_INFO_KIND, IFLA_INFO_SLAVE_KIND, IFLA_INFO_SLAVE_DATA = 1, 4, 5
IFLA_BRPORT_STATE, IFLA_BRPORT_MODE, IFLA_BRPORT_ISOLATED = 1, 4, 33
IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS = 1, 2, 8
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY = 1, 4, 5, 6
RTA_PREFSRC, RTA_METRICS = 7, 8
RTA_MULTIPATH, RTA_TABLE, RTA_VIA = 9, 15, 18
RTAX_MTU = 2
RTM_F_CLONED = 0x200
NDA_DST, NDA_LLADDR = 1, 2
NETNSA_NSID, NETNSA_PID, NETNSA_FD = 1, 2, 3
NETNSA_NSID_NOT_ASSIGNED = -1

OPERSTATES = ("unknown", "notpresent", "down", "lowerlayerdown", "testing", "dormant", "up")
PORT_STATES = ("disabled", "listening", "learning", "forwarding", "blocking")
SCOPES = {0: "global", 200: "site", 253: "link", 254: "host", 255: "nowhere"}
ROUTE_TYPES = (
    *("unspec", "unicast", "local", "broadcast", "anycast", "multicast"),
    *("blackhole", "unreachable", "prohibit", "throw", "nat", "xresolve"),
)
NEXT_HOP_FLAGS = ("dead", "pervasive", "onlink", "offload", "linkdown", "unresolved", "trap")
ADDRESS_FLAGS = (
    *("secondary", "nodad", "optimistic", "dadfailed", "homeaddress", "deprecated", "tentative"),
    *("permanent", "mngtmpaddr", "noprefixroute", "autojoin", "stable-privacy"),
)
NEIGHBOUR_STATES = (
    *("incomplete", "reachable", "stale", "delay", "probe", "failed", "noarp", "permanent"),
)

IFINFOMSG = struct.Struct("=BxHiII")
IFADDRMSG = struct.Struct("=BBBBI")
RTMSG = struct.Struct("=BBBBBBBBI")
_NDMSG = struct.Struct("=BxxxiHBB")
_RTGENMSG = struct.Struct("=Bxxx")
_RTNEXTHOP = struct.Struct("=HBBi")
_STATS64 = struct.Struct("=8Q")


class LinkStatistics(Struct, frozen=True, kw_only=True):
    """The first counters of ``rtnl_link_stats64``, in its order."""

    rx_packets: int
    tx_packets: int
    rx_bytes: int
    tx_bytes: int
    rx_errors: int
    tx_errors: int
    rx_dropped: int
    tx_dropped: int


class BridgePort(Struct, frozen=True, kw_only=True):
    """What a bridge knows of a link that is plugged into it."""

    state: str
    hairpin: bool | None
    isolated: bool | None


class Link(Struct, frozen=True, kw_only=True):
    """A network interface."""

    ifindex: int
    name: str
    kind: str | None
    """The driver's word: veth, bridge, macvlan, …; None for hardware and loopback."""
    up: bool
    running: bool
    lower_up: bool
    loopback: bool
    operstate: str
    carrier: bool | None
    mtu_bytes: int
    mac_address: str | None
    master_ifindex: int | None
    link_ifindex: int | None
    """IFLA_LINK: a veth's peer, the lower device of a macvlan or a VLAN."""
    link_netnsid: int | None
    """Whose ifindex that is, as ``netns_id`` counts; None: of this namespace."""
    port: BridgePort | None
    statistics: LinkStatistics | None


class Address(Struct, frozen=True, kw_only=True):
    """An IP address of an interface."""

    ifindex: int
    family: Family
    address: str
    prefix_length: int
    peer: str | None
    """The other end of a point-to-point address."""
    scope: str
    flags: tuple[str, ...]


class NextHop(Struct, frozen=True, kw_only=True):
    """One way of a route that has several."""

    gateway: str | None
    oif: int | None
    weight: int
    flags: tuple[str, ...]


class Route(Struct, frozen=True, kw_only=True):
    """A route of a table, or the one chosen for an address."""

    family: Family
    destination: str | None
    """None: the default route."""
    prefix_length: int
    gateway: str | None
    oif: int | None
    prefsrc: str | None
    type: str
    table: int
    priority: int | None
    scope: str
    flags: tuple[str, ...]
    mtu_bytes: int | None
    """Of the route: set by hand, or learned from "fragmentation needed"; not of the link."""
    multipath: tuple[NextHop, ...]


class Neighbour(Struct, frozen=True, kw_only=True):
    """An entry of the ARP or neighbour discovery cache."""

    ifindex: int
    address: str
    lladdr: str | None
    states: tuple[str, ...]


def _name(names: tuple[str, ...], number: int) -> str:
    """A word that is newer than this list is shown as its number."""
    return names[number] if number < len(names) else str(number)


def _names(names: tuple[str, ...], bits: int) -> tuple[str, ...]:
    return tuple(name for place, name in enumerate(names) if bits >> place & 1)


def _required(found: Mapping[int, bytes], kind: int, what: str) -> bytes:
    if kind not in found:
        raise netlink.malformed(f"{what} without attribute {kind}")
    return found[kind]


def _number(found: Mapping[int, bytes], kind: int) -> int | None:
    return unsigned(found[kind]) if kind in found else None


def _truth(found: Mapping[int, bytes], kind: int) -> bool | None:
    return bool(unsigned(found[kind])) if kind in found else None


def _ip(found: Mapping[int, bytes], kind: int) -> str | None:
    return ip_address(found[kind]) if kind in found else None


def _link_address(found: Mapping[int, bytes], kind: int) -> str | None:
    """Some tunnels have one without a single byte."""
    return found.get(kind, b"").hex(":") or None


def parse_link(payload: bytes) -> Link:
    """One RTM_NEWLINK."""
    _, _, ifindex, flags, _ = netlink.fields(IFINFOMSG, payload, "ifinfomsg")
    found = attributes(payload, IFINFOMSG.size)
    info = attributes(found.get(IFLA_LINKINFO, b""))
    link_ifindex, link_netnsid = _linked(found)
    return Link(
        ifindex=ifindex,
        name=netlink.text(_required(found, IFLA_IFNAME, "link")),
        kind=netlink.text(info[IFLA_INFO_KIND]) if IFLA_INFO_KIND in info else None,
        up=bool(flags & IFF_UP),
        running=bool(flags & IFF_RUNNING),
        lower_up=bool(flags & IFF_LOWER_UP),
        loopback=bool(flags & IFF_LOOPBACK),
        operstate=_name(OPERSTATES, unsigned(_required(found, IFLA_OPERSTATE, "link"))),
        carrier=_truth(found, IFLA_CARRIER),
        mtu_bytes=unsigned(_required(found, IFLA_MTU, "link")),
        mac_address=_link_address(found, IFLA_ADDRESS),
        master_ifindex=_number(found, IFLA_MASTER),
        link_ifindex=link_ifindex,
        link_netnsid=link_netnsid,
        port=_port(info),
        statistics=_statistics(found),
    )


def _linked(found: Mapping[int, bytes]) -> tuple[int | None, int | None]:
    """A peer whose namespace is being torn down has no id there: it is nowhere, not here."""
    ifindex = _number(found, IFLA_LINK) or None  # a tunnel without a lower device says 0
    if ifindex is None or IFLA_LINK_NETNSID not in found:
        return ifindex, None
    netnsid = netlink.signed(found[IFLA_LINK_NETNSID])
    return (None, None) if netnsid == NETNSA_NSID_NOT_ASSIGNED else (ifindex, netnsid)


def _port(info: Mapping[int, bytes]) -> BridgePort | None:
    if netlink.text(info.get(IFLA_INFO_SLAVE_KIND, b"")) != "bridge":
        return None
    found = attributes(info.get(IFLA_INFO_SLAVE_DATA, b""))
    return BridgePort(
        state=_name(PORT_STATES, unsigned(_required(found, IFLA_BRPORT_STATE, "bridge port"))),
        hairpin=_truth(found, IFLA_BRPORT_MODE),
        isolated=_truth(found, IFLA_BRPORT_ISOLATED),
    )


def _statistics(found: Mapping[int, bytes]) -> LinkStatistics | None:
    if IFLA_STATS64 not in found:
        return None
    counters = netlink.fields(_STATS64, found[IFLA_STATS64], "rtnl_link_stats64")
    return LinkStatistics(**dict(zip(LinkStatistics.__struct_fields__, counters, strict=True)))


def parse_address(payload: bytes) -> Address | None:
    """One RTM_NEWADDR; None for a family that is neither IPv4 nor IPv6."""
    seen = netlink.fields(IFADDRMSG, payload, "ifaddrmsg")
    number, prefix_length, flags, scope, ifindex = seen
    family = FAMILIES.get(number)
    if family is None:
        return None
    found = attributes(payload, IFADDRMSG.size)
    # IFA_ADDRESS is the far end where there is an IFA_LOCAL that differs, else the address itself.
    other = ip_address(_required(found, IFA_ADDRESS, "address"))
    own = _ip(found, IFA_LOCAL) or other
    return Address(
        ifindex=ifindex,
        family=family,
        address=own,
        prefix_length=prefix_length,
        peer=other if other != own else None,
        scope=SCOPES.get(scope, str(scope)),
        flags=_names(ADDRESS_FLAGS, _number(found, IFA_FLAGS) or flags),
    )


def parse_route(payload: bytes) -> Route | None:
    """One RTM_NEWROUTE; None for the families of multicast routing and MPLS."""
    seen = netlink.fields(RTMSG, payload, "rtmsg")
    number, prefix_length, _, _, table, _, scope, kind, flags = seen
    family = FAMILIES.get(number)
    if family is None:
        return None
    found = attributes(payload, RTMSG.size)
    return Route(
        family=family,
        destination=ip_address(_required(found, RTA_DST, "route")) if prefix_length else None,
        prefix_length=prefix_length,
        gateway=_gateway(found),
        oif=_number(found, RTA_OIF),
        prefsrc=_ip(found, RTA_PREFSRC),
        type=_name(ROUTE_TYPES, kind),
        table=_number(found, RTA_TABLE) or table,
        priority=_number(found, RTA_PRIORITY),
        scope=SCOPES.get(scope, str(scope)),
        flags=_names(NEXT_HOP_FLAGS, flags),
        mtu_bytes=_number(attributes(found.get(RTA_METRICS, b"")), RTAX_MTU),
        multipath=tuple(_next_hops(found.get(RTA_MULTIPATH, b""))),
    )


def _gateway(found: Mapping[int, bytes]) -> str | None:
    """RTA_VIA is a gateway of the other family, which its first two bytes name."""
    return ip_address(found[RTA_VIA][2:]) if RTA_VIA in found else _ip(found, RTA_GATEWAY)


def _next_hops(value: bytes) -> Iterator[NextHop]:
    while value:
        length, flags, hops, ifindex = netlink.fields(_RTNEXTHOP, value, "rtnexthop")
        if not _RTNEXTHOP.size <= length <= len(value):
            raise netlink.malformed(f"rtnexthop says it has {length} bytes")
        yield NextHop(
            gateway=_gateway(attributes(value[:length], _RTNEXTHOP.size)),
            oif=ifindex or None,
            weight=hops + 1,
            flags=_names(NEXT_HOP_FLAGS, flags),
        )
        value = value[netlink.aligned(length) :]


def parse_neighbour(payload: bytes) -> Neighbour | None:
    """One RTM_NEWNEIGH; None for a family that is neither IPv4 nor IPv6."""
    number, ifindex, state, _, _ = netlink.fields(_NDMSG, payload, "ndmsg")
    if number not in FAMILIES:
        return None
    found = attributes(payload, _NDMSG.size)
    return Neighbour(
        ifindex=ifindex,
        address=ip_address(_required(found, NDA_DST, "neighbour")),
        lladdr=_link_address(found, NDA_LLADDR),
        states=_names(NEIGHBOUR_STATES, state),
    )


def links(sock: netlink.Socket) -> tuple[Link, ...]:
    """The interfaces of the socket's namespace."""
    found = sock.dump(RTM_GETLINK, bytes(IFINFOMSG.size), "RTM_GETLINK")
    return tuple(parse_link(message.payload) for message in found)


def addresses(sock: netlink.Socket) -> tuple[Address, ...]:
    """Their addresses."""
    found = sock.dump(RTM_GETADDR, bytes(IFADDRMSG.size), "RTM_GETADDR")
    parsed = (parse_address(message.payload) for message in found)
    return tuple(each for each in parsed if each is not None)


def routes(sock: netlink.Socket) -> tuple[Route, ...]:
    """The routes of all tables; a cached exception, which old kernels send too, is none."""
    found = sock.dump(RTM_GETROUTE, bytes(RTMSG.size), "RTM_GETROUTE")
    parsed = (parse_route(each.payload) for each in found if not _is_cached(each.payload))
    return tuple(each for each in parsed if each is not None)


def _is_cached(payload: bytes) -> bool:
    return bool(netlink.fields(RTMSG, payload, "rtmsg")[-1] & RTM_F_CLONED)


def neighbours(sock: netlink.Socket) -> tuple[Neighbour, ...]:
    """Who has been looked for on the links, and whether they answered."""
    found = sock.dump(RTM_GETNEIGH, bytes(_NDMSG.size), "RTM_GETNEIGH")
    parsed = (parse_neighbour(message.payload) for message in found)
    return tuple(each for each in parsed if each is not None)


def netns_id(sock: netlink.Socket, ns_fd: int) -> int | None:
    """By which number the socket's namespace knows the one behind ``ns_fd``; None: by none.

    Reading the links gives a number to every namespace that a peer is in, so ask after that.
    """
    return _netns_id(sock, attribute(NETNSA_FD, struct.pack("=I", ns_fd)), f"fd {ns_fd}")


def netns_id_of_pid(sock: netlink.Socket, pid: int) -> int | None:
    """The same for the namespace of a process; this works where /proc/PID/ns is closed."""
    return _netns_id(sock, attribute(NETNSA_PID, struct.pack("=I", pid)), f"pid {pid}")


def _netns_id(sock: netlink.Socket, place: bytes, whose: str) -> int | None:
    header = _RTGENMSG.pack(socket.AF_UNSPEC)
    answer = sock.get(RTM_GETNSID, header + place, f"RTM_GETNSID {whose}")
    found = attributes(answer.payload, _RTGENMSG.size)
    number = netlink.signed(_required(found, NETNSA_NSID, "netns id"))
    return None if number == NETNSA_NSID_NOT_ASSIGNED else number
