"""A server whose wire is cut at one place after the other."""

import socket

from whybox.change import JoinBridge
from whybox.lab import workload
from whybox.lab.box import Box, Network
from whybox.lab.lab import Lab, Scenario
from whybox.lab.packetfilter import TABLE, Filtered
from whybox.model import Finding

PORT = 8080
REMOTE = "10.99.1.2"


def serving(network: Network, address: str = "0.0.0.0") -> Scenario:
    """A box that listens on its published port."""

    def scenario(box: Box) -> None:
        box.network(network)
        box.port(PORT)
        box.start(workload.listen(address, PORT))

    return scenario


def filtered(hook: str, policy: str = "drop", to: str | None = None) -> Network:
    """A packet filter on the way; what is for ``to`` is treated the other way."""
    return Network(filtered=Filtered(hook=hook, policy=policy, to=to))


def calling(network: Network) -> Scenario:
    """A box that nobody comes in to."""

    def scenario(box: Box) -> None:
        box.network(network)
        box.start(workload.idle())

    return scenario


def mute(box: Box) -> None:
    """The network is fine; the program does not listen."""
    box.network(Network())
    box.port(PORT)
    box.start(workload.idle())


def unpublished(box: Box) -> None:
    """A box that nobody is meant to come in to; it has no default route, as in no network."""
    box.network(Network(routed=False))
    box.start(workload.idle())


def alone(box: Box) -> None:
    """As ``docker run --network none``: only lo, and that is all right."""
    box.start(workload.idle())


def sidecar(box: Box) -> None:
    """A second server is for the first alone, and no port of the box is published."""
    box.network(Network())
    box.port(PORT)
    box.start(workload.listen("0.0.0.0", PORT))
    box.run(workload.listen("127.0.0.1", 9090))


def both_families() -> None:
    """One IPv6 socket, which takes IPv4 as well."""
    with socket.create_server(("::", PORT), family=socket.AF_INET6, dualstack_ipv6=True):
        workload.idle()()


def dual_stack(box: Box) -> None:
    """No IPv4 socket is in its list."""
    box.network(Network())
    box.port(PORT)
    box.start(both_families)


def internal(box: Box) -> None:
    """No way out, and no host that would forward: the network is meant to be that way."""
    box.network(Network(routed=False, forward=False))
    box.start(workload.idle())


def numbers(finding: Finding) -> str | None:
    """The names and addresses are the lab's own."""
    wired = Network()
    change = finding.cures[0].change
    if isinstance(change, JoinBridge) and change != JoinBridge(wired.peer, wired.bridge):
        return f"{change} does not plug {wired.peer} into {wired.bridge}"
    table = f"nft inet {TABLE}"
    names = (wired.interface, wired.peer, wired.bridge, str(PORT), table)
    if not any(name in finding.summary for name in names):
        return f"none of {', '.join(names)} is named"
    return None


LAB = Lab(
    healthy=serving(Network()),
    reproduce=serving(Network(bridged=False)),
    look_alikes={
        "no network at all": alone,
        "a sidecar's port on 127.0.0.1": sidecar,
        "nothing listens and nothing is published": calling(Network()),
        "one socket for IPv6 and IPv4": dual_stack,
        "an internal network": internal,
        "a filter against one address": serving(filtered("forward", "accept", REMOTE)),
        "a filter that lets one address out": calling(filtered("output", "drop", REMOTE)),
    },
    variants={
        "its interface is off": serving(Network(up=False)),
        "no address": serving(Network(addressed=False)),
        "no default route": serving(Network(routed=False)),
        "no default route, nothing published": unpublished,
        "a gateway that is not there": serving(Network(wrong_gateway="10.99.0.77")),
        "its host end is off": serving(Network(peer_up=False)),
        "the bridge is off": serving(Network(bridge_up=False)),
        "the host does not forward": serving(Network(forward=False)),
        "the host's filter drops what is forwarded": serving(filtered("forward")),
        "the same, nothing published": calling(filtered("forward")),
        "its own filter lets nobody in": serving(filtered("input")),
        "nothing listens": mute,
        "it listens on loopback only": serving(Network(), "127.0.0.1"),
    },
    numbers=numbers,
    window_seconds=1.2,
)
