"""Where packets get lost on a container's way: the place, and the reason.

Counters of every hop tell that and how many; the sensor of dropped packets tells why and whose. It
is attached only where a counter of the way ever moved.
"""

from whybox.change import HostSysctl, InProgram, LinkMtu, NoQueue
from whybox.kernel import losses
from whybox.kernel.host import Host
from whybox.kernel.losses import MUCH, Kind, Loss, Lost
from whybox.kernel.pathloss import Way, ever_lost
from whybox.kernel.socketowner import owners
from whybox.kernel.target import Target
from whybox.kernel.udpdrops import dropping, udp_sockets
from whybox.model import (
    Case,
    Certainty,
    Cure,
    Evidence,
    Finding,
    RuledOut,
    Safety,
    Severity,
    Verdict,
    Watch,
    clear,
    unknown,
)
from whybox.needs import living

Observation = Lost

BACKLOG = "net.core.netdev_max_backlog"
#: So many of those that dropped something are told.
MOST_SOCKETS = 16
#: The kernel's default; a backlog is never made shorter than twice that.
DEFAULT_BACKLOG = 1000


def observe(host: Host, target: Target) -> Watch[Observation]:
    """Look along the way twice, with the sensor in between where it was ever worth it."""
    pid = "self" if target.runtime == "self" or target.init is None else target.init.pid
    way = Way(host, target)
    before, udp = way.look(), udp_sockets(host, pid)
    with way.watched(ever_lost(before)) as watched:
        yield
        after, seen = way.look(), watched()
    more = dropping(udp, udp_sockets(host, pid))[:MOST_SOCKETS]
    return Lost(
        before=before,
        after=after,
        watched=seen,
        partly=way.missing,
        shared=target.own("net") is False,
        max_backlog=host.optional_number("/proc/sys/net/core/netdev_max_backlog"),
        udp=more,
        owners=owners(host, target, [one.inode for one in more]) if more else None,
    )


def judge(seen: Observation) -> Finding:
    """The place that lost the most, where it is more than a few."""
    if seen.shared:
        return unknown(
            "it uses the host's network: whose packets are lost there is not told by counters; "
            "whybox trace packets lists every drop"
        )
    found = losses.losses(seen)
    if found:
        return _found(found[0], found[1:], seen)
    if seen.partly or not seen.after.counters:
        why = seen.partly or "its counters cannot be read"
        return unknown(f"none was lost where it can be seen, but {why}")
    return _clear(seen)


def _found(worst: Loss, others: tuple[Loss, ...], seen: Observation) -> Finding:
    also = "".join(f" Besides: {one.packets} in {one.where}." for one in others[:2])
    share = "" if worst.share is None else f", {worst.share:.1%} of what came there"
    much = worst.share is not None and worst.share >= MUCH
    return Finding(
        verdict=Verdict.FOUND,
        severity=Severity.CRITICAL if much else Severity.WARNING,
        certainty=Certainty.CONFIRMED if worst.certain else Certainty.LIKELY,
        summary=(f"{worst.packets} packets were lost in {worst.where}{share}: {worst.why}.{also}"),
        evidence=_evidence((worst, *others[:2]), seen),
        ruled_out=_ruled_out(worst, seen),
        cures=_cures(worst, seen),
    )


def _evidence(found: tuple[Loss, ...], seen: Observation) -> tuple[Evidence, ...]:
    told = [Evidence(one.source, one.says) for one in found]
    drops = [one for one in seen.watched.drops if losses.kind(one) is found[0].kind]
    told += [
        Evidence(
            f"skb:kfree_skb reason {one.reason} location {one.function}",
            f"{one.packets} {one.protocol}, {one.example}" if one.example else str(one.packets),
        )
        for one in drops[:2]
        if found[0].drop is None
    ]
    return (*told, Evidence("/proc/PID/net/snmp", _again(seen)))


def _again(seen: Observation) -> str:
    sent, again = losses.grown(seen, "Tcp.OutSegs"), losses.grown(seen, "Tcp.RetransSegs")
    return f"Tcp RetransSegs +{again} of OutSegs +{sent}"


def _ruled_out(worst: Loss, seen: Observation) -> tuple[RuledOut, ...]:
    full = sum(one.packets for one in seen.watched.drops if one.means == losses.CONNTRACK)
    overflows = losses.grown(seen, "TcpExt.ListenOverflows")
    backlog = losses.grown(seen, "softnet dropped")
    told = [
        RuledOut("network/conntrack_full", f"{full} packets were dropped for a full table"),
        RuledOut("network/listen_overflow", f"ListenOverflows +{overflows}"),
        RuledOut(
            "packets that are refused, and not lost",
            "a closed port answers: what is dropped there is not counted here",
        ),
    ]
    if worst.kind is not Kind.BACKLOG:
        told.append(RuledOut("the backlog of a CPU", f"softnet_stat dropped +{backlog}"))
    return tuple(told)


def _cures(worst: Loss, seen: Observation) -> tuple[Cure, ...]:
    match worst.kind:
        case Kind.QUEUE if worst.hop is not None:
            return _queue(worst.hop.stage, worst.hop.interface, seen)
        case Kind.BACKLOG:
            return (_longer_backlog(seen),)
        case Kind.SOCKET:
            do = (
                "read faster, or ask for a larger receive buffer (SO_RCVBUF, at most "
                "net.core.rmem_max of the host)"
            )
            return (
                Cure(advice=f"Let the program {do}.", change=InProgram(do), safety=Safety.MUTATING),
            )
        case Kind.SIZE if worst.hop is not None:
            return (_same_mtu(worst.hop.interface, seen),)
        case _:
            look = worst.drop.look if worst.drop is not None else ""
            return (_inspect(look or "look at the other side, and at what lies between"),)


def _inspect(look: str) -> Cure:
    return Cure(advice=f"Look there: {look}.", safety=Safety.INSPECT)


def _queue(stage: str, interface: str, seen: Observation) -> tuple[Cure, ...]:
    if stage not in ("container", "wire"):
        return (
            _inspect(
                f"{interface} goes out as fast as it can; send less, or give it a faster link: "
                f"tc -s qdisc show dev {interface}"
            ),
        )
    return (
        Cure(
            advice=(
                "Somebody gave it that queue (tc, a bandwidth plugin, an annotation such as "
                "kubernetes.io/egress-bandwidth): raise its rate or its limit there, or take it "
                "off, as the command does until it is set again."
            ),
            change=NoQueue(interface, in_container=stage == "container"),
            safety=Safety.MUTATING,
        ),
    )


def _longer_backlog(seen: Observation) -> Cure:
    now = seen.max_backlog or DEFAULT_BACKLOG
    return Cure(
        advice=(
            f"Let more packets wait for a CPU ({BACKLOG} is {now}), or spread them over more CPUs "
            "(RPS) and find who keeps this one busy."
        ),
        change=HostSysctl(BACKLOG, str(max(2 * DEFAULT_BACKLOG, 4 * now))),
        safety=Safety.MUTATING,
    )


def _same_mtu(interface: str, seen: Observation) -> Cure:
    own = next(hop for hop in seen.after.hops if hop.stage == "container")
    return Cure(
        advice=(
            f"Give {interface} the MTU of the container's end, or that end the smaller one; "
            "engines give both ends the same (daemon.json: mtu)."
        ),
        change=LinkMtu(interface, own.mtu_bytes, in_container=False),
        safety=Safety.MUTATING,
    )


def _clear(seen: Observation) -> Finding:
    """No place lost more than a few; what was dropped without being lost is named."""
    said = [f"Of {losses.passed(seen)} packets at its interfaces none was lost on its way."]
    few = sum(one.packets for one in seen.watched.drops if losses.kind(one) is not None)
    if few:
        said[0] = f"Of {losses.passed(seen)} packets at its interfaces a few ({few}) were lost."
    refused = [one for one in seen.watched.drops if losses.kind(one) is None]
    said += [
        f"{one.packets} were dropped at {one.function}(), which is no loss on the way: {one.means}."
        for one in refused[:2]
        if one.means
    ]
    if seen.watched.reason is not None:
        said.append(f"Single drops were not watched: {seen.watched.reason}.")
    return clear(" ".join(said), evidence=(Evidence("/proc/PID/net/snmp", _again(seen)),))


CASE = Case(
    title="Packets get lost on the way",
    question="Where do my packets get lost?",
    question_zh="我的包丢在哪里?",
    lesson="18",
    needs=(living,),
    observation=Observation,
    observe=observe,
    judge=judge,
    explains=("network/name_unresolved",),
)
