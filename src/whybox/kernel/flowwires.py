"""The wires and bridges that a packet passes between the namespaces of one machine."""

from abc import abstractmethod

from msgspec import Struct, structs

from whybox.kernel.flowspace import Space
from whybox.kernel.flowtrail import Place, Trail
from whybox.kernel.netview import WIRES
from whybox.kernel.packetfilter import Packet
from whybox.kernel.rtnetlink import Link

#: On a bridge with more ports nobody is looked for: it would cost more than it tells.
MOST_PORTS = 128
#: A frame may be longer than the far end's MTU by a VLAN tag (is_skb_forwardable()).
VLAN_BYTES = 4


class Plug(Struct, frozen=True, kw_only=True):
    """A port of a bridge and who is behind it."""

    port: Link
    space: Space
    link: Link


class Wires(Trail):
    """A trail that knows how to cross a wire and a bridge."""

    @abstractmethod
    def _receives(
        self, space: Space, iif: Link, packet: Packet, port: Link | None = None
    ) -> Place | None:
        """A packet comes in."""

    def _crosses(self, space: Space, link: Link, next_hop: str, packet: Packet) -> Place | None:
        """Over a link that is no bridge, to whatever is at its other end."""
        found = self._peer(space, link)
        if found is None:
            self._known(space, link, next_hop)
            carrier = "" if link.lower_up else ", which has no carrier"
            fault = None if link.lower_up else "no_carrier"
            self._met(space, "beyond", link.name, f"it leaves by {link.name}{carrier}", fault)
            return None
        other, peer = found
        if not peer.up:
            self._met(
                other, "link", f"{link.name} → {peer.name}", f"{peer.name} is off", "peer_off",
                link=peer.name,
            )  # fmt: skip
            return None
        self._met(other, "link", f"{link.name} → {peer.name}", "up")
        self._narrow_end(space, link, other, peer)
        bridge = other.link(peer.master_ifindex)
        if bridge is not None and bridge.kind == "bridge":
            return self._plugged(space, link, other, bridge, peer, next_hop, packet)
        owner = next((a for a in other.links if next_hop in other.addresses(a.ifindex)), None)
        if owner is not None and owner.kind == "bridge":
            self._met(
                other, "link", peer.name, f"it is not plugged into {owner.name}", "unplugged",
                link=peer.name, bridge=owner.name,
            )  # fmt: skip
            return None
        self._known(space, link, next_hop)
        if next_hop not in other.local and not self._answers(space, link, next_hop):
            self._met(other, "beyond", peer.name, f"{next_hop} is not an address there")
            return None
        return self._receives(other, bridge or peer, packet)

    def _answers(self, space: Space, link: Link, next_hop: str) -> bool:
        """Whether somebody answered for an address: a proxy may (proxy_arp)."""
        known = space.neighbour(link.ifindex, next_hop)
        return known is not None and not {"failed", "incomplete"} & set(known.states)

    @abstractmethod
    def _known(self, space: Space, oif: Link, next_hop: str) -> None:
        """Whether the next hop's link address is known."""

    def _narrow_end(self, space: Space, link: Link, other: Space, peer: Link) -> None:
        """The driver of a wire drops what is too long for its other end, and tells nobody."""
        start = self._sent.get(self._way)
        sent = link.mtu_bytes
        if start is not None and start[0] is space:
            sent = min(sent, start[1])
        if peer.mtu_bytes + VLAN_BYTES < sent:
            self._met(
                other, "link", f"{link.name} → {peer.name}",
                f"{link.name} sends up to {sent} bytes, {peer.name} takes {peer.mtu_bytes}",
                "narrow_end", meter=f"{peer.name} rx_dropped", link=peer.name, mtu=str(sent),
            )  # fmt: skip

    def _plugged(
        self, space: Space, link: Link, other: Space, bridge: Link, port: Link, next_hop: str,
        packet: Packet,
    ) -> Place | None:  # fmt: skip
        """Into a port of a bridge: up to the bridge itself, or out of another port."""
        if not bridge.up:
            self._met(other, "bridge", bridge.name, "it is off", "bridge_off", link=bridge.name)
            return None
        state = "forwarding" if port.port is None else port.port.state
        if state != "forwarding":
            self._met(
                other, "bridge", f"{port.name} on {bridge.name}", f"the port is {state}",
                "port_blocked", link=port.name,
            )  # fmt: skip
            return None
        self._met(other, "bridge", f"{port.name} on {bridge.name}", "plugged in")
        self._doubled(other, bridge, port, packet.source)
        framed = structs.replace(packet, iif=port.name, oif=None)
        self._framed(other, "prerouting", framed)
        if next_hop in other.addresses(bridge.ifindex):
            self._known(space, link, next_hop)
            self._framed(other, "input", framed)
            return self._receives(other, bridge, packet, port)
        self._known(space, link, next_hop)
        if other.facts.bridge_calls:
            given = packet.destination
            through = structs.replace(packet, iif=bridge.name, oif="")
            packet = self._filtered(other, "prerouting", through)
            if packet.destination != given:
                return self._redirected(other, bridge, port, packet, given or "")
        return self._over_bridge(other, bridge, port, next_hop, packet)

    def _redirected(
        self, space: Space, bridge: Link, port: Link, packet: Packet, given: str
    ) -> Place | None:
        """What was for a neighbour on the bridge is sent elsewhere by a rule (br_netfilter)."""
        to = packet.destination or ""
        over = "" if given in space.local else given
        return self._over_bridge(space, bridge, port, to, packet, over_broad=over)

    def _framed(self, space: Space, hook: str, packet: Packet) -> None:
        """The filters of the bridge itself, for the packet and for the question that precedes."""
        self._filtered(space, hook, structs.replace(packet, arp=True), bridge=True)
        if not self.steps or self.steps[-1].fault != "dropped":
            self._filtered(space, hook, packet, bridge=True)

    def _over_bridge(
        self, space: Space, bridge: Link, port: Link | None, next_hop: str, packet: Packet,
        *, over_broad: str = "",
    ) -> Place | None:  # fmt: skip
        """Out of the port behind which the next hop is; ``port``: the one it came in by."""
        if not bridge.up:
            self._met(space, "bridge", bridge.name, "it is off", "bridge_off", link=bridge.name)
            return None
        plugs = self._plugs(space, bridge)
        behind = [plug for plug in plugs if next_hop in plug.space.addresses(plug.link.ifindex)]
        if not behind:
            self._met(space, "beyond", bridge.name, f"who has {next_hop} is not seen from here")
            return None
        plug = behind[0]
        self._may_pass(space, bridge, port, plug, next_hop, over_broad)
        if self.steps[-1].fault in ("hairpin", "isolated", "port_blocked"):
            return None
        if port is not None and space.facts.bridge_calls:
            through = structs.replace(packet, iif=bridge.name, oif=bridge.name)
            packet = self._filtered(space, "forward", through)
        out = structs.replace(packet, iif="" if port is None else port.name, oif=plug.port.name)
        self._framed(space, "output" if port is None else "forward", out)
        self._doubled(space, bridge, plug.port, next_hop)
        if not plug.port.up or not plug.link.up:
            off = plug.port if not plug.port.up else plug.link
            where = space if off is plug.port else plug.space
            self._met(where, "link", off.name, "it is off", "peer_off", link=off.name)
            return None
        self._narrow_end(space, plug.port, plug.space, plug.link)
        return self._receives(plug.space, plug.link, packet)

    def _may_pass(
        self, space: Space, bridge: Link, port: Link | None, plug: Plug, next_hop: str, over: str
    ) -> None:
        """Whether the bridge lets a frame from one port out of another (should_deliver())."""
        name, state = plug.port.name, plug.port.port
        said = f"{next_hop} is behind {name}"
        if state is not None and state.state != "forwarding":
            fault, said = "port_blocked", f"the port {name} is {state.state}"
        elif port is not None and port.ifindex == plug.port.ifindex:
            hairpin = state is not None and state.hairpin
            fault = "" if hairpin else "hairpin"
            said += ", by which it came, and hairpin mode is " + ("on" if hairpin else "off")
        elif port is not None and all(_isolated(each) for each in (port, plug.port)):
            fault, said = "isolated", f"{port.name} and {name} are isolated from each other"
        else:
            fault = ""
        self._met(
            space, "bridge", f"{name} on {bridge.name}", said, fault or None, link=name,
            port="" if port is None else port.name, meant=over, to=next_hop,
        )  # fmt: skip

    def _plugs(self, space: Space, bridge: Link) -> list[Plug]:
        """Who is behind the ports of a bridge."""
        ports = [link for link in space.links if link.master_ifindex == bridge.ifindex]
        found = []
        for port in ports if len(ports) <= MOST_PORTS else []:
            peer = self._peer(space, port) if port.kind in WIRES else None
            if peer is not None:
                found.append(Plug(port=port, space=peer[0], link=peer[1]))
        return found

    def _doubled(self, space: Space, bridge: Link, port: Link, address: str | None) -> None:
        """Whether behind another port is the same address, or the same link address."""
        plugs = self._plugs(space, bridge)
        mine = next((plug for plug in plugs if plug.port.ifindex == port.ifindex), None)
        for other in plugs:
            if mine is None or other.port.ifindex == port.ifindex:
                continue
            same = f"behind {port.name} and behind {other.port.name}"
            if address is not None and address in other.space.addresses(other.link.ifindex):
                self._met(
                    space, "bridge", bridge.name, f"{address} is twice: {same}", "same_address",
                    address=address, link=other.port.name,
                )  # fmt: skip
            elif mine.link.mac_address == other.link.mac_address and mine.link.mac_address:
                self._met(
                    space, "bridge", bridge.name,
                    f"the link address {mine.link.mac_address} is twice: {same}", "same_mac",
                    address=mine.link.mac_address, link=other.port.name,
                )  # fmt: skip


def _isolated(port: Link) -> bool:
    return port.port is not None and bool(port.port.isolated)
