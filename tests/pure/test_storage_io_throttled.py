"""storage/io_throttled judged on literal observations, and its readers on a small tree."""

from pathlib import Path

import pytest
from msgspec import structs

from whybox.cases.storage.io_throttled.probe import judge, observe
from whybox.change import IoLimit
from whybox.kernel import iothrottle
from whybox.kernel.blockio import Limit, What
from whybox.kernel.diskwaits import Kind, Waits, told
from whybox.kernel.host import Host
from whybox.kernel.iothrottle import Level, Throttle, Use
from whybox.kernel.sensors.disk import SlowIo
from whybox.kernel.target import Target
from whybox.kernel.task import TaskId
from whybox.model import Certainty, Severity, Verdict

MIB = 1 << 20
DISK = (8, 0)
SECONDS = 2
REFUSED = Waits(reason="no BPF here")
BUCKETS = (0, 0, 0, 90, *[0] * 12, 10, *[0] * 15)


def limit(what: What = "write bytes", value: int = 4 * MIB) -> Limit:
    return Limit(device=DISK, file="/blkio.throttle", what=what, value=value)


def level(
    *limits: Limit,
    written: int = 0,
    count: int = 0,
    path: str = "/docker/x",
    own: bool = True,
    applies: bool = True,
) -> Level:
    uses = (Use(device=DISK, kind="write", count=count, bytes=written),)
    return Level(
        path=path, own=own, applies=applies, limits=limits, uses=uses, stat_file="/io.stat"
    )


def held(seconds: float, count: int = 15, way: str = "write") -> Kind:
    return Kind(
        device=DISK,
        kind=way,
        count=100,
        bytes=8 * MIB,
        held=count,
        held_ns=int(seconds * 1e9),
        queued_ns=1_000_000,
        device_ns=20_000_000,
        longest_ns=107_000_000,
        before_buckets=BUCKETS,
    )


def seen(*levels: Level, waits: Waits = REFUSED, waited: float | None = 0.9) -> Throttle:
    return Throttle(
        elapsed_ns=SECONDS * 1_000_000_000,
        version=1,
        inside=False,
        hidden=None,
        levels=levels or (level(),),
        names={"8:0": "sda"},
        waits=waits,
        pressure_file=None if waited is None else "/io.pressure",
        waited_usec=None if waited is None else int(waited * SECONDS * 1e6),
    )


AT_LIMIT = level(limit(), written=8 * MIB, count=128)


def test_without_a_limit_it_is_clear_however_long_it_waits() -> None:
    assert judge(seen()).verdict is Verdict.CLEAR


def test_limits_that_may_not_be_read_are_unknown() -> None:
    hidden = structs.replace(seen(), hidden="/x/blkio.throttle.write_bps_device")
    finding = judge(hidden)
    assert finding.verdict is Verdict.UNKNOWN
    assert "may not be read" in finding.summary


def test_what_was_held_back_is_found_with_its_limit_and_both_peaks() -> None:
    finding = judge(seen(AT_LIMIT, waits=Waits(kinds=(held(1.8),))))
    assert finding.verdict is Verdict.FOUND
    assert finding.certainty is Certainty.CONFIRMED
    assert finding.severity is Severity.CRITICAL
    assert "4.0 MiB/s for writing to sda" in finding.summary
    assert "15 of its 100 writes were held back, 1.8 s" in finding.summary
    peaks = [e.says for e in finding.evidence if "99 %" in e.says]
    assert "half of its writes waited less than 0.016 ms" in peaks[0]
    assert "99 % less than 131 ms" in peaks[0]
    assert finding.cures[0].change == IoLimit("8:0", "write bytes", None)


def test_half_of_the_critical_share_is_a_warning() -> None:
    finding = judge(seen(AT_LIMIT, waits=Waits(kinds=(held(0.3),))))
    assert (finding.verdict, finding.severity) == (Verdict.FOUND, Severity.WARNING)


@pytest.mark.parametrize(
    ("written", "waited", "verdict"),
    [
        (6 * MIB, 0.9, Verdict.FOUND),
        (2 * MIB, 0.9, Verdict.CLEAR),
        (6 * MIB, 0.05, Verdict.CLEAR),
    ],
)
def test_who_waits_neither_in_a_queue_nor_in_a_device_waits_for_the_limit(
    written: int, waited: float, verdict: Verdict
) -> None:
    one = structs.replace(held(0.0, count=0), bytes=0, count=0)
    finding = judge(seen(level(limit(), written=written), waits=Waits(kinds=(one,)), waited=waited))
    assert finding.verdict is verdict, finding.summary
    assert finding.certainty is (
        Certainty.LIKELY if verdict is Verdict.FOUND else Certainty.CONFIRMED
    )


@pytest.mark.parametrize("waited", [0.0, 0.9, None])
def test_nothing_held_is_clear_however_much_of_the_limit_was_used(waited: float | None) -> None:
    waits = Waits(kinds=(structs.replace(held(0.01, count=1), device_ns=1_700_000_000),))
    finding = judge(seen(AT_LIMIT, waits=waits, waited=waited))
    assert finding.verdict is Verdict.CLEAR
    if waited:
        assert "is not it" in finding.summary


def test_the_limit_that_held_is_named_among_several() -> None:
    both = level(limit(), limit("write IOs", 50), limit("read bytes"), written=MIB, count=100)
    few = structs.replace(held(1.8), bytes=MIB)
    finding = judge(seen(both, waits=Waits(kinds=(few,))))
    assert "50 IOs/s for writing" in finding.summary
    assert finding.cures[0].change == IoLimit("8:0", "write IOs", None)


def test_a_parents_limit_is_named_and_cured_where_it_is() -> None:
    above = level(limit(), written=8 * MIB, count=128, path="/pod", own=False)
    finding = judge(seen(level(), above, waits=Waits(kinds=(held(1.8),))))
    assert "The limit of its parent /pod of 4.0 MiB/s" in finding.summary
    assert finding.cures[0].change == IoLimit("8:0", "write bytes", None, cgroup="/pod")


def test_on_v1_a_parents_limit_holds_for_nobody_below_it() -> None:
    above = level(limit(), written=8 * MIB, path="/pod", own=False, applies=False)
    finding = judge(seen(level(), above))
    assert finding.verdict is Verdict.CLEAR
    assert "/pod" in finding.summary


@pytest.mark.parametrize(
    ("waited", "of_tasks", "version", "verdict"),
    [
        (0.0, 0, 2, Verdict.CLEAR),
        (0.0, None, 2, Verdict.CLEAR),
        (0.0, 3, 2, Verdict.FOUND),  # submitted asynchronously: nobody sleeps in D
        (0.5, 0, 2, Verdict.FOUND),
        (None, 0, 2, Verdict.FOUND),
        (0.0, 0, 1, Verdict.FOUND),  # v1: what is written back is not limited
    ],
)
def test_what_is_written_back_in_the_background_is_nobodys_wait(
    waited: float | None, of_tasks: int | None, version: int, verdict: Verdict
) -> None:
    waits = Waits(kinds=(held(1.8),), held_of_tasks=of_tasks)
    there = structs.replace(seen(AT_LIMIT, waits=waits, waited=waited), version=version)
    finding = judge(there)
    assert finding.verdict is verdict, finding.summary


@pytest.mark.parametrize(
    ("written", "waited", "verdict"),
    [
        (8 * MIB, 0.9, Verdict.FOUND),
        (8 * MIB, 0.02, Verdict.UNKNOWN),
        (8 * MIB, None, Verdict.UNKNOWN),
        (4 * MIB, 0.9, Verdict.UNKNOWN),  # bursts may have met it
        (4 * MIB, 0.0, Verdict.CLEAR),
        (1 * MIB, 0.9, Verdict.CLEAR),
    ],
)
def test_without_the_sensor_the_rate_and_the_pressure_decide(
    written: int, waited: float | None, verdict: Verdict
) -> None:
    finding = judge(seen(level(limit(), written=written), waited=waited))
    assert finding.verdict is verdict, finding.summary
    if verdict is Verdict.FOUND:
        assert finding.certainty is Certainty.LIKELY


def test_a_glance_is_unknown() -> None:
    glance = structs.replace(seen(AT_LIMIT), elapsed_ns=10_000)
    assert judge(glance).verdict is Verdict.UNKNOWN


def test_on_v1_what_went_by_the_page_cache_is_told() -> None:
    there = structs.replace(seen(AT_LIMIT, waits=Waits(kinds=(held(1.8),))), dirtied_bytes=88 * MIB)
    finding = judge(there)
    assert "another 80 MiB went to the page cache" in finding.summary
    assert "80 MiB" not in judge(structs.replace(there, version=2)).summary


def test_only_ios_of_the_containers_own_tasks_count_as_its_tasks() -> None:
    def slow(pid: int, throttled_ns: int) -> SlowIo:
        return SlowIo(
            at_ns=1,
            slot=1,
            device=DISK,
            kind="write",
            bytes=4096,
            sector=0,
            throttled_ns=throttled_ns,
            queued_ns=1_000,
            device_ns=1_000_000,
            error=0,
            pid=pid,
            comm="app",
        )

    all_of_them = [slow(7, 90_000_000), slow(7, 0), slow(99, 90_000_000)]
    assert told((), all_of_them, frozenset({7})).held_of_tasks == 1
    assert told((), all_of_them, None).held_of_tasks is None


def tree(root: Path, written: int) -> Host:
    """A v1 machine with one container that has a limit on writing to 8:0."""
    mount = "25 20 0:{0} / /sys/fs/cgroup/{1} rw - cgroup cgroup rw,{1}\n"
    files = {
        "proc/self/mountinfo": mount.format(30, "blkio"),
        "proc/self/cgroup": "4:blkio:/\n",
        "proc/7/cgroup": "4:blkio:/docker/x\n",
        "proc/7/stat": f"7 (app) S 1 {'0 ' * 17}5 {'0 ' * 30}",
        "proc/7/io": f"rchar: 0\nwchar: 0\nread_bytes: 0\nwrite_bytes: {10 * written}\n",
        "sys/fs/cgroup/blkio/docker/x/cgroup.procs": "7\n",
        "sys/fs/cgroup/blkio/docker/x/tasks": "7\n",
        "sys/fs/cgroup/blkio/docker/x/blkio.throttle.write_bps_device": "8:0 4194304\n",
        "sys/fs/cgroup/blkio/docker/x/blkio.throttle.read_bps_device": "",
        "sys/fs/cgroup/blkio/docker/x/blkio.throttle.io_service_bytes_recursive": (
            f"8:0 Read 5\n8:0 Write {written}\nTotal {written + 5}\n"
        ),
        "sys/fs/cgroup/blkio/docker/x/blkio.throttle.io_serviced_recursive": "8:0 Write 3\n",
        "sys/dev/block/8:0/uevent": "MAJOR=8\nMINOR=0\nDEVNAME=sda\n",
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Host(str(root))


def test_limits_and_counters_are_read_before_and_after(tmp_path: Path) -> None:
    host = tree(tmp_path, 1000)
    target = Target(
        id="x",
        name="x",
        runtime="docker",
        init=TaskId(pid=7, start_ticks=5),
        cgroups={"blkio": "/docker/x"},
    )
    watch = observe(host, target)
    next(watch)
    tree(tmp_path, 5000)
    host.next_moment()
    with pytest.raises(StopIteration) as end:
        next(watch)
    there: Throttle = end.value.value
    own = there.levels[0]
    assert own.limits[0].value == 4 * MIB
    assert own.used(DISK, "write").bytes == 4000
    assert there.dirtied_bytes == 40_000
    assert there.name(DISK) == "sda"
    assert iothrottle.numbered(DISK) == "8:0"
