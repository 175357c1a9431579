"""The judge of network/path_slow on literal pieces of the way."""

import pytest
from msgspec import structs

from whybox.cases.network.path_slow.probe import Observation, judge
from whybox.change import HostSysctl, InNetwork, NoQueue
from whybox.kernel import qdisc
from whybox.kernel.pathcost import End, Piece, Seen, Wire
from whybox.kernel.sensors.path import median_ns
from whybox.model import Certainty, Verdict

INHERENT = {
    "queue_out": 3_300,
    "wait_out": 3_800,
    "forward_out": 13_300,
    "queue_in": 800,
    "wait_in": 700,
    "forward_in": 5_600,
}
WIRE = Wire(
    inner=End(namespace=7, ifindex=2, name="eth0", queue="noqueue"),
    outer=End(namespace=1, ifindex=9, name="veth12ab", queue="noqueue"),
)
LOOPBACK_NS = 20_000


def seen(
    more: dict[str, int] | None = None, *, wire: Wire = WIRE, packets: int = 300
) -> Observation:
    pieces = tuple(
        Piece(kind=kind, packets=packets, median_ns=ns, mean_ns=ns, longest_ns=9 * ns)
        for kind, ns in (INHERENT | (more or {})).items()
    )
    return Observation(
        shared=False,
        seen=Seen(wires=(wire,), pieces=pieces),
        loopback_ns=LOOPBACK_NS,
        squeezed=0,
        budget=300,
    )


def test_what_is_inherent_is_clear_and_told_in_numbers() -> None:
    finding = judge(seen())
    assert finding.verdict is Verdict.CLEAR
    assert "27.5 µs a round trip more than the host's own" in finding.summary
    assert "loopback takes 20.0 µs" in finding.summary


def test_five_round_trips_of_the_loopback_are_the_edge() -> None:
    rest = sum(INHERENT.values()) - INHERENT["forward_out"]
    assert judge(seen({"forward_out": 100_000 - rest})).verdict is Verdict.CLEAR
    assert judge(seen({"forward_out": 100_001 - rest})).verdict is Verdict.FOUND


def test_a_slow_machine_is_not_taken_for_it() -> None:
    """Everything ten times slower, the loopback too."""
    slow = {kind: 10 * ns for kind, ns in INHERENT.items()}
    finding = judge(structs.replace(seen(slow), loopback_ns=10 * LOOPBACK_NS))
    assert finding.verdict is Verdict.CLEAR


def test_a_fast_loopback_makes_nothing_slow() -> None:
    assert judge(structs.replace(seen(), loopback_ns=5_000)).verdict is Verdict.CLEAR


def test_many_rules_are_found_where_packets_are_forwarded() -> None:
    finding = judge(seen({"forward_out": 90_000, "forward_in": 90_100}))
    assert (finding.verdict, finding.certainty) == (Verdict.FOUND, Certainty.CONFIRMED)
    assert "filtered and forwarded for 90.1 µs" in finding.summary
    assert isinstance(finding.cures[0].change, InNetwork)
    assert {other.what for other in finding.ruled_out} >= {"a slow machine", "the other side"}


@pytest.mark.parametrize(
    ("kind", "name", "inside"), [("queue_out", "eth0", True), ("queue_in", "veth12ab", False)]
)
def test_a_queue_is_named_with_its_end(kind: str, name: str, inside: bool) -> None:
    ends = {
        "inner": structs.replace(WIRE.inner, queue="tbf"),
        "outer": structs.replace(WIRE.outer, queue="tbf"),
    }
    finding = judge(seen({kind: 31_000_000}, wire=Wire(**ends)))
    assert f"of {name} (tbf) for 31 ms" in finding.summary
    assert finding.cures[0].change == NoQueue(name, in_container=inside)


def test_a_plain_queue_is_not_taken_off() -> None:
    finding = judge(seen({"queue_out": 31_000_000}))
    assert finding.verdict is Verdict.FOUND
    assert isinstance(finding.cures[0].change, InNetwork)


def test_a_late_softirq_is_likely_and_a_small_budget_its_cause() -> None:
    finding = judge(seen({"wait_in": 2_000_000}))
    assert (finding.verdict, finding.certainty) == (Verdict.FOUND, Certainty.LIKELY)
    assert isinstance(finding.cures[0].change, InNetwork)
    small = structs.replace(seen({"wait_in": 2_000_000}), budget=2, squeezed=253_502)
    finding = judge(small)
    assert finding.cures[0].change == HostSysctl("net.core.netdev_budget", "300")
    assert any("squeezed +253502" in evidence.says for evidence in finding.evidence)


def test_the_first_packets_of_connections_are_not_added() -> None:
    first = judge(seen({"first_out": 400_000}))
    assert first.verdict is Verdict.CLEAR
    assert "the first of a connection" in first.summary


def test_where_all_are_first_packets_the_other_way_tells_for_both() -> None:
    whole = seen({"forward_in": 67_000, "first_out": 90_000})
    pieces = tuple(piece for piece in whole.seen.pieces if piece.kind != "forward_out")
    short = structs.replace(whole, seen=structs.replace(whole.seen, pieces=pieces))
    finding = judge(short)
    assert finding.verdict is Verdict.FOUND
    assert "costs 142.6 µs" in finding.summary


def test_too_little_to_look_at_is_unknown() -> None:
    assert judge(seen(packets=19)).verdict is Verdict.UNKNOWN


def test_a_network_that_nobody_used_is_clear() -> None:
    assert judge(seen(packets=0)).verdict is Verdict.CLEAR
    assert judge(seen(packets=20)).verdict is Verdict.CLEAR
    nothing = structs.replace(seen(), seen=Seen(reason="no BTF"))
    assert "no BTF" in judge(nothing).summary
    assert judge(structs.replace(seen(), loopback_ns=None)).verdict is Verdict.UNKNOWN


def test_without_a_wire_there_is_nothing_to_cost() -> None:
    for observation in (
        structs.replace(seen(), shared=True),
        structs.replace(seen(), seen=Seen(wireless=True)),
    ):
        assert judge(observation).verdict is Verdict.CLEAR


def test_a_median_is_within_an_eighth() -> None:
    for ns in (1, 5, 100, 999, 123_456, 9_999_999):
        octave = ns.bit_length() - 1
        part = ns >> (octave - 2) & 3 if octave >= 2 else 0
        buckets = [0] * 128
        buckets[4 * octave + part] = 1
        assert abs(median_ns(buckets) - ns) <= max(1, ns / 7)
    assert median_ns([0] * 128) == 0


def test_a_queueing_discipline_is_parsed() -> None:
    head = bytes(4) + (2).to_bytes(4, "little") + bytes(4) + b"\xff" * 4 + bytes(4)
    kind = bytes([8, 0, 1, 0]) + b"tbf\0"
    assert qdisc.kind(head + kind) == "tbf"
