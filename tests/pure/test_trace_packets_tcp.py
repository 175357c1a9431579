"""``whybox trace packets``: connections, and what counters say of them, on literal data."""

import pytest
from msgspec import structs

from whybox.kernel import netcounters
from whybox.kernel.netcounters import Shares
from whybox.kernel.sensors.packets import Pair, Repeats, State
from whybox.trace.connections import connections

PAIR = Pair(net=100, local="10.0.0.2", local_port=4000, remote="fe80::1", remote_port=80)
STATE = State(
    srtt_us=900,
    retransmitted=60,
    reordered=0,
    duplicates=1,
    early=0,
    sent=1000,
    state=1,
    in_a_row=2,
    reordering=3,
)


def shares(retransmitted: int, reordered: int, duplicates: int, sent: int = 100_000) -> Shares:
    return Shares(
        retransmitted=retransmitted, reordered=reordered, duplicates=duplicates, sent=sent
    )


@pytest.mark.parametrize(
    ("seen", "verdict"),
    [
        (shares(266, 317, 221), "reordered"),  # these five were measured with netem
        (shares(44, 860, 23), "reordered"),
        (shares(688, 1, 2), "lost"),
        (shares(1, 0, 108), "duplicated"),
        (shares(113_264, 5, 8), "lost"),
        (shares(51, 0, 51), "sent again too soon"),
        (shares(100, 5, 40), "mixed"),
        (shares(0, 0, 0), None),
        (shares(4, 0, 0, sent=10), None),
        (shares(20, 0, 0, sent=1_000_000), None),
    ],
)
def test_lost_and_late_are_told_apart(seen: Shares, verdict: str | None) -> None:
    assert seen.verdict() == verdict


def test_a_connection_counts_from_the_beginning_of_the_trace() -> None:
    before = structs.replace(STATE, retransmitted=50, sent=400)
    repeats = Repeats(
        pair=PAIR,
        count=9,
        synacks=0,
        first_ns=1,
        last_ns=2,
        most_in_a_row=2,
        state=STATE,
        gone=True,
    )
    (one,) = connections({PAIR: before}, {}, [repeats], str)
    assert (one.retransmits, one.retransmitted, one.closed) == (9, 10, True)
    assert one.srtt_ns == 900_000
    assert connections({PAIR: STATE}, {PAIR: STATE}, [], str) == ()


def test_another_connection_with_the_same_ends_begins_at_zero() -> None:
    (one,) = connections({PAIR: STATE}, {PAIR: structs.replace(STATE, retransmitted=3)}, [], str)
    assert one.retransmitted == 3


def test_counters_that_grew_are_told_and_what_they_say() -> None:
    before = {"Tcp.OutSegs": 0, "Tcp.RetransSegs": 5, "Udp.InDatagrams": 0, "eth0 rx dropped": 1}
    after = {
        "Tcp.OutSegs": 9000,
        "Tcp.RetransSegs": 605,
        "Udp.InDatagrams": 99,
        "eth0 rx dropped": 4,
        "softnet dropped": 2,
        "TcpExt.ListenOverflows": 3,
    }
    found = {one.name: one.by for one in netcounters.grown(before, after)}
    assert found == {
        "Tcp.RetransSegs": 600,
        "eth0 rx dropped": 3,
        "softnet dropped": 2,
        "TcpExt.ListenOverflows": 3,
    }
    lost, full = netcounters.conclusions(before, after)
    assert "600 of 9000" in lost
    assert "are lost" in lost
    assert "accept queue" in full
