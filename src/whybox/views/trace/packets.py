"""Where packets are dropped, hop by hop; retransmits and resets."""

from collections.abc import Iterator, Sequence

from whybox.kernel.drops import Drop, Flow
from whybox.kernel.hops import Hop
from whybox.trace.connections import Connection, Reset
from whybox.trace.packets import Again, Answer, Broken, Lost
from whybox.views import hops
from whybox.views.histogram import duration

_MOST_SHOWN = 20

_VERDICTS = {
    "lost": "segments were lost",
    "reordered": "segments were late, not lost: reordering",
    "duplicated": "segments were doubled on the way",
    "sent again too soon": "nothing was lost: the answer came late",
    "mixed": "some lost, some late",
}


def event(event: Lost | Again | Broken) -> str:
    """One packet, retransmit or reset."""
    at = f"{event.at_ns / 1e9:.6f}"
    match event:
        case Lost():
            return (
                f"{at} dropped {_flow(event.flow)} at {_place(event.namespace, event.interface)}:"
                f" {_why(event.reason, event.function)}, {event.bytes} bytes"
            )
        case Again():
            in_a_row = f", {event.in_a_row} timeouts in a row" if event.in_a_row else ""
            return f"{at} sent again {event.local} → {event.remote} ({event.state}{in_a_row})"
        case Broken():
            how = "sent" if event.sent else "received"
            why = "" if event.reason is None else f": {event.reason}"
            return f"{at} reset {how} {event.local} ↔ {event.remote}{why}"


def answer(answer: Answer) -> list[str]:
    """Drops in the order of the hops, connections, counters."""
    return [
        *_drops(answer),
        *_usual(answer),
        *_connections(answer),
        *_resets(answer),
        *_counters(answer),
    ]


def _drops(answer: Answer) -> Iterator[str]:
    if not answer.dropped:
        if answer.watched:
            yield "no packet of it was dropped, but for what is usual"
        return
    yield f"{_counted(answer.dropped, 'packet')} dropped, hop by hop from the container outwards:"
    told: Hop | None = None
    for drop in answer.drops[:_MOST_SHOWN]:
        if drop.hop != told:
            told = drop.hop
            yield f"  at {_hop(drop.hop)}"
        yield from _drop(drop)
    if len(answer.drops) > _MOST_SHOWN:
        yield f"  and in {len(answer.drops) - _MOST_SHOWN} more ways"
    if answer.uncounted:
        yield f"  {answer.uncounted} of them in too many places to be told apart"


def _drop(drop: Drop) -> Iterator[str]:
    yield (
        f"    {drop.packets:>6} {drop.protocol} {drop.whose}, {drop.bytes} bytes:"
        f" {_why(drop.reason, drop.function)}; such as {_flow(drop.example)}"
    )
    if drop.means:
        yield f"           {drop.means}"
    if drop.look:
        yield f"           look at: {drop.look}"


def _usual(answer: Answer) -> Iterator[str]:
    if not answer.usual:
        return
    yield f"besides, {_counted(answer.usual_dropped, 'packet')} as any healthy network drops:"
    for drop in answer.usual[:_MOST_SHOWN]:
        yield (
            f"    {drop.packets:>6} {drop.protocol} at"
            f" {_place(drop.hop.namespace, drop.hop.interface)}:"
            f" {_why(drop.reason, drop.function)} ({drop.means})"
        )


def _connections(answer: Answer) -> Iterator[str]:
    if not answer.connections:
        return
    yield "TCP connections that sent something again, or saw segments out of order:"
    for one in answer.connections[:_MOST_SHOWN]:
        yield f"  {_connection(one)}"
    more = len(answer.connections) - _MOST_SHOWN
    more = max(0, more) + answer.more_connections
    if more:
        yield f"  and {more} more"


def _connection(one: Connection) -> str:
    ends = f"{_end(one.local, one.local_port)} → {_end(one.remote, one.remote_port)}"
    state = f"{one.state}, closed meanwhile" if one.closed and one.state != "close" else one.state
    facts = [
        f"{one.retransmitted} segments sent again" if one.retransmitted else "",
        f"{one.synacks} answers to its first packet sent again" if one.synacks else "",
        f"{one.in_a_row} timeouts in a row" if one.in_a_row else "",
        f"{one.reordered} times late and not lost" if one.reordered else "",
        f"{one.duplicates} had arrived before" if one.duplicates else "",
        f"{one.early} received too early" if one.early else "",
        "" if one.srtt_ns is None else f"round trip {duration(one.srtt_ns)}",
    ]
    verdict = "" if one.verdict is None else f": {_VERDICTS[one.verdict]}"
    return f"{ends} ({state}): {', '.join(fact for fact in facts if fact)}{verdict}"


def _resets(answer: Answer) -> Iterator[str]:
    if not answer.resets:
        return
    sent = sum(one.count for one in answer.resets if one.sent)
    received = sum(one.count for one in answer.resets) - sent
    yield f"resets: {sent} sent, {received} received"
    for one in answer.resets[:_MOST_SHOWN]:
        yield f"  {_reset(one)}"
    more = max(0, len(answer.resets) - _MOST_SHOWN) + answer.more_resets
    if more:
        yield f"  and {more} more"


def _reset(one: Reset) -> str:
    how = "sent" if one.sent else "received"
    why = "" if one.reason is None else f": {one.reason}"
    return f"{one.count:>6} {how} {one.local} ↔ {one.remote}{why}"


def _counters(answer: Answer) -> Iterator[str]:
    own = [f"{one.name} +{one.by}" for one in answer.counters if not one.whole_machine]
    if own:
        yield f"its namespace counted: {', '.join(own)}"
    others = [f"{one.name} +{one.by}" for one in answer.counters if one.whole_machine]
    if others:
        yield f"the whole machine counted: {', '.join(others)}"
    yield from answer.conclusions


def _why(reason: str | None, function: str) -> str:
    return function if reason is None else f"{reason} in {function}"


def _hop(hop: Hop) -> str:
    words = {"wire": ", the other end of its wire", "bridge": ", the bridge of its wire"}
    return f"{_place(hop.namespace, hop.interface)}{words.get(hop.stage, '')}"


def _place(namespace: str, interface: str | None) -> str:
    return f"{interface or 'no interface'} of {namespace}"


def _flow(flow: Flow) -> str:
    if flow.source is None or flow.destination is None:
        return flow.protocol
    icmp = "" if flow.icmp_type is None else f" type {flow.icmp_type} code {flow.icmp_code}"
    source = _end(flow.source, flow.source_port)
    return f"{flow.protocol}{icmp} {source} → {_end(flow.destination, flow.destination_port)}"


def _end(address: str, port: int | None) -> str:
    if port is None:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _counted(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def _svg(answer: Answer, title: str) -> str:
    boxes: Sequence[hops.Box] = [
        hops.Box(
            title=hop.interface or "no interface",
            below=hop.namespace,
            stage=hop.stage,
            drops=tuple(
                (drop.packets, _why(drop.reason, drop.function))
                for drop in answer.drops
                if (drop.hop.inode, drop.hop.ifindex) == (hop.inode, hop.ifindex)
            ),
        )
        for hop in answer.path
    ]
    return hops.svg(boxes, title, answer.dropped)


PICTURES = {"svg": _svg}
