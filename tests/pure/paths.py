"""A container's path as Docker makes it, for the tests of what is judged of it."""

import errno

from msgspec import structs

from whybox.cases.network.path_broken.probe import Observation
from whybox.change import Change
from whybox.kernel.netlink import Family
from whybox.kernel.netview import Answer, Far, Near, View, Way
from whybox.kernel.rtnetlink import Address, BridgePort, Link, Neighbour, Route
from whybox.kernel.sock_diag import Listener
from whybox.model import Finding, Verdict

GATEWAY = "172.17.0.1"
OWN_MAC, PEER_MAC, BRIDGE_MAC = "02:42:ac:11:00:02", "aa:00:00:00:00:01", "02:42:00:00:00:01"


def link(
    ifindex: int,
    name: str,
    kind: str | None = None,
    *,
    up: bool = True,
    carrier: bool = True,
    master: int | None = None,
    peer: int | None = None,
    mac: str | None = None,
    state: str = "forwarding",
) -> Link:
    port = None if master is None else BridgePort(state=state, hairpin=False, isolated=False)
    return Link(
        ifindex=ifindex,
        name=name,
        kind=kind,
        up=up,
        running=up and carrier,
        lower_up=up and carrier,
        loopback=name == "lo",
        operstate="up" if up and carrier else "down",
        carrier=carrier if up else None,
        mtu_bytes=1500,
        mac_address=mac,
        master_ifindex=master,
        link_ifindex=peer,
        link_netnsid=None if peer is None else 0,
        port=port,
        statistics=None,
    )


def address(
    ifindex: int, text: str, *, scope: str = "global", flags: tuple[str, ...] = ()
) -> Address:
    alone, _, length = text.partition("/")
    return Address(
        ifindex=ifindex,
        family="inet6" if ":" in text else "inet",
        address=alone,
        prefix_length=int(length),
        peer=None,
        scope=scope,
        flags=flags,
    )


def default(gateway: str | None, *, oif: int = 2, source: str | None = None) -> Route:
    family: Family = "inet6" if gateway and ":" in gateway else "inet"
    return Route(
        family=family,
        destination="192.0.2.1",
        prefix_length=32,
        gateway=gateway,
        oif=oif,
        prefsrc=source,
        type="unicast",
        table=254,
        priority=None,
        scope="global",
        flags=(),
        mtu_bytes=None,
        multipath=(),
    )


def answers(route: Route | None, number: int | None = None) -> tuple[Answer, ...]:
    """IPv4 as given, and no IPv6."""
    refused = number or (errno.ENETUNREACH if route is None else None)
    return (
        Answer(family="inet", route=route, errno=refused),
        Answer(family="inet6", route=None, errno=errno.ENETUNREACH),
    )


def listener(
    where: str, port: int = 80, *, v6only: bool | None = None, ifindex: int | None = None
) -> Listener:
    return Listener(
        family="inet6" if ":" in where else "inet",
        address=where,
        port=port,
        ifindex=ifindex,
        uid=0,
        inode=1,
        ack_backlog=0,
        max_ack_backlog=128,
        v6only=v6only,
    )


def neighbour(state: str, *, of: str = GATEWAY, mac: str | None = None) -> Neighbour:
    return Neighbour(ifindex=2, address=of, lladdr=mac, states=(state,))


LO = link(1, "lo")
ETH0 = link(2, "eth0", "veth", peer=9, mac=OWN_MAC)
LOCAL = address(1, "127.0.0.1/8", scope="host")
OWN = address(2, "172.17.0.2/16")
NEAR = Near(
    links=(LO, ETH0),
    addresses=(LOCAL, OWN),
    answers=answers(default(GATEWAY, source="172.17.0.2")),
    neighbours=(neighbour("reachable", mac=BRIDGE_MAC),),
    listeners=(listener("0.0.0.0"),),
    counters={"Ip.OutNoRoutes": 4, "Tcp.OutRsts": 1},
)
PEER = link(9, "veth12ab", "veth", master=4, peer=2, mac=PEER_MAC)
BRIDGE = link(4, "docker0", "bridge", mac=BRIDGE_MAC)
FAR = Far(
    namespace="net:[4026531840]",
    peer=PEER,
    bridge=BRIDGE,
    owner=BRIDGE,
    addresses=(address(4, "172.17.0.1/16"),),
    forwarding=True,
    forwarding_all=True,
    back=None,
    taken=(),
    counters={"Ip.InAddrErrors": 10},
)
WAY = Way(family="inet", ifindex=2, gateway=GATEWAY, far=FAR)


def seen(
    near: Near = NEAR,
    *out: Way,
    ports: tuple[int, ...] = (),
    before: View | None = None,
    asked: tuple[str, ...] = (),
    seconds: float = 2.0,
    inside: bool = False,
) -> Observation:
    view = View(near=near, ways=out)
    return Observation(
        inside=inside,
        ports=ports,
        before=before or view,
        after=view,
        asked=asked,
        elapsed_ns=int(seconds * 1e9),
    )


def near_with(**changes: object) -> Near:
    return structs.replace(NEAR, **changes)


def far_with(**changes: object) -> Way:
    return structs.replace(WAY, far=structs.replace(FAR, **changes))


def the_change(finding: Finding) -> Change | None:
    assert finding.verdict is Verdict.FOUND, finding
    return finding.cures[0].change
