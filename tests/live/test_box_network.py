"""The network of a box: a wire to a bridge on a node, each fault, and each live change."""

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.live.boxes import status
from whybox.change import (
    AddAddress,
    Change,
    DefaultRoute,
    FilterRule,
    IpForward,
    JoinBridge,
    LinkUp,
)
from whybox.kernel import netns
from whybox.lab import workload
from whybox.lab.box import Box, Network
from whybox.lab.packetfilter import Filtered

REMOTE = ("10.99.1.2", 9)


def knock(box: Box) -> str:
    """What the remote machine's closed port answers to the box; it refuses if the way is free."""
    return netns.call_in(f"/proc/{box.pid}/ns/net", connect, timeout_sec=5.0)


def connect() -> str:
    try:
        socket.create_connection(REMOTE, timeout=1.0).close()
    except OSError as error:
        return type(error).__name__
    return "open"


def wired(network: Network, *cures: Change) -> Box:
    box = Box("wired")
    for cure in cures:
        assert box.apply(cure)
    box.network(network)
    box.start(workload.idle())
    return box


def test_the_way_to_the_remote_machine_is_free() -> None:
    with wired(Network()) as box:
        assert knock(box) == "ConnectionRefusedError"


def test_the_hosts_own_network_is_not_touched() -> None:
    def state() -> list[object]:
        files = ("ipv4/ip_forward", "ipv4/conf/all/forwarding")
        said = [Path("/proc/sys/net", file).read_text() for file in files]
        made = {"br0", "veth0", "up0"} & set(os.listdir("/sys/class/net"))
        return [made, said, Path("/proc/net/route").read_text()]

    before = state()
    with wired(Network()) as box:
        assert state() == before
        mine = os.readlink("/proc/self/ns/net")
        shim = int(status(box.pid, "PPid"))
        spaces = {os.readlink(f"/proc/{pid}/ns/net") for pid in (box.pid, shim)}
        assert len(spaces - {mine}) == 2, "the box's and the node's"
    assert state() == before


FAULTS: list[tuple[Network, tuple[Change, ...]]] = [
    (Network(up=False), (LinkUp("eth0"), DefaultRoute("10.99.0.1", "eth0"))),
    (
        Network(addressed=False),
        (AddAddress("eth0", "10.99.0.2/24"), DefaultRoute("10.99.0.1", "eth0")),
    ),
    (Network(routed=False), (DefaultRoute("10.99.0.1", "eth0"),)),
    (Network(wrong_gateway="10.99.0.77"), (DefaultRoute("10.99.0.1", "eth0"),)),
    (Network(peer_up=False), (LinkUp("veth0", in_container=False),)),
    (Network(bridge_up=False), (LinkUp("br0", in_container=False),)),
    (Network(bridged=False), (JoinBridge("veth0", "br0"),)),
    (Network(forward=False), (IpForward(),)),
    (Network(filtered=Filtered(hook="forward")), (FilterRule("nft inet lab", "forward", 0),)),
    (
        Network(filtered=Filtered(hook="output", policy="accept", to=REMOTE[0])),
        (FilterRule("nft inet lab", "output", 1, handle=2, in_container=True),),
    ),
]


@pytest.mark.parametrize(("network", "cures"), FAULTS, ids=repr)
def test_each_fault_cuts_the_way_and_its_live_change_mends_it(
    network: Network, cures: tuple[Change, ...]
) -> None:
    with wired(network) as box:
        assert knock(box) in ("TimeoutError", "OSError")
        for cure in cures:
            assert box.apply(cure)
        # Neighbours that were asked in vain are asked again only after a while.
        assert before_long(lambda: knock(box) == "ConnectionRefusedError")


def before_long(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + 15
    while not (met := condition()) and time.monotonic() < end:
        time.sleep(0.2)
    return met


def test_cures_given_before_the_start_mend_the_scenarios_network() -> None:
    with wired(
        Network(bridged=False, forward=False), JoinBridge("veth0", "br0"), IpForward()
    ) as box:
        assert before_long(lambda: knock(box) == "ConnectionRefusedError")


def test_without_a_network_it_has_only_its_own_loopback() -> None:
    with Box() as box:
        box.start(workload.listen("127.0.0.1", 8080))
        links = Path(f"/proc/{box.pid}/net/dev").read_text().splitlines()[2:]
        assert [line.split(":")[0].strip() for line in links] == ["lo"]
        assert box.apply(LinkUp("lo"))
        assert not box.apply(IpForward()), "there is no node, and the host is none"
        assert not box.apply(LinkUp("lo", in_container=False))


def test_a_wire_works_with_a_user_namespace_too() -> None:
    with Box() as box:
        box.user_namespace()
        box.network()
        box.start(workload.idle())
        assert knock(box) == "ConnectionRefusedError"
