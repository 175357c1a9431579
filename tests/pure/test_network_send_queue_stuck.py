"""The judge of network/send_queue_stuck on literal queues."""

import struct

import msgspec
import pytest
from msgspec import structs

from whybox.cases.network.send_queue_stuck.probe import Observation, judge
from whybox.change import InProgram
from whybox.kernel.sendqueue import Counts, Look, Sending, sending
from whybox.kernel.sock_diag import TcpSocket
from whybox.kernel.socketowner import Owner, Owners
from whybox.kernel.tcpdetail import Detailed, Memory
from whybox.model import Certainty, Severity, Verdict

SECOND = 1_000_000_000
COUNTS = Counts(too_big=7, timeouts=1, pressures=0, cuts_failed=0)
MINE = Owners(of={900: Owner(pid=42, comm="backup", stopped=False)}, complete=True, frozen=False)
STUCK = Sending(
    local="10.0.0.2:5000",
    remote="10.9.9.9:443",
    inode=900,
    queue_bytes=700_000,
    unacked=180,
    sacked=0,
    lost=180,
    acked_bytes=400_001,
    peer_window=16_000_000,
    probes=0,
    timeouts=3,
    rto_usec=1_600_000,
    rtt_usec=1_000,
    memory_bytes=720_000,
    limit_bytes=9_216,
)


def look(at_ns: int, *queues: Sending, **counts: int | None) -> Look:
    return Look(
        at_ns=at_ns,
        sending=queues,
        counts=structs.replace(COUNTS, **counts),
        wmem=(4096, 16384, 4194304),
    )


def seen(
    before: Sending = STUCK, after: Sending = STUCK, *, too_big: int | None = 5, **more: object
) -> Observation:
    last = None if too_big is None else 7 + too_big
    first = None if too_big is None else 7
    made = Observation(
        before=look(0, before, too_big=first), after=look(SECOND, after, too_big=last), owners=MINE
    )
    return structs.replace(made, **more)


def but(**changes: object) -> Sending:
    return structs.replace(STUCK, **changes)


def test_an_observation_survives_a_recording() -> None:
    assert msgspec.json.decode(msgspec.json.encode(seen()), type=Observation) == seen()


def test_the_same_queue_over_its_limit_while_the_kernel_refuses() -> None:
    finding = judge(seen())
    assert finding.verdict is Verdict.FOUND
    assert (finding.severity, finding.certainty) == (Severity.CRITICAL, Certainty.CONFIRMED)
    for fact in ("backup (pid 42)", "700000 bytes", "180 segments", "5 times", "limit is 9216"):
        assert fact in finding.summary
    assert isinstance(finding.cures[0].change, InProgram)


def test_the_counter_alone_is_no_fault() -> None:
    finding = judge(seen(after=but(acked_bytes=4_400_001)))
    assert finding.verdict is Verdict.CLEAR
    assert "5 times the kernel refused" in finding.summary
    assert "moves" in finding.summary


def test_without_the_counter_it_is_another_reason() -> None:
    finding = judge(seen(too_big=0))
    assert finding.verdict is Verdict.CLEAR
    assert "lost on the way" in finding.summary


@pytest.mark.parametrize("window", [0, None])
def test_a_closed_window_is_the_peers_fault(window: int | None) -> None:
    closed = but(peer_window=window, probes=2, unacked=0, timeouts=0)
    finding = judge(seen(closed, closed))
    assert finding.verdict is Verdict.CLEAR
    assert "does not read" in finding.summary


def test_a_kernel_that_tells_no_window_and_no_probe_is_out() -> None:
    old = but(peer_window=None)
    assert judge(seen(old, old)).verdict is Verdict.FOUND


def test_a_queue_within_its_limit_is_not_it() -> None:
    within = but(limit_bytes=360_000)
    assert judge(seen(within, within)).verdict is Verdict.CLEAR
    over = but(limit_bytes=359_999)
    assert judge(seen(over, over)).verdict is Verdict.FOUND


def test_a_queue_that_came_over_its_limit_only_now() -> None:
    assert judge(seen(but(limit_bytes=900_000), STUCK)).verdict is Verdict.CLEAR


def test_it_crawls_where_it_would_take_half_a_minute() -> None:
    slow = judge(seen(after=but(acked_bytes=400_001 + 23_000)))
    assert (slow.verdict, slow.severity) == (Verdict.FOUND, Severity.WARNING)
    assert slow.certainty is Certainty.LIKELY
    assert judge(seen(after=but(acked_bytes=400_001 + 24_000))).verdict is Verdict.CLEAR
    answered = but(acked_bytes=400_001 + 23_000, timeouts=0)
    assert judge(seen(after=answered)).verdict is Verdict.CLEAR


def test_an_answer_may_take_longer_than_the_window() -> None:
    far = but(rtt_usec=300_000)
    assert judge(seen(far, far)).verdict is Verdict.CLEAR
    short = seen()
    assert short.after is not None
    hasty = structs.replace(short, after=structs.replace(short.after, at_ns=SECOND // 3))
    assert judge(hasty).verdict is Verdict.CLEAR


def test_before_bytes_acked_the_queue_itself_is_compared() -> None:
    old = but(acked_bytes=None)
    assert judge(seen(old, old)).verdict is Verdict.FOUND
    assert judge(seen(old, but(acked_bytes=None, unacked=179))).verdict is Verdict.CLEAR
    assert judge(seen(old, but(acked_bytes=None, queue_bytes=1))).verdict is Verdict.CLEAR


def test_a_kernel_that_does_not_count_it() -> None:
    assert judge(seen(too_big=None)).verdict is Verdict.UNKNOWN
    moving = seen(after=but(acked_bytes=4_400_001), too_big=None)
    assert judge(moving).verdict is Verdict.CLEAR


def test_another_connection_at_the_same_ends_is_another() -> None:
    assert judge(seen(after=but(inode=901))).verdict is Verdict.CLEAR


def test_what_another_container_has_open_is_not_its() -> None:
    nobody = Owners(of={}, complete=True, frozen=False)
    assert judge(seen(owners=nobody)).verdict is Verdict.CLEAR
    hidden = Owners(of={}, complete=False, frozen=None)
    assert judge(seen(owners=hidden)).verdict is Verdict.FOUND
    assert judge(seen(owners=hidden, shared=True)).verdict is Verdict.CLEAR


def test_under_memory_pressure_the_kernel_itself_made_the_limit_small() -> None:
    halved = but(limit_bytes=300_000)
    made = seen(halved, halved)
    assert made.after is not None
    counts = structs.replace(made.after.counts, pressures=1)
    finding = judge(structs.replace(made, after=structs.replace(made.after, counts=counts)))
    assert finding.verdict is Verdict.FOUND
    assert "tcp_mem" in finding.cures[0].advice


def test_what_cannot_be_seen_is_unknown() -> None:
    finding = judge(Observation(before=None, after=None, owners=None, reason="run as root"))
    assert finding.verdict is Verdict.UNKNOWN
    assert "run as root" in finding.summary


def test_an_idle_container_is_clear() -> None:
    finding = judge(Observation(before=look(0), after=look(SECOND), owners=None))
    assert finding.verdict is Verdict.CLEAR


def test_a_socket_as_a_sender() -> None:
    info = bytearray(232)
    struct.pack_into("=BBBBB", info, 0, 1, 4, 3, 2, 3)
    struct.pack_into("=I", info, 8, 816_000)
    struct.pack_into("=III", info, 24, 173, 1, 172)
    struct.pack_into("=I", info, 68, 250)
    struct.pack_into("=Q", info, 120, 1 << 33)
    struct.pack_into("=I", info, 228, 65_535)
    one = Detailed(
        socket=TcpSocket(
            cookie="07",
            family="inet",
            state="established",
            local_address="10.0.0.2",
            local_port=5000,
            remote_address="10.9.9.9",
            remote_port=443,
            ifindex=None,
            uid=0,
            inode=900,
            rqueue=0,
            wqueue=1234,
            v6only=None,
        ),
        memory=Memory(
            send_limit_bytes=9216,
            send_queued_bytes=2000,
            receive_limit_bytes=1,
            receive_bytes=0,
            drops=0,
        ),
        info=bytes(info),
    )
    found = sending(one)
    assert found is not None
    assert (found.timeouts, found.probes, found.rto_usec) == (3, 2, 816_000)
    assert (found.unacked, found.sacked, found.lost, found.rtt_usec) == (173, 1, 172, 250)
    assert (found.acked_bytes, found.peer_window) == (1 << 33, 65_535)
    old = sending(structs.replace(one, info=bytes(info[:104])))
    assert old is not None
    assert (old.acked_bytes, old.peer_window) == (None, None)
    assert sending(structs.replace(one, info=b"")) is None
