"""The judge of network/packets_reordered on literal counters, as they were measured."""

import pytest
from msgspec import structs

from whybox.cases.network.packets_reordered.probe import Observation, judge
from whybox.change import InNetwork
from whybox.kernel.arrivals import Arrival, order, parse
from whybox.kernel.nettcp import Moment
from whybox.kernel.tcpinfo import Connection
from whybox.model import Certainty, Severity, Verdict

NAMES = {
    "sent": "Tcp.OutSegs",
    "received": "Tcp.InSegs",
    "again": "Tcp.RetransSegs",
    "late": "TcpExt.TCPSACKReorder",
    "reno": "TcpExt.TCPRenoReorder",
    "in_vain": "TcpExt.TCPDSACKRecv",
    "early": "TcpExt.TCPOFOQueue",
    "twice": "TcpExt.TCPDSACKOldSent",
}
ONE = Connection(
    cookie="01",
    family="inet",
    local="10.0.0.2",
    local_port=40000,
    remote="10.0.0.9",
    remote_port=5201,
    early=3,
)


def seen(**grown: int) -> Observation:
    return observed(grown)


def observed(grown: dict[str, int], arrivals: tuple[Arrival, ...] = ()) -> Observation:
    before = dict.fromkeys(NAMES.values(), 1000)
    after = {name: before[name] + grown.get(word, 0) for word, name in NAMES.items()}
    return Observation(
        before=Moment(counters=before, connections=(ONE,)),
        after=Moment(counters=after, connections=(ONE,)),
        counted=True,
        shared=False,
        receiver=ONE if arrivals else None,
        arrivals=arrivals,
    )


def stream(*ids: tuple[int, int]) -> tuple[Arrival, ...]:
    """Segments of one byte: sequence number and mark."""
    return tuple(Arrival(sequence, 1, mark, None) for sequence, mark in ids)


RECEIVED = {"received": 1000, "early": 200}
IN_ORDER = [(n, n + 100) for n in range(40)]


@pytest.mark.parametrize(("again", "late", "in_vain"), [(266, 307, 221), (44, 843, 23), (0, 60, 0)])
def test_late_segments_are_found_with_their_numbers(again: int, late: int, in_vain: int) -> None:
    finding = judge(seen(sent=50_000, again=again, late=late, in_vain=in_vain))
    assert (finding.verdict, finding.certainty) == (Verdict.FOUND, Certainty.CONFIRMED)
    assert f"{late} times" in finding.summary
    assert isinstance(finding.cures[0].change, InNetwork)
    assert "loss" in [other.what for other in finding.ruled_out]


@pytest.mark.parametrize(
    ("what", "grown"),
    [
        ("lost", {"again": 688, "late": 1, "in_vain": 2}),
        ("lost", {"again": 113_264, "late": 5, "in_vain": 8, "sent": 900_000}),
        ("doubles", {"again": 1, "late": 0, "in_vain": 108}),
        ("held up", {"again": 51, "late": 0, "in_vain": 51}),
        ("0 sent again", {}),
    ],
)
def test_what_looks_alike_is_clear_and_is_named(what: str, grown: dict[str, int]) -> None:
    finding = judge(observed({"sent": 50_000, **grown}))
    assert finding.verdict is Verdict.CLEAR
    assert what in finding.summary


def test_a_handful_is_nothing_and_so_is_less_than_a_thousandth() -> None:
    assert judge(seen(sent=100, late=4)).verdict is Verdict.CLEAR
    assert judge(seen(sent=100, late=5)).verdict is Verdict.FOUND
    assert judge(seen(sent=30_000, late=29)).verdict is Verdict.CLEAR
    assert judge(seen(sent=1_000_000, late=50, in_vain=49)).verdict is Verdict.CLEAR
    assert judge(seen(sent=1_000_000, late=50, in_vain=50)).verdict is Verdict.FOUND


def test_late_ones_that_cost_nothing_are_mere_information() -> None:
    assert judge(seen(sent=100_000, late=100)).severity is Severity.INFO
    assert judge(seen(sent=100_000, late=2000)).severity is Severity.WARNING
    assert judge(seen(sent=100_000, late=101, again=9, in_vain=9)).severity is Severity.WARNING


def test_dozens_among_millions_are_not_felt() -> None:
    """As measured: iperf3 between two containers, 7 Gbit/s."""
    finding = judge(seen(sent=2_335_578, late=808, in_vain=31, again=200))
    assert finding.verdict is Verdict.CLEAR
    assert "Of 2335778 segments 808 were late" in finding.summary
    assert judge(seen(sent=2_335_578, late=808, in_vain=120)).verdict is Verdict.FOUND


def test_with_the_hosts_network_it_is_the_hosts() -> None:
    finding = judge(structs.replace(seen(sent=1000, late=84), shared=True))
    assert "its host, whose network it uses" in finding.summary


def test_loss_beside_it_is_said() -> None:
    finding = judge(seen(sent=1000, late=84, again=138, in_vain=16))
    assert finding.verdict is Verdict.FOUND
    assert "lost besides" in finding.summary


def test_a_window_of_no_length_counts_nothing() -> None:
    assert judge(structs.replace(seen(), counted=False)).verdict is Verdict.UNKNOWN


def test_without_sack_nobody_knows() -> None:
    finding = judge(seen(sent=1000, reno=60, again=70))
    assert finding.verdict is Verdict.UNKNOWN
    assert "SACK" in finding.summary


def test_a_kernel_that_does_not_count_it_is_unknown() -> None:
    empty = Moment(counters={})
    assert judge(structs.replace(seen(), before=empty, after=empty)).verdict is Verdict.UNKNOWN


def test_what_came_early_alone_is_no_evidence() -> None:
    finding = judge(seen(received=90_000, early=4455))
    assert finding.verdict is Verdict.UNKNOWN
    assert "sender" in finding.summary


def test_a_receiver_to_which_much_was_sent_again_in_vain_is_likely() -> None:
    finding = judge(seen(received=90_000, early=4455, twice=221))
    assert (finding.verdict, finding.certainty) == (Verdict.FOUND, Certainty.LIKELY)
    mixed = judge(seen(received=90_000, early=124, twice=108))
    assert mixed.verdict is Verdict.UNKNOWN


def test_a_receiver_is_judged_by_the_marks_of_what_arrives() -> None:
    late = stream(*IN_ORDER, *((s, s + 100) for n in range(50, 80, 5) for s in (n + 1, n)))
    finding = judge(observed(RECEIVED, late))
    assert (finding.verdict, finding.certainty) == (Verdict.FOUND, Certainty.CONFIRMED)
    assert "6 came after" in finding.summary
    again = stream(
        *IN_ORDER, *((s, m) for n in range(50, 80, 5) for s, m in ((n + 1, 3 * n), (n, 3 * n + 1)))
    )
    finding = judge(observed(RECEIVED, again))
    assert finding.verdict is Verdict.CLEAR
    assert "lost, not late" in finding.summary


def test_doubled_segments_are_counted_apart() -> None:
    assert order(stream(*IN_ORDER, *IN_ORDER[10:20]))._asdict() == {
        "seen": 50,
        "late": 0,
        "again": 0,
        "doubled": 10,
        "unmarked": 0,
    }


def test_marks_at_random_tell_nothing() -> None:
    marks = [(n, n * 7919 % 65536) for n in range(40)]
    assert order(stream(*marks, (45, 3), (44, 2))).unmarked == 1


def test_marks_and_numbers_wrap_around() -> None:
    ends = stream(*(((1 << 32) - 20 + n, 65516 + n) for n in range(20)), (1, 1), (0, 0))
    assert order(ends).late == 1


def test_a_packet_is_parsed_and_others_are_not() -> None:
    ports = (5201).to_bytes(2, "big") + (40000).to_bytes(2, "big")
    tcp = ports + (77).to_bytes(4, "big") + bytes(4) + bytes([0x80, 0x10]) + bytes(6)
    options = bytes([1, 1, 8, 10]) + (5).to_bytes(4, "big") + bytes(4)
    head = bytes([0x45, 0]) + (152).to_bytes(2, "big") + (9).to_bytes(2, "big") + bytes(6)
    packet = head + bytes([10, 0, 0, 9, 10, 0, 0, 2]) + tcp + options
    assert parse(packet, ONE) == Arrival(77, 100, 9, 5)
    assert parse(packet, structs.replace(ONE, remote_port=80)) is None
    assert parse(packet, structs.replace(ONE, remote="10.0.0.8")) is None
    assert parse(packet[:30], ONE) is None
    for at in range(len(packet)):
        parse(packet[:at], ONE)
