"""One container network, and all the ways in which it breaks, each made by the words of ``ip``.

c ──eth0 vc──┐                      c, d: containers   h: their host   x: somewhere else
             br0 ── h ──up0 eth0── x
d ──eth0 vd──┘      MASQUERADE
"""

import os
import shlex
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from msgspec import Struct

from whybox.change import HostSysctl
from whybox.kernel.host import Host
from whybox.kernel.namespace import FIRST_NET
from whybox.kernel.netns import call_in
from whybox.kernel.target import Target, described
from whybox.lab.machine import set_sysctl

SPACES = ("c", "d", "h", "x")
SETUP = """\
-n {h} link add name br0 type bridge
-n {h} link add vc type veth peer name eth0 netns {c}
-n {h} link add vd type veth peer name eth0 netns {d}
-n {h} link add up0 type veth peer name eth0 netns {x}
-n {h} link set vc master br0 up
-n {h} link set vd master br0 up
-n {h} link set br0 up
-n {h} link set up0 up
-n {h} address add 172.30.0.1/24 dev br0
-n {h} address add 172.31.0.1/24 dev up0
-n {c} link set lo up
-n {c} link set eth0 up
-n {c} address add 172.30.0.2/24 dev eth0
-n {c} route add default via 172.30.0.1
-n {d} link set lo up
-n {d} link set eth0 up
-n {d} address add 172.30.0.3/24 dev eth0
-n {d} route add default via 172.30.0.1
-n {x} link set lo up
-n {x} link set eth0 up
-n {x} address add 172.31.0.2/24 dev eth0
"""
SYSCTLS = """\
net.ipv4.ip_forward=1
net.ipv4.conf.all.rp_filter=0
net.ipv4.conf.default.rp_filter=0
net.ipv6.conf.all.disable_ipv6=1
net.ipv6.conf.default.disable_ipv6=1
net.ipv6.conf.all.accept_dad=0
net.ipv6.conf.default.accept_dad=0
net.ipv6.conf.default.dad_transmits=0
"""
MASQUERADE = "h iptables -t nat -A POSTROUTING -s 172.30.0.0/24 ! -o br0 -j MASQUERADE"
X = "172.31.0.2:80"
D = "172.30.0.3:8080"
NODE = "172.31.0.1:8080"
PUBLISH = "h iptables -t nat -A PREROUTING -p tcp --dport 8080 -j DNAT --to 172.30.0.2:8080"
NO_ICMP = "h iptables -A OUTPUT -p icmp -j DROP"


class Fault(Struct, frozen=True, kw_only=True):
    """How the network is broken, who asks for whom, and which words name the hop."""

    do: tuple[str, ...] = ()
    """Lines such as ``c ip link set eth0 down``: where, and what."""
    to: str = X
    names: tuple[str, ...] = ()
    """What the sentence must say; none: the way must be clear."""
    who: str = "c"
    deaf: tuple[str, ...] = ()
    """Listeners that are not there: ``x``, ``d``, ``c``."""
    at: str = "0.0.0.0"
    """Where they listen."""
    full: bool = False
    """The queue of x's listener is full."""
    masquerade: bool = True
    machine: tuple[tuple[str, str], ...] = ()
    """Parameters of the whole machine: only in a virtual one of ours."""
    tracked: int = 0
    """So many connections of x to h are kept open."""


#: The same network with IPv6 beside IPv4.
SIX = (
    *(f"{space} sysctl -qw net.ipv6.conf.all.disable_ipv6=0" for space in SPACES),
    "h sysctl -qw net.ipv6.conf.all.forwarding=1",
    "h ip address add fd30::1/64 dev br0 nodad",
    "h ip address add fd31::1/64 dev up0 nodad",
    "c ip address add fd30::2/64 dev eth0 nodad",
    "c ip route add default via fd30::1",
    "x ip address add fd31::2/64 dev eth0 nodad",
    "x ip route add fd30::/64 via fd31::1",
)
X6 = "fd31::2:80"

FAULTS: dict[str, Fault] = {
    "healthy": Fault(),
    "healthy, IPv6": Fault(do=SIX, to=X6, at="::"),
    "FORWARD drops IPv6": Fault(
        do=(*SIX, "h ip6tables -A FORWARD -s fd30::2 -p tcp --dport 80 -j DROP"),
        to=X6,
        at="::",
        names=("FORWARD", "nft ip6 filter", "rule 1"),
    ),
    "no way back, IPv6": Fault(
        do=(*SIX, "x ip route del fd30::/64"), to=X6, at="::", names=("fd30::2", "way back")
    ),
    "no forwarding, IPv6": Fault(
        do=(*SIX, "h sysctl -qw net.ipv6.conf.all.forwarding=0"),
        to=X6,
        at="::",
        names=("forward",),
    ),
    "healthy, to a neighbour": Fault(to=D),
    "interface off": Fault(do=("c ip link set eth0 down",), names=("eth0", "off")),
    "no address": Fault(do=("c ip address flush dev eth0",), names=("eth0", "no address")),
    "no default route": Fault(do=("c ip route del default",), names=("no default route",)),
    "wrong gateway": Fault(
        do=("c ip route replace default via 172.30.0.77",), names=("172.30.0.77", "nobody")
    ),
    "blackhole route": Fault(
        do=("c ip route replace blackhole default",), names=("blackhole",)
    ),
    "unreachable route": Fault(
        do=("c ip route replace unreachable default",), names=("unreachable",)
    ),
    "prohibit route": Fault(do=("c ip route replace prohibit default",), names=("prohibit",)),
    "host end off": Fault(do=("h ip link set vc down",), names=("vc", "off")),
    "host end on no bridge": Fault(
        do=("h ip link set vc nomaster",), names=("vc", "not plugged", "br0")
    ),
    "bridge off": Fault(do=("h ip link set br0 down",), names=("bridge br0", "off")),
    "no forwarding": Fault(do=("h sysctl -qw net.ipv4.ip_forward=0",), names=("forward",)),
    "FORWARD drops": Fault(
        do=("h iptables -A FORWARD -s 172.30.0.2 -j DROP",),
        names=("FORWARD", "rule 1", "drops"),
    ),
    "FORWARD drops, legacy": Fault(
        do=("h iptables-legacy -A FORWARD -i br0 -p tcp --dport 80 -j DROP",),
        names=("iptables filter", "FORWARD", "rule 1", "drops"),
    ),
    "FORWARD's policy drops": Fault(
        do=("h iptables -P FORWARD DROP",), names=("policy of chain FORWARD",)
    ),
    "FORWARD refuses": Fault(
        do=("h iptables -A FORWARD -p tcp --dport 80 -j REJECT",),
        names=("FORWARD", "rule 1", "refuses"),
    ),
    "no masquerade": Fault(masquerade=False, names=("172.30.0.2", "way back", "translat")),
    "OUTPUT drops in c": Fault(
        do=("c iptables -A OUTPUT -p tcp --dport 80 -j DROP",), names=("OUTPUT", "container")
    ),
    "INPUT drops in c": Fault(
        do=("d iptables -A INPUT -p tcp --dport 8080 -j DROP",), to=D, names=("INPUT", "drops")
    ),
    "raw PREROUTING drops": Fault(
        do=("h iptables -t raw -A PREROUTING -s 172.30.0.2 -j DROP",),
        names=("PREROUTING", "nft ip raw"),
    ),
    "the bridge's filter drops": Fault(
        do=("h ebtables -A FORWARD -p ARP -j DROP",), to=D, names=("FORWARD", "bridge filter")
    ),
    "bridge ports isolated": Fault(
        do=(
            "h ip link set vc type bridge_slave isolated on",
            "h ip link set vd type bridge_slave isolated on",
        ),
        to=D,
        names=("vc", "vd", "isolated"),
    ),
    "rp_filter": Fault(
        do=(
            "h ip route add 172.30.0.2/32 dev up0",
            "h sysctl -qw net.ipv4.conf.br0.rp_filter=1",
        ),
        names=("rp_filter", "br0"),
    ),
    "uplink off": Fault(do=("h ip link set up0 down",), names=("up0", "off")),
    "remote dead": Fault(
        do=("x ip address flush dev eth0", "x ip address add 172.31.0.9/24 dev eth0"),
        names=("172.31.0.2", "nobody", "up0"),
    ),
    "port closed": Fault(deaf=("x",), names=("port 80", "no socket")),
    "listens on loopback": Fault(at="127.0.0.1", to=D, names=("8080", "127.0.0.1")),
    "accept queue full": Fault(full=True, names=("port 80", "queue", "full")),
    "uplink MTU, no ICMP": Fault(
        do=("h ip link set up0 mtu 1400", NO_ICMP), names=("up0", "1400", "OUTPUT")
    ),
    "bridge MTU, no ICMP": Fault(
        do=("h ip link set br0 mtu 1300", NO_ICMP), names=("br0", "1300", "OUTPUT")
    ),
    "bridge MTU, ICMP allowed": Fault(do=("h ip link set br0 mtu 1300",)),
    "bridge MTU, MSS clamped": Fault(
        do=(
            "h ip link set br0 mtu 1300",
            NO_ICMP,
            "h iptables -t mangle -A FORWARD -p tcp --tcp-flags SYN,RST SYN "
            "-j TCPMSS --clamp-mss-to-pmtu",
        )
    ),
    "narrow host end": Fault(do=("h ip link set vc mtu 1400",), names=("vc", "1400")),
    "hairpin": Fault(do=(PUBLISH,), to=NODE, names=("vc", "hairpin")),
    "over-broad DNAT": Fault(do=(PUBLISH,), to=D, names=("PREROUTING", "172.30.0.2", "hairpin")),
    "tracking full": Fault(
        machine=(("net.netfilter.nf_conntrack_max", "8"),), tracked=12, names=("tracking", "full")
    ),
    "no room for neighbours": Fault(
        do=(
            "h sh -c 'for n in $(seq 100 119); do echo neigh replace 172.31.0.$n "
            "lladdr 02:00:00:00:00:01 nud stale dev up0; done | ip -batch -'",
        ),
        machine=(("net.ipv4.neigh.default.gc_thresh3", "8"),),
        names=("neighbours", "full"),
    ),
    "same address twice": Fault(
        do=("d ip address add 172.30.0.2/24 dev eth0",), names=("172.30.0.2", "twice")
    ),
    "same link address twice": Fault(
        do=("c ip link set eth0 address 02:00:00:00:00:aa",
            "d ip link set eth0 address 02:00:00:00:00:aa",
            "c ip route replace default via 172.30.0.1"),
        names=("02:00:00:00:00:aa", "twice"),
    ),
}  # fmt: skip


class World:
    """The namespaces of one fault."""

    def __init__(self, stack: ExitStack) -> None:
        self.names = {space: f"whybox-{space}-{os.getpid()}" for space in SPACES}
        self._stack = stack

    def path(self, space: str) -> str:
        return f"/run/netns/{self.names[space]}"

    def run(self, line: str) -> None:
        """``h ip link …``: a command in a namespace; ``machine …``: in the first one."""
        space, _, words = line.partition(" ")
        command = [*self._within(space), *shlex.split(words)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}: {done.stderr}"

    def _within(self, space: str) -> tuple[str, ...]:
        if space == "machine":
            return ("nsenter", f"--net={FIRST_NET}")
        return ("ip", "netns", "exec", self.names[space])

    def keep(self, opened: socket.socket) -> socket.socket:
        self._stack.callback(opened.close)
        return opened

    def listen(self, space: str, address: str, port: int, backlog: int = 16) -> None:
        def make() -> socket.socket:
            sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((address, port))
            sock.listen(backlog)
            return sock

        self.keep(call_in(self.path(space), make))

    def crowd(self, space: str, port: int, number: int) -> None:
        """Connections that nobody accepts."""

        def connect() -> list[socket.socket]:
            made = []
            for _ in range(number):
                sock = socket.socket()
                sock.setblocking(False)
                sock.connect_ex(("127.0.0.1", port))
                made.append(sock)
            return made

        for sock in call_in(self.path(space), connect):
            self.keep(sock)

    def converse(self, number: int) -> None:
        """Connections from x to h, which h tracks."""
        self.listen("h", "172.31.0.1", 9000, number)

        def connect() -> list[socket.socket]:
            return [socket.create_connection(("172.31.0.1", 9000), 5) for _ in range(number)]

        for sock in call_in(self.path("x"), connect, 20):
            self.keep(sock)

    def set(self, name: str, value: str) -> None:
        """A parameter of the machine, put back afterwards."""
        set_sysctl(HostSysctl(name, value), self._stack)

    def target(self, space: str) -> Target:
        """A process in a namespace, as whybox is asked about it."""
        words = ["ip", "netns", "exec", self.names[space], "sleep", "600"]
        process = subprocess.Popen(words)
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        there = os.stat(self.path(space)).st_ino
        while os.stat(f"/proc/{process.pid}/ns/net").st_ino != there:
            pass
        return described(Host(), process.pid, id=f"fault-{space}", runtime="process")


@contextmanager
def broken(fault: Fault) -> Iterator[World]:
    """The network with one fault in it."""
    with ExitStack() as stack:
        world = World(stack)
        for name in world.names.values():
            _ip("netns", "add", name)
            stack.callback(_ip, "netns", "delete", name)
        lines = SETUP.format(**world.names).splitlines()
        for space in SPACES:
            settings = " ".join(SYSCTLS.split())
            world.run(f"{space} sysctl -qw {settings}")
        for line in lines:
            _ip(*line.split())
        if fault.masquerade:
            world.run(MASQUERADE)
        _break(world, fault)
        yield world


def _break(world: World, fault: Fault) -> None:
    """Who listens, and what is broken."""
    for space, port in (("x", 80), ("d", 8080), ("c", 8080)):
        if space not in fault.deaf:
            world.listen(space, fault.at, port, 1 if fault.full else 16)
    if fault.full:
        world.crowd("x", 80, 4)
    if fault.tracked:
        world.converse(fault.tracked)
    for line in fault.do:
        world.run(line)
    for name, value in fault.machine:
        world.set(name, value)


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"
