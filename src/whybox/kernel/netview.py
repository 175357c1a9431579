"""What was seen along the way out of a network namespace, and what follows from it.

Read by ``netpath``; nothing here reads.
"""

from collections.abc import Iterator, Mapping
from ipaddress import IPv6Address, ip_address, ip_interface

from msgspec import Struct

from whybox.kernel.netlink import Family
from whybox.kernel.rtnetlink import Address, Link, Neighbour, Route
from whybox.kernel.sock_diag import Listener

#: Kinds that are one end of a wire, with a peer in another namespace (drivers/net/veth.c).
WIRES = ("veth", "netkit")

#: Kinds that lead nowhere by themselves: a container's own bridges, and the tunnels that appear in
#: every new namespace where their module is loaded (net.core.fb_tunnels_only_for_init_net).
INNER = ("bridge", "dummy", "ifb", "nlmon", "ipip", "sit", "ip6tnl", "gre", "gretap", "erspan",
         "ip6gre", "ip6gretap", "ip6erspan", "vti", "vti6")  # fmt: skip


class Answer(Struct, frozen=True, kw_only=True):
    """Which way the kernel would send to the outside; ``errno``: that of ``connect``."""

    family: Family
    route: Route | None
    errno: int | None


class Near(Struct, frozen=True, kw_only=True):
    """What a container's own namespace says."""

    links: tuple[Link, ...]
    addresses: tuple[Address, ...]
    answers: tuple[Answer, ...]
    neighbours: tuple[Neighbour, ...]
    """The gateways, as far as they were looked for."""
    listeners: tuple[Listener, ...] | None
    """On the ports that were asked about; None: this kernel does not tell (no ``tcp_diag``)."""
    counters: Mapping[str, int]

    def link(self, ifindex: int) -> Link | None:
        """An interface."""
        return next((link for link in self.links if link.ifindex == ifindex), None)

    def usable(self, ifindex: int) -> tuple[Address, ...]:
        """The addresses with which an interface can speak to more than its own link."""
        return tuple(a for a in self.addresses if a.ifindex == ifindex and is_usable(a))

    def interfaces(self) -> tuple[Link, ...]:
        """Those that can lead out, in the order in which they were made."""
        bonds = {link.ifindex for link in self.links if link.kind in ("bridge", "bond", "team")}
        return tuple(
            link
            for link in sorted(self.links, key=lambda link: link.ifindex)
            if not link.loopback and link.kind not in INNER and link.master_ifindex not in bonds
        )


class Far(Struct, frozen=True, kw_only=True):
    """What the namespace at the other end of the wire says, of that end and its bridge."""

    namespace: str
    """As its link in /proc/PID/ns names it."""
    peer: Link | None
    bridge: Link | None
    """What the peer is plugged into."""
    owner: Link | None
    """What has the gateway's address."""
    addresses: tuple[Address, ...]
    """Of these three."""
    forwarding: bool | None
    """Whether what comes in where the gateway is may go out elsewhere."""
    forwarding_all: bool | None
    back: int | None
    """Over which link the way back goes; asked where the gateway is not at the wire's end."""
    taken: tuple[str, ...]
    """Addresses heard of on the bridge; asked where the container has none."""
    counters: Mapping[str, int]


class Way(Struct, frozen=True, kw_only=True):
    """One way out: the kernel's choice, or where there is none, over what it should go."""

    family: Family
    ifindex: int
    gateway: str | None = None
    far: Far | None = None
    unseen: str | None = None
    """Why the other end, which there is, could not be looked at."""

    @property
    def gateway_is_at_hand(self) -> bool:
        """Whether the gateway's address was seen just where the wire ends."""
        if self.far is None or self.far.owner is None:
            return False
        ends = (self.far.peer, self.far.bridge)
        return any(end is not None and end.ifindex == self.far.owner.ifindex for end in ends)


class View(Struct, frozen=True, kw_only=True):
    """A container's network at one moment."""

    near: Near
    ways: tuple[Way, ...]

    def idle(self) -> tuple[Link, ...]:
        """Interfaces that lead out, but over which no way goes."""
        used = {way.ifindex for way in self.ways}
        return tuple(link for link in self.near.interfaces() if link.ifindex not in used)


def ways(near: Near) -> tuple[Way, ...]:
    """The ways that the kernel would go, or else the one that it should."""
    inner = {link.ifindex for link in near.links if link.loopback}
    found = tuple(
        Way(family=answer.family, ifindex=answer.route.oif, gateway=answer.route.gateway)
        for answer in near.answers
        if answer.route is not None and answer.route.oif is not None
        if answer.route.type == "unicast" and answer.route.oif not in inner
    )
    return found or tuple(_should_be(near))


def _should_be(near: Near) -> Iterator[Way]:
    """An interface that has an address and is off was in use; one with an address comes next."""
    ranked = sorted(near.interfaces(), key=lambda link: _rank(link, near.usable(link.ifindex)))
    for link in ranked[:1]:
        families = [address.family for address in near.usable(link.ifindex)]
        yield Way(family=families[0] if families else "inet", ifindex=link.ifindex)


def _rank(link: Link, usable: tuple[Address, ...]) -> int:
    if not usable:
        return 2
    return 1 if link.up and link.lower_up else 0


def is_usable(address: Address) -> bool:
    """Whether others can answer to it."""
    if address.family == "inet":
        return address.scope != "host"
    return address.scope in ("global", "site") and "dadfailed" not in address.flags


def neighbour(near: Near, way: Way) -> Neighbour | None:
    """What is known of the gateway, if it was looked for lately."""
    found = (n for n in near.neighbours if (n.ifindex, n.address) == (way.ifindex, way.gateway))
    return next((each for each in found if each.states), None)


def heard(near: Near, way: Way) -> bool | None:
    """Whether the gateway told its link address; None: it was not asked lately."""
    known = neighbour(near, way)
    return None if known is None else not {"failed", "incomplete"} & set(known.states)


class WayOut(Struct, frozen=True, kw_only=True):
    """One way out and the interface that it begins with."""

    near: Near
    way: Way
    link: Link

    @property
    def route(self) -> Route | None:
        """The kernel's choice for the outside, where it goes this way."""
        chosen = (a.route for a in self.near.answers if a.family == self.way.family)
        return next((r for r in chosen if r is not None and r.oif == self.link.ifindex), None)

    @property
    def errno(self) -> int | None:
        """What ``connect`` says where the kernel has no choice."""
        return next((a.errno for a in self.near.answers if a.family == self.way.family), None)

    @property
    def addresses(self) -> tuple[str, ...]:
        """With which it speaks, such as ``10.0.0.2/24``; an interface may borrow another's."""
        usable = [a for a in self.near.addresses if is_usable(a) and a.family == self.way.family]
        lent = None if self.route is None else self.route.prefsrc
        own = [a for a in usable if a.ifindex == self.link.ifindex]
        return tuple(with_length(a) for a in own or usable if own or a.address == lent)

    @property
    def missed(self) -> Link | None:
        """The bridge that has the gateway and the way back, where the wire is not plugged into it.

        A Linux host answers for any of its addresses on any of its links, so a gateway's answer is
        no proof; but it then gives the link address of the link that the question came in by.
        """
        far, known = self.way.far, neighbour(self.near, self.way)
        owner = None if far is None else far.owner
        if far is None or owner is None or owner.kind != "bridge" or self.way.gateway_is_at_hand:
            return None
        told = None if known is None else known.lladdr
        # Another bridge may lead to the owner's, and then the answer is the owner's; what the
        # container was told before it was unplugged may be as well.
        apart = far.bridge is None or told not in (None, owner.mac_address)
        return owner if far.back == owner.ifindex and apart else None

    @property
    def offered(self) -> str | None:
        """The address at the wire's other end in the same network: a gateway to go to."""
        far = self.way.far
        known = [] if far is None else [with_length(a) for a in far.addresses if is_usable(a)]
        mine = [ip_interface(each).network for each in self.addresses]
        fits = (k for k in known if not mine or any(ip_interface(k).ip in net for net in mine))
        return next(fits, None)

    @property
    def gateway(self) -> str | None:
        """The same without the length of its network."""
        return None if self.offered is None else self.offered.partition("/")[0]

    @property
    def free(self) -> str | None:
        """An address beside the offered one that nobody was heard of; engines give from below."""
        if self.offered is None or self.way.far is None:
            return None
        network = ip_interface(self.offered).network
        taken = {*self.way.far.taken, self.gateway}
        for back in range(2, min(network.num_addresses, 4096)):
            address = str(network[-back])
            if address not in taken:
                return f"{address}/{network.prefixlen}"
        return None


def ways_out(view: View) -> Iterator[WayOut]:
    """Each way with its interface."""
    for way in view.ways:
        link = view.near.link(way.ifindex)
        if link is not None:
            yield WayOut(near=view.near, way=way, link=link)


def moved(before: View | None, after: View | None, name: str) -> int:
    """By how much a counter of the near namespace grew, such as ``Ip.OutNoRoutes``."""
    if before is None or after is None:
        return 0
    return after.near.counters.get(name, 0) - before.near.counters.get(name, 0)


def moved_there(before: View | None, far: Far, name: str) -> int:
    """The same of the namespace at the far end."""
    fars = [] if before is None else [way.far for way in before.ways]
    start = next((f for f in fars if f is not None and f.namespace == far.namespace), far)
    return far.counters.get(name, 0) - start.counters.get(name, 0)


def with_length(address: Address) -> str:
    """As ``ip address`` writes it."""
    return f"{address.address}/{address.prefix_length}"


def listening(near: Near, port: int) -> tuple[str, ...] | None:
    """Where a port is listened on, where strangers do not get to it; ``None``: they do."""
    mine = [each for each in near.listeners or () if each.port == port]
    families = {a.family for each in near.interfaces() for a in near.usable(each.ifindex)}
    if any(_reach(near, each) & families for each in mine):
        return None
    return tuple(sorted({each.address for each in mine}))


def _reach(near: Near, listener: Listener) -> set[Family]:
    """By which families strangers can get to a listener."""
    bound = None if listener.ifindex is None else near.link(listener.ifindex)
    address = ip_address(listener.address)
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    if (bound is not None and bound.loopback) or (mapped or address).is_loopback:
        return set()
    if mapped is not None or listener.family == "inet":
        return {"inet"}
    # [::] takes IPv4 too, unless IPV6_V6ONLY forbids it.
    return {"inet", "inet6"} if address.is_unspecified and not listener.v6only else {"inet6"}
