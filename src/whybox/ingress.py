"""How a published port really gets in: translated by a rule, by a program, by IPVS, or not at all.

A published port may answer although its NAT rules are gone, and not answer although they are
there; so each way is looked for by itself, in the order in which the kernel takes them.
"""

import socket
from collections.abc import Iterator
from ipaddress import ip_address

from msgspec import Struct, structs

from whybox.kernel import conntrackentries, ipvs, socketowner
from whybox.kernel.flowspace import Space
from whybox.kernel.flowwatch import place
from whybox.kernel.host import Host
from whybox.kernel.netns import call_in
from whybox.kernel.netview import WIRES
from whybox.kernel.packetfilter import Named, Outcome, Packet
from whybox.kernel.sock_diag import Listener
from whybox.kernel.target import Port, Target

NUMBERS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP}
DNAT = ("dnat", "redirect")
#: Words of rules that need connection tracking.
TRACKING = frozenset(
    {"conntrack", "state", "ct", "CT", "connmark", "CONNMARK", "DNAT", "SNAT", "MASQUERADE",
     "REDIRECT", "dnat", "snat", "masq", "redir"}
)  # fmt: skip


class EntryWay(Struct, frozen=True, kw_only=True):
    """One way by which a connection gets to the container."""

    kind: str
    """``host``, ``ipvs``, ``dnat``, ``proxy``, ``tracked``, or ``orphan``: a rule nobody asks."""
    says: str
    source: str
    """Where a doubtful reader looks."""


class Entrance(Struct, frozen=True, kw_only=True):
    """One port that others are meant to reach, and all the ways in to it."""

    port: int
    protocol: str
    host_address: str | None
    host_port: int | None
    ways: tuple[EntryWay, ...]
    says: str
    """What follows, as one sentence."""


def entrances(host: Host, target: Target) -> tuple[Entrance, ...]:
    """Of all published ports, as far as the host's side can be looked at."""
    here = Space(host, place(target), "the container")
    if target.own("net") is False:
        return tuple(_shared(host, here, port) for port in target.ports)
    outside = _outside(host, here)
    return tuple(_entrance(host, here, outside, port) for port in target.ports)


def _outside(host: Host, here: Space) -> Space:
    """The namespace that the container's wire ends in; else the one that whybox is in."""
    for link in here.links:
        if link.kind in WIRES and link.link_netnsid is not None:
            path = here.place_of(link.link_netnsid)
            if path is not None:
                return Space(host, path, "the host")
    return Space(host, "/proc/self/ns/net", "the host")


def _shared(host: Host, here: Space, port: Port) -> Entrance:
    ways = tuple(_listening(host, here, port, port.port, "host", "it is in the host's network"))
    says = "The container is in the host's network: no rule and no proxy is between."
    return _made(port, ways, says if ways else f"Nobody listens on {port.port}.")


def _entrance(host: Host, here: Space, outside: Space, port: Port) -> Entrance:
    at = port.host_port
    if at is None:
        return _made(port, (), "It is not published on the host: only its network reaches it.")
    ways = (
        *_served(outside, at, port.protocol),
        *_translated(outside, here, port, at),
        *_listening(
            host, outside, port, at, "proxy", "makes a connection of its own to the container"
        ),
        *_tracked(outside, here, at, port),
        *_orphans(outside, here, port, at),
    )
    return _made(port, ways, _concluded({way.kind for way in ways}, at))


def _made(port: Port, ways: tuple[EntryWay, ...], says: str) -> Entrance:
    return Entrance(
        port=port.port,
        protocol=port.protocol,
        host_address=port.host_address,
        host_port=port.host_port,
        ways=ways,
        says=says,
    )


def _concluded(kinds: set[str], at: int) -> str:
    if "ipvs" in kinds:
        return f"IPVS takes what comes to {at}, before any NAT rule or program."
    old = " Connections that are tracked go on as they were." if "tracked" in kinds else ""
    if {"dnat", "proxy"} <= kinds:
        return (
            f"From outside a NAT rule sends {at} to the container. If that rule goes, the proxy "
            f"still answers: flushing NAT does not close the port.{old}"
        )
    if "dnat" in kinds:
        return f"Only a NAT rule sends {at} to the container: without it the port is closed.{old}"
    if "proxy" in kinds:
        gone = " The rule that is left is asked by nobody." if "orphan" in kinds else ""
        return (
            f"No NAT rule translates {at} any more, and yet it answers: the proxy listens on the "
            f"host and connects itself, so the container sees the host's address.{gone}{old}"
        )
    if "tracked" in kinds:
        return f"Nothing new gets in by {at}; connections that are tracked go on as they were."
    return f"Nothing leads from {at} of the host to the container."


def _served(outside: Space, at: int, protocol: str) -> Iterator[EntryWay]:
    try:
        services = call_in(outside.path, ipvs.read)
    except OSError:
        return
    for service in services:
        if (service.port, service.protocol) == (at, protocol):
            servers = ", ".join(service.servers) or "no server"
            says = f"IPVS sends {service.address}:{at} to {servers}"
            yield EntryWay(kind="ipvs", says=says, source="/proc/net/ip_vs")


def _is_six(port: Port) -> bool:
    return ":" in (port.host_address or "")


def _first_packet(outside: Space, port: Port, at: int) -> Packet:
    """Of somebody outside, who comes to an address of the host."""
    six = _is_six(port)
    own = [a for a in sorted(outside.local) if (":" in a) == six and not _is_inner(a)]
    bound = port.host_address if port.host_address not in (None, "", "0.0.0.0", "::") else None
    return Packet(
        family="inet6" if six else "inet",
        protocol=NUMBERS.get(port.protocol, socket.IPPROTO_TCP),
        destination=bound or next(iter(own), None),
        dport=at,
        local=outside.local,
        indexes=outside.indexes,
        oif="",
    )


def _is_inner(address: str) -> bool:
    return ip_address(address).is_loopback or ip_address(address).is_link_local


def _translated(outside: Space, here: Space, port: Port, at: int) -> Iterator[EntryWay]:
    packet = _first_packet(outside, port, at)
    seen: set[Named] = set()
    for hook, who in (("prerouting", "from outside"), ("output", "from the host itself")):
        asked = structs.replace(packet, iif="") if hook == "output" else packet
        nat = outside.ruleset.passage(hook, asked).nat
        if nat is None or nat.rule is None or nat.effect.verdict not in DNAT or nat.rule in seen:
            continue
        seen.add(nat.rule)
        yield EntryWay(kind="dnat", says=f"{who}: {_sends(nat)}", source=_source(nat.rule))


def _sends(nat: Outcome) -> str:
    to = f"{nat.effect.address or 'the host'}:{nat.effect.port or ''}".rstrip(":")
    return f"{nat.rule} sends it to {to}"


def _source(rule: Named) -> str:
    counted = "" if rule.packets is None else f", {rule.packets} packets so far"
    return f"{rule.text}{counted}"


def _listening(
    host: Host, space: Space, port: Port, at: int, kind: str, does: str
) -> Iterator[EntryWay]:
    """A program in a namespace that takes the connections."""
    found = [each for each in space.listeners(at) or () if _takes(each, port)]
    inodes = {each.inode for each in found if each.inode is not None}
    owners = socketowner.within(host, space.inode, inodes)
    for each in found:
        owner = owners.get(each.inode or 0)
        who = f"{owner.comm} ({owner.pid})" if owner else "a program not seen from here"
        yield EntryWay(
            kind=kind,
            says=f"{who} listens on {each.address}:{at} and {does}"
            if kind == "proxy"
            else f"{who} listens on {each.address}:{at}: {does}",
            source=f"ss -ltnp sport = :{at} (in {space.name})",
        )


def _takes(listener: Listener, port: Port) -> bool:
    """``[::]`` takes IPv4 too, unless IPV6_V6ONLY forbids it."""
    if _is_six(port):
        return listener.family == "inet6"
    return listener.family == "inet" or not listener.v6only


def _tracked(outside: Space, here: Space, at: int, port: Port) -> Iterator[EntryWay]:
    number = NUMBERS.get(port.protocol, socket.IPPROTO_TCP)
    family = socket.AF_INET6 if _is_six(port) else socket.AF_INET
    try:
        entries = call_in(outside.path, lambda: conntrackentries.to_port(at, number, family))
    except OSError:
        return
    own = here.local
    mine = [entry for entry in entries if entry.dnat and entry.reply.source in own]
    if mine and _uses_tracking(outside):
        first = mine[0]
        who = f"{first.original.source}:{first.original.sport}"
        yield EntryWay(
            kind="tracked",
            says=f"tracked connections that are translated by their entries: {len(mine)}, such as "
            f"that of {who}, whose answers come from {first.reply.source}:{first.reply.sport}",
            source=f"conntrack -L -p {port.protocol} --orig-port-dst {at}",
        )


def _uses_tracking(outside: Space) -> bool:
    """A namespace tracks only while some rule needs it (nf_ct_netns_put()).

    With the last such rule the entries stay, but packets pass by them untranslated (measured).
    """
    rules = (rule.named.text for chain in outside.ruleset.chains for rule in chain.rules)
    words = {word for text in rules for word in text.replace("-m ", "").split()}
    return not TRACKING.isdisjoint(words)


def _orphans(outside: Space, here: Space, port: Port, at: int) -> Iterator[EntryWay]:
    """A rule for this port in a chain to which nothing jumps any more."""
    ruleset = outside.ruleset
    packet = _first_packet(outside, port, at)
    families = ("ip6" if _is_six(port) else "ip", "inet")
    used = {way for hook in ("prerouting", "output") for way in _asked(outside, hook, packet)}
    for chain in ruleset.chains:
        mine = chain.hook is None and chain.family in families
        for rule in chain.rules if mine else ():
            matches, effect = rule.check(packet)
            fits = effect.verdict == "dnat" and effect.address in here.local
            if fits and matches is not False and rule.named not in used:
                says = f"{rule.named} would send it to {effect.address}, but is not asked"
                yield EntryWay(kind="orphan", says=says, source=_source(rule.named))


def _asked(outside: Space, hook: str, packet: Packet) -> Iterator[Named]:
    nat = outside.ruleset.passage(hook, packet).nat
    if nat is not None and nat.rule is not None:
        yield nat.rule
