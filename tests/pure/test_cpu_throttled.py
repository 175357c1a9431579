"""cpu/throttled judged on literal observations, and observed on small trees."""

from pathlib import Path

import pytest
from msgspec import structs

from whybox.cases.cpu.throttled.probe import Level, Observation, judge, observe
from whybox.change import CpuBurst, CpuQuota
from whybox.kernel.cpu import Max, Stat
from whybox.kernel.cpudemand import Demand
from whybox.kernel.host import Host
from whybox.kernel.target import Target
from whybox.kernel.task import TaskId
from whybox.model import Severity, Verdict

SECOND_NS = 1_000_000_000


def level(
    path: str = "/docker/x",
    *,
    quota: int | None = 50_000,
    periods: int = 50,
    throttled: int = 0,
    stopped_usec: int = 0,
    before: int = 0,
    burst: int | None = None,
) -> Level:
    """A group whose counters moved by these over the window, from ``before`` on."""
    limit = Max(file="cpu.max", quota_usec=quota, period_usec=100_000, burst_usec=burst)
    old = Stat(file="cpu.stat", nr_periods=before, nr_throttled=before, throttled_usec=before)
    new = Stat(
        file="cpu.stat",
        nr_periods=before + periods,
        nr_throttled=before + throttled,
        throttled_usec=before + stopped_usec,
    )
    return Level(path=path, limit=limit, before=old, after=new)


def seen(
    *levels: Level, used_usec: int = 2_500_000, wanted_ns: int = 5 * SECOND_NS, threads: int = 1
) -> Observation:
    """Five seconds on four CPUs."""
    run_ns = used_usec * 1000
    return Observation(
        elapsed_ns=5 * SECOND_NS,
        levels=levels,
        used_usec=used_usec,
        demand=Demand(run_ns=run_ns, run_delay_ns=wanted_ns - run_ns, active_threads=threads),
        cpus=4,
    )


def test_stopped_in_every_period_is_critical_and_names_the_quota_that_would_do() -> None:
    finding = judge(seen(level(throttled=50, stopped_usec=2_400_000)))
    assert (finding.verdict, finding.severity) == (Verdict.FOUND, Severity.CRITICAL)
    assert "50 of 50 periods" in finding.summary
    assert "nr_throttled +50" in finding.evidence[0].says
    assert finding.cures[0].change == CpuQuota(1.2)


def test_totals_of_the_past_are_not_the_present() -> None:
    finding = judge(seen(level(before=20_000, throttled=0)))
    assert finding.verdict is Verdict.CLEAR


def test_no_quota_anywhere_is_clear() -> None:
    finding = judge(seen(level(quota=None), level("/", quota=None)))
    assert (finding.verdict, finding.summary) == (
        Verdict.CLEAR,
        "No CPU quota, here or above it.",
    )


def test_an_ancestors_quota_is_named_as_its_own() -> None:
    levels = (level(quota=None), level("/pod", quota=30_000, throttled=34, stopped_usec=2_000_000))
    finding = judge(seen(*levels))
    assert finding.verdict is Verdict.FOUND
    assert "its parent /pod" in finding.summary
    change = finding.cures[0].change
    assert isinstance(change, CpuQuota)
    assert change.cgroup == "/pod"


def test_a_neighbour_that_spends_the_parents_quota_is_not_the_containers_fault() -> None:
    levels = (level(quota=None), level("/pod", throttled=50, stopped_usec=2_000_000))
    finding = judge(seen(*levels, used_usec=100, wanted_ns=200_000, threads=0))
    assert finding.verdict is Verdict.CLEAR
    assert "used up by others" in finding.summary


def test_peaks_get_a_burst_beside_a_larger_quota() -> None:
    finding = judge(
        seen(
            level(periods=73, throttled=24, stopped_usec=1_100_000, burst=0),
            used_usec=800_000,
            wanted_ns=2 * SECOND_NS,
            threads=2,
        )
    )
    assert finding.severity is Severity.WARNING
    assert [c.change for c in finding.cures] == [CpuQuota(2.0), CpuBurst(50_000)]


def test_no_more_cores_are_advised_than_there_are() -> None:
    finding = judge(
        seen(level(throttled=50, stopped_usec=9_000_000), wanted_ns=40 * SECOND_NS, threads=16)
    )
    assert finding.cures[0].change == CpuQuota(4.0)


def test_one_short_stop_in_a_hundred_is_clear_and_says_the_numbers() -> None:
    finding = judge(seen(level(periods=100, throttled=4, stopped_usec=300_000)))
    assert finding.verdict is Verdict.CLEAR
    assert "4 of 100 periods" in finding.summary


def test_a_window_shorter_than_two_periods_cannot_tell() -> None:
    short = Observation(
        elapsed_ns=SECOND_NS // 10, levels=(level(),), used_usec=0, demand=None, cpus=1
    )
    finding = judge(short)
    assert finding.verdict is Verdict.UNKNOWN
    assert "--window 2s" in finding.summary


def tree(root: Path, stat: str) -> Host:
    """A v2 machine with one container in it."""
    group = root / "sys/fs/cgroup/docker/x"
    group.mkdir(parents=True, exist_ok=True)
    (root / "proc/self").mkdir(parents=True, exist_ok=True)
    (root / "proc/self/mountinfo").write_text(
        "30 20 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
    )
    (group / "cpu.stat").write_text(stat)
    (group / "cpu.max").write_text("50000 100000\n")
    (group / "cgroup.threads").write_text("")
    return Host(str(root), window_seconds=1)


def test_it_reads_v2_files_before_and_after(tmp_path: Path) -> None:
    before = "usage_usec 10\nnr_periods 1\nnr_throttled 1\nthrottled_usec 5\n"
    after = "usage_usec 90\nnr_periods 11\nnr_throttled 9\nthrottled_usec 805\n"
    host = tree(tmp_path, before)
    target = Target(
        id="x",
        name="x",
        runtime="docker",
        init=TaskId(pid=1, start_ticks=1),
        cgroups={"": "/docker/x"},
    )
    watch = observe(host, target)
    next(watch)
    tree(tmp_path, after)
    host.next_moment()
    result: Observation | None = None
    try:
        next(watch)
    except StopIteration as end:
        result = end.value
    assert result is not None
    assert result.used_usec == 80
    own = result.levels[0]
    assert own.before is not None
    assert own.after is not None
    assert own.after.nr_throttled - own.before.nr_throttled == 8
    assert own.limit is not None
    assert own.limit.cores == 0.5


def peaks(*, used_usec: int, periods: int, throttled: int, burst: int | None = 0) -> Observation:
    """Peaks of two threads that have used so much in five seconds."""
    own = level(periods=periods, throttled=throttled, stopped_usec=2_100_000, burst=burst)
    return seen(own, used_usec=used_usec, wanted_ns=3 * SECOND_NS, threads=2)


@pytest.mark.parametrize(
    ("times", "stopped_ms", "verdict"),
    [
        (1, 150, Verdict.CLEAR),
        (2, 150, Verdict.FOUND),
        (1, 900, Verdict.FOUND),
    ],
)
def test_one_short_stop_is_a_moment_and_no_state(
    times: int, stopped_ms: int, verdict: Verdict
) -> None:
    own = level(periods=12, throttled=times, stopped_usec=stopped_ms * 1000)
    assert judge(seen(own, used_usec=100_000)).verdict is verdict


def test_peaks_that_are_alike_are_measured_by_the_periods_they_leave() -> None:
    """Ten peaks of 120 ms, in step with the periods: more than a burst of 50 can pay for."""
    finding = judge(peaks(used_usec=1_201_000, periods=40, throttled=20))
    assert [c.change for c in finding.cures] == [CpuQuota(1.6)]
    assert "each of its peaks takes about 128 ms of CPU" in finding.cures[0].advice
    assert "a period pays for 50 ms" in finding.cures[0].advice


def test_a_burst_that_is_enough_is_told_in_milliseconds() -> None:
    finding = judge(peaks(used_usec=642_000, periods=25, throttled=8))
    assert [c.change for c in finding.cures] == [CpuQuota(1.0), CpuBurst(47_000)]


def test_peaks_out_of_step_with_the_periods_get_a_burst_that_is_enough() -> None:
    """Nine of 76 ms as measured on 6.18: 26 and more were lacking, some began late in a period."""
    finding = judge(peaks(used_usec=717_000, periods=30, throttled=7))
    assert [c.change for c in finding.cures] == [CpuQuota(0.8), CpuBurst(30_000)]


def test_peaks_that_are_not_alike_get_what_all_threads_want_at_once() -> None:
    """A hundred small ones, and some large ones that were stopped."""
    finding = judge(peaks(used_usec=1_500_000, periods=225, throttled=15))
    assert finding.cures[0].change == CpuQuota(2.0)


def test_what_a_parents_stops_cost_the_child_is_told_where_the_kernel_tells() -> None:
    levels = (level(quota=None), level("/pod", throttled=50, stopped_usec=2_000_000))
    own = seen(*levels, used_usec=100, wanted_ns=200_000, threads=0)
    told = structs.replace(own, local_file="cpu.stat.local", local_stopped_usec=1_400_000)
    finding = judge(told)
    assert finding.verdict is Verdict.FOUND
    assert finding.evidence[-1].source == "cpu.stat.local"
    assert "1400000 us" in finding.evidence[-1].says
    spared = structs.replace(told, local_stopped_usec=10_000)
    assert judge(spared).verdict is Verdict.CLEAR
