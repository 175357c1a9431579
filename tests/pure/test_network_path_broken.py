"""The judge of network/path_broken on literal paths, one door shut after the other."""

import errno

import msgspec
import pytest
from msgspec import structs

from tests.pure.paths import (
    BRIDGE,
    ETH0,
    FAR,
    GATEWAY,
    LO,
    LOCAL,
    NEAR,
    OWN,
    PEER,
    PEER_MAC,
    WAY,
    address,
    answers,
    default,
    far_with,
    link,
    listener,
    near_with,
    neighbour,
    seen,
    the_change,
)
from whybox.cases.network.path_broken.probe import Observation, judge
from whybox.change import AddAddress, DefaultRoute, InProgram, IpForward, JoinBridge, LinkUp
from whybox.kernel.netview import Answer, Near, View, Way, ways
from whybox.kernel.rtnetlink import Link
from whybox.kernel.sock_diag import Listener
from whybox.model import Certainty, Severity, Verdict


def test_a_whole_path_is_clear_and_names_its_hops() -> None:
    finding = judge(seen(NEAR, WAY, ports=(80,)))
    assert finding.verdict is Verdict.CLEAR
    for fact in (
        "172.17.0.2/16",
        "via 172.17.0.1",
        "veth12ab is on docker0",
        "docker0 forwards",
        "80",
    ):
        assert fact in finding.summary


def test_the_host_network_is_no_path_of_its_own() -> None:
    finding = judge(structs.replace(seen(), before=None, after=None))
    assert finding.verdict is Verdict.CLEAR
    assert "host's network" in finding.summary


@pytest.mark.parametrize(
    "more", [(), (link(3, "tunl0", "ipip", up=False), link(4, "docker0", "bridge"))]
)
def test_only_lo_is_clear_unless_ports_are_published(more: tuple[Link, ...]) -> None:
    near = near_with(links=(LO, *more), addresses=(LOCAL,), answers=answers(None))
    assert ways(near) == ()
    assert judge(seen(near)).verdict is Verdict.CLEAR
    found = judge(seen(near, ports=(80,)))
    assert (found.verdict, found.severity) == (Verdict.FOUND, Severity.CRITICAL)
    assert "80" in found.summary


def test_an_interface_that_is_off_is_switched_on_with_its_route() -> None:
    off = structs.replace(ETH0, up=False, lower_up=False, operstate="down")
    near = near_with(links=(LO, off), answers=answers(None), counters={"Ip.OutNoRoutes": 9})
    (way,) = ways(near)
    finding = judge(seen(near, structs.replace(way, far=FAR), before=View(near=NEAR, ways=())))
    assert the_change(finding) == LinkUp("eth0", gateway=GATEWAY)
    assert finding.severity is Severity.CRITICAL
    assert [e.says for e in finding.evidence] == ["no flag UP, state down", "Ip OutNoRoutes +5"]


def test_an_interface_without_address_gets_one_that_nobody_has() -> None:
    near = near_with(
        addresses=(LOCAL, address(2, "fe80::2/64", scope="link")), answers=answers(None)
    )
    taken = ("172.17.255.254", "172.17.0.3")
    way = structs.replace(WAY, gateway=None, far=structs.replace(FAR, owner=None, taken=taken))
    finding = judge(seen(near, way))
    assert the_change(finding) == AddAddress("eth0", "172.17.255.253/16", gateway=GATEWAY)
    assert [r.what for r in finding.ruled_out] == ["an interface that is off"]


def test_a_duplicate_ipv6_address_is_no_address() -> None:
    duplicate = address(2, "fd00::2/64", flags=("dadfailed",))
    near = near_with(addresses=(LOCAL, duplicate), answers=answers(None))
    assert "no address" in judge(seen(near, *ways(near))).summary


def test_an_address_that_is_borrowed_is_enough() -> None:
    """A tunnel without an address of its own speaks with another interface's."""
    tunnel = link(3, "wg0", "wireguard")
    route = default(None, oif=3, source="172.17.0.2")
    near = near_with(links=(LO, ETH0, tunnel), answers=answers(route))
    finding = judge(seen(near, *ways(near)))
    assert finding.verdict is Verdict.CLEAR
    assert "wireguard has no host end" in finding.summary


UNROUTED = near_with(answers=answers(None))


def unrouted(**changes: object) -> Way:
    return structs.replace(far_with(owner=None, **changes), gateway=None)


def test_no_default_route_is_likely_a_fault_where_a_gateway_waits() -> None:
    finding = judge(seen(UNROUTED, unrouted()))
    assert the_change(finding) == DefaultRoute(GATEWAY, "eth0")
    assert (finding.severity, finding.certainty) == (Severity.WARNING, Certainty.LIKELY)
    assert "internal network" in finding.summary


def test_no_default_route_with_published_ports_is_certain() -> None:
    finding = judge(seen(UNROUTED, unrouted(), ports=(80,)))
    assert (finding.severity, finding.certainty) == (Severity.CRITICAL, Certainty.CONFIRMED)


@pytest.mark.parametrize("far", [{"addresses": ()}, {"forwarding": False}])
def test_no_default_route_and_nobody_to_route_to_is_an_internal_network(
    far: dict[str, object],
) -> None:
    assert judge(seen(UNROUTED, unrouted(**far))).verdict is Verdict.CLEAR


@pytest.mark.parametrize(
    ("number", "word"),
    [(errno.EINVAL, "blackhole"), (errno.EHOSTUNREACH, "unreachable"), (errno.EACCES, "prohibit")],
)
def test_a_default_route_that_refuses_is_named(number: int, word: str) -> None:
    finding = judge(seen(near_with(answers=answers(None, number)), unrouted()))
    assert word in finding.summary
    assert finding.severity is Severity.CRITICAL
    assert the_change(finding) == DefaultRoute(GATEWAY, "eth0")


def test_a_host_end_that_is_off_is_named_not_the_missing_carrier() -> None:
    dark = structs.replace(ETH0, lower_up=False, operstate="down")
    near = near_with(links=(LO, dark), neighbours=(neighbour("failed"),))
    finding = judge(seen(near, far_with(peer=structs.replace(PEER, up=False))))
    assert the_change(finding) == LinkUp("veth12ab", in_container=False)
    assert "veth12ab is switched off" in finding.summary


def test_no_carrier_is_found_where_the_host_end_cannot_be_seen() -> None:
    near = near_with(links=(LO, structs.replace(ETH0, lower_up=False)))
    finding = judge(seen(near, structs.replace(WAY, far=None, unseen="closed"), inside=True))
    assert finding.verdict is Verdict.FOUND
    assert finding.cures[0].change is None


LOST = {"bridge": None, "back": 4, "peer": structs.replace(PEER, master_ifindex=None, port=None)}


def test_a_host_end_on_no_bridge_is_found_although_the_gateway_answers() -> None:
    """The host answers ARP on any of its links, with the address of that link."""
    near = near_with(neighbours=(neighbour("reachable", mac=PEER_MAC),))
    finding = judge(seen(near, far_with(**LOST)))
    assert the_change(finding) == JoinBridge("veth12ab", "docker0")
    assert finding.summary.startswith("Its host end veth12ab is not plugged into a bridge")
    assert [r.what for r in finding.ruled_out][-1] == "no carrier"


def test_what_the_gateway_said_before_the_wire_was_unplugged_is_no_proof() -> None:
    """The entry stays REACHABLE for half a minute, and STALE for as long as nobody asks."""
    assert the_change(judge(seen(NEAR, far_with(**LOST)))) == JoinBridge("veth12ab", "docker0")


def test_a_host_end_on_another_bridge_is_found_by_the_gateways_link_address() -> None:
    other = link(5, "br1", "bridge", mac=PEER_MAC)
    way = far_with(bridge=other, back=4)
    near = near_with(neighbours=(neighbour("stale", mac=PEER_MAC),))
    assert the_change(judge(seen(near, way))) == JoinBridge("veth12ab", "docker0")


def test_a_bridge_that_leads_to_the_gateways_bridge_is_sound() -> None:
    way = far_with(bridge=link(5, "br1", "bridge"), back=4)
    assert judge(seen(NEAR, way)).verdict is Verdict.CLEAR


@pytest.mark.parametrize(
    "far",
    [
        {**LOST, "owner": None},  # a gateway that nobody has: the host answers for it by proxy
        {**LOST, "owner": PEER},  # the host end has the gateway's address itself
        {**LOST, "owner": link(6, "cilium_host", "veth")},
        {**LOST, "back": 9},  # a bridge has the same address, but the way back is this wire
    ],
)
def test_a_wire_that_is_routed_needs_no_bridge(far: dict[str, object]) -> None:
    assert judge(seen(NEAR, far_with(**far))).verdict is Verdict.CLEAR


def test_a_bridge_that_is_off_is_switched_on() -> None:
    near = near_with(neighbours=(neighbour("failed"),))
    finding = judge(seen(near, far_with(bridge=structs.replace(BRIDGE, up=False))))
    assert the_change(finding) == LinkUp("docker0", in_container=False)


def test_a_port_that_the_spanning_tree_blocks_is_found() -> None:
    blocked = link(9, "veth12ab", "veth", master=4, peer=2, state="blocking")
    finding = judge(seen(NEAR, far_with(peer=blocked)))
    assert finding.verdict is Verdict.FOUND
    assert finding.evidence[0].says == "state blocking"


NOBODY = "172.17.0.77"


def lost_gateway(state: str | None) -> tuple[Near, Way]:
    known = () if state is None else (neighbour(state, of=NOBODY),)
    near = near_with(answers=answers(default(NOBODY)), neighbours=known)
    return near, structs.replace(far_with(owner=None), gateway=NOBODY)


@pytest.mark.parametrize("state", ["failed", "incomplete"])
def test_a_gateway_that_was_asked_and_kept_silent_is_found(state: str) -> None:
    finding = judge(seen(*lost_gateway(state), asked=(NOBODY,)))
    assert the_change(finding) == DefaultRoute(GATEWAY, "eth0")
    assert finding.certainty is Certainty.CONFIRMED
    assert NOBODY in finding.summary


def test_a_gateway_that_is_only_known_to_have_failed_is_likely_lost() -> None:
    assert judge(seen(*lost_gateway("failed"), seconds=0.0)).certainty is Certainty.LIKELY


@pytest.mark.parametrize(("state", "asked"), [(None, ()), ("incomplete", (NOBODY,))])
def test_a_gateway_that_had_no_time_to_answer_is_unknown(
    state: str | None, asked: tuple[str, ...]
) -> None:
    finding = judge(seen(*lost_gateway(state), asked=asked, seconds=0.2))
    assert finding.verdict is Verdict.UNKNOWN
    assert "--window" in finding.summary


def test_an_old_failure_of_a_gateway_at_hand_is_no_verdict() -> None:
    near = near_with(neighbours=(neighbour("failed"),))
    assert judge(seen(near, WAY, seconds=0.0)).verdict is Verdict.UNKNOWN


def test_a_gateway_at_hand_need_not_have_been_heard() -> None:
    assert judge(seen(near_with(neighbours=()), WAY)).verdict is Verdict.CLEAR


def test_a_host_that_does_not_forward_is_found_with_what_it_threw_away() -> None:
    off = {"forwarding": False, "forwarding_all": False}
    finding = judge(
        seen(
            NEAR,
            far_with(**off, counters={"Ip.InAddrErrors": 17}),
            before=View(near=NEAR, ways=(WAY,)),
        )
    )
    assert the_change(finding) == IpForward()
    assert [e.says for e in finding.evidence] == ["0", "Ip InAddrErrors +7"]
    assert [r.what for r in finding.ruled_out][-1] == "a gateway that is not there"


def test_one_interface_that_does_not_forward_has_a_switch_of_its_own() -> None:
    finding = judge(seen(NEAR, far_with(forwarding=False)))
    assert the_change(finding) is None
    assert "net.ipv4.conf.docker0.forwarding" in finding.cures[0].advice


def test_who_is_not_the_gateway_need_not_forward() -> None:
    """The gateway is a machine behind the bridge."""
    way = far_with(owner=None, forwarding=False, forwarding_all=False)
    assert judge(seen(NEAR, way)).verdict is Verdict.CLEAR


@pytest.mark.parametrize(
    ("listeners", "says"),
    [
        ((), "does not listen on port 80"),
        ((listener("127.0.0.1"),), "127.0.0.1 only"),
        ((listener("::1", v6only=False),), "::1 only"),
        ((listener("::ffff:127.0.0.1", v6only=False),), "127.0.0.1 only"),
        ((listener("::", v6only=True),), ":: only"),
        ((listener("0.0.0.0", ifindex=1),), "0.0.0.0 only"),
        ((listener("0.0.0.0", port=81),), "does not listen on port 80"),
    ],
)
def test_a_published_port_that_strangers_do_not_reach_is_found(
    listeners: tuple[Listener, ...], says: str
) -> None:
    finding = judge(seen(near_with(listeners=listeners), WAY, ports=(80,)))
    assert says in finding.summary
    assert finding.severity is Severity.WARNING
    assert isinstance(the_change(finding), InProgram)
    assert len(finding.ruled_out) == 8


def test_resets_in_the_window_are_evidence() -> None:
    near = near_with(listeners=(), counters={"Tcp.OutRsts": 4})
    finding = judge(seen(near, WAY, ports=(80,), before=View(near=NEAR, ways=(WAY,))))
    assert finding.evidence[-1].says == "Tcp OutRsts +3"


def test_a_broken_path_comes_before_who_listens() -> None:
    finding = judge(seen(near_with(listeners=()), far_with(**LOST, forwarding=False), ports=(80,)))
    assert the_change(finding) == JoinBridge("veth12ab", "docker0")


def test_without_a_list_of_listeners_it_is_unknown() -> None:
    assert judge(seen(near_with(listeners=None), WAY, ports=(80,))).verdict is Verdict.UNKNOWN
    assert judge(seen(near_with(listeners=None), WAY)).verdict is Verdict.CLEAR


def test_a_host_end_that_cannot_be_seen_is_unknown_and_says_what_is_sound() -> None:
    finding = judge(seen(NEAR, structs.replace(WAY, far=None, unseen="closed"), inside=True))
    assert finding.verdict is Verdict.UNKNOWN
    for word in ("172.17.0.2/16", "answered", "closed", "as root"):
        assert word in finding.summary


def test_own_faults_are_found_although_the_host_end_cannot_be_seen() -> None:
    hidden = structs.replace(WAY, far=None, unseen="closed")
    assert (
        judge(seen(UNROUTED, structs.replace(hidden, gateway=None), inside=True)).verdict
        is Verdict.FOUND
    )
    assert judge(seen(near_with(listeners=()), hidden, ports=(80,))).verdict is Verdict.FOUND


@pytest.mark.parametrize("kind", ["macvlan", "ipvlan", "tun", None])
def test_kinds_without_a_host_end_are_judged_without_it(kind: str | None) -> None:
    near = near_with(links=(LO, link(2, "eth0", kind)))
    finding = judge(seen(near, *ways(near)))
    assert finding.verdict is Verdict.CLEAR
    assert "no host end" in finding.summary


def test_a_second_interface_that_is_off_is_only_mentioned() -> None:
    near = near_with(links=(LO, ETH0, link(3, "eth1", "veth", up=False, peer=11)))
    assert ways(near) == (Way(family="inet", ifindex=2, gateway=GATEWAY),)
    finding = judge(seen(near, WAY))
    assert finding.verdict is Verdict.CLEAR
    assert "eth1 is off" in finding.summary


def dual(gateway: str) -> tuple[Near, Way, Way]:
    six = default(gateway, source="fd00::2")
    near = near_with(
        addresses=(LOCAL, OWN, address(2, "fd00::2/64")),
        answers=(NEAR.answers[0], Answer(family="inet6", route=six, errno=None)),
        neighbours=(*NEAR.neighbours, neighbour("failed", of=gateway)),
    )
    way = Way(family="inet6", ifindex=2, gateway=gateway, far=structs.replace(FAR, owner=None))
    return near, WAY, way


def test_one_family_that_is_whole_is_enough_and_the_other_is_mentioned() -> None:
    finding = judge(seen(*dual("fd00::77"), asked=("fd00::77",)))
    assert finding.verdict is Verdict.CLEAR
    assert "Besides: Its default route goes to fd00::77" in finding.summary


def test_ipv6_alone_is_judged_by_its_own_switch() -> None:
    near, _, way = dual("fd00::1")
    far = structs.replace(FAR, addresses=(address(4, "fd00::1/64"),), forwarding=False)
    only = structs.replace(near, addresses=near.addresses[::2], neighbours=())
    finding = judge(seen(only, structs.replace(way, far=far)))
    assert "net.ipv6.conf.all.forwarding" in finding.evidence[0].source
    assert the_change(finding) is None


def test_an_ipv6_container_must_not_listen_on_ipv4_alone() -> None:
    near, _, way = dual("fd00::1")
    only = structs.replace(near, addresses=near.addresses[::2], neighbours=())
    finding = judge(seen(only, structs.replace(way, far=FAR), ports=(80,)))
    assert the_change(finding) == InProgram("listen on [::]:80 instead of 0.0.0.0")


def test_an_observation_survives_a_recording() -> None:
    kept = msgspec.json.encode(seen(near_with(listeners=()), far_with(**LOST), ports=(80,)))
    again = msgspec.json.decode(kept, type=Observation)
    assert judge(again) == judge(seen(near_with(listeners=()), far_with(**LOST), ports=(80,)))
