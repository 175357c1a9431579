"""The hops of a container's packets through the namespaces of the host, and whose each is.

container eth0 → the wire's other end → the bridge → other interfaces there → other namespaces
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress

from msgspec import Struct, structs

from whybox.kernel import cgroup, netlink, routelookup, rtnetlink
from whybox.kernel.finding import recognise
from whybox.kernel.host import Host
from whybox.kernel.namespace import HOST_NETS, inode_in, namespace
from whybox.kernel.netns import call_in
from whybox.kernel.netpath import KEPT, OUTSIDE, Path
from whybox.kernel.netview import WIRES, View, Way
from whybox.kernel.rtnetlink import Link
from whybox.kernel.target import Target, place
from whybox.kernel.task import pids, stat

#: The order in which a packet that leaves goes through them.
STAGES = ("container", "wire", "bridge", "host", "elsewhere")

#: So many namespaces are looked for by their inode; a storm of them must not hold us up.
MOST_SOUGHT = 64


class Hop(Struct, frozen=True, kw_only=True):
    """One interface of one namespace on the way."""

    stage: str
    """``container``, ``wire``: the other end of its veth, ``bridge``, ``host``: another interface
    of the namespace in which the wire ends, ``elsewhere``."""
    namespace: str
    """Whose it is, in words."""
    inode: int
    """0: not known."""
    interface: str | None
    """``None``: it was at no interface."""
    ifindex: int


class Owner(Struct, frozen=True, kw_only=True):
    """Whose a network namespace is."""

    name: str
    path: str | None
    """Where it can be entered."""


class Around(Struct, frozen=True, kw_only=True):
    """What is known of the container's surroundings."""

    net: int
    shared: bool
    """It has no network namespace of its own: it is the host's."""
    addresses: tuple[str, ...] = ()
    wires: frozenset[tuple[int, int]] = frozenset()
    """The other ends of its wires: namespace and index."""
    bridges: frozenset[tuple[int, int]] = frozenset()
    path: tuple[Hop, ...] = ()
    """The interfaces of its way out, as far as they can be seen from the wire."""
    notes: tuple[str, ...] = ()

    @property
    def nets(self) -> frozenset[int]:
        """Its own namespace, and those in which its wires end."""
        return frozenset({self.net} | {wire[0] for wire in self.wires})

    def stage(self, net: int, ifindex: int) -> str:
        """Which hop an interface is."""
        if net == self.net:
            return "container"
        if (net, ifindex) in self.wires:
            return "wire"
        if (net, ifindex) in self.bridges:
            return "bridge"
        return "host" if net in self.nets else "elsewhere"


def around(host: Host, target: Target) -> Around:
    """Look at the container's addresses, and along its wires."""
    net = target.namespaces.get("net", 0)
    shared = target.own("net") is False
    if shared:
        says = (
            "it has no network of its own but the host's: every packet there counts as its own,"
            " whoever sends it"
        )
        return Around(net=net, shared=True, notes=(says,))
    try:
        view = Path(host, target, ()).view()
    except (OSError, ValueError) as error:
        says = f"its addresses could not be read ({error}): only drops in its own namespace count"
        return Around(net=net, shared=False, notes=(says,))
    seen = _seen(net, view)
    ends = dict.fromkeys(wire[0] for wire in sorted(seen.wires))
    uplinks = [hop for inode in ends if (hop := _uplink(host, inode)) is not None]
    return structs.replace(seen, path=(*seen.path, *(h for h in uplinks if h not in seen.path)))


def _uplink(host: Host, inode: int) -> Hop | None:
    """The interface by which a namespace goes out itself."""
    path = _host_path(host, inode) or _found(host, inode).path

    def read() -> Hop | None:
        with netlink.Socket() as sock:
            oif = routelookup.route_to(sock, OUTSIDE["inet"]).oif
            found = (link for link in rtnetlink.links(sock) if link.ifindex == oif)
            link = next((each for each in found if not each.loopback), None)
            return None if link is None else _hop("host", inode, link)

    try:
        return None if path is None else call_in(path, read)
    except OSError:
        return None  # it does not go out


def _seen(net: int, view: View) -> Around:
    ends = [(link, way) for way in view.ways if (link := view.near.link(way.ifindex))]
    loopbacks = {link.ifindex for link in view.near.links if link.loopback}
    unseen = [f"{link.name}: {way.unseen}" for link, way in ends if way.unseen is not None]
    return Around(
        net=net,
        shared=False,
        addresses=tuple(
            dict.fromkeys(a.address for a in view.near.addresses if a.ifindex not in loopbacks)
        ),
        wires=frozenset(_wires(view)),
        bridges=frozenset(
            (_far_net(way), far.bridge.ifindex)
            for _, way in ends
            if (far := way.far) is not None and far.bridge is not None
        ),
        path=tuple(dict.fromkeys(hop for link, way in ends for hop in _path(net, link, way))),
        notes=tuple(f"the other end of its wire could not be looked at: {why}" for why in unseen),
    )


def _far_net(way: Way) -> int:
    return inode_in(way.far.namespace) if way.far is not None else 0


def _wires(view: View) -> Iterator[tuple[int, int]]:
    """Wires of the same kind to the same namespaces as the ways go to are the container's too."""
    nets = {
        link.link_netnsid: _far_net(way)
        for way in view.ways
        if way.far is not None and (link := view.near.link(way.ifindex)) is not None
    }
    for link in view.near.links:
        known = link.link_netnsid is not None and link.link_netnsid in nets
        if link.kind in WIRES and known and link.link_ifindex is not None:
            yield nets[link.link_netnsid], link.link_ifindex


def _path(net: int, link: Link, way: Way) -> Iterator[Hop]:
    yield _hop("container", net, link)
    if way.far is None:
        return
    far = _far_net(way)
    if way.far.peer is not None:
        yield _hop("wire", far, way.far.peer)
    if way.far.bridge is not None:
        yield _hop("bridge", far, way.far.bridge)


def _hop(stage: str, net: int, link: Link) -> Hop:
    return Hop(stage=stage, namespace="", inode=net, interface=link.name, ifindex=link.ifindex)


class Owners:
    """Whose namespaces are, by their inodes; each is looked for once."""

    def __init__(self, host: Host, target: Target) -> None:
        self._host = host
        self._known: dict[int, Owner] = {0: Owner(name="a namespace not known", path=None)}
        self._addresses: dict[int, frozenset[str]] = {}
        self._connected: set[int] = set()
        self._apart: set[int] = set()
        if "net" in target.host_namespaces:
            theirs = target.host_namespaces["net"]
            self._known[theirs] = Owner(name="the host", path=_host_path(host, theirs))
        self.adopt(target)

    def adopt(self, target: Target) -> None:
        """The container's own namespace has a new number."""
        net = target.namespaces.get("net")
        if net is not None and net not in self._known and target.init is not None:
            path = f"/proc/{target.init.pid}/ns/net"
            self._known[net] = Owner(name="the container", path=path)

    def name(self, inode: int) -> str:
        """In words."""
        return self._owner(inode).name

    def path(self, inode: int) -> str | None:
        """Where it can be entered, if that is known."""
        return self._owner(inode).path

    def connect(self, inodes: Iterable[int]) -> None:
        """These are where the container's packets go, and what has a wire to one of them."""
        self._connected.update(inodes)
        self._apart.clear()

    def connected(self, inode: int) -> bool:
        """Whether the container's packets can get there; where that cannot be told, they can.

        A namespace knows by a number each one to which it has a wire (ip-netns(8), "nsid").
        """
        path = self.path(inode)
        if inode in self._connected or path is None:
            return True
        if inode in self._apart:
            return False
        near = [known for one in self._connected if (known := self.path(one)) is not None]
        if not near or any(_has_wire(known, path) for known in near):
            self.connect([inode])
            return True
        self._apart.add(inode)
        return False

    def has(self, inode: int, address: str) -> bool:
        """Whether the namespace has that address itself."""
        if inode not in self._addresses:
            path = self._owner(inode).path
            self._addresses[inode] = frozenset() if path is None else frozenset(_addresses(path))
        return address in self._addresses[inode]

    def _owner(self, inode: int) -> Owner:
        if inode not in self._known:
            if len(self._known) > MOST_SOUGHT:
                return Owner(name=f"net:[{inode}]", path=None)
            self._known[inode] = _found(self._host, inode)
        return self._known[inode]


def _host_path(host: Host, inode: int) -> str | None:
    return next((p for p in HOST_NETS if _inode(host, p) == inode), None)


def _inode(host: Host, path: str) -> int | None:
    try:
        return host.inode(path)
    except OSError:
        return None


def _found(host: Host, inode: int) -> Owner:
    """By the processes that live in it, then by the names under which it is kept."""
    for pid in pids(host):
        if namespace(host, pid, "net") == inode:
            return Owner(name=_lives(host, pid), path=f"/proc/{pid}/ns/net")
    for directory in KEPT:
        with suppress(OSError):
            for name in host.names(directory):
                if _inode(host, f"{directory}/{name}") == inode:
                    return Owner(name=f"namespace {name}", path=f"{directory}/{name}")
    return Owner(name=f"net:[{inode}]", path=None)


def _lives(host: Host, pid: int) -> str:
    with suppress(OSError):
        group = place(host, cgroup.membership_of(host, pid))
        known = None if group is None else recognise(group.path)
        if known is not None:
            return f"{known[0]} {known[1][:12]}"
        return f"namespace of {stat(host, pid).comm} {pid}"
    return f"namespace of process {pid}"


def _has_wire(path: str, other: str) -> bool:
    def read() -> bool:
        descriptor = os.open(other, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            with netlink.Socket() as sock:
                return rtnetlink.netns_id(sock, descriptor) is not None
        finally:
            os.close(descriptor)

    try:
        return call_in(path, read)
    except OSError:
        return False  # one of them is gone


def _addresses(path: str) -> Iterable[str]:
    def read() -> tuple[str, ...]:
        with netlink.Socket() as sock:
            return tuple(address.address for address in rtnetlink.addresses(sock))

    try:
        return call_in(path, read)
    except OSError:
        return ()
