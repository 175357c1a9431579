"""What the way from a container to its host costs: what is inherent in it, and what is not."""

from contextlib import ExitStack

from msgspec import Struct

from whybox.change import Change, HostSysctl, InNetwork, NoQueue
from whybox.kernel import pathcost
from whybox.kernel.host import Host
from whybox.kernel.pathcost import FEWEST, Piece, Seen, Wire
from whybox.kernel.qdisc import PLAIN
from whybox.kernel.target import Target
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

#: The host's own round trip over a wire takes about as long as one on the loopback, and what is
#: inherent in the container's way as long again and a half; with five times that, the container
#: pays several times as much. Measured, with the tracepoints in it: inherent 1.1 to 1.7, in an
#: emulated machine up to 3.8; 4000 rules of iptables 3.4, 20000 comparisons 10, a queue 1500.
INHERENT = 5.0

#: Less is not felt by anybody, however fast the loopback is.
LEAST_NS = 50_000

#: Its default (net/core/hotdata.c). Below it NET_RX stops sooner, with packets left.
BUDGET = 300

WORDS = {
    "queue": "stand in a queue",
    "wait": "wait for the softirq NET_RX",
    "forward": "are filtered and forwarded",
    "first": "are the first of a connection, filtered and forwarded",
}
WAYS = {"out": "leaving", "in": "coming"}


class Observation(Struct, frozen=True, kw_only=True):
    """The pieces of the way, and the loopback beside them."""

    shared: bool
    """It uses the host's network."""
    seen: Seen
    loopback_ns: int | None
    """A round trip."""
    squeezed: int | None
    """How often NET_RX stopped with packets left, in the window, on the whole host."""
    budget: int | None
    """``net.core.netdev_budget``."""


def observe(host: Host, target: Target) -> Watch[Observation]:
    """Count the pieces by tracepoints of the network; measure the loopback for comparison."""
    shared = target.own("net") is False
    with ExitStack() as stack:
        look = None if shared else stack.enter_context(pathcost.watched(host, target))
        loopback_ns = None if look is None else host.remembered("loopback", pathcost.loopback_ns)
        before = pathcost.squeezed(host)
        yield
        after = pathcost.squeezed(host)
        return Observation(
            shared=shared,
            seen=Seen(wireless=True) if look is None else look(),
            loopback_ns=loopback_ns,
            squeezed=None if before is None or after is None else after - before,
            budget=host.optional_number("/proc/sys/net/core/netdev_budget"),
        )


def judge(seen: Observation) -> Finding:
    """More than the loopback's round trip is not inherent; the largest piece is the cause."""
    if seen.shared:
        return clear("It uses the host's network: its way is the host's own.")
    if seen.seen.reason is not None:
        return unknown(f"its way could not be watched: {seen.seen.reason}")
    if seen.seen.wireless:
        return clear("Between its interface and the host's is no wire that would cost anything.")
    packets = max((p.packets for p in seen.seen.pieces if p.kind.startswith("queue")), default=0)
    if not packets:
        return clear("Nothing passed its wire in this window: nobody waited for its network.")
    if packets < FEWEST:
        return unknown(f"only {packets} packets passed its wire: look while it is slow, or longer")
    if seen.loopback_ns is None:
        return unknown("nothing came back on the host's own loopback, so there is no comparison")
    pieces = {
        piece.kind: piece
        for piece in seen.seen.pieces
        if piece.packets >= FEWEST and not piece.kind.startswith("first")
    }
    cost = sum(piece.median_ns for piece in pieces.values()) + _other_way(pieces)
    if cost <= max(INHERENT * seen.loopback_ns, LEAST_NS):
        return _inherent(seen, cost)
    worst = max(pieces.values(), key=lambda piece: piece.median_ns)
    return _caused(seen, worst, cost, seen.loopback_ns)


def _other_way(pieces: dict[str, Piece]) -> int:
    """Where each packet one way is the first of a connection, the other way tells for both."""
    forward = [pieces[kind] for kind in ("forward_out", "forward_in") if kind in pieces]
    both = "queue_out" in pieces and "queue_in" in pieces
    return forward[0].median_ns if both and len(forward) == 1 else 0


def _inherent(seen: Observation, cost: int) -> Finding:
    told = "; ".join(_piece(piece) for piece in seen.seen.pieces)
    return clear(
        f"Its way costs {_time(cost)} a round trip more than the host's own, which is inherent in "
        f"a wire and a bridge ({told}); a round trip on the loopback takes "
        f"{_time(seen.loopback_ns or 0)}.",
        evidence=_evidence(seen),
    )


def _caused(seen: Observation, worst: Piece, cost: int, loopback_ns: int) -> Finding:
    what, _, way = worst.kind.partition("_")
    others = [p for p in seen.seen.pieces if not p.kind.startswith((what, "first"))]
    return Finding(
        verdict=Verdict.FOUND,
        summary=(
            f"Its way costs {_time(cost)} a round trip more than the host's own, where a whole "
            f"round trip on the loopback takes {_time(loopback_ns)}: packets {WAYS[way]} "
            f"{WORDS[what]}{_where(seen, worst)} for {_time(worst.median_ns)}."
        ),
        certainty=Certainty.LIKELY if what == "wait" else Certainty.CONFIRMED,
        severity=Severity.WARNING,
        evidence=_evidence(seen),
        ruled_out=(
            RuledOut("a slow machine", f"the loopback takes {_time(loopback_ns)} a round trip"),
            RuledOut(
                "the other side",
                "all of this passes between its interface and the host's, before the other side",
            ),
            *(RuledOut(WORDS[w], t) for w, t in _less(others).items()),
        ),
        cures=_cures(seen, worst),
    )


def _less(others: list[Piece]) -> dict[str, str]:
    """What the other kinds of pieces take, by kind."""
    kinds = dict.fromkeys(piece.kind.partition("_")[0] for piece in others)
    return {
        kind: f"that takes {_time(sum(p.median_ns for p in others if p.kind.startswith(kind)))}"
        for kind in kinds
    }


def _where(seen: Observation, worst: Piece) -> str:
    if not worst.kind.startswith("queue"):
        return ""
    names = {end.name: end.queue for wire in seen.seen.wires for end in (_queueing(wire, worst),)}
    return " of " + ", ".join(f"{name} ({queue or 'not known'})" for name, queue in names.items())


def _queueing(wire: Wire, worst: Piece) -> pathcost.End:
    return wire.inner if worst.kind == "queue_out" else wire.outer


def _cures(seen: Observation, worst: Piece) -> tuple[Cure, ...]:
    what = worst.kind.partition("_")[0]
    if what == "queue":
        return tuple(_unqueued(end, worst) for end in _shaped(seen, worst)) or (_WIDER,)
    if what == "forward":
        return (_FEWER_RULES,)
    if seen.budget is not None and seen.budget < BUDGET:
        return (
            Cure(
                advice=f"Let NET_RX take {BUDGET} packets at once again, which is the default.",
                safety=Safety.MUTATING,
                change=HostSysctl("net.core.netdev_budget", str(BUDGET)),
            ),
        )
    return (_LESS_TRAFFIC,)


def _shaped(seen: Observation, worst: Piece) -> list[pathcost.End]:
    """Ends at which a discipline was set on purpose."""
    ends = [_queueing(wire, worst) for wire in seen.seen.wires]
    return [end for end in ends if end.queue is not None and end.queue not in PLAIN]


def _unqueued(end: pathcost.End, worst: Piece) -> Cure:
    change: Change = NoQueue(end.name, in_container=worst.kind == "queue_out")
    return Cure(
        advice=(
            f"Give {end.name} a higher rate or a shorter queue, or take its {end.queue} off; if it "
            "limits the container's bandwidth on purpose, send less or in smaller bursts."
        ),
        safety=Safety.MUTATING,
        change=change,
    )


_WIDER = Cure(
    advice="Send less than the interface can carry, or give it a shorter queue.",
    safety=Safety.INSPECT,
    change=InNetwork("send less than the interface can carry"),
)

_FEWER_RULES = Cure(
    advice=(
        "Let packets pass fewer rules: one set of addresses (nft set, ipset) instead of a rule for "
        "each, the rule for established connections first; or a way without the host's rules "
        "(macvlan, ipvlan, the host's network)."
    ),
    safety=Safety.MUTATING,
    change=InNetwork("let packets pass fewer rules"),
)

_LESS_TRAFFIC = Cure(
    advice=(
        "Find who keeps the CPUs in NET_RX: whybox trace softirq shows it by CPU. Spread it (RPS) "
        "or slow the flood down; a smaller share for ksoftirqd's rivals helps too."
    ),
    safety=Safety.INSPECT,
    change=InNetwork("slow the flood of packets down"),
)


def _evidence(seen: Observation) -> tuple[Evidence, ...]:
    found = [
        Evidence(
            "net:net_dev_queue, net_dev_start_xmit, netif_rx, netif_receive_skb",
            f"{WAYS[piece.kind.partition('_')[2]]}, {WORDS[piece.kind.partition('_')[0]]}: "
            f"{piece.packets} packets   median {_time(piece.median_ns)}   "
            f"mean {_time(piece.mean_ns)}   longest {_time(piece.longest_ns)}",
        )
        for piece in seen.seen.pieces
    ]
    if seen.squeezed:
        found.append(Evidence("/proc/net/softnet_stat (the host's)", f"squeezed +{seen.squeezed}"))
    return tuple(found)


def _piece(piece: Piece) -> str:
    what, _, way = piece.kind.partition("_")
    return f"{WAYS[way]} they {WORDS[what]} for {_time(piece.median_ns)}"


def _time(ns: float) -> str:
    if ns >= 10_000_000:
        return f"{ns / 1e6:.0f} ms"
    return f"{ns / 1e6:.1f} ms" if ns >= 1_000_000 else f"{ns / 1e3:.1f} µs"


CASE = Case(
    title="The way to the host costs more than it must",
    question="Is container networking slower than the host's?",
    question_zh="容器网络延时要比宿主机上的高吗?",
    lesson="17",
    needs=(living,),
    observation=Observation,
    observe=observe,
    judge=judge,
)
