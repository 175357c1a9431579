"""The first broken hop of a container's way out, and of the way in to its published ports."""

import errno
from collections.abc import Iterator, Mapping

from msgspec import Struct, structs

from whybox.change import AddAddress, DefaultRoute, IpForward, JoinBridge, LinkUp
from whybox.kernel import netview
from whybox.kernel.flow import Flow, Step
from whybox.kernel.flowwatch import shut, watched
from whybox.kernel.host import Host, ParseError
from whybox.kernel.netpath import OUTSIDE, Path
from whybox.kernel.netview import Far, View, WayOut
from whybox.kernel.rtnetlink import Link
from whybox.kernel.target import Target
from whybox.model import (
    Case,
    Certainty,
    Cure,
    Evidence,
    Finding,
    RuledOut,
    Severity,
    Verdict,
    Watch,
    clear,
    unknown,
)
from whybox.needs import living

from . import asked, filters, listening, told

#: A neighbour on the same wire answers within a millisecond; the kernel itself gives up after three
#: requests, a second apart.
LEAST_NS = 1_000_000_000

#: What connect() says of a default route that throws packets away (measured).
REFUSALS = {errno.EINVAL: "blackhole", errno.EHOSTUNREACH: "unreachable", errno.EACCES: "prohibit"}


class Observation(Struct, frozen=True, kw_only=True):
    """The path at both ends of the window; ``None``: it uses the host's network."""

    inside: bool
    """Seen from inside the container."""
    ports: tuple[int, ...]
    """Published, TCP."""
    before: View | None
    after: View | None
    asked: tuple[str, ...]
    """Gateways that the kernel was made to look for."""
    elapsed_ns: int
    shut: tuple[Step, ...] = ()
    """Filters that stop all that is new, whoever it is for."""
    flow: Flow | None = None
    """The way to somebody whom a person named, walked and tried."""


def observe(host: Host, target: Target) -> Watch[Observation]:
    """Look along the path twice; between, ask for a gateway that nobody has heard of lately."""
    ports = tuple(sorted({p.port for p in target.ports if p.protocol == "tcp"}))
    path = None if target.own("net") is False else Path(host, target, ports)
    started = host.monotonic_ns()
    before = None if path is None else path.view()
    sought = () if path is None or before is None else tuple(path.asked(before))
    with watched(host, target) as trial:
        yield
        after = None if path is None else path.view()
        return Observation(
            inside=target.runtime == "self",
            ports=ports,
            before=before,
            after=after,
            asked=sought,
            elapsed_ns=host.monotonic_ns() - started,
            shut=() if path is None else _shut(host, target, after, path.places),
            flow=None if trial is None else trial.flow(),
        )


def _shut(
    host: Host, target: Target, view: View | None, places: Mapping[int, str]
) -> tuple[Step, ...]:
    """From inside a container the filters may not be read, as the host's end may not be."""
    try:
        tcp = (port for port in target.ports if port.protocol == "tcp")
        return shut(host, target, view, tcp, places)
    except (OSError, ParseError):
        return ()


def judge(seen: Observation) -> Finding:
    """The first broken hop; where a person named somebody, on the way there."""
    anybody = _way_out(seen)
    return anybody if seen.flow is None else asked.judge(seen.flow, anybody)


def _way_out(seen: Observation) -> Finding:
    """Walking outward; then who listens on the published ports."""
    if seen.after is None:
        return clear("It uses the host's network: it has no path of its own that could break.")
    walked = [_walked(seen, out) for out in netview.ways_out(seen.after)]
    if not walked:
        return _no_interface(seen)
    # IPv4 and IPv6 are two ways out, and one that is whole is enough.
    order = (Verdict.CLEAR, Verdict.UNKNOWN, Verdict.FOUND)
    best = min(walked, key=lambda finding: order.index(finding.verdict))
    if best.verdict is Verdict.FOUND:
        return best
    idle = [f"{link.name} is off." for link in seen.after.idle() if not link.up]
    besides = [each.summary for each in walked if each.verdict is Verdict.FOUND] + idle
    said = " Besides: ".join((best.summary, " ".join(besides))) if besides else best.summary
    best = structs.replace(best, summary=said)
    best = filters.judged(seen.shut, best)
    return listening.judged(seen.ports, seen.before, seen.after, best)


def _walked(seen: Observation, out: WayOut) -> Finding:
    sound: list[RuledOut] = []
    for hop in _hops(seen, out):
        if isinstance(hop, Finding):
            return structs.replace(hop, ruled_out=tuple(sound))
        sound.append(hop)
    facts = "; ".join(hop.because for hop in sound)
    whole = clear(f"Its way out is whole: {facts}.")
    if out.way.unseen is not None:
        whole = unknown(
            f"its own side is sound ({facts}), but the host's end of {out.link.name} cannot be "
            f"looked at: {out.way.unseen}" + ("; ask on the host, as root" if seen.inside else "")
        )
    return structs.replace(whole, ruled_out=tuple(sound))


def _hops(seen: Observation, out: WayOut) -> Iterator[RuledOut | Finding]:
    yield _switched_on(seen, out)
    yield _addressed(seen, out)
    yield _routed(seen, out)
    yield from _wired(out)
    yield from _answered(seen, out)
    yield from _forwarded(seen, out)


def _dropped(seen: Observation, far: Far) -> Evidence | None:
    """Where forwarding is off, what would have to be forwarded counts here (measured on 6.18)."""
    more = netview.moved_there(seen.before, far, "Ip.InAddrErrors")
    return told.there(far, "/proc/net/snmp", f"Ip InAddrErrors +{more}") if more > 0 else None


def _no_interface(seen: Observation) -> Finding:
    if not seen.ports:
        return clear("It was given no network: it has no interface that leads out.")
    return told.broken(
        f"It has no interface that leads out, so nobody reaches its {told.published(seen.ports)}.",
        told.inside("ip link", "lo, and nothing else that leads out"),
        cure=told.cure("Connect it to a network: docker network connect NETWORK ID."),
    )


def _switched_on(seen: Observation, out: WayOut) -> RuledOut | Finding:
    name = out.link.name
    if out.link.up:
        return RuledOut("an interface that is off", f"{name} is up")
    return told.broken(
        f"Its interface {name} is switched off: nothing leaves it and nothing arrives.",
        told.inside(f"ip link show {name}", f"no flag UP, state {out.link.operstate}"),
        told.moved(seen.before, seen.after, "Ip.OutNoRoutes"),
        cure=told.cure(
            f"Switch {name} on, and put back the default route that the kernel dropped with it.",
            LinkUp(name, gateway=out.gateway),
        ),
    )


def _addressed(seen: Observation, out: WayOut) -> RuledOut | Finding:
    name, free = out.link.name, out.free
    if out.addresses:
        return RuledOut("no address", f"{name} has {', '.join(out.addresses)}")
    return told.broken(
        f"Its interface {name} has no address, so nobody can answer it.",
        told.inside(f"ip address show {name}", "no address, or link-local ones only"),
        told.moved(seen.before, seen.after, "Ip.OutNoRoutes"),
        cure=told.cure(
            "Disconnect it from its network and connect it again: the engine then gives it an "
            f"address and a route{f'. {free} seems to be free' if free else ''}.",
            AddAddress(name, free, gateway=out.gateway) if free else None,
        ),
    )


def _routed(seen: Observation, out: WayOut) -> RuledOut | Finding:
    if out.route is not None:
        way = f"via {out.way.gateway} " if out.way.gateway else ""
        return RuledOut("no default route", f"its default route goes {way}over {out.link.name}")
    refusal = REFUSALS.get(out.errno or 0)
    if refusal is None:
        return _unrouted(seen, out)
    return told.broken(
        f"Its default route is of type {refusal}: its own kernel refuses what is for the outside.",
        told.inside(f"ip route get {OUTSIDE[out.way.family]}", errno.errorcode[out.errno or 0]),
        cure=_default_route(out),
    )


def _unrouted(seen: Observation, out: WayOut) -> Finding:
    far, public = out.way.far, bool(seen.ports)
    if not public and far is not None and (out.gateway is None or not far.forwarding):
        return clear(
            f"It has no default route, and at the other end of {out.link.name} is nobody who "
            "forwards: an internal network, from which no way out is meant to be."
        )
    # Whether that is on purpose only the engine knows; but an internal network publishes no port.
    return told.broken(
        f"It has no default route: from {', '.join(out.addresses)} on {out.link.name} it reaches "
        "its own network and nothing else" + ("." if public else ", as in an internal network."),
        told.inside("ip route", "no default"),
        told.moved(seen.before, seen.after, "Ip.OutNoRoutes"),
        cure=_default_route(out),
        severity=Severity.CRITICAL if public else Severity.WARNING,
        certainty=Certainty.CONFIRMED if public else Certainty.LIKELY,
    )


def _default_route(out: WayOut) -> Cure:
    if out.gateway is None:
        return told.cure("Give it a default route to the gateway of its network.")
    return told.cure(
        f"Send it to {out.gateway}, which the host's end of its network has.",
        DefaultRoute(out.gateway, out.link.name),
    )


def _wired(out: WayOut) -> Iterator[RuledOut | Finding]:
    """The other end of the wire, and what it is plugged into."""
    link, far = out.link, out.way.far
    peer = None if far is None else far.peer
    if far is not None and peer is not None and not peer.up:
        yield told.broken(
            f"Its host end {peer.name} is switched off, so {link.name} has no carrier.",
            told.there(far, f"ip link show {peer.name}", "no flag UP"),
            cure=told.cure(f"Switch {peer.name} on.", LinkUp(peer.name, in_container=False)),
        )
    elif not link.lower_up:
        yield told.broken(
            f"Its interface {link.name} has no carrier: what it is connected to is off or gone.",
            told.inside(f"ip link show {link.name}", f"NO-CARRIER, state {link.operstate}"),
            cure=told.cure("Switch on what is below it: the host's end, or the host's interface."),
        )
    yield RuledOut("no carrier", f"{link.name} has carrier")
    if link.kind not in netview.WIRES:
        yield RuledOut("a host end", f"{link.kind or 'hardware'} has no host end to be unplugged")
    elif far is not None and peer is not None and out.missed is not None:
        yield _unplugged(link, far, peer, out.missed)
    elif far is not None and peer is not None and far.bridge is not None:
        yield _bridged(far, peer, far.bridge)
    elif far is not None and peer is not None:
        yield RuledOut("a host end on no bridge", f"its host end {peer.name} needs no bridge")


def _unplugged(link: Link, far: Far, peer: Link, missed: Link) -> Finding:
    has = (netview.with_length(a) for a in far.addresses if a.ifindex == missed.ifindex)
    where = "a bridge" if far.bridge is None else f"{missed.name} but into {far.bridge.name}"
    master = "without a master" if far.bridge is None else f"master {far.bridge.name}"
    return told.broken(
        f"Its host end {peer.name} is not plugged into {where}: packets leave {link.name} and "
        f"reach nobody. Its gateway is at the bridge {missed.name}.",
        told.there(far, f"ip link show {peer.name}", f"up, {master}"),
        told.there(far, f"ip address show {missed.name}", ", ".join(has)),
        cure=told.cure(f"Plug {peer.name} into {missed.name}.", JoinBridge(peer.name, missed.name)),
    )


def _bridged(far: Far, peer: Link, bridge: Link) -> RuledOut | Finding:
    state = "forwarding" if peer.port is None else peer.port.state
    if not bridge.up:
        return told.broken(
            f"The bridge {bridge.name} that its host end {peer.name} is plugged into is off.",
            told.there(far, f"ip link show {bridge.name}", "no flag UP"),
            cure=told.cure(f"Switch {bridge.name} on.", LinkUp(bridge.name, in_container=False)),
        )
    if state == "forwarding":
        return RuledOut("a host end on no bridge", f"its host end {peer.name} is on {bridge.name}")
    return told.broken(
        f"The bridge {bridge.name} lets nothing through to its host end {peer.name}.",
        told.there(far, f"bridge link show dev {peer.name}", f"state {state}"),
        cure=told.cure("Wait, if the spanning tree is learning; else find the loop it blocks."),
    )


def _answered(seen: Observation, out: WayOut) -> Iterator[RuledOut | Finding]:
    """The gateway's link address is known, or it is the very end of the wire."""
    gateway, said = out.way.gateway, netview.heard(out.near, out.way)
    asked, at_hand = gateway in seen.asked, out.way.gateway_is_at_hand
    what = "a gateway that is not there"
    if gateway is None:
        return
    if said:
        yield RuledOut(what, f"the gateway {gateway} answered")
    elif said is None and at_hand:
        yield RuledOut(what, f"the gateway {gateway} is at the other end")
    elif said is False and (seen.elapsed_ns >= LEAST_NS if asked else not at_hand):
        yield _silent(out, gateway, Certainty.CONFIRMED if asked else Certainty.LIKELY)
    else:
        yield unknown(f"whether its gateway {gateway} answers is not known: ask with --window 2s")


def _silent(out: WayOut, gateway: str, certainty: Certainty) -> Finding:
    cure = told.cure(
        "Find out who should have that address, or send it to a gateway that is there."
    )
    if out.gateway not in (None, gateway):
        cure = _default_route(out)
    return told.broken(
        f"Its default route goes to {gateway} over {out.link.name}, and nobody there has it.",
        told.inside(f"ip neighbour show {gateway}", "FAILED or INCOMPLETE"),
        cure=cure,
        certainty=certainty,
    )


def _forwarded(seen: Observation, out: WayOut) -> Iterator[RuledOut | Finding]:
    """Whoever has the gateway's address must pass on what is not for itself."""
    far = out.way.far
    if far is None or far.owner is None or not out.way.gateway_is_at_hand:
        return
    name, inet = far.owner.name, out.way.family == "inet"
    if far.forwarding is None:
        yield unknown(f"whether {name} forwards could not be read")
    elif far.forwarding:
        yield RuledOut("forwarding that is off", f"{name} forwards")
    else:
        key = f"net.ipv4.conf.{name}.forwarding" if inet else "net.ipv6.conf.all.forwarding"
        everywhere = inet and far.forwarding_all is False
        yield told.broken(
            f"The host does not forward: what reaches the gateway {out.way.gateway} on {name} and "
            "is for somebody else ends there.",
            told.there(far, f"sysctl {key}", "0"),
            _dropped(seen, far),
            cure=told.cure(
                f"Switch it on: sysctl -w {'net.ipv4.ip_forward' if everywhere else key}=1. "
                "Engines do so only when they start, so find out what switched it off.",
                IpForward() if everywhere else None,
            ),
        )


CASE = Case(
    title="The way out, or in, is broken at one hop",
    question="Why can't my container reach the network?",
    question_zh="容器网络不通了要怎么调试?",
    lesson="16",
    needs=(living,),
    observation=Observation,
    observe=observe,
    judge=judge,
    explains=("network/name_unresolved", "network/packets_lost"),
)
