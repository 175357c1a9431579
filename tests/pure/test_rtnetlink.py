"""Links, addresses, routes, neighbours and sockets as bytes: dumped by Linux 6.18, and damaged.

The bytes are little-endian, as every machine is that whybox is built for.
"""

import errno
import struct
from collections.abc import Callable

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from whybox.kernel import routelookup, rtnetlink, sock_diag
from whybox.kernel.host import ParseError
from whybox.kernel.netlink import attribute

ADDRESS = bytes.fromhex(
    "0218800002000000 080001000a090001 080002000a090001 0800030062723000 0800080080000000"
    "14000600ffffffffffffffff0b4102000b410200"
)
PEER_ADDRESS = bytes.fromhex(
    "0220800002000000 080001000a090102 080002000a090101 0800030062723000 0800080080000000"
)
LINK_LOCAL_ADDRESS = bytes.fromhex(
    "0a40c0fd02000000 14000100fe80000000000000fc5114fffebf7f46"
    "14000600ffffffffffffffff0b4102000b410200 08000800c0000000 05000b0003000000"
)
MULTIPATH_ROUTE = bytes.fromhex(
    "02100000fe03000100000000 08000f00fe000000 080001000a070000 0c00080008000200 00050000"
    "24000900 1000000202000000080005000a090002 1000000002000000080005000a090003"
)
BLACKHOLE_ROUTE = bytes.fromhex(
    "02100000fe03000600000000 08000f00fe000000 080001000a080000 0800060007000000"
)
CONNECTED_ROUTE = bytes.fromhex(
    "02180000fe02fd0100000000 08000f00fe000000 080001000a090000 080007000a090001 0800040002000000"
)
NEIGHBOUR = bytes.fromhex(
    "020000000200000080000001 080001000a090002 0a000200020000000007 0000 0800040000000000"
)
LISTENER = bytes.fromhex(
    "0a0a0000 1f900000" + 32 * "00" + "00000000 0100000000000000"
    "00000000 00000000 05000000 00000000 ffad0000"
    "0500080000000000 05000b0000000000 08000f0000000000"
)


def link(*extra: bytes, flags: int = 0x11043) -> bytes:
    """A veth with the attributes that every link has, and ``extra``."""
    head = struct.pack("=BxHiII", 0, 1, 3, flags, 0)
    always = attribute(3, b"v0\0") + attribute(16, b"\x06") + attribute(4, struct.pack("=I", 1400))
    return head + always + b"".join(extra)


def test_a_link_without_frills() -> None:
    assert rtnetlink.parse_link(link()) == rtnetlink.Link(
        ifindex=3,
        name="v0",
        kind=None,
        up=True,
        running=True,
        lower_up=True,
        loopback=False,
        operstate="up",
        carrier=None,
        mtu_bytes=1400,
        mac_address=None,
        master_ifindex=None,
        link_ifindex=None,
        link_netnsid=None,
        port=None,
        statistics=None,
    )


def test_flags_are_read_one_by_one() -> None:
    seen = rtnetlink.parse_link(link(flags=0x8))
    assert (seen.up, seen.running, seen.lower_up, seen.loopback) == (False, False, False, True)


def test_a_bridge_port_is_told_from_the_slave_data() -> None:
    port = attribute(1, b"\x03") + attribute(4, b"\x01") + attribute(33, b"\x00")
    info = attribute(1, b"veth\0") + attribute(4, b"bridge\0") + attribute(0x8005, port)
    seen = rtnetlink.parse_link(link(attribute(0x8012, info), attribute(10, b"\2\0\0\0")))
    assert seen.kind == "veth"
    assert seen.master_ifindex == 2
    assert seen.port == rtnetlink.BridgePort(state="forwarding", hairpin=True, isolated=False)


def test_the_port_of_another_kind_of_master_is_no_bridge_port() -> None:
    info = attribute(1, b"veth\0") + attribute(4, b"bond\0") + attribute(5, attribute(1, b"\x03"))
    assert rtnetlink.parse_link(link(attribute(18, info))).port is None


def test_an_old_bridge_does_not_know_isolation() -> None:
    info = attribute(4, b"bridge\0") + attribute(5, attribute(1, b"\x00"))
    port = rtnetlink.parse_link(link(attribute(18, info))).port
    assert port == rtnetlink.BridgePort(state="disabled", hairpin=None, isolated=None)


def test_the_peer_and_its_namespace() -> None:
    seen = rtnetlink.parse_link(link(attribute(5, b"\2\0\0\0"), attribute(37, bytes(4))))
    assert (seen.link_ifindex, seen.link_netnsid) == (2, 0)


def test_a_peer_in_the_same_namespace_has_no_namespace_id() -> None:
    seen = rtnetlink.parse_link(link(attribute(5, b"\2\0\0\0")))
    assert (seen.link_ifindex, seen.link_netnsid) == (2, None)


def test_a_peer_in_a_dying_namespace_is_not_mistaken_for_a_link_here() -> None:
    seen = rtnetlink.parse_link(link(attribute(5, b"\2\0\0\0"), attribute(37, b"\xff" * 4)))
    assert (seen.link_ifindex, seen.link_netnsid) == (None, None)


def test_a_tunnel_without_a_lower_device_has_none() -> None:
    assert rtnetlink.parse_link(link(attribute(5, bytes(4)))).link_ifindex is None


def test_statistics_are_the_first_eight_counters() -> None:
    counters = struct.pack("=26Q", *range(26))
    seen = rtnetlink.parse_link(link(attribute(23, counters))).statistics
    assert seen == rtnetlink.LinkStatistics(
        rx_packets=0,
        tx_packets=1,
        rx_bytes=2,
        tx_bytes=3,
        rx_errors=4,
        tx_errors=5,
        rx_dropped=6,
        tx_dropped=7,
    )


def test_carrier_and_address() -> None:
    seen = rtnetlink.parse_link(link(attribute(33, b"\0"), attribute(1, bytes(range(6)))))
    assert seen.carrier is False
    assert seen.mac_address == "00:01:02:03:04:05"


def test_a_hostile_name_is_kept_as_it_is_for_the_views_to_escape() -> None:
    seen = rtnetlink.parse_link(link(attribute(3, b"\x1b[31m\xff\0")))
    assert seen.name == "\x1b[31m\\xff"


def test_an_operstate_newer_than_the_list_is_its_number() -> None:
    assert rtnetlink.parse_link(link(attribute(16, b"\x2a"))).operstate == "42"


def test_an_ipv4_address() -> None:
    assert rtnetlink.parse_address(ADDRESS) == rtnetlink.Address(
        ifindex=2,
        family="inet",
        address="10.9.0.1",
        prefix_length=24,
        peer=None,
        scope="global",
        flags=("permanent",),
    )


def test_of_a_point_to_point_address_our_end_is_the_address() -> None:
    seen = rtnetlink.parse_address(PEER_ADDRESS)
    assert seen is not None
    assert (seen.address, seen.peer, seen.prefix_length) == ("10.9.1.1", "10.9.1.2", 32)


def test_an_ipv6_address_that_is_still_tentative() -> None:
    seen = rtnetlink.parse_address(LINK_LOCAL_ADDRESS)
    assert seen is not None
    assert (seen.family, seen.address) == ("inet6", "fe80::fc51:14ff:febf:7f46")
    assert (seen.scope, seen.flags) == ("link", ("tentative", "permanent"))


def test_a_route_with_two_ways() -> None:
    assert rtnetlink.parse_route(MULTIPATH_ROUTE) == rtnetlink.Route(
        family="inet",
        destination="10.7.0.0",
        prefix_length=16,
        gateway=None,
        oif=None,
        prefsrc=None,
        type="unicast",
        table=254,
        priority=None,
        scope="global",
        flags=(),
        mtu_bytes=1280,
        multipath=(
            rtnetlink.NextHop(gateway="10.9.0.2", oif=2, weight=3, flags=()),
            rtnetlink.NextHop(gateway="10.9.0.3", oif=2, weight=1, flags=()),
        ),
    )


def test_a_blackhole_goes_nowhere() -> None:
    seen = rtnetlink.parse_route(BLACKHOLE_ROUTE)
    assert seen is not None
    assert (seen.type, seen.priority, seen.oif, seen.gateway) == ("blackhole", 7, None, None)


def test_a_connected_route_has_a_device_and_no_gateway() -> None:
    seen = rtnetlink.parse_route(CONNECTED_ROUTE)
    assert seen is not None
    assert (seen.oif, seen.gateway, seen.prefsrc, seen.scope) == (2, None, "10.9.0.1", "link")


def test_the_default_route_has_no_destination() -> None:
    gateway = attribute(5, bytes([10, 9, 0, 254]))
    seen = rtnetlink.parse_route(struct.pack("=8BI", 2, 0, 0, 0, 254, 3, 0, 1, 16) + gateway)
    assert seen is not None
    assert (seen.destination, seen.gateway, seen.flags) == (None, "10.9.0.254", ("linkdown",))


def test_an_ipv4_route_may_go_through_an_ipv6_gateway() -> None:
    via = attribute(18, struct.pack("=H", 10) + bytes(15) + b"\1")
    seen = rtnetlink.parse_route(struct.pack("=8BI", 2, 0, 0, 0, 254, 3, 0, 1, 0) + via)
    assert seen is not None
    assert seen.gateway == "::1"


def test_an_unreachable_ipv6_route_raises_the_errno_inside_it() -> None:
    cache_info = attribute(12, struct.pack("=3ii4x", 0, 0, 0, -errno.EHOSTUNREACH))
    answer = struct.pack("=8BI", 10, 128, 0, 0, 254, 3, 0, 7, 0) + cache_info
    with pytest.raises(OSError, match="RTM_GETROUTE 2001:db8::1") as refused:
        routelookup.raise_route_error(answer, "RTM_GETROUTE 2001:db8::1")
    assert refused.value.errno == errno.EHOSTUNREACH


def test_a_neighbour() -> None:
    assert rtnetlink.parse_neighbour(NEIGHBOUR) == rtnetlink.Neighbour(
        ifindex=2, address="10.9.0.2", lladdr="02:00:00:00:00:07", states=("permanent",)
    )


def test_a_neighbour_that_never_answered_has_no_link_address() -> None:
    head = struct.pack("=BxxxiHBB", 2, 2, 0x20, 0, 1)
    seen = rtnetlink.parse_neighbour(head + attribute(1, bytes(4)))
    assert seen is not None
    assert (seen.lladdr, seen.states) == (None, ("failed",))


def test_a_listener_for_both_families() -> None:
    assert sock_diag.parse_tcp_socket(LISTENER) == sock_diag.TcpSocket(
        cookie="0100000000000000",
        family="inet6",
        state="listen",
        local_address="::",
        local_port=8080,
        remote_address="::",
        remote_port=0,
        ifindex=None,
        uid=0,
        inode=44543,
        rqueue=0,
        wqueue=5,
        v6only=False,
    )


Parse = Callable[[bytes], object]
PARSERS: list[tuple[Parse, bytes]] = [
    (rtnetlink.parse_link, link(attribute(18, attribute(1, b"veth\0")))),
    (rtnetlink.parse_address, ADDRESS),
    (rtnetlink.parse_address, LINK_LOCAL_ADDRESS),
    (rtnetlink.parse_route, MULTIPATH_ROUTE),
    (rtnetlink.parse_neighbour, NEIGHBOUR),
    (sock_diag.parse_tcp_socket, LISTENER),
]


@pytest.mark.parametrize("parse", [rtnetlink.parse_address, rtnetlink.parse_route])
def test_other_families_are_none_of_ours(parse: Parse) -> None:
    assert parse(b"\x80" + bytes(11)) is None


def test_bridge_neighbours_and_unix_sockets_are_none_of_ours() -> None:
    assert rtnetlink.parse_neighbour(b"\x07" + bytes(11)) is None
    assert sock_diag.parse_tcp_socket(b"\x01" + bytes(71)) is None


@pytest.mark.parametrize(("parse", "whole"), PARSERS)
def test_a_message_cut_anywhere_is_read_in_part_or_refused(parse: Parse, whole: bytes) -> None:
    """Between two attributes it may end; elsewhere it is malformed, and no other error comes."""
    for end in range(len(whole)):
        try:
            parse(whole[:end])
        except ParseError:
            continue
    with pytest.raises(ParseError):
        parse(whole[:7])


@given(st.sampled_from(PARSERS), st.data())
def test_changed_bytes_are_read_or_refused(
    example: tuple[Parse, bytes], data: st.DataObject
) -> None:
    parse, whole = example
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 8))):
        changed[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        parse(bytes(changed))
    except ParseError:
        event("refused")
