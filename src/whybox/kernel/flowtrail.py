"""What a walk along a connection's way has seen so far: namespaces, hops, and translations."""

from msgspec import Struct, structs

from whybox.kernel.flow import Endpoint, Step, meter_of
from whybox.kernel.flowspace import Space
from whybox.kernel.host import Host
from whybox.kernel.namespace import HOST_NETS
from whybox.kernel.netview import WIRES
from whybox.kernel.packetfilter import Named, Outcome, Packet
from whybox.kernel.rtnetlink import Link

#: More hops than any machine has between two containers; against loops.
MOST_HOPS = 24
#: Of a filter whose answer depends on what is not known, so many rules are named.
MOST_SUSPECTS = 8


class Narrow(Struct, frozen=True, kw_only=True):
    """A place where packets are passed on over a link that may be too narrow for them."""

    at: int
    """Behind which step."""
    way: str
    space: Space
    iif: Link
    oif: Link
    packet: Packet


class Place(Struct, frozen=True, kw_only=True):
    """Where a packet has come to."""

    space: Space
    packet: Packet


class Trail:
    """The namespaces on the way, and what was met in them so far."""

    def __init__(self, host: Host, path: str, to: Endpoint) -> None:
        self.steps: list[Step] = []
        self.spaces: dict[int, Space] = {}
        self._host, self._to = host, to
        self._way = "there"
        self._left = MOST_HOPS
        self._clamped: set[tuple[int, str]] = set()
        self._unread: set[int] = set()
        self._narrow: list[Narrow] = []
        self._sent: dict[str, tuple[Space, int, str | None]] = {}
        self._sources: list[tuple[int, str | None, str | None]] = []
        self._destinations: list[tuple[int, str | None, str | None]] = []
        self._forwarded: tuple[Space, Link, Link] | None = None
        self._start = self._space(path, "the container")

    def meters(self) -> dict[str, dict[str, int]]:
        """All counters on the way, by namespace."""
        return {space.name: space.meters() for space in self.spaces.values()}

    # -- namespaces ----------------------------------------------------------------------------

    def _space(self, path: str, name: str | None = None) -> Space:
        inode = self._host.inode(path)
        if inode not in self.spaces:
            label = name or self._label(inode)
            self.spaces[inode] = Space(self._host, path, label)
        return self.spaces[inode]

    def _label(self, inode: int) -> str:
        """Whybox is run on the host; where it is not, kthreadd is there all the same."""
        own, first = (self._inode(place) for place in HOST_NETS)
        if inode == own:
            return "the host"
        return "the first namespace" if inode == first else f"net:[{inode}]"

    def _inode(self, path: str) -> int | None:
        try:
            return self._host.inode(path)
        except OSError:
            return None

    def _peer(self, space: Space, link: Link) -> tuple[Space, Link] | None:
        """The other end of a wire."""
        if link.kind not in WIRES or link.link_ifindex is None:
            return None
        other = space
        if link.link_netnsid is not None:
            path = space.place_of(link.link_netnsid)
            if path is None:
                return None
            try:
                other = self._space(path)
            except OSError:
                return None
        peer = other.link(link.link_ifindex)
        return None if peer is None else (other, peer)

    # -- writing down ----------------------------------------------------------------------------

    def _met(
        self,
        space: Space,
        kind: str,
        name: str,
        says: str,
        fault: str | None = None,
        *,
        meter: str | None = None,
        rule: Named | None = None,
        certain: bool = True,
        **facts: str,
    ) -> None:
        self.steps.append(
            Step(
                way=self._way,
                space=space.name,
                kind=kind,
                name=name,
                says=says,
                fault=fault,
                meter=meter,
                rule=rule,
                certain=certain,
                facts=facts,
            )
        )

    def _filtered(self, space: Space, hook: str, packet: Packet, *, bridge: bool = False) -> Packet:
        """What the filters of a hook do, and the packet as it leaves them."""
        self._admitted(space, packet)
        here = structs.replace(packet, local=space.local, indexes=space.indexes)
        passage = space.ruleset.passage(hook, here, bridge=bridge)
        if passage.clamps:
            self._clamped.add((space.inode, self._way))
        stopped = passage.stopped
        if stopped is not None and stopped.rule is not None:
            rule = stopped.rule
            does = "refuses" if stopped.effect.verdict == "reject" else "drops"
            self._met(
                space, "filter", hook.upper(), f"{rule} {does} it: {rule.text}",
                "refused" if stopped.effect.verdict == "reject" else "dropped",
                meter=meter_of(rule), rule=rule, certain=stopped.certain, hook=hook,
                arp="yes" if packet.arp else "",
            )  # fmt: skip
        for rule in passage.suspects[:MOST_SUSPECTS]:
            self._met(
                space, "filter", hook.upper(), f"{rule} may drop it: {rule.text}", "suspect",
                meter=meter_of(rule), rule=rule, certain=False, hook=hook,
            )  # fmt: skip
        marked = structs.replace(packet, mark=passage.mark)
        return self._translated(space, hook, marked, passage.nat)

    def _admitted(self, space: Space, packet: Packet) -> None:
        """Say once of a namespace that its filters, or some of them, could not be read."""
        ruleset = space.ruleset
        unread = ruleset.unread or (ruleset.unread_ipv6 if packet.family == "inet6" else None)
        if unread is not None and space.inode not in self._unread:
            self._unread.add(space.inode)
            self._met(space, "unread", "filters", f"not read: {unread}")

    def _translated(self, space: Space, hook: str, packet: Packet, nat: Outcome | None) -> Packet:
        if nat is None or nat.rule is None:
            return packet
        effect = nat.effect
        if effect.verdict in ("dnat", "redirect") and hook in ("prerouting", "output"):
            address = effect.address or packet.destination
            port = effect.port or packet.dport
            if effect.verdict == "redirect":
                address = self._first(space, packet.iif, packet.family) or "127.0.0.1"
            self._destinations.append((space.inode, address, packet.destination))
            self._met(
                space, "nat", hook.upper(), f"{nat.rule} sends it to {address}:{port}",
                rule=nat.rule, certain=nat.certain,
            )  # fmt: skip
            return structs.replace(packet, destination=address, dport=port, dnat=True)
        if effect.verdict in ("snat", "masquerade") and hook == "postrouting":
            own = self._first(space, packet.oif, packet.family)
            source = effect.address or own or packet.source
            self._sources.append((space.inode, source, packet.source))
            self._met(
                space, "nat", hook.upper(), f"{nat.rule} makes its source {source}",
                rule=nat.rule, certain=nat.certain,
            )  # fmt: skip
            return structs.replace(packet, source=source, snat=True)
        return packet

    def _first(self, space: Space, name: str | None, family: str) -> str | None:
        """The address that a link speaks with."""
        link = next((one for one in space.links if one.name == name), None)
        own = [] if link is None else space.addresses(link.ifindex)
        return next((one for one in own if (":" in one) == (family == "inet6")), None)

    def _undone(self, space: Space, packet: Packet, field: str) -> Packet:
        """What connection tracking gives an answer back: its destination, or its source."""
        if self._way != "back":
            return packet
        kept = self._sources if field == "destination" else self._destinations
        now = packet.destination if field == "destination" else packet.source
        own = next((old for at, new, old in kept if (at, new) == (space.inode, now)), now)
        if field == "destination":
            return structs.replace(packet, destination=own)
        return structs.replace(packet, source=own)
