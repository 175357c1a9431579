"""TCP sockets, as the process that holds them and as ss knows them."""

import os
import socket
from collections.abc import Iterator

import pytest

from tests.live import networks
from tests.live.networks import FAR, NEAR, ip, path
from whybox.kernel import netlink, netns, sock_diag


@pytest.fixture(scope="module", autouse=True)
def _networks() -> Iterator[None]:
    with networks.made():
        yield


@pytest.fixture(name="near_diag")
def _near_diag() -> Iterator[netlink.Socket]:
    with netns.netlink_socket(path(NEAR), netlink.NETLINK_SOCK_DIAG) as sock:
        yield sock


def server(address: str, family: int, backlog: int) -> socket.socket:
    return netns.call_in(
        path(NEAR),
        lambda: socket.create_server((address, 0), family=family, backlog=backlog),
    )


def client(address: str, port: int) -> socket.socket:
    return netns.call_in(path(NEAR), lambda: socket.create_connection((address, port), 1.0))


def test_listeners_are_what_listens(near_diag: netlink.Socket) -> None:
    with (
        server("127.0.0.1", socket.AF_INET, 5) as local,
        server("::", socket.AF_INET6, 6) as every,
        client("127.0.0.1", local.getsockname()[1]),
        client("127.0.0.1", local.getsockname()[1]),
    ):
        seen = sock_diag.listeners(near_diag)
        assert seen == (
            sock_diag.Listener(
                family="inet",
                address="127.0.0.1",
                port=local.getsockname()[1],
                ifindex=None,
                uid=os.getuid(),
                inode=os.fstat(local.fileno()).st_ino,
                ack_backlog=2,
                max_ack_backlog=5,
                v6only=None,
            ),
            sock_diag.Listener(
                family="inet6",
                address="::",
                port=every.getsockname()[1],
                ifindex=None,
                uid=os.getuid(),
                inode=os.fstat(every.fileno()).st_ino,
                ack_backlog=0,
                max_ack_backlog=6,
                v6only=True,
            ),
        )
        said = [line.split()[1:4] for line in ip("netns", "exec", NEAR, "ss", "-ltnH").splitlines()]
    assert said == [
        [str(each.ack_backlog), str(each.max_ack_backlog), f"{shown(each)}:{each.port}"]
        for each in seen
    ]


def shown(listener: sock_diag.Listener) -> str:
    return f"[{listener.address}]" if listener.family == "inet6" else listener.address


def test_a_listener_of_one_namespace_is_not_seen_in_another() -> None:
    with (
        server("0.0.0.0", socket.AF_INET, 1),
        netns.netlink_socket(path(FAR), netlink.NETLINK_SOCK_DIAG) as sock,
    ):
        assert sock_diag.listeners(sock) == ()


def test_a_connection_has_two_ends_and_its_queues(near_diag: netlink.Socket) -> None:
    with (
        server("127.0.0.1", socket.AF_INET, 5) as listening,
        client("127.0.0.1", listening.getsockname()[1]) as calling,
        listening.accept()[0] as answering,
    ):
        calling.sendall(b"12345")
        both = sock_diag.tcp_sockets(near_diag, ("established",))
        ends = {(each.local_port, each.remote_port, each.inode, each.rqueue) for each in both}
        near_port, far_port = calling.getsockname()[1], calling.getpeername()[1]
        assert ends == {
            (near_port, far_port, os.fstat(calling.fileno()).st_ino, 0),
            (far_port, near_port, os.fstat(answering.fileno()).st_ino, 5),
        }
