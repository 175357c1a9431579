"""TCP connections that sent something again, were reset, or saw segments overtake each other."""

from collections.abc import Callable, Iterable, Mapping

from msgspec import Struct

from whybox.kernel.netcounters import Shares
from whybox.kernel.sensors import packets as sensor
from whybox.kernel.sensors.packets import Pair, Repeats, State
from whybox.kernel.sock_diag import TCP_STATES


class Connection(Struct, frozen=True, kw_only=True):
    """One connection; the counts are of the trace alone."""

    local: str
    local_port: int
    remote: str
    remote_port: int
    state: str
    closed: bool
    """It ended meanwhile."""
    retransmits: int
    """How often something was sent again."""
    retransmitted: int
    """Segments that were; more at once where the card cuts them."""
    synacks: int
    """Of them answers to the first packet, which did not arrive."""
    in_a_row: int
    """At most so many timeouts without an answer in between."""
    reordered: int
    """How often a segment was seen to be late and not lost."""
    duplicates: int
    """Segments that the other side had already."""
    early: int
    """Received before an earlier one."""
    srtt_ns: int | None
    verdict: str | None
    """``lost``, ``reordered``, ``duplicated``, ``sent again too soon``, ``mixed``; ``None``: too
    few to tell."""


class Reset(Struct, frozen=True, kw_only=True):
    """Resets of one connection."""

    local: str
    remote: str
    """With their ports."""
    sent: bool
    """By the container's side; else it was received."""
    reason: str | None
    """Why it was sent, as the kernel calls it; ``None``: it does not tell."""
    count: int


def state_name(number: int) -> str:
    """As ``ss`` calls it."""
    return TCP_STATES.get(number, str(number))


def reset(one: sensor.Reset, reasons: Mapping[int, str]) -> Reset:
    """With both ends and the reason in words."""
    pair = one.pair
    known = reasons.get(one.reason, f"reason {one.reason}") if reasons and one.sent else None
    return Reset(
        local=f"{pair.local}:{pair.local_port}",
        remote=f"{pair.remote}:{pair.remote_port}",
        sent=one.sent,
        reason=known,
        count=one.count,
    )


def connections(
    before: Mapping[Pair, State],
    after: Mapping[Pair, State],
    repeats: Iterable[Repeats],
    name: Callable[[int], str],
) -> tuple[Connection, ...]:
    """Those that have something to tell, the one with the most retransmits first."""
    known = {one.pair: one for one in repeats}
    found = [
        connection
        for pair in dict.fromkeys((*known, *after))
        if (connection := _connection(pair, before.get(pair), after.get(pair), known.get(pair)))
    ]
    return tuple(sorted(found, key=_badness))


def _badness(one: Connection) -> tuple[int, int, int]:
    return -one.retransmits - one.synacks, -one.reordered, -one.early


_NOTHING = State(
    srtt_us=0,
    retransmitted=0,
    reordered=0,
    duplicates=0,
    early=0,
    sent=0,
    state=0,
    in_a_row=0,
    reordering=0,
)


def _connection(
    pair: Pair, before: State | None, after: State | None, repeats: Repeats | None
) -> Connection | None:
    start = before or _NOTHING
    last = after or (_NOTHING if repeats is None else repeats.state)
    if last.retransmitted < start.retransmitted or last.sent < start.sent:
        start = _NOTHING  # another connection with the same ends
    gains = {
        field: max(0, getattr(last, field) - getattr(start, field))
        for field in ("retransmitted", "reordered", "duplicates", "early", "sent")
    }
    sent = gains.pop("sent")
    count = 0 if repeats is None else repeats.count
    synacks = 0 if repeats is None else repeats.synacks
    if not (count or synacks or any(gains.values())):
        return None
    shares = Shares(
        retransmitted=gains["retransmitted"],
        reordered=gains["reordered"],
        duplicates=gains["duplicates"],
        sent=sent,
    )
    return Connection(
        local=pair.local,
        local_port=pair.local_port,
        remote=pair.remote,
        remote_port=pair.remote_port,
        state=state_name(last.state),
        closed=repeats is not None and repeats.gone,
        retransmits=count,
        synacks=synacks,
        in_a_row=0 if repeats is None else repeats.most_in_a_row,
        srtt_ns=last.srtt_us * 1000 or None,
        verdict=shares.verdict(),
        **gains,
    )
