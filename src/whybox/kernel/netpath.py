"""Looking along the way out of a network namespace, as far as the other end of its wire.

Each namespace is read by a thread inside it, which is bounded in time. ``/proc/net/snmp`` says:

>>> counters("Tcp: InSegs OutSegs OutRsts\\nTcp: 3 7 2\\n")
{'Tcp.InSegs': 3, 'Tcp.OutSegs': 7, 'Tcp.OutRsts': 2}
"""

import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress

from msgspec import Struct, structs

from whybox.kernel import netlink, routelookup, rtnetlink
from whybox.kernel.host import Host, ParseError
from whybox.kernel.namespace import HOST_NETS, namespace
from whybox.kernel.netconf import ALL, settings
from whybox.kernel.netlink import FAMILIES, Family
from whybox.kernel.netns import call_in
from whybox.kernel.netview import WIRES, Answer, Far, Near, View, Way, heard, ways
from whybox.kernel.rtnetlink import Address, Link
from whybox.kernel.sock_diag import Listener, listeners
from whybox.kernel.target import Target
from whybox.kernel.task import pids

#: Addresses for documentation, which nobody has (RFC 5737, RFC 3849): asking the kernel for its
#: route to them sends nothing.
OUTSIDE: Mapping[Family, str] = {"inet": "192.0.2.1", "inet6": "2001:db8:ffff::1"}

#: Where engines keep namespaces that no process lives in; an overlay network's bridge is in one.
KEPT = ("/run/netns", "/run/docker/netns")

#: The service "discard": what comes there is thrown away.
DISCARD_PORT = 9


class Side(Struct, frozen=True, kw_only=True):
    """A whole namespace at the far end; read once a moment for all containers that end there."""

    links: tuple[Link, ...]
    addresses: tuple[Address, ...]
    forwarding: Mapping[tuple[Family, int], bool]
    counters: Mapping[str, int]


class Path:
    """One container's way out, to be looked along again and again."""

    def __init__(self, host: Host, target: Target, ports: Iterable[int]) -> None:
        self._host = host
        self._place = place(target)
        self._ports = frozenset(ports)
        self._known: dict[int, tuple[str, int]] = {}

    def view(self) -> View:
        """What there is to see at this moment; TCP listeners on the ports that were named."""
        if not self._host.live:
            raise OSError("a tree of files has no network namespace to look into")
        try:
            near = call_in(self._place, lambda: _near(self._ports))
            return View(near=near, ways=tuple(self._with_far(near, way) for way in ways(near)))
        except PermissionError as error:
            raise OSError("its network namespace may not be entered: run as root") from error

    def far_place(self, link: Link) -> str | None:
        """Where the namespace at the other end of a wire can be entered."""
        return None if link.link_netnsid is None else self._found(link.link_netnsid)

    @property
    def places(self) -> dict[int, str]:
        """Where the namespaces at the other ends of its wires were found, by their numbers."""
        return {number: path for number, (path, _) in self._known.items()}

    def asked(self, view: View) -> Iterator[str]:
        """Make the kernel look for the gateways whose place is in doubt; which they are.

        Never where no time is left for an answer.
        """
        for way in view.ways if self._host.window_seconds > 0 else ():
            said = heard(view.near, way)
            # An old refusal may be out of date; of a gateway at hand nobody needs to have heard.
            doubtful = said is False or (said is None and not way.gateway_is_at_hand)
            if way.gateway is not None and doubtful and self._ask(way):
                yield way.gateway

    def _ask(self, way: Way) -> bool:
        try:
            call_in(self._place, lambda: _send(way))
        except OSError:
            return False  # a packet filter refused, or the queue of such requests is full
        return True

    def _with_far(self, near: Near, way: Way) -> Way:
        link = near.link(way.ifindex)
        if link is None or link.kind not in WIRES or link.link_netnsid is None:
            return way
        path = self._found(link.link_netnsid)
        if path is None:
            return structs.replace(way, unseen="no namespace that can be seen from here has it")
        try:
            return structs.replace(way, far=_far(self._host, path, near, way, link))
        except OSError as error:
            return structs.replace(way, unseen=f"{path}: {error.strerror or error}")

    def _found(self, number: int) -> str | None:
        """The namespace that the container's knows by this number, the likeliest tried first."""
        known = self._known.get(number)
        # A number is given once; the path to what it was given to may have passed to another.
        if known is not None and _inode(self._host, known[0]) == known[1]:
            return known[0]
        path = self._among(number, HOST_NETS) or self._among(number, namespaces(self._host))
        inode = None if path is None else _inode(self._host, path)
        if path is not None and inode is not None:
            self._known[number] = (path, inode)
        return path

    def _among(self, number: int, places: Iterable[str]) -> str | None:
        return among(self._place, number, places)


def among(place: str, number: int, places: Iterable[str]) -> str | None:
    """Which of these namespaces the one at ``place`` knows by a number."""

    def search() -> str | None:
        with netlink.Socket() as sock:
            return next((path for path in places if _number(sock, path) == number), None)

    return call_in(place, search)


def place(target: Target) -> str:
    """What names its network namespace."""
    # From inside, PID 1 may be another user's, whose /proc/1/ns is closed.
    pid = "self" if target.runtime == "self" or target.init is None else target.init.pid
    return f"/proc/{pid}/ns/net"


def _send(way: Way) -> None:
    """One empty datagram, for which the kernel must find the gateway's link address first."""
    family = socket.AF_INET if way.family == "inet" else socket.AF_INET6
    # A link-local gateway means nothing without its interface.
    place = () if way.family == "inet" else (0, way.ifindex)
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        sock.sendto(b"", (way.gateway, DISCARD_PORT, *place))


def counters(text: str) -> dict[str, int]:
    """``/proc/net/snmp``: a line of names, then a line of numbers with the same first word."""
    found: dict[str, int] = {}
    lines = text.splitlines()
    for names, values in zip(lines[::2], lines[1::2], strict=False):
        group, _, rest = names.partition(":")
        pairs = zip(rest.split(), values.partition(":")[2].split(), strict=False)
        try:
            found |= {f"{group}.{name}": int(value) for name, value in pairs}
        except ValueError:
            raise ParseError("/proc/net/snmp", values) from None
    return found


def own_counters(*files: str) -> dict[str, int]:
    """What these files (``snmp``, ``netstat``) count in the running thread's network namespace."""
    found: dict[str, int] = {}
    for name in files:  # /proc/net would be the main thread's
        with open(f"/proc/thread-self/net/{name}", encoding="ascii") as file:
            found |= counters(file.read(1 << 16))
    return found


def _near(ports: frozenset[int]) -> Near:
    """Runs in the container's namespace."""
    with netlink.Socket() as sock:
        answers = tuple(_answer(sock, family) for family in FAMILIES.values())
        gateways = {a.route.gateway for a in answers if a.route is not None}
        return Near(
            links=rtnetlink.links(sock),
            addresses=rtnetlink.addresses(sock),
            answers=answers,
            neighbours=tuple(n for n in rtnetlink.neighbours(sock) if n.address in gateways),
            listeners=_listeners(ports) if ports else (),
            counters=own_counters("snmp"),
        )


def _answer(sock: netlink.Socket, family: Family) -> Answer:
    try:
        route = routelookup.route_to(sock, OUTSIDE[family])
    except OSError as error:
        return Answer(family=family, route=None, errno=error.errno)
    return Answer(family=family, route=route, errno=None)


def _listeners(ports: frozenset[int]) -> tuple[Listener, ...] | None:
    try:
        with netlink.Socket(netlink.NETLINK_SOCK_DIAG) as sock:
            return tuple(each for each in listeners(sock) if each.port in ports)
    except OSError:
        return None


def _inode(host: Host, path: str) -> int | None:
    try:
        return host.inode(path)
    except OSError:
        return None


def _number(sock: netlink.Socket, path: str) -> int | None:
    with suppress(OSError):  # gone, closed to us, or no namespace at all
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            return rtnetlink.netns_id(sock, descriptor)
        finally:
            os.close(descriptor)
    return None


def namespaces(host: Host) -> tuple[str, ...]:
    """A path to each network namespace that can be seen."""
    return host.remembered("network namespaces", lambda: tuple(_each_namespace(host)))


def _each_namespace(host: Host) -> Iterator[str]:
    for directory in KEPT:
        with suppress(OSError):
            yield from (f"{directory}/{name}" for name in host.names(directory))
    seen = {None, namespace(host, "self", "net")}
    for pid in pids(host):
        inode = namespace(host, pid, "net")
        if inode not in seen:
            seen.add(inode)
            yield f"/proc/{pid}/ns/net"


def _far(host: Host, path: str, near: Near, way: Way, link: Link) -> Far:
    inode = host.inode(path)
    side = host.remembered(f"network namespace {inode}", lambda: call_in(path, _side))
    far = _placed(side, way, link, f"net:[{inode}]")
    own = [address.address for address in near.usable(way.ifindex)]
    if far.bridge is not None and not own:
        plug = far.bridge.ifindex
        return structs.replace(far, taken=call_in(path, lambda: _taken(plug)))
    if own and not structs.replace(way, far=far).gateway_is_at_hand:
        return structs.replace(far, back=call_in(path, lambda: _back(own[0])))
    return far


def _side() -> Side:
    """Runs in the far namespace."""
    with netlink.Socket() as sock:
        return Side(
            links=rtnetlink.links(sock),
            addresses=rtnetlink.addresses(sock),
            forwarding=settings(sock).forwarding,
            counters=own_counters("snmp"),
        )


def _placed(side: Side, way: Way, link: Link, name: str) -> Far:
    by_index = {each.ifindex: each for each in side.links}
    peer = None if link.link_ifindex is None else by_index.get(link.link_ifindex)
    bridge = None
    if peer is not None and peer.master_ifindex is not None:
        bridge = by_index.get(peer.master_ifindex)
    # Several links may have the gateway's address: the one that is nearest counts.
    owners = {a.ifindex for a in side.addresses if a.address == way.gateway}
    near_first = [each for each in (peer, bridge, *side.links) if each is not None]
    owner = next((each for each in near_first if each.ifindex in owners), None)
    ends = {each.ifindex for each in (peer, bridge, owner) if each is not None}
    router = owner or bridge or peer
    return Far(
        namespace=name,
        peer=peer,
        bridge=bridge,
        owner=owner,
        addresses=tuple(a for a in side.addresses if a.ifindex in ends),
        forwarding=None if router is None else _forwards(side, way.family, router.ifindex),
        forwarding_all=side.forwarding.get((way.family, ALL)),
        back=None,
        taken=(),
        counters=side.counters,
    )


def _forwards(side: Side, family: Family, ifindex: int) -> bool | None:
    """IPv4 asks the link that a packet came in by (ip_route_input_slow()), IPv6 only "all"."""
    place = ifindex if family == "inet" else ALL
    return side.forwarding.get((family, place))


def _taken(ifindex: int) -> tuple[str, ...]:
    with netlink.Socket() as sock:
        return tuple(n.address for n in rtnetlink.neighbours(sock) if n.ifindex == ifindex)


def _back(address: str) -> int | None:
    with netlink.Socket() as sock, suppress(OSError):
        return routelookup.route_to(sock, address).oif
    return None
