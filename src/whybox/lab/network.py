"""The network of a box: a wire to a bridge on a *node*, and behind that a *remote* machine.

    box             node                                 remote
    eth0 ──veth── veth0 ── br0   (ip_forward)   up0 ──veth── eth0
    10.99.0.2              10.99.0.1      10.99.1.1          10.99.1.2

The node is a network namespace that stands for the host, so that no lab ever touches the real one;
the process outside the box that PID 1 is a child of lives in it. ``ip`` would say it so:
https://man7.org/linux/man-pages/man8/ip-link.8.html, and these are the messages that it sends.
"""

import os
import socket
import struct
import time

from msgspec import Struct

from whybox.change import (
    AddAddress,
    Change,
    DefaultRoute,
    FilterRule,
    IpForward,
    JoinBridge,
    LinkMtu,
    LinkUp,
    NoQueue,
    OfNetwork,
)
from whybox.kernel import netlink
from whybox.kernel.libc import CLONE_NEWNET, setns, unshare
from whybox.kernel.netlink import NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, attribute
from whybox.kernel.netns import call_in
from whybox.kernel.qdisc import TC_H_ROOT, TCA_KIND, TCMSG
from whybox.kernel.rtnetlink import (
    IFA_ADDRESS,
    IFA_LOCAL,
    IFADDRMSG,
    IFF_UP,
    IFINFOMSG,
    IFLA_IFNAME,
    IFLA_INFO_KIND,
    IFLA_LINKINFO,
    IFLA_MASTER,
    RTA_DST,
    RTA_GATEWAY,
    RTA_OIF,
    RTM_GETLINK,
    RTMSG,
)
from whybox.lab import packetfilter
from whybox.lab.packetfilter import Filtered

RTM_NEWLINK, RTM_NEWADDR, RTM_NEWROUTE, RTM_NEWQDISC, RTM_DELQDISC = 16, 20, 24, 36, 37
TCA_OPTIONS, TCA_TBF_PARMS, TCA_TBF_BURST = 2, 1, 6
IFLA_MTU, IFLA_NET_NS_FD, IFLA_INFO_DATA, VETH_INFO_PEER = 4, 28, 2, 1
RT_TABLE_MAIN, RTPROT_BOOT, RT_SCOPE_UNIVERSE, RTN_UNICAST = 254, 3, 0, 1

#: Filters that a packet of the box meets at the node; the others are in the box.
NODE_HOOKS = ("prerouting", "forward")

IP_FORWARD = "/proc/sys/net/ipv4/ip_forward"


class Network(Struct, frozen=True, kw_only=True):
    """How the box is wired; each flag that is turned over is a fault of its own."""

    address: str = "10.99.0.2/24"
    gateway: str = "10.99.0.1"
    interface: str = "eth0"
    bridge: str = "br0"
    peer: str = "veth0"
    """The host's end of the box's wire."""
    uplink: str = "10.99.1.1/24"
    remote: str = "10.99.1.2/24"
    addressed: bool = True
    routed: bool = True
    wrong_gateway: str | None = None
    """Route to this address instead, at which nobody is."""
    up: bool = True
    """False: the box's end was switched off, which takes its routes away too."""
    peer_up: bool = True
    bridged: bool = True
    bridge_up: bool = True
    forward: bool = True
    filtered: Filtered | None = None

    @property
    def prefix(self) -> str:
        """The length of the box's network, as ``24``."""
        return self.address.partition("/")[2]


class Wires(netlink.Socket):
    """Makes and changes links in the network namespace that it was made in."""

    def up(self, interface: str, on: bool = True) -> None:
        """Switch a link on or off."""
        head = IFINFOMSG.pack(0, 0, self.index(interface), IFF_UP if on else 0, IFF_UP)
        self._change(RTM_NEWLINK, 0, head, f"switch {interface} {'on' if on else 'off'}")

    def add_bridge(self, name: str) -> None:
        """A bridge without the spanning tree: its ports forward at once."""
        info = attribute(IFLA_INFO_KIND, b"bridge")
        self._add(name, info, f"add the bridge {name}")

    def add_pair(self, name: str, other: str, other_ns: int) -> None:
        """Two ends of a wire, one here and one in the namespace behind a descriptor."""
        peer = IFINFOMSG.pack(0, 0, 0, 0, 0) + _name(other)
        peer += attribute(IFLA_NET_NS_FD, struct.pack("=I", other_ns))
        data = attribute(IFLA_INFO_DATA, attribute(VETH_INFO_PEER, peer))
        self._add(name, attribute(IFLA_INFO_KIND, b"veth") + data, f"add the pair {name} {other}")

    def join(self, interface: str, bridge: str) -> None:
        """Plug a link into a bridge."""
        head = IFINFOMSG.pack(0, 0, self.index(interface), 0, 0)
        master = attribute(IFLA_MASTER, struct.pack("=I", self.index(bridge)))
        self._change(RTM_NEWLINK, 0, head + master, f"plug {interface} into {bridge}")

    def add_address(self, interface: str, address: str) -> None:
        """Give a link an IPv4 address, such as ``10.0.0.2/24``."""
        text, _, length = address.partition("/")
        packed = socket.inet_aton(text)
        head = IFADDRMSG.pack(socket.AF_INET, int(length or 32), 0, 0, self.index(interface))
        body = attribute(IFA_LOCAL, packed) + attribute(IFA_ADDRESS, packed)
        flags = NLM_F_CREATE | NLM_F_REPLACE
        self._change(RTM_NEWADDR, flags, head + body, f"add {address} to {interface}")

    def add_route(self, interface: str, gateway: str, network: str = "0.0.0.0/0") -> None:
        """Send what is for a network to a gateway, whatever the route was before."""
        text, _, length = network.partition("/")
        kind = (RT_TABLE_MAIN, RTPROT_BOOT, RT_SCOPE_UNIVERSE, RTN_UNICAST)
        head = RTMSG.pack(socket.AF_INET, int(length), 0, 0, *kind, 0)
        body = attribute(RTA_GATEWAY, socket.inet_aton(gateway))
        body += attribute(RTA_OIF, struct.pack("=I", self.index(interface)))
        if int(length):
            body += attribute(RTA_DST, socket.inet_aton(text))
        flags = NLM_F_CREATE | NLM_F_REPLACE
        self._change(RTM_NEWROUTE, flags, head + body, f"route {network} via {gateway}")

    def set_mtu(self, interface: str, bytes: int) -> None:
        """The largest packet that a link takes."""
        head = IFINFOMSG.pack(0, 0, self.index(interface), 0, 0)
        size = attribute(IFLA_MTU, struct.pack("=I", bytes))
        self._change(RTM_NEWLINK, 0, head + size, f"give {interface} an MTU of {bytes}")

    def add_queue(self, interface: str, *, bits_per_second: int, bytes: int) -> None:
        """A token bucket: ``tc qdisc add dev X root tbf rate R burst 5000 limit B``."""
        rate = bits_per_second // 8
        # struct tc_ratespec of the rate, of no peak; limit, buffer and mtu (include/uapi/linux/
        # pkt_sched.h). The buffer is a time, in ticks of 64 ns (PSCHED_SHIFT); 16000 ticks a ms.
        buffer = 5000 * 15_625_000 // rate
        spec = struct.pack("=BBHhHI", 0, 1, 0, 0, 0, rate)
        body = spec + b"\0" * 12 + struct.pack("=III", bytes, buffer, 0)
        options = attribute(TCA_TBF_PARMS, body)
        options += attribute(TCA_TBF_BURST, struct.pack("=I", 5000))
        head = TCMSG.pack(0, self.index(interface), 0, TC_H_ROOT, 0)
        head += attribute(TCA_KIND, b"tbf\0") + attribute(TCA_OPTIONS, options)
        self._change(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_REPLACE, head, f"add a tbf to {interface}")

    def remove_queue(self, interface: str) -> None:
        """``tc qdisc del dev X root``."""
        head = TCMSG.pack(0, self.index(interface), 0, TC_H_ROOT, 0)
        self._change(RTM_DELQDISC, 0, head, f"remove the queue of {interface}")

    def index(self, interface: str) -> int:
        """The number of a link."""
        asked = IFINFOMSG.pack(0, 0, 0, 0, 0) + _name(interface)
        said = self.get(RTM_GETLINK, asked, f"the link {interface}")
        _, _, index, *_ = IFINFOMSG.unpack_from(said.payload)
        return int(index)

    def _add(self, name: str, info: bytes, asked: str) -> None:
        body = IFINFOMSG.pack(0, 0, 0, 0, 0) + _name(name) + attribute(IFLA_LINKINFO, info)
        self._change(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, asked)

    def _change(self, kind: int, flags: int, payload: bytes, asked: str) -> None:
        self._ask(kind, flags | NLM_F_ACK, payload, asked, time.monotonic() + self.timeout_sec)


def _name(interface: str) -> bytes:
    return attribute(IFLA_IFNAME, interface.encode() + b"\0")


class Node:
    """The network namespaces around a box. Made in a process that then lives in the node's."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.remote = _new_namespace()
        self.here = _new_namespace()

    def wire(self, pid: int) -> None:
        """Make all links, and the faults that the network is to have."""
        box = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._wire_here(box)
            setns(self.remote, CLONE_NEWNET)
            self._wire_remote()
            setns(box, CLONE_NEWNET)
            self._wire_box()
        finally:
            setns(self.here, CLONE_NEWNET)
            os.close(box)
        if not self.network.peer_up:
            with Wires() as wires:
                wires.up(self.network.peer, False)

    def _wire_here(self, box: int) -> None:
        wanted = self.network
        with Wires() as wires:
            wires.up("lo")
            wires.add_bridge(wanted.bridge)
            wires.add_address(wanted.bridge, f"{wanted.gateway}/{wanted.prefix}")
            wires.up(wanted.bridge, wanted.bridge_up)
            wires.add_pair("up0", "eth0", self.remote)
            wires.add_address("up0", wanted.uplink)
            wires.up("up0")
            wires.add_pair(wanted.peer, wanted.interface, box)
            if wanted.bridged:
                wires.join(wanted.peer, wanted.bridge)
            wires.up(wanted.peer)
        _set_forwarding(wanted.forward)
        if wanted.filtered is not None and wanted.filtered.hook in NODE_HOOKS:
            packetfilter.add(wanted.filtered)

    def _wire_remote(self) -> None:
        with Wires() as wires:
            wires.up("lo")
            wires.add_address("eth0", self.network.remote)
            wires.up("eth0")
            wires.add_route("eth0", self.network.uplink.partition("/")[0])

    def _wire_box(self) -> None:
        wanted = self.network
        with Wires() as wires:
            if wanted.addressed:
                wires.add_address(wanted.interface, wanted.address)
            wires.up(wanted.interface)
            if wanted.addressed and wanted.routed:
                wires.add_route(wanted.interface, wanted.wrong_gateway or wanted.gateway)
            if not wanted.up:
                wires.up(wanted.interface, False)
        if wanted.filtered is not None and wanted.filtered.hook not in NODE_HOOKS:
            packetfilter.add(wanted.filtered)


def _new_namespace() -> int:
    unshare(CLONE_NEWNET)
    return os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _set_forwarding(on: bool) -> None:
    # Opened by the thread that is in the namespace, /proc/sys/net is that namespace's.
    with open(IP_FORWARD, "w", encoding="ascii") as file:
        file.write("1" if on else "0")


def switch_loopback_on() -> None:
    """What every engine does in a new network namespace."""
    with Wires() as wires:
        wires.up("lo")


def concerns(change: Change) -> bool:
    """Whether a change is one of the network."""
    return isinstance(change, OfNetwork)


def apply(change: Change, *, box: int, node: int | None) -> bool:
    """Change the network around the process ``box``; its node is that of the process ``node``."""
    pid = node if _in_node(change) else box
    if not concerns(change) or pid is None:
        return False
    call_in(f"/proc/{pid}/ns/net", lambda: _apply_here(change))
    return True


def _in_node(change: Change) -> bool:
    if isinstance(change, FilterRule | LinkMtu | LinkUp | NoQueue):
        return not change.in_container
    return isinstance(change, JoinBridge | IpForward)


def _restore_route(wires: Wires, interface: str, gateway: str | None) -> None:
    # The kernel drops an interface's routes with its link or its address.
    if gateway is not None:
        wires.add_route(interface, gateway)


def _apply_here(change: Change) -> None:
    if isinstance(change, FilterRule):
        packetfilter.apply(change)
        return
    with Wires() as wires:
        match change:
            case LinkUp(interface=interface, gateway=gateway):
                wires.up(interface)
                _restore_route(wires, interface, gateway)
            case AddAddress(interface=interface, address=address, gateway=gateway):
                wires.add_address(interface, address)
                _restore_route(wires, interface, gateway)
            case DefaultRoute(gateway=gateway, interface=interface):
                wires.add_route(interface, gateway)
            case JoinBridge(interface=interface, bridge=bridge):
                wires.join(interface, bridge)
            case LinkMtu(interface=interface, bytes=size):
                wires.set_mtu(interface, size)
            case NoQueue(interface=interface):
                wires.remove_queue(interface)
            case IpForward():
                _set_forwarding(True)
