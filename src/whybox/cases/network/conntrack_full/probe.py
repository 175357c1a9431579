"""A full table of connections: whoever opens one more loses its first packet, without a word."""

from collections.abc import Iterable, Mapping
from contextlib import suppress

from msgspec import Struct, structs

from whybox.change import HostSysctl
from whybox.kernel import conntrack
from whybox.kernel.conntrack import Holders, Table
from whybox.kernel.host import Host
from whybox.kernel.netns import call_in
from whybox.kernel.netpath import Path
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

MAX = "net.netfilter.nf_conntrack_max"
#: Entries go all the time: of a table that refused somebody a moment ago so much is still there.
NEARLY = 0.9
MOST_NAMED = 3


class Place(Struct, frozen=True, kw_only=True):
    """A namespace that the container's packets pass, at both ends of the window."""

    name: str
    """As its link in /proc/PID/ns names it."""
    own: bool
    """The container's; else the one at the other end of its wire."""
    before: Table
    after: Table
    holders: Holders | None
    """Looked at where the table is nearly full."""

    @property
    def largest(self) -> int | None:
        """How many entries there may be."""
        return self.after.largest

    @property
    def most(self) -> int:
        """How many there were, as far as it was seen."""
        return max(self.before.entries, self.after.entries)

    @property
    def share(self) -> float:
        """How much of the room is taken; 0 where there is no limit."""
        return 0.0 if self.largest is None else self.most / self.largest

    def grew(self, name: str) -> int:
        """By how much a counter grew."""
        return max(0, self.after.counters.get(name, 0) - self.before.counters.get(name, 0))


class Observation(Struct, frozen=True, kw_only=True):
    """All namespaces on the way."""

    inside: bool
    places: tuple[Place, ...]
    addresses: tuple[str, ...]
    """The container's own."""
    unseen: tuple[str, ...]
    """Why a namespace on the way could not be looked at."""


def observe(host: Host, target: Target) -> Watch[Observation]:
    """Each table before and after; of one that is nearly full, who holds it."""
    pid = "self" if target.runtime == "self" or target.init is None else target.init.pid
    own = f"/proc/{pid}/ns/net"
    far, addresses, unseen = _way(host, target)
    before = {path: (host.inode(path), _table(host, path, "before")) for path in (own, *far)}
    yield
    return Observation(
        inside=target.runtime == "self",
        places=tuple(_seen(host, before, None if target.own("net") is False else own)),
        addresses=addresses,
        unseen=unseen,
    )


def _way(host: Host, target: Target) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """The far ends of its way out, its addresses, and what could not be seen."""
    path = Path(host, target, ())
    view = path.view()
    addresses = tuple(each.address for each in view.near.addresses if each.scope != "host")
    if target.own("net") is False:
        return (), addresses, ()
    unseen = tuple(way.unseen for way in view.ways if way.unseen is not None)
    return tuple(path.places.values()), addresses, unseen


def _table(host: Host, path: str, when: str) -> Table | None:
    """Read once a moment for all containers that end there."""
    inode = host.inode(path)
    return host.remembered(f"conntrack {inode} {when}", lambda: call_in(path, conntrack.table))


def _seen(
    host: Host, before: Mapping[str, tuple[int, Table | None]], own: str | None
) -> Iterable[Place]:
    for path, (inode, first) in before.items():
        # What the path leads to may be another by now.
        if first is None or host.inode(path) != inode:
            continue
        last = _table(host, path, "after")
        if last is None:
            continue
        place = Place(
            name=f"net:[{inode}]", own=path == own, before=first, after=last, holders=None
        )
        yield _with_holders(host, place, path) if place.share >= NEARLY else place


def _with_holders(host: Host, place: Place, path: str) -> Place:
    with suppress(OSError):
        name = f"conntrack holders {place.name}"
        found = host.remembered(name, lambda: call_in(path, conntrack.holders))
        return structs.replace(place, holders=found)
    return place


def judge(seen: Observation) -> Finding:
    """Full and refusing first, then full and quiet."""
    refusing = [p for p in seen.places if p.grew("drop") and p.share >= NEARLY]
    full = [p for p in seen.places if p.share >= 1 or (p.share >= NEARLY and p.grew("early_drop"))]
    if refusing or full:
        return _found(max(refusing or full, key=lambda p: p.grew("drop")), seen)
    if seen.unseen:
        hint = "; ask on the host, as root" if seen.inside else ""
        return unknown(
            f"the tables that could be seen have room, but not all could: {seen.unseen[0]}{hint}",
            evidence=tuple(map(_counts, seen.places)),
        )
    return _clear(seen)


def _clear(seen: Observation) -> Finding:
    evidence = tuple(map(_counts, seen.places))
    if not seen.places:
        return clear("This kernel tracks no connections.")
    fullest = max(seen.places, key=lambda place: place.share)
    said = f"The tables of connections that it passes have room: {_room(fullest)}."
    dropped = sum(place.grew("drop") for place in seen.places)
    clashed = sum(place.grew("insert_failed") for place in seen.places)
    if dropped:
        said += f" {dropped} packets were dropped there by connection tracking, not for want of it."
    if clashed:
        said += (
            f" {clashed} packets lost a race for an entry (insert_failed), as two questions for a "
            "name from one socket do: that is no want of room."
        )
    return clear(said, evidence=evidence)


def _found(place: Place, seen: Observation) -> Finding:
    dropped, evicted = place.grew("drop"), place.grew("early_drop")
    whose = "its own network namespace" if place.own else "the host"
    said = f"The table of connections of {whose} is full: {_room(place)}."
    if dropped:
        said += f" {dropped} packets that would have opened one more vanished in this window."
    elif evicted:
        said += f" {evicted} that nobody had answered were thrown out for newer ones."
    else:
        said += " Nobody was refused in this window; the next new one will be."
    mine = _share_of_its_own(place, seen)
    return Finding(
        verdict=Verdict.FOUND,
        summary=said + mine,
        severity=Severity.CRITICAL if dropped else Severity.WARNING,
        certainty=Certainty.CONFIRMED if dropped else Certainty.LIKELY,
        evidence=tuple(_evidence(place)),
        ruled_out=(
            RuledOut(
                "a firewall's rule",
                "what a rule drops is not counted as drop of the connection tracking"
                if dropped
                else "no packet was seen to vanish",
            ),
            RuledOut(
                "connections that exist already", "they have their entry, and their packets pass"
            ),
        ),
        cures=tuple(_cures(place)),
    )


def _room(place: Place) -> str:
    entries = min(place.most, place.largest) if place.largest is not None else place.most
    return f"{entries} of {'any number of' if place.largest is None else place.largest} entries"


def _share_of_its_own(place: Place, seen: Observation) -> str:
    held = place.holders
    if held is None or not held.looked_at:
        return ""
    mine = sum(count for source, count in held.sources if source in seen.addresses)
    first, count = held.sources[0]
    if mine * 2 >= held.looked_at:
        return f" It holds {_percent(mine, held)} of them itself."
    own = _percent(mine, held)
    return f" {first} holds {_percent(count, held)} of them, and this container {own}."


def _percent(count: int, held: Holders) -> str:
    return f"{100 * count / held.looked_at:.0f} %"


def _evidence(place: Place) -> Iterable[Evidence]:
    yield _counts(place)
    held = place.holders
    if held is None or not held.looked_at:
        return
    sources = ", ".join(f"{who} {count}" for who, count in held.sources[:MOST_NAMED])
    to = ", ".join(f"{whom} {count}" for whom, count in held.destinations[:MOST_NAMED])
    yield Evidence(
        f"conntrack -L (in {place.name})",
        f"of {held.looked_at} looked at: opened by {sources}; to {to}; "
        f"{held.unanswered} without an answer",
    )


def _counts(place: Place) -> Evidence:
    grew = " ".join(f"{n} +{place.grew(n)}" for n in ("drop", "insert_failed", "early_drop"))
    return Evidence(
        f"/proc/net/stat/nf_conntrack (in {place.name})",
        f"nf_conntrack_count {place.before.entries}, then {place.after.entries}; "
        f"nf_conntrack_max {place.largest or 'none'}; {grew}",
    )


def _cures(place: Place) -> Iterable[Cure]:
    largest = place.largest or place.most
    yield Cure(
        advice="Make the table larger: one number for all namespaces of the machine, 300 bytes an "
        "entry when they are there; nf_conntrack_buckets should grow with it.",
        change=HostSysctl(MAX, str(2 * max(largest, place.most))),
        safety=Safety.LOW_RISK,
    )
    held = place.holders
    if held is not None and held.looked_at and held.unanswered * 2 > held.looked_at:
        yield Cure(
            advice=f"Find out why {held.sources[0][0]} opens so many that nobody answers: a scan, "
            "a dead service, a client without keep-alive.",
            safety=Safety.INSPECT,
        )
    yield Cure(
        advice="Let entries go sooner (nf_conntrack_tcp_timeout_established is 5 days, …_time_wait "
        "2 minutes), or do not track what needs no NAT and no state: a notrack rule.",
        safety=Safety.MUTATING,
    )


CASE = Case(
    title="The table of connections is full",
    question="Why do some packets just vanish?",
    question_zh="为什么有些包凭空消失?",
    lesson="16",
    needs=(living,),
    observation=Observation,
    observe=observe,
    judge=judge,
    explains=("network/name_unresolved", "network/packets_lost", "security/permission_denied"),
)
