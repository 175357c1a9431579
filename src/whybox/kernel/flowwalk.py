"""Walking a connection's way hop by hop, as the kernel would carry its first packet and the answer.

Nothing is sent: each namespace is asked for its links, its route for this packet (with the link it
comes in by, so that forwarding and the reverse path filter answer too), and its filters are asked
what they would do. Where the way leaves this machine the walk ends.
"""

import errno

from msgspec import structs

from whybox.kernel.flow import Step
from whybox.kernel.flowlisten import heard_at
from whybox.kernel.flowspace import Space
from whybox.kernel.flowtrail import MOST_HOPS, Narrow, Place
from whybox.kernel.flowwires import Wires
from whybox.kernel.packetfilter import ICMP, ICMP6, Outcome, Packet
from whybox.kernel.rtnetlink import Link, Route


class Walk(Wires):
    """One walk; ``steps`` is what was met."""

    def run(self) -> tuple[Step, ...]:
        """There, and if somebody on this machine is reached, back."""
        family = "inet6" if ":" in self._to.address else "inet"
        first = Packet(
            family="inet6" if family == "inet6" else "inet",
            destination=self._to.address,
            dport=self._to.port,
        )
        reached = self._sends(self._start, first)
        if reached is not None:
            self._way, self._left = "back", MOST_HOPS
            self._sends(reached.space, _answer(reached.packet))
        self._measured()
        return tuple(self.steps)

    def _sends(self, space: Space, packet: Packet) -> Place | None:
        """A packet is made here."""
        self._left -= 1
        if self._left < 0:
            return None  # two rules send it to each other's addresses
        wanted = packet.destination or ""
        route = space.route(wanted, packet.source)
        if isinstance(route, int):
            self._unrouted(space, packet, route, None)
            return None
        oif = space.link(route.oif)
        if oif is None:
            return None
        source = packet.source or route.prefsrc
        self._routed(space, wanted, route, oif)
        self._sent[self._way] = (space, route.mtu_bytes or oif.mtu_bytes, source)
        out = structs.replace(packet, source=source, iif="", oif=oif.name)
        sent = self._filtered(space, "output", out)
        if sent.destination != packet.destination:
            return self._sends(space, structs.replace(sent, iif=None, oif=None))
        if route.type == "local":
            self._filtered(space, "input", structs.replace(sent, iif=oif.name, oif=""))
            return self._arrives(space, sent)
        return self._leaves(space, oif, route.gateway or wanted, sent)

    def _routed(self, space: Space, wanted: str, route: Route, oif: Link) -> None:
        via = f"via {route.gateway} " if route.gateway else ""
        says = "it is here" if route.type == "local" else f"{via}over {oif.name}"
        self._met(space, "route", f"route to {wanted}", says, oif=oif.name)

    def _receives(
        self, space: Space, iif: Link, packet: Packet, port: Link | None = None
    ) -> Place | None:
        """A packet comes in; ``port``: the port of the bridge ``iif`` that it came by."""
        self._left -= 1
        if self._left < 0:
            self._met(space, "beyond", "a loop", "it goes round and round", "loop")
            return None
        packet = self._entered(space, self._undone(space, packet, "destination"))
        given = packet.destination
        packet = self._filtered(space, "prerouting", structs.replace(packet, iif=iif.name, oif=""))
        self._tracked(space)
        wanted = packet.destination or ""
        route = space.route(wanted, packet.source, iif)
        if isinstance(route, int):
            self._unrouted(space, packet, route, iif)
            return None
        if route.type == "local":
            here = self._filtered(space, "input", packet)
            return self._arrives(space, here)
        oif = space.link(route.oif)
        if oif is None:
            return None
        self._routed(space, wanted, route, oif)
        if packet.family == "inet6" and not self._forwards(space, packet, iif):
            # Only ip6_forward() asks, not the route.
            self._met(
                space, "route", f"route to {wanted}", "it does not forward IPv6", "forwarding",
                iif=iif.name, source=packet.source or "",
            )  # fmt: skip
            return None
        passed = structs.replace(packet, oif=oif.name)
        turned = given != wanted and oif.ifindex == iif.ifindex and space.facts.bridge_calls
        if turned and port is not None:
            over = "" if given in space.local else (given or "")
            return self._over_bridge(space, iif, port, wanted, passed, over_broad=over)
        passed = self._filtered(space, "forward", passed)
        self._forwarded = (space, iif, oif)
        self._narrow.append(
            Narrow(
                at=len(self.steps), way=self._way, space=space, iif=iif, oif=oif, packet=passed,
            )
        )  # fmt: skip
        return self._leaves(space, oif, route.gateway or wanted, passed)

    def _entered(self, space: Space, packet: Packet) -> Packet:
        """A mark stays behind (skb_scrub_packet()), and each namespace tracks for itself."""
        snat, dnat = (
            any(kept[0] == space.inode for kept in some)
            for some in (self._sources, self._destinations)
        )
        return structs.replace(packet, mark=0, snat=snat, dnat=dnat)

    def _leaves(self, space: Space, oif: Link, next_hop: str, packet: Packet) -> Place | None:
        if not oif.up:
            self._met(space, "link", oif.name, "it is off", "link_off", link=oif.name)
            return None
        packet = self._filtered(space, "postrouting", packet)
        packet = self._undone(space, packet, "source")
        if oif.kind == "bridge":
            self._known(space, oif, next_hop)
            return self._over_bridge(space, oif, None, next_hop, packet)
        return self._crosses(space, oif, next_hop, packet)

    def _known(self, space: Space, oif: Link, next_hop: str) -> None:
        """Whether the next hop's link address is known."""
        known = space.neighbour(oif.ifindex, next_hop)
        if known is None or not {"failed", "incomplete"} & set(known.states):
            return
        self._met(
            space, "neighbour", f"{next_hop} on {oif.name}",
            f"nobody answers for its address: {', '.join(known.states).upper()}", "neighbour",
            link=oif.name, address=next_hop,
        )  # fmt: skip

    def _tracked(self, space: Space) -> None:
        table = space.facts.tracked
        if self._way == "there" and table is not None and table.is_full:
            self._met(
                space, "conntrack", "connection tracking",
                f"its table is full: {table.entries} of {table.largest}", "conntrack",
                meter="conntrack drop", max=str(table.largest),
            )  # fmt: skip

    def _unrouted(self, space: Space, packet: Packet, number: int, iif: Link | None) -> None:
        wanted = packet.destination or ""
        code = errno.errorcode.get(number, str(number))
        fault, meter, says = "no_route", None, f"no route ({code})"
        if iif is None:
            meter = "Ip.OutNoRoutes"
        elif self._is_unexpected(space, packet, iif):
            fault, meter = "rp_filter", "TcpExt.IPReversePathFilter"
            says = f"its source {packet.source} is not expected on {iif.name}"
        elif number == errno.EHOSTUNREACH and not self._forwards(space, packet, iif):
            fault, meter, says = "forwarding", "Ip.InAddrErrors", f"{iif.name} does not forward"
        else:
            meter = "IpExt.InNoRoutes"
        off = [link.name for link in space.links if not link.up and space.addresses(link.ifindex)]
        if fault == "no_route" and off:
            says += f"; {', '.join(off)} is off"
        self._met(
            space, "route", f"route to {wanted}", says, fault, meter=meter,
            iif="" if iif is None else iif.name, off=", ".join(off), errno=code, to=wanted,
            source=packet.source or "",
        )  # fmt: skip
        if self._way == "back" and iif is None and fault == "no_route":
            self._unmasked(space, wanted)

    def _unmasked(self, space: Space, wanted: str) -> None:
        """Nobody there knows the way back: the source should have been the router's own address."""
        last = self.steps.pop()
        facts = dict(last.facts)
        if self._forwarded is not None and not self._sources:
            router, iif, oif = self._forwarded
            facts |= {"router": router.name, "iif": iif.name, "oif": oif.name}
        self.steps.append(structs.replace(last, fault="no_way_back", facts=facts))

    def _forwards(self, space: Space, packet: Packet, iif: Link) -> bool:
        place = iif.ifindex if packet.family == "inet" else -1
        return space.facts.settings.forwarding.get((packet.family, place), True)

    def _is_unexpected(self, space: Space, packet: Packet, iif: Link) -> bool:
        """Whether the reverse path filter refuses it (fib_validate_source())."""
        strict = space.facts.settings.filters_source(iif.ifindex)
        if not strict or packet.source is None or packet.family != "inet":
            return False
        back = space.route(packet.source)
        return isinstance(back, int) or (strict == 1 and back.oif != iif.ifindex)

    def _arrives(self, space: Space, packet: Packet) -> Place | None:
        if self._way == "back":
            return None
        port = packet.dport or 0
        found = space.listeners(port)
        if found is None:
            self._met(space, "listener", f"port {port}", "this kernel does not tell who listens")
            return Place(space=space, packet=packet)
        fault, says = heard_at(found, packet.destination or "")
        meters = {"queue_full": "TcpExt.ListenOverflows", "not_listening": "Tcp.OutRsts"}
        self._met(
            space, "listener", f"port {port}", says, fault,
            meter=meters.get(fault or "", "Tcp.OutRsts" if fault else None),
        )  # fmt: skip
        return Place(space=space, packet=packet)

    # -- how wide the way is -----------------------------------------------------------------

    def _measured(self) -> None:
        """Where packets may be too long for the next link, and the sender is not told."""
        sizes = {way: size for way, (_, size, _) in self._sent.items()}
        if not sizes:
            return
        for narrow in reversed(self._narrow):
            # Each end says in its first segment how much it takes (the MSS); the smaller counts.
            sent = min(sizes.values())
            # What is clamped in one direction is what the other may send.
            other = "back" if narrow.way == "there" else "there"
            clamped = (narrow.space.inode, other) in self._clamped
            if narrow.oif.mtu_bytes < sent and not clamped:
                self._told(narrow, sent)

    def _told(self, narrow: Narrow, sent: int) -> None:
        """Whether the message "fragmentation needed" gets from here to the sender."""
        sender, _, address = self._sent[narrow.way]
        own = narrow.space.addresses(narrow.iif.ifindex)
        message = Packet(
            family=narrow.packet.family,
            protocol=ICMP if narrow.packet.family == "inet" else ICMP6,
            source=next(iter(own), None),
            destination=address,
            iif="",
            oif=narrow.iif.name,
            state="related",
        )
        out = self._asked(narrow.space, "output", message)
        into = self._asked(sender, "input", structs.replace(message, iif=None, oif=""))
        stopped = out or into
        if stopped is None or stopped.rule is None:
            return
        where = narrow.space if out else sender
        step = Step(
            way=narrow.way,
            space=narrow.space.name,
            kind="link",
            name=f"{narrow.iif.name} → {narrow.oif.name}",
            says=f"packets of {sent} bytes do not fit into {narrow.oif.name} "
            f"({narrow.oif.mtu_bytes}), and {stopped.rule} in {where.name} drops the message that "
            f"says so: {stopped.rule.text}",
            fault="too_narrow",
            meter="Ip.FragFails",
            rule=stopped.rule,
            facts={"link": narrow.oif.name, "mtu": str(narrow.oif.mtu_bytes), "sent": str(sent)},
        )
        self.steps.insert(narrow.at, step)

    def _asked(self, space: Space, hook: str, packet: Packet) -> Outcome | None:
        here = structs.replace(packet, local=space.local, indexes=space.indexes)
        return space.ruleset.passage(hook, here).stopped


def _answer(packet: Packet) -> Packet:
    """The packet with which it is answered."""
    return Packet(
        family=packet.family,
        protocol=packet.protocol,
        source=packet.destination,
        destination=packet.source,
        sport=packet.dport,
        dport=packet.sport,
        state="established",
        snat=packet.snat,
        dnat=packet.dnat,
    )
