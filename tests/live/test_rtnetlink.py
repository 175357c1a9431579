"""Links, addresses, neighbours and namespace ids, value by value as ip and pyroute2 tell them."""

import os
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from pyroute2 import IPRoute

from tests.live import networks
from tests.live.networks import FAR, NEAR, eventually, ip_json, path
from whybox.kernel import netlink, netns, rtnetlink
from whybox.kernel.rtnetlink import Link


@pytest.fixture(scope="module", autouse=True)
def _networks() -> Iterator[None]:
    with networks.made():
        yield


@pytest.fixture(name="near")
def _near() -> Iterator[netlink.Socket]:
    with netns.netlink_socket(path(NEAR)) as sock:
        yield sock


def by_name(links: tuple[Link, ...]) -> dict[str, Link]:
    return {link.name: link for link in links}


def port_as_ip_says(link: Link) -> dict[str, Any] | None:
    if link.port is None:
        return None
    return {
        "state": link.port.state,
        "hairpin": link.port.hairpin,
        "isolated": link.port.isolated,
    }


def test_links_are_those_of_ip(near: netlink.Socket) -> None:
    said = ip_json(NEAR, "-d", "link")
    names = {each["ifindex"]: each["ifname"] for each in said}
    links = rtnetlink.links(near)
    assert [link.name for link in links] == [each["ifname"] for each in said]
    for link, each in zip(links, said, strict=True):
        info = each.get("linkinfo", {})
        port = info.get("info_slave_data")
        assert link.ifindex == each["ifindex"]
        assert link.kind == info.get("info_kind")
        assert link.up == ("UP" in each["flags"])
        assert link.lower_up == ("LOWER_UP" in each["flags"])
        assert link.loopback == ("LOOPBACK" in each["flags"])
        assert (link.up and not link.running) == ("NO-CARRIER" in each["flags"])
        assert link.operstate == each["operstate"].lower()
        assert link.mtu_bytes == each["mtu"]
        assert link.mac_address == each["address"]
        assert names.get(link.master_ifindex or 0) == each.get("master")
        assert link.link_netnsid == each.get("link_netnsid")
        assert port_as_ip_says(link) == (
            None if port is None else {key: port[key] for key in ("state", "hairpin", "isolated")}
        )
        if link.link_netnsid is None:
            assert names.get(link.link_ifindex or 0) == each.get("link")
        else:
            assert link.link_ifindex == each["link_index"]


def test_the_settings_of_the_bridge_ports_are_seen(near: netlink.Socket) -> None:
    links = by_name(rtnetlink.links(near))
    forwarding = rtnetlink.BridgePort(state="forwarding", hairpin=False, isolated=True)
    assert links["vfar"].port == forwarding
    assert links["vhere"].port == rtnetlink.BridgePort(
        state="disabled", hairpin=True, isolated=False
    )
    assert links["mv0"].kind == "macvlan"


def test_carrier_and_running_are_those_of_pyroute2(near: netlink.Socket) -> None:
    with IPRoute(netns=NEAR) as oracle:
        said = {each.get_attr("IFLA_IFNAME"): each for each in oracle.get_links()}
    for link in rtnetlink.links(near):
        assert link.carrier == bool(said[link.name].get_attr("IFLA_CARRIER"))
        assert link.running == bool(said[link.name]["flags"] & 0x40)


def statistics(name: str) -> list[int]:
    found = ip_json(NEAR, "-s", "link", "show", name)[0]["stats64"]
    kinds = ("packets", "bytes", "errors", "dropped")
    return [found[side][kind] for kind in kinds for side in ("rx", "tx")]


@pytest.mark.parametrize("name", ["lo", "br0", "vfar", "x0"])
def test_statistics_lie_between_two_readings_of_ip(near: netlink.Socket, name: str) -> None:
    before = statistics(name)
    seen = by_name(rtnetlink.links(near))[name].statistics
    after = statistics(name)
    assert seen is not None
    read = [getattr(seen, field) for field in rtnetlink.LinkStatistics.__struct_fields__]
    assert all(low <= value <= high for low, value, high in zip(before, read, after, strict=True))
    assert name != "vfar" or seen.tx_packets > 0


def address_as_ip_says(address: rtnetlink.Address) -> dict[str, Any]:
    said: dict[str, Any] = dict.fromkeys(address.flags, True)
    if not said.pop("permanent", False):
        said["dynamic"] = True
    return said | {
        "family": address.family,
        "local": address.address,
        "prefixlen": address.prefix_length,
        "scope": address.scope,
        **({} if address.peer is None else {"address": address.peer}),
    }


def test_addresses_are_those_of_ip(near: netlink.Socket) -> None:
    other = ("label", "valid_life_time", "preferred_life_time", "broadcast", "protocol")
    said: dict[int, list[dict[str, Any]]] = {}
    for link in ip_json(NEAR, "address"):
        said[link["ifindex"]] = [
            {key: value for key, value in each.items() if key not in other}
            for each in link["addr_info"]
        ]
    seen: dict[int, list[dict[str, Any]]] = {ifindex: [] for ifindex in said}
    for address in rtnetlink.addresses(near):
        seen[address.ifindex].append(address_as_ip_says(address))
    assert seen == said


def test_a_second_address_and_a_peer_are_told(near: netlink.Socket) -> None:
    seen = {each.address: each for each in rtnetlink.addresses(near)}
    assert "secondary" in seen["10.9.0.9"].flags
    assert seen["10.9.1.1"].peer == "10.9.1.2"
    assert "nodad" in seen["2001:db8::1"].flags


def test_neighbours_are_those_of_ip(near: netlink.Socket) -> None:
    names = {link.ifindex: link.name for link in rtnetlink.links(near)}
    seen = [
        (
            names[each.ifindex],
            each.address,
            each.lladdr,
            [state.upper() for state in each.states],
        )
        for each in rtnetlink.neighbours(near)
    ]
    said = [
        (each["dev"], each["dst"], each.get("lladdr"), each["state"])
        for each in ip_json(NEAR, "neighbour", "show", "nud", "all")
    ]
    assert sorted(seen) == sorted(said)
    assert ("br0", "10.9.0.2", "02:00:00:00:00:02", ["PERMANENT"]) in seen
    assert ("br0", "10.9.0.3", "02:00:00:00:00:03", ["STALE"]) in seen


def test_a_veth_leads_to_its_peer_and_its_peers_namespace(near: netlink.Socket) -> None:
    here = by_name(rtnetlink.links(near))["vfar"]
    with netns.netlink_socket(path(FAR)) as sock:
        there = by_name(rtnetlink.links(sock))["eth0"]
    assert (here.link_ifindex, there.link_ifindex) == (there.ifindex, here.ifindex)
    descriptor = os.open(path(FAR), os.O_RDONLY)
    try:
        number = rtnetlink.netns_id(near, descriptor)
    finally:
        os.close(descriptor)
    assert number is not None
    assert number == here.link_netnsid
    assert {each["nsid"]: each.get("name") for each in ip_json(NEAR, "netns", "list-id")} == {
        number: FAR
    }


def test_a_namespace_without_a_number_has_none(near: netlink.Socket) -> None:
    assert rtnetlink.netns_id_of_pid(near, os.getpid()) is None


def test_the_namespace_of_a_process_is_known_by_its_pid(near: netlink.Socket) -> None:
    number = by_name(rtnetlink.links(near))["vfar"].link_netnsid
    words = ["ip", "netns", "exec", FAR, "sleep", "60"]
    with subprocess.Popen(words) as sleeper:
        try:
            eventually(
                lambda: os.path.samefile(f"/proc/{sleeper.pid}/ns/net", path(FAR)),
                "the process did not enter the namespace",
            )
            assert rtnetlink.netns_id_of_pid(near, sleeper.pid) == number
        finally:
            sleeper.kill()
    with pytest.raises(ProcessLookupError):
        rtnetlink.netns_id_of_pid(near, sleeper.pid)
