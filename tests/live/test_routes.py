"""Routes as ip tells them, and where there is none, the errno that connect() gives."""

import errno
import json
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.live import networks
from tests.live.networks import FAR, NEAR, ip_json, path
from whybox.kernel import netlink, netns, routelookup, rtnetlink
from whybox.kernel.rtnetlink import Route

TABLES = {"local": 255, "main": 254}


@pytest.fixture(scope="module", autouse=True)
def _networks() -> Iterator[None]:
    with networks.made():
        yield


@pytest.fixture(name="near")
def _near() -> Iterator[netlink.Socket]:
    with netns.netlink_socket(path(NEAR)) as sock:
        yield sock


def ends(gateway: str | None, oif: int | None, names: dict[int, str]) -> dict[str, Any]:
    said: dict[str, Any] = {}
    if gateway is not None:
        said["gateway"] = gateway
    if oif is not None:
        said["dev"] = names[oif]
    return said


def route_as_ip_says(route: Route, names: dict[int, str]) -> dict[str, Any]:
    full = 32 if route.family == "inet" else 128
    suffix = "" if route.prefix_length == full else f"/{route.prefix_length}"
    said: dict[str, Any] = {
        "type": route.type,
        "dst": "default" if route.destination is None else route.destination + suffix,
        "table": route.table,
        "scope": route.scope,
        "flags": list(route.flags),
        **ends(route.gateway, route.oif, names),
    }
    optional = {"metric": route.priority, "prefsrc": route.prefsrc, "mtu": route.mtu_bytes}
    said |= {key: value for key, value in optional.items() if value is not None}
    if route.multipath:
        said["nexthops"] = [
            {"weight": each.weight, "flags": list(each.flags)} | ends(each.gateway, each.oif, names)
            for each in route.multipath
        ]
    return said


def routes_of_ip(name: str) -> list[dict[str, Any]]:
    kept = ("type", "dst", "scope", "flags", "gateway", "dev", "metric", "prefsrc", "nexthops")
    said = []
    for family in ("-4", "-6"):
        for each in ip_json(name, family, "-d", "route", "show", "table", "all"):
            table = each.get("table", "main")
            route = {key: each[key] for key in kept if key in each}
            route["table"] = TABLES[table] if table in TABLES else int(table)
            route |= {"mtu": each["metrics"][0]["mtu"]} if "metrics" in each else {}
            if "via" in each:
                route["gateway"] = each["via"]["host"]
            said.append(route)
    return said


def ordered(routes: list[dict[str, Any]]) -> list[str]:
    return sorted(json.dumps(route, sort_keys=True) for route in routes)


@pytest.mark.parametrize("name", [NEAR, FAR], ids=["near", "far"])
def test_routes_are_those_of_ip(name: str) -> None:
    with netns.netlink_socket(path(name)) as sock:
        names = {link.ifindex: link.name for link in rtnetlink.links(sock)}
        seen = [route_as_ip_says(route, names) for route in rtnetlink.routes(sock)]
    assert ordered(seen) == ordered(routes_of_ip(name))


def test_every_type_of_route_is_told(near: netlink.Socket) -> None:
    seen = {(each.destination, each.table): each for each in rtnetlink.routes(near)}
    types = {key[0]: each.type for key, each in seen.items()}
    assert types["10.8.0.0"] == types["2001:db8:8::"] == "blackhole"
    assert types["10.6.0.0"] == types["2001:db8:6::"] == "unreachable"
    assert types["10.5.0.0"] == types["2001:db8:5::"] == "prohibit"
    assert seen["10.3.0.0", 100].type == "throw"
    assert seen[None, 254].gateway == "10.9.0.2"
    assert seen["10.2.0.0", 254].gateway == "2001:db8::2"
    assert [hop.weight for hop in seen["10.7.0.0", 254].multipath] == [3, 1]


@pytest.mark.parametrize("address", ["10.9.0.77", "192.0.2.1", "10.4.0.1", "2001:db8:7::1"])
def test_the_way_to_an_address_is_that_of_ip(near: netlink.Socket, address: str) -> None:
    said = ip_json(NEAR, "route", "get", address)[0]
    seen = routelookup.route_to(near, address)
    links = {link.ifindex: link.name for link in rtnetlink.links(near)}
    assert seen.destination == said["dst"] == address
    assert seen.gateway == said.get("gateway")
    assert links[seen.oif or 0] == said["dev"]
    assert seen.prefsrc == said["prefsrc"]
    assert (seen.type, seen.table) == ("unicast", 254)


def connect_errno(address: str) -> int:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        return sock.connect_ex((address, 9))


@pytest.mark.parametrize(
    ("name", "address", "number"),
    [
        (NEAR, "10.8.0.1", errno.EINVAL),
        (NEAR, "10.6.0.1", errno.EHOSTUNREACH),
        (NEAR, "10.5.0.1", errno.EACCES),
        (FAR, "192.0.2.1", errno.ENETUNREACH),
        (NEAR, "2001:db8:8::1", errno.EINVAL),
        (NEAR, "2001:db8:6::1", errno.EHOSTUNREACH),
        (NEAR, "2001:db8:5::1", errno.EACCES),
        (FAR, "2001:db8::1", errno.ENETUNREACH),
    ],
    ids=lambda value: str(value).replace(f"-{os.getpid()}", ""),
)
def test_where_there_is_no_way_the_errno_is_that_of_connect(
    name: str, address: str, number: int
) -> None:
    assert netns.call_in(path(name), lambda: connect_errno(address)) == number
    with netns.netlink_socket(path(name)) as sock:
        with pytest.raises(OSError, match=f"RTM_GETROUTE {address}") as refused:
            routelookup.route_to(sock, address)
        assert refused.value.errno == number
        assert rtnetlink.links(sock), "a refusal must not spoil the socket"


@pytest.mark.parametrize("address", ["", "10.9.0", "10.9.0.1/24", "fe80::1%eth0", "web", "\0:"])
def test_what_is_no_address_is_not_asked(near: netlink.Socket, address: str) -> None:
    with pytest.raises(ValueError, match="not an IP address"):
        routelookup.route_to(near, address)
