"""Segments that overtake each other on the way, not lost, not doubled, not held up."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import TypeAlias

from msgspec import Struct

from whybox.change import InNetwork
from whybox.kernel import nettcp
from whybox.kernel.arrivals import Arrival, Order, order
from whybox.kernel.host import Host
from whybox.kernel.netcounters import (
    ALL_IN_VAIN,
    DOUBLED_EACH,
    ENOUGH,
    ENOUGH_SHARE,
    HANDFUL,
    IN_VAIN_SHARE,
    REORDERED_SHARE,
    enough,
)
from whybox.kernel.nettcp import Moment
from whybox.kernel.target import Target
from whybox.kernel.tcpinfo import Connection, is_loopback
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

#: From the receiving side: so many segments that it had already, and for each of them so many that
#: came early. Measured: 20 with reordering; 1 with loss and doubling together.
RECEIVED_TWICE, EARLY_EACH = 20, 5

#: Out of a hundred segments one that is late is felt, even if nothing is sent again for it.
FELT_SHARE = 0.01

MOST_NAMED = 3

#: One counter of a connection.
Counter: TypeAlias = Callable[[Connection], int | None]


class Observation(Struct, frozen=True, kw_only=True):
    """What TCP counted in the container's network namespace at both ends of the window."""

    before: Moment
    after: Moment
    counted: bool
    """There was a window in which something could happen."""
    shared: bool
    """The namespace is the host's."""
    receiver: Connection | None
    """That which had received most before its time, of those that were there before."""
    arrivals: tuple[Arrival, ...] = ()
    """What came of it in the window, as far as there was room."""


def observe(host: Host, target: Target) -> Watch[Observation]:
    """Read the counters twice; between, look at what comes of the one connection that asks for it.

    Only a sender is told which segments were late. A receiver must look at the segments themselves.
    """
    before = nettcp.read(host, target)
    receiver = _receiving(before) if host.window_seconds > 0 else None
    with ExitStack() as stack:
        look = None if receiver is None else nettcp.watched(host, target, receiver, stack)
        yield
        return Observation(
            before=before,
            after=nettcp.read(host, target),
            counted=host.window_seconds > 0,
            shared=target.own("net") is False,
            receiver=receiver,
            arrivals=() if look is None else look(),
        )


def _receiving(before: Moment) -> Connection | None:
    known = [one for one in before.connections or () if one.early and not is_loopback(one)]
    return max(known, key=lambda one: one.early or 0, default=None)


class Gain(Struct, frozen=True, kw_only=True):
    """By how much the counters grew; one that this kernel has not is 0."""

    sent: int
    received: int
    again: int
    """Segments that were sent again."""
    late: int
    """Segments that were never sent again and yet arrived after later ones (TCPSACKReorder)."""
    reno: int
    """The same, as guessed where the other side sends no SACK (TCPRenoReorder)."""
    in_vain: int
    """Segments that the other side said it had already (TCPDSACKRecv)."""
    early: int
    """Segments received before earlier ones (TCPOFOQueue)."""
    twice: int
    """Segments received that had been received before (TCPDSACKOldSent)."""

    @property
    def late_share(self) -> float:
        """Of what was sent."""
        return self.late / max(self.sent, 1)


def gain(seen: Observation) -> Gain:
    """The differences."""

    def grown(name: str) -> int:
        return max(0, (seen.after.count(name) or 0) - (seen.before.count(name) or 0))

    return Gain(
        # OutSegs leaves out what is sent again (RFC 4022).
        sent=grown("Tcp.OutSegs") + grown("Tcp.RetransSegs"),
        received=grown("Tcp.InSegs"),
        again=grown("Tcp.RetransSegs"),
        late=grown("TcpExt.TCPSACKReorder"),
        reno=grown("TcpExt.TCPRenoReorder"),
        in_vain=grown("TcpExt.TCPDSACKRecv"),
        early=grown("TcpExt.TCPOFOQueue"),
        twice=grown("TcpExt.TCPDSACKOldSent"),
    )


def judge(seen: Observation) -> Finding:
    """By what the sender learns from acknowledgements; the receiver's view is weaker."""
    if seen.after.count("TcpExt.TCPSACKReorder") is None:
        return unknown("this kernel does not count reordering (/proc/net/netstat TCPSACKReorder)")
    if not seen.counted:
        return unknown("nothing can be counted in a window of no length: look for a second or more")
    by = gain(seen)
    if by.late >= enough(by.sent) and by.late > REORDERED_SHARE * by.again:
        return _sender(seen, by) if _is_felt(by) else _few(by)
    if by.reno >= enough(by.sent) and by.reno > REORDERED_SHARE * by.again:
        return unknown(
            f"{by.reno} times segments seemed to be late, but its partners acknowledge nothing "
            "selectively (no SACK), and then doubled ones look the same"
        )
    came = order(seen.arrivals)
    if came.late >= HANDFUL and came.late > REORDERED_SHARE * came.again:
        return _received(seen, by, came)
    if by.twice >= RECEIVED_TWICE and by.early >= max(EARLY_EACH * by.twice, enough(by.received)):
        return _receiver(seen, by)
    if came.again >= HANDFUL and came.late + came.unmarked < REORDERED_SHARE * came.again:
        return clear(
            f"Segments reach it in order: of {came.seen} that were looked at {came.again} came "
            f"behind since they were sent again, {came.late} were late. They are lost, not late."
        )
    if by.early >= max(ENOUGH, ENOUGH_SHARE * by.received):
        return unknown(
            f"{by.early} of {by.received} segments came to it before earlier ones, and whether "
            "those were late or lost only their sender knows: diagnose that side",
            evidence=(_netstat(f"TCPOFOQueue +{by.early}   TCPDSACKOldSent +{by.twice}"),),
        )
    return _not(by)


def _is_felt(by: Gain) -> bool:
    """A fast connection has dozens in a second, for which nothing is slower."""
    return by.late_share >= ENOUGH_SHARE or by.in_vain >= enough(by.sent)


def _few(by: Gain) -> Finding:
    return clear(
        f"Of {by.sent} segments {by.late} were late and not lost, and {by.in_vain} were sent again "
        "in vain: less than one in a thousand is not felt.",
        evidence=(_netstat(f"TCPSACKReorder +{by.late}   TCPDSACKRecv +{by.in_vain}"),),
    )


def _sender(seen: Observation, by: Gain) -> Finding:
    wasted = by.in_vain >= HANDFUL
    lossy = by.again >= enough(by.sent) and by.in_vain < IN_VAIN_SHARE * by.again
    harm = f"{by.in_vain} were sent again in vain" if wasted else "hardly one was sent again for it"
    return Finding(
        verdict=Verdict.FOUND,
        summary=(
            f"Segments that {_whose(seen)} sends overtake each other: {by.late} times in "
            f"{by.sent} segments one was late and not lost, and {harm}."
            + (" Some are lost besides." if lossy else "")
        ),
        certainty=Certainty.CONFIRMED,
        severity=Severity.WARNING if wasted or by.late_share >= FELT_SHARE else Severity.INFO,
        evidence=(
            _netstat(
                f"TCPSACKReorder +{by.late}   TCPDSACKRecv +{by.in_vain}   "
                f"Tcp RetransSegs +{by.again}   OutSegs +{by.sent - by.again}"
            ),
            *_worst(seen, "reord_seen", lambda one: one.reordered),
        ),
        ruled_out=(
            RuledOut(
                "loss",
                f"{by.late} segments were acknowledged late without having been sent again; "
                f"{by.again} were sent again",
            ),
            RuledOut("doubling", "a segment that arrives twice is not counted as late"),
            RuledOut(
                "an answer that is held up",
                "then segments are sent again that had arrived, in their order",
            ),
        ),
        cures=(_CURE, _PATIENCE),
    )


def _received(seen: Observation, by: Gain, came: Order) -> Finding:
    one = seen.receiver
    wanted = "tcp" if one is None else f"src host {one.remote} and tcp src port {one.remote_port}"
    return Finding(
        verdict=Verdict.FOUND,
        summary=(
            f"Segments that {_whose(seen)} receives overtake each other: of {came.seen} that were "
            f"looked at {came.late} came after segments that had been sent later."
        ),
        certainty=Certainty.CONFIRMED,
        severity=Severity.WARNING,
        evidence=(
            Evidence(
                f"tcpdump -nv '{wanted}' (in its network namespace)",
                f"{came.late} with an id or TSval that is older than what came before",
            ),
            _netstat(f"TCPOFOQueue +{by.early}   TCPDSACKOldSent +{by.twice}"),
        ),
        ruled_out=(
            RuledOut("loss", f"{came.again} had been sent again, which their marks tell"),
            RuledOut("doubling", f"{came.doubled} came twice, which is counted apart"),
        ),
        cures=(_CURE,),
    )


def _receiver(seen: Observation, by: Gain) -> Finding:
    return Finding(
        verdict=Verdict.FOUND,
        summary=(
            f"Segments that {_whose(seen)} receives overtake each other: {by.early} of "
            f"{by.received} came before an earlier one, and {by.twice} were sent again for that "
            "although they came."
        ),
        certainty=Certainty.LIKELY,
        severity=Severity.WARNING,
        evidence=(
            _netstat(
                f"TCPOFOQueue +{by.early}   TCPDSACKOldSent +{by.twice}   Tcp InSegs +{by.received}"
            ),
            *_worst(seen, "rcv_ooopack", lambda one: one.early),
        ),
        ruled_out=(
            RuledOut("loss", f"{by.twice} segments came a second time: they had not been lost"),
            RuledOut("doubling", f"{by.early} came early, and doubled ones come in order"),
        ),
        cures=(_CURE,),
    )


def _not(by: Gain) -> Finding:
    if by.again < enough(by.sent) and by.in_vain < enough(by.sent):
        return clear(
            f"Its segments keep their order: {by.late} of {by.sent} were late, "
            f"{by.again} sent again."
        )
    if by.in_vain > DOUBLED_EACH * by.again:
        what = "they arrive twice without being sent twice: something on the way doubles them"
    elif by.in_vain >= ALL_IN_VAIN * by.again:
        what = "those had arrived, in order: it was the answers that were held up"
    else:
        what = "they are lost, not late"
    return clear(
        f"Its segments keep their order: of {by.sent} {by.again} were sent again, and {by.late} "
        f"times one was late; {what}.",
        evidence=(
            _netstat(
                f"RetransSegs +{by.again}   TCPSACKReorder +{by.late}   TCPDSACKRecv +{by.in_vain}"
            ),
        ),
    )


def _whose(seen: Observation) -> str:
    return "its host, whose network it uses," if seen.shared else "it"


def _netstat(says: str) -> Evidence:
    return Evidence("/proc/PID/net/netstat (of its network namespace)", says)


def _worst(seen: Observation, name: str, counter: Counter) -> tuple[Evidence, ...]:
    """The connections with most of it."""
    if seen.after.connections is None:
        return ()
    before = {one.cookie: one for one in seen.before.connections or ()}
    found = [
        (count, one)
        for one in seen.after.connections
        if (count := (counter(one) or 0) - _known(before.get(one.cookie), counter)) > 0
    ]
    found.sort(key=lambda pair: -pair[0])
    return tuple(
        Evidence(
            f"ss -ti dst {one.remote} sport = :{one.local_port}",
            f"{one.local}:{one.local_port} to {one.remote}:{one.remote_port}   {name} +{count}",
        )
        for count, one in found[:MOST_NAMED]
    )


def _known(one: Connection | None, counter: Counter) -> int:
    return 0 if one is None else counter(one) or 0


_CURE = Cure(
    advice=(
        "Keep each connection on one way, where it is spread packet by packet: a bond in mode "
        "balance-rr, several queues or CPUs without a flow's hash (RPS, XPS, cpumap), routes or "
        "tunnels used by turns, a netem that was forgotten."
    ),
    safety=Safety.MUTATING,
    change=InNetwork("keep each connection on one way"),
)

_PATIENCE = Cure(
    advice=(
        "Until then let it bear more: net.ipv4.tcp_recovery=1 and net.ipv4.tcp_max_reordering=300 "
        "are the defaults; on one with tcp_recovery=0 a late segment is taken for a lost one."
    ),
    safety=Safety.INSPECT,
)


CASE = Case(
    title="Segments overtake each other on the way",
    question="Why so many out-of-order packets?",
    question_zh="容器中的网络乱序包怎么这么高?",
    lesson="18",
    needs=(living,),
    observation=Observation,
    observe=observe,
    judge=judge,
)
