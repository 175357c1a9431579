"""What follows from a path that was seen, before anybody judges it."""

import pytest
from msgspec import structs

from tests.pure.paths import (
    ETH0,
    FAR,
    LO,
    LOCAL,
    NEAR,
    OWN,
    WAY,
    address,
    answers,
    default,
    far_with,
    link,
    listener,
    near_with,
)
from whybox.kernel.netview import View, Way, WayOut, listening, moved, moved_there, ways


def test_a_route_to_lo_is_no_way_out() -> None:
    near = near_with(answers=answers(default(None, oif=1)))
    assert ways(near) == (Way(family="inet", ifindex=2),)


@pytest.mark.parametrize(
    ("bridge", "taken", "free"),
    [
        ("10.0.0.1/30", (), "10.0.0.2/30"),
        ("10.0.0.1/30", ("10.0.0.2",), None),
        ("10.0.0.0/31", (), None),
        ("10.0.0.254/24", ("10.0.0.253",), "10.0.0.252/24"),
        ("fd00::1/64", (), "fd00::ffff:ffff:ffff:fffe/64"),
    ],
)
def test_a_free_address_is_sought_from_above(
    bridge: str, taken: tuple[str, ...], free: str | None
) -> None:
    """Engines give addresses from below."""
    way = far_with(addresses=(address(4, bridge),), taken=taken)
    near = near_with(addresses=(), answers=answers(None))
    assert WayOut(near=near, way=way, link=ETH0).free == free


def test_a_gateway_is_offered_only_in_the_own_network() -> None:
    offers = (address(4, "10.0.0.1/8"), address(4, "172.17.0.1/24"), address(4, "fe80::1/64"))
    out = WayOut(near=NEAR, way=far_with(addresses=offers), link=ETH0)
    assert (out.offered, out.gateway) == ("172.17.0.1/24", "172.17.0.1")


def test_counters_are_compared_within_one_namespace() -> None:
    view = View(near=NEAR, ways=(WAY,))
    later = View(near=near_with(counters={"Ip.OutNoRoutes": 6}), ways=(WAY,))
    assert moved(view, later, "Ip.OutNoRoutes") == 2
    assert moved(None, later, "Ip.OutNoRoutes") == 0
    more = structs.replace(FAR, counters={"Ip.InAddrErrors": 13})
    assert moved_there(view, more, "Ip.InAddrErrors") == 3
    assert moved_there(view, structs.replace(more, namespace="net:[1]"), "Ip.InAddrErrors") == 0


def test_of_several_interfaces_without_a_way_out_the_one_that_was_in_use_is_named() -> None:
    off = link(3, "eth1", "veth", up=False, peer=11)
    both = (LOCAL, OWN, address(3, "10.0.0.2/24"))
    assert ways(near_with(links=(LO, ETH0, off), answers=answers(None)))[0].ifindex == 2
    near = near_with(links=(LO, ETH0, off), addresses=both, answers=answers(None))
    assert ways(near)[0].ifindex == 3


def test_wires_of_containers_within_the_container_are_not_its_way_out() -> None:
    nested = link(7, "vethin", "veth", master=6, peer=2)
    inner = link(6, "docker0", "bridge", carrier=False)
    near = near_with(links=(LO, nested, inner, ETH0), answers=answers(None))
    assert [way.ifindex for way in ways(near)] == [2]


@pytest.mark.parametrize("where", ["0.0.0.0", "172.17.0.2", "::", "::ffff:172.17.0.2"])
def test_a_published_port_that_strangers_reach_is_clear(where: str) -> None:
    mine = (listener("127.0.0.1"), listener(where, v6only=False if ":" in where else None))
    assert listening(near_with(listeners=mine), 80) is None
