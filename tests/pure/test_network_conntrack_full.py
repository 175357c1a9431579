"""network/conntrack_full: judged on literal observations, and its messages parsed."""

import socket

import pytest
from msgspec import structs

from whybox.cases.network.conntrack_full.probe import Observation, Place, judge
from whybox.change import HostSysctl
from whybox.kernel.conntrack import Holders, Table, held, stats
from whybox.kernel.conntrackentries import Entry, Tuple, opened, parse
from whybox.kernel.host import ParseError
from whybox.kernel.netlink import attribute
from whybox.model import Certainty, Severity, Verdict

MINE, OTHER = "172.17.0.2", "172.17.0.9"


def table(entries: int, largest: int | None = 1000, **counters: int) -> Table:
    return Table(entries=entries, largest=largest, counters=counters)


def place(before: Table, after: Table, *, own: bool = False, who: str = MINE) -> Place:
    holders = Holders(
        looked_at=1000, sources=((who, 990),), destinations=(("udp 10.0.0.1:9", 5),), unanswered=10
    )
    return Place(name="net:[7]", own=own, before=before, after=after, holders=holders)


def seen(*places: Place, unseen: tuple[str, ...] = ()) -> Observation:
    return Observation(inside=False, places=places, addresses=(MINE,), unseen=unseen)


def test_full_and_refusing_is_critical() -> None:
    finding = judge(seen(place(table(1000, drop=5), table(1000, drop=42))))
    assert (finding.verdict, finding.severity) == (Verdict.FOUND, Severity.CRITICAL)
    assert finding.certainty is Certainty.CONFIRMED
    assert "of the host is full: 1000 of 1000 entries. 37 packets" in finding.summary
    assert "It holds 99 % of them itself" in finding.summary
    assert finding.cures[0].change == HostSysctl("net.netfilter.nf_conntrack_max", "2000")


def test_full_and_quiet_is_a_warning() -> None:
    finding = judge(seen(place(table(1000, drop=5), table(1000, drop=5))))
    assert (finding.verdict, finding.severity) == (Verdict.FOUND, Severity.WARNING)
    assert "Nobody was refused" in finding.summary


@pytest.mark.parametrize(
    ("entries", "dropped", "verdict"),
    [
        (999, 0, Verdict.CLEAR),
        (1000, 0, Verdict.FOUND),
        (900, 1, Verdict.FOUND),
        (899, 1, Verdict.CLEAR),
        (950, 0, Verdict.CLEAR),
    ],
)
def test_edges(entries: int, dropped: int, verdict: Verdict) -> None:
    both = place(table(entries, drop=9), table(entries, drop=9 + dropped))
    assert judge(seen(both)).verdict is verdict


def test_it_was_full_at_the_beginning_alone() -> None:
    assert judge(seen(place(table(1000, drop=1), table(20, drop=3)))).verdict is Verdict.FOUND


def test_entries_that_are_thrown_out_for_newer_ones() -> None:
    both = place(table(995, early_drop=1), table(998, early_drop=80))
    finding = judge(seen(both))
    assert finding.severity is Severity.WARNING
    assert "79 that nobody had answered were thrown out" in finding.summary


def test_a_neighbour_is_named() -> None:
    finding = judge(seen(place(table(1000), table(1000, drop=1), who=OTHER)))
    assert f"{OTHER} holds 99 % of them, and this container 0 %" in finding.summary


def test_its_own_table_is_named() -> None:
    finding = judge(seen(place(table(1000), table(1000, drop=1), own=True)))
    assert "of its own network namespace is full" in finding.summary


def test_a_lost_race_is_no_want_of_room() -> None:
    finding = judge(seen(place(table(10, insert_failed=0), table(10, insert_failed=4))))
    assert finding.verdict is Verdict.CLEAR
    assert "4 packets lost a race for an entry" in finding.summary


def test_no_limit_and_no_tracking_are_clear() -> None:
    unlimited = place(table(10**6, None), table(10**6, None, drop=1))
    assert judge(seen(unlimited)).verdict is Verdict.CLEAR
    assert judge(seen()).verdict is Verdict.CLEAR


def test_a_host_that_cannot_be_seen_is_unknown_unless_its_own_is_full() -> None:
    room = place(table(1), table(1), own=True)
    assert judge(seen(room, unseen=("no rights",))).verdict is Verdict.UNKNOWN
    full = structs.replace(room, after=table(1000, drop=2))
    assert judge(seen(full, unseen=("no rights",))).verdict is Verdict.FOUND


def test_counters_are_hexadecimal_and_summed() -> None:
    text = "entries found drop\n00000010 00000001 0000000f\n00000010 00000000 00000001\n"
    assert stats(text) == {"found": 1, "drop": 16}
    assert stats("") == {}
    with pytest.raises(ParseError):
        stats("entries drop\n1 zz\n")


def direction(source: str, destination: str, sport: int | None, dport: int | None) -> bytes:
    family, kinds = (socket.AF_INET6, (3, 4)) if ":" in source else (socket.AF_INET, (1, 2))
    ends = zip(kinds, (source, destination), strict=True)
    ip = b"".join(attribute(kind, socket.inet_pton(family, end)) for kind, end in ends)
    proto = attribute(1, bytes([17]))
    for kind, port in ((2, sport), (3, dport)):
        proto += b"" if port is None else attribute(kind, port.to_bytes(2, "big"))
    return attribute(1, ip) + attribute(2, proto)


def entry(original: bytes, status: int, reply: bytes = b"") -> bytes:
    body = attribute(1, original) + (attribute(2, reply) if reply else b"")
    return b"\x02\0\0\0" + body + attribute(3, status.to_bytes(4, "big"))


def test_entries_are_counted_by_who_opened_them() -> None:
    payloads = [
        entry(direction(MINE, "10.0.0.1", 4000, 53), 2),
        entry(direction(MINE, "10.0.0.1", 4001, 53), 0),
        entry(direction(OTHER, "10.0.0.2", None, None), 0),
        entry(direction("fd00::2", "fd00::1", 4000, 53), 2),
        b"\x02\0\0\0",
    ]
    found = held(opened(payloads))
    assert found.looked_at == 4
    assert found.sources == ((MINE, 2), (OTHER, 1), ("fd00::2", 1))
    assert found.destinations == (
        ("udp 10.0.0.1:53", 2),
        ("udp 10.0.0.2", 1),
        ("udp [fd00::1]:53", 1),
    )
    assert found.unanswered == 2
    assert held(list(opened(payloads))[:1]).unanswered == 0


def test_an_entry_has_two_directions_with_ports() -> None:
    there, back = direction(OTHER, MINE, 4000, 80), direction("10.0.0.1", OTHER, 8080, 4000)
    assert parse(entry(there, 0x22, back)) == Entry(
        original=Tuple(source=OTHER, destination=MINE, protocol=17, sport=4000, dport=80),
        reply=Tuple(source="10.0.0.1", destination=OTHER, protocol=17, sport=8080, dport=4000),
        answered=True,
        snat=False,
        dnat=True,
    )
    portless = direction(OTHER, MINE, None, None)
    assert parse(entry(there, 0x22)) is None
    assert parse(entry(portless, 0, portless)) is None
