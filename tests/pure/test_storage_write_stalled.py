"""storage/write_stalled judged on literal observations; the parts of a call add up to it."""

from pathlib import Path

import pytest
from msgspec import structs

from whybox.cases.storage.write_stalled.observation import Observation, Room, least_ns
from whybox.cases.storage.write_stalled.probe import judge
from whybox.change import InProgram, IoLimit
from whybox.kernel import blockio
from whybox.kernel.blockio import Limit
from whybox.kernel.diskwaits import NOT_WATCHED, Kind, Waits
from whybox.kernel.host import Host
from whybox.kernel.sensors import writes as sensor
from whybox.kernel.sensors.writes import Call, Place
from whybox.kernel.slowwrites import Ordinary, Part, Slow, Writes, part_of, told
from whybox.kernel.waiting import pressed
from whybox.model import Certainty, Finding, Severity, Verdict

MS = 1_000_000
SECOND = 1_000 * MS
MIB = 1 << 20
DISK = (7, 0)
QUICK = (0, 0, 0, 100, *[0] * 28)


def slow(ms: int, kind: str = "buffered write", over: bool = True, **parts: int) -> Slow:
    """A call that took so long; ``parts`` in ms, the rest it was running."""
    known: dict[Part, int] = {}
    for name in ("reclaim", "dirty", "journal", "device", "lock", "elsewhere", "cpu"):
        if name in parts:
            known[name] = parts[name] * MS
    known["running"] = ms * MS - sum(known.values())
    return Slow(
        tid=7,
        comm="app",
        call="write",
        kind=kind,
        took_ns=ms * MS,
        over=over,
        parts=known,
        where="io_schedule < folio_wait_bit",
    )


def seen(*calls: Slow, kind: str = "buffered write", waits: Waits = NOT_WATCHED) -> Observation:
    ordinary = (Ordinary(kind=kind, count=100, buckets=QUICK),)
    return Observation(
        elapsed_ns=2 * SECOND,
        writes=Writes(slow=calls, ordinary=ordinary),
        waits=waits,
        names={"7:0": "loop0"},
        io_usec=1_000_000,
        memory_usec=0,
    )


def held(held_ms: int, device_ms: int) -> Waits:
    one = Kind(
        device=DISK,
        kind="write",
        count=9,
        bytes=9,
        held=9,
        held_ns=held_ms * MS,
        queued_ns=0,
        device_ns=device_ms * MS,
        longest_ns=0,
    )
    return Waits(kinds=(one,))


def limited(there: Observation, cgroup: str | None = None) -> Observation:
    limit = Limit(device=DISK, file="/x", what="write bytes", value=2 * MIB)
    return structs.replace(there, limits=((cgroup, limit),))


def shares(finding: Finding) -> int:
    return sum(int(word[:-1]) for word in finding.summary.split() if word.endswith("%"))


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ("reclaim", "freeing memory first"),
        ("dirty", "balance_dirty_pages"),
        ("journal", "journal"),
        ("device", "in the disk's queue"),
    ],
)
def test_each_place_is_named_and_the_parts_add_up(part: Part, says: str) -> None:
    parts: dict[Part, int] = {part: 280 * MS, "cpu": 15 * MS, "running": 5 * MS}
    finding = judge(seen(structs.replace(slow(300), parts=parts), slow(100, cpu=100)))
    assert finding.verdict is Verdict.FOUND, finding.summary
    assert says in finding.summary
    assert 98 <= shares(finding) <= 102, finding.summary


def test_two_slow_writes_of_many_are_told_with_what_most_take() -> None:
    finding = judge(seen(slow(300, reclaim=300), slow(100, reclaim=100)))
    assert "2 of its 100 writes were slow, 0.40 s in all in these 2.0 s" in finding.summary
    assert "one of them 300 ms" in finding.summary
    assert "half of its buffered writes take less than 0.016 ms" in finding.summary


def test_what_a_limit_held_is_its_part_of_the_waits_at_the_disk() -> None:
    there = limited(seen(slow(1000, device=1000), waits=held(900, 100)))
    finding = judge(there)
    assert "90% held back by its limit on disk IO" in finding.summary
    assert "10% in the disk's queue" in finding.summary
    assert finding.cures[0].change == IoLimit("7:0", "write bytes", None)
    above = judge(limited(there, "/pod"))
    assert above.cures[0].change == IoLimit("7:0", "write bytes", None, cgroup="/pod")


def test_a_limit_that_held_nothing_has_no_part() -> None:
    finding = judge(limited(seen(slow(1000, device=1000), waits=held(0, 100))))
    assert "limit" not in finding.summary
    assert finding.certainty is Certainty.LIKELY


def test_a_write_that_a_limit_holds_all_along_is_told_by_disks_that_do_nothing() -> None:
    there = limited(seen(slow(1600, device=1600, over=False), waits=Waits()))
    finding = judge(structs.replace(there, disks_writing=()))
    assert "100% held back by its limit on disk IO" in finding.summary
    assert finding.certainty is Certainty.LIKELY
    assert "none is in flight at any" in " ".join(one.says for one in finding.evidence)
    busy = judge(structs.replace(there, disks_writing=("sda",)))
    assert "limit" not in busy.summary


def test_disks_with_writes_in_flight_are_told(tmp_path: Path) -> None:
    for name, said in (("sda", "0 3"), ("sdb", "4        0"), ("sdc", "")):
        (tmp_path / "sys/block" / name).mkdir(parents=True)
        (tmp_path / "sys/block" / name / "inflight").write_text(said + "\n")
    assert blockio.writing(Host(str(tmp_path))) == ("sda",)
    assert blockio.writing(Host(str(tmp_path / "nowhere"))) == ()


def test_reclaim_names_the_limit_and_what_is_dirty_and_its_cure_is_the_programs() -> None:
    room = Room(
        path="/x", own=True, limit_bytes=32 * MIB, current_bytes=32 * MIB, dirty_bytes=20 * MIB
    )
    finding = judge(structs.replace(seen(slow(1500, reclaim=1500)), room=room))
    assert "32 MiB of the limit of 32 MiB are used, 20 MiB of it dirty" in finding.summary
    assert isinstance(finding.cures[0].change, InProgram)
    assert finding.severity is Severity.CRITICAL


@pytest.mark.parametrize(
    "calls",
    [
        (),
        (slow(190, dirty=190),),  # less than a tenth of the window
        (slow(19, dirty=19),) * 20,  # none is slow
        (slow(400, cpu=390),),
        (slow(400, lock=390),),
        (slow(400),),
        (slow(100, kind="sync", device=100),) * 5,
    ],
    ids=["none", "few", "short", "want of CPU", "a lock", "running", "synced, and few"],
)
def test_what_is_no_stall_is_clear(calls: tuple[Slow, ...]) -> None:
    finding = judge(seen(*calls))
    assert finding.verdict is Verdict.CLEAR, finding.summary


def test_who_waited_for_a_cpu_is_sent_there() -> None:
    assert "see cpu/throttled and cpu/starved" in judge(seen(slow(400, cpu=390))).summary


def test_buffered_writes_are_judged_by_themselves_beside_one_who_syncs() -> None:
    finding = judge(seen(slow(600, reclaim=600), slow(1900, kind="sync", device=1900)))
    assert "1 write of it was slow, 0.60 s" in finding.summary
    assert "freeing memory" in finding.summary


def test_even_syncs_are_no_stall_and_jumping_ones_are() -> None:
    even = tuple(slow(100, kind="sync", device=100) for _ in range(15))
    there = seen(*even, kind="sync")
    usual = Ordinary(kind="sync", count=15, buckets=(*[0] * 16, 15, *[0] * 15))  # 66 to 131 ms
    there = structs.replace(there, writes=structs.replace(there.writes, ordinary=(usual,)))
    assert judge(there).verdict is Verdict.CLEAR
    assert judge(seen(*even, kind="sync")).verdict is Verdict.FOUND
    assert least_ns("sync", 0) == 50 * MS


def test_a_write_that_is_not_over_counts() -> None:
    finding = judge(seen(slow(1500, over=False, dirty=1500)))
    assert finding.verdict is Verdict.FOUND
    assert any("is not over" in one.says for one in finding.evidence)


def test_a_glance_is_unknown() -> None:
    assert judge(structs.replace(seen(), elapsed_ns=1000)).verdict is Verdict.UNKNOWN


def test_where_nothing_waits_nothing_is_timed() -> None:
    assert judge(structs.replace(seen(), writes=Writes(idle=True))).verdict is Verdict.CLEAR
    late = Writes(idle=True, late="app (pid 7)")
    assert judge(structs.replace(seen(), writes=late)).verdict is Verdict.UNKNOWN


@pytest.mark.parametrize(
    ("io_usec", "verdict"),
    [(1_000_000, Verdict.UNKNOWN), (None, Verdict.UNKNOWN), (20_000, Verdict.CLEAR)],
)
def test_without_the_sensor_it_is_unknown_if_something_waited(
    io_usec: int | None, verdict: Verdict
) -> None:
    there = structs.replace(seen(), writes=Writes(reason="no BPF"), io_usec=io_usec)
    assert judge(there).verdict is verdict


def test_the_parts_of_a_call_add_up_to_what_it_took() -> None:
    call = Call(
        slot=1,
        tid=7,
        pid=7,
        comm="app\x1b",
        call="write",
        kind="buffered write",
        inode=5,
        began_ns=0,
        took_ns=100 * MS,
        over=True,
        reclaim_ns=10 * MS,
        cpu_ns=5 * MS,
        other_ns=1 * MS,
        places=(Place(stack=1, ns=50 * MS), Place(stack=2, ns=20 * MS), Place(stack=-1, ns=MS)),
    )
    stacks = {
        1: ("__schedule", "schedule", "io_schedule_timeout", "balance_dirty_pages"),
        2: ("schedule", "wait_transaction_locked", "start_this_handle"),
    }
    (one,) = told([call], stacks, (), 0).slow
    assert one.parts == {
        "dirty": 50 * MS,
        "journal": 20 * MS,
        "elsewhere": 2 * MS,
        "reclaim": 10 * MS,
        "cpu": 5 * MS,
        "running": 13 * MS,
    }
    assert sum(one.parts.values()) == one.took_ns
    assert one.where == "io_schedule_timeout < balance_dirty_pages"
    assert "\x1b" not in one.comm


@pytest.mark.parametrize(
    ("stack", "part"),
    [
        (("schedule", "io_schedule", "folio_wait_bit", "folio_wait_writeback"), "device"),
        (("schedule", "reclaim_throttle", "shrink_node"), "reclaim"),
        (("__mem_cgroup_handle_over_high", "try_charge_memcg"), "reclaim"),
        (("schedule", "rwsem_down_write_slowpath", "down_write"), "lock"),
        (("schedule", "request_wait_answer", "fuse_send_write"), "elsewhere"),
        (("schedule",), "elsewhere"),
    ],
)
def test_stacks_are_told_apart(stack: tuple[str, ...], part: Part) -> None:
    assert part_of(stack) == part


@pytest.mark.parametrize("text", ["", "some", "some avg10=x total=1", "full avg10=9.0 total=9"])
def test_a_pressure_file_that_says_nothing_is_no_reason(text: str) -> None:
    assert pressed(text, 1.0) is (text.startswith("full"))


def test_a_call_is_decoded_as_the_sensor_lays_it_out() -> None:
    head = sensor._WRITING.pack(
        *(0, 0, 0, 4, 5, 6, 99), *(3, 1, 0, 70), *(-1, 0), b"app".ljust(16, b"\0")
    )
    places = sensor._PLACE.pack(8, 2, 1) + sensor._PLACE.pack(0, 0, 0) * 7
    call = sensor.told(sensor._TOLD.pack(1000, 400, 7, 0) + head + places)
    assert (call.slot, call.tid, call.pid, call.comm, call.took_ns) == (3, 7, 70, "app", 400)
    assert (call.reclaim_ns, call.cpu_ns, call.other_ns) == (4, 5, 6)
    assert call.places == (Place(stack=2, ns=8),)
    assert call.call == "write"
