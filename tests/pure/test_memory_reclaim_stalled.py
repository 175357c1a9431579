"""memory/reclaim_stalled judged on literal observations, and observed on a small tree."""

from pathlib import Path

import pytest
from msgspec import structs

from whybox.cases.memory.reclaim_stalled.probe import judge, observe
from whybox.change import InProgram, MemoryHigh, MemoryLimit
from whybox.kernel import memorystall
from whybox.kernel.blocked import Sampled
from whybox.kernel.host import Host
from whybox.kernel.memorystall import Counts, Level, Sleeper, Stall, Where
from whybox.kernel.memorystat import MemoryStat
from whybox.kernel.squeeze import Level as Pressed
from whybox.kernel.squeeze import Squeeze, Waits
from whybox.kernel.target import Target
from whybox.kernel.task import TaskId
from whybox.model import Certainty, Severity, Verdict

MIB = 1 << 20
SECOND_NS = 1_000_000_000
PAGE = 4096


def counts(current: int = 0, high: int | None = 0, *, under_oom: bool | None = None) -> Counts:
    return Counts(current_bytes=current, high=high, max=0, scanned=None, under_oom=under_oom)


def level(
    path: str = "/docker/x",
    *,
    current: int = 40 * MIB,
    grown: int = 0,
    high: int | None = None,
    limit: int | None = None,
    events: int = 0,
    kill_disabled: bool | None = None,
    under_oom: bool | None = None,
) -> Level:
    """A group as it is at the end; ``events`` of memory.high in the window."""
    return Level(
        path=path,
        events_file=f"{path}/memory.events.local",
        high_file=f"{path}/memory.high",
        limit_file=f"{path}/memory.max",
        high_bytes=high,
        limit_bytes=limit,
        kill_disabled=kill_disabled,
        before=counts(current - grown, 1000),
        after=counts(current, 1000 + events, under_oom=under_oom),
    )


def sleeper(where: Where, tid: int = 100) -> Sleeper:
    sampled = Sampled(samples=40, blocked=39)
    return Sleeper(tid=tid, comm="app", where=where, site=f"in_{where}", sampled=sampled)


def stat(*, dirty_bytes: int = 0, kernel_bytes: int | None = None) -> MemoryStat:
    """Of what kind its memory is."""
    return MemoryStat(
        file="memory.stat",
        anon_bytes=0,
        shmem_bytes=0,
        file_bytes=0,
        evictable_bytes=0,
        locked_bytes=0,
        dirty_bytes=dirty_bytes,
        kernel_bytes=kernel_bytes,
        slab_reclaimable_bytes=None,
        swap_bytes=None,
        refault_file=None,
        refault_anon=None,
        majfault=None,
    )


def stall(
    *levels: Level,
    waited: float | None = 0.0,
    sleepers: tuple[Sleeper, ...] = (),
    now: MemoryStat | None = None,
    seconds: float = 2.0,
    again: int = 0,
    from_swap: int = 0,
    host_reclaimed: int = 0,
    oom_kills: int = 0,
) -> Stall:
    """Two seconds. A level is met when its memory.high was, or when it is full."""
    groups = levels or (level(),)
    usec = None if waited is None else int(waited * seconds * 1e6)
    return Stall(
        squeeze=Squeeze(
            elapsed_ns=int(seconds * SECOND_NS),
            levels=tuple(_pressed(one) for one in groups),
            now=now or stat(),
            refault_file=again // PAGE,
            refault_anon=from_swap // PAGE,
            memory=None
            if usec is None
            else Waits(file="memory.pressure", some_usec=usec, full_usec=usec),
            host_reclaimed=host_reclaimed,
            oom_kills=oom_kills,
        ),
        levels=groups,
        sleepers=sleepers,
        threads=4,
    )


def _pressed(one: Level) -> Pressed:
    soft = one.high_bytes is not None
    return Pressed(
        path=one.path,
        file=one.high_file if soft else one.limit_file,
        limit_bytes=one.high_bytes if soft else one.limit_bytes,
        soft=soft,
        current_bytes=one.after.current_bytes,
        met=one.moved("high"),
    )


def over(events: int = 70, **more: int) -> Level:
    return level(current=52 * MIB, high=48 * MIB, events=events, limit=more.get("limit"))


def test_above_memory_high_it_is_slowed_down_and_twice_as_much_is_advised() -> None:
    finding = judge(stall(over(), waited=0.99, sleepers=(sleeper("high"),)))
    assert (finding.verdict, finding.severity) == (Verdict.FOUND, Severity.CRITICAL)
    assert "memory.high is 48 MiB, it holds 52 MiB, 8 % more" in finding.summary
    assert "wait 99 %" in finding.summary
    assert finding.evidence[0].says.startswith("high +70, max +0")
    assert finding.cures[0].change == MemoryHigh(104 * MIB)


def test_a_limit_above_takes_over_from_memory_high() -> None:
    finding = judge(stall(over(limit=64 * MIB), waited=0.6))
    assert finding.cures[0].change == MemoryHigh(None)
    assert "its limit of 64 MiB is not reached" in finding.summary


def test_the_parents_memory_high_is_named_as_its_own() -> None:
    own = level(current=20 * MIB)
    parent = level("/pod", current=52 * MIB, high=48 * MIB, events=9)
    finding = judge(stall(own, parent, waited=0.5))
    assert "of its parent /pod, 32 MiB of which others hold" in finding.summary
    assert finding.cures[0].change == MemoryHigh(104 * MIB, cgroup="/pod")


def test_growth_makes_the_number_larger() -> None:
    growing = structs.replace(over(), before=counts(50 * MIB, 1000))
    change = judge(stall(growing, waited=0.9)).cures[0].change
    assert change == MemoryHigh(112 * MIB)


@pytest.mark.parametrize(
    ("waited", "asleep", "verdict"),
    [
        (0.10, False, Verdict.FOUND),
        (0.09, False, Verdict.CLEAR),
        (0.05, True, Verdict.FOUND),
        (0.04, True, Verdict.CLEAR),
        (None, True, Verdict.FOUND),
        (None, False, Verdict.UNKNOWN),
    ],
)
def test_a_tenth_of_the_time_is_too_much(
    waited: float | None, asleep: bool, verdict: Verdict
) -> None:
    sleepers = (sleeper("high"),) if asleep else ()
    assert judge(stall(over(), waited=waited, sleepers=sleepers)).verdict is verdict


def test_events_alone_are_a_harmless_page_cache() -> None:
    full = level(current=64 * MIB, high=64 * MIB, events=419)
    finding = judge(stall(full))
    assert finding.verdict is Verdict.CLEAR
    assert "did not wait" in finding.summary
    assert "met 419 times" in finding.summary


@pytest.mark.parametrize(
    ("file", "swap", "case"),
    [
        (100 * MIB, 0, "memory/page_cache_thrashing"),
        (MIB, 100 * MIB, "memory/swapping"),
    ],
)
def test_what_comes_back_is_another_cases_trouble(file: int, swap: int, case: str) -> None:
    full = level(current=64 * MIB, limit=64 * MIB)
    finding = judge(stall(full, waited=0.4, again=file, from_swap=swap))
    assert finding.verdict is Verdict.CLEAR
    assert case in finding.summary


def test_a_writer_that_fills_it_with_dirty_pages_is_to_write_as_it_goes() -> None:
    full = level(current=64 * MIB, limit=64 * MIB)
    seen = stall(full, waited=0.21, now=stat(dirty_bytes=60 * MIB), sleepers=(sleeper("reclaim"),))
    finding = judge(seen)
    assert (finding.verdict, finding.severity) == (Verdict.FOUND, Severity.WARNING)
    assert "60 MiB of it must be written to the disk first" in finding.summary
    assert isinstance(finding.cures[0].change, InProgram)
    assert finding.certainty is Certainty.CONFIRMED


def test_names_of_files_that_fill_it_are_told_and_the_limit_may_be_raised() -> None:
    full = level(current=32 * MIB, limit=32 * MIB)
    finding = judge(stall(full, waited=0.2, now=stat(kernel_bytes=30 * MIB)))
    assert "names and inodes of files" in finding.summary
    assert finding.certainty is Certainty.LIKELY
    assert finding.cures[0].change == MemoryLimit(64 * MIB)


def test_waits_that_the_killer_ends_are_its_case() -> None:
    full = level(current=64 * MIB, limit=64 * MIB)
    finding = judge(stall(full, waited=0.3, oom_kills=2))
    assert finding.verdict is Verdict.CLEAR
    assert "memory/oom_killed" in finding.summary


def test_a_host_that_is_short_of_memory_is_the_hosts_fault() -> None:
    finding = judge(stall(level(limit=1 << 30), waited=0.3, host_reclaimed=5000))
    assert finding.verdict is Verdict.FOUND
    assert finding.summary.startswith("The host itself is short of memory")
    assert [cure.change for cure in finding.cures] == [None]


def stopped(own: Level, *above: Level) -> Stall:
    return stall(own, *above, sleepers=(sleeper("oom"),))


def test_without_a_killer_it_stands_still_and_more_is_allowed() -> None:
    own = level(current=64 * MIB, limit=64 * MIB, kill_disabled=True, under_oom=True)
    finding = judge(stopped(own))
    assert (finding.verdict, finding.severity) == (Verdict.FOUND, Severity.CRITICAL)
    assert "app (pid 100) can only wait" in finding.summary
    assert finding.cures[0].change == MemoryLimit(128 * MIB)


def test_under_oom_of_an_ancestor_is_the_ancestors() -> None:
    own = level(current=20 * MIB, limit=64 * MIB, kill_disabled=False, under_oom=True)
    pod = level("/pod", current=96 * MIB, limit=96 * MIB, kill_disabled=True)
    change = judge(stopped(own, pod)).cures[0].change
    assert change == MemoryLimit(192 * MIB, cgroup="/pod")


def test_a_killer_that_is_off_and_not_needed_is_clear() -> None:
    own = level(current=40 * MIB, limit=64 * MIB, kill_disabled=True, under_oom=False)
    assert judge(stall(own)).verdict is Verdict.CLEAR


def test_a_glance_tells_room_and_not_waits() -> None:
    assert judge(stall(level(limit=1 << 30), seconds=0.001)).verdict is Verdict.CLEAR
    finding = judge(stall(over(events=0), seconds=0.001))
    assert finding.verdict is Verdict.UNKNOWN
    assert "--window 2s" in finding.summary


def test_what_a_stack_says_of_memory() -> None:
    assert memorystall.where(("__mem_cgroup_handle_over_high", "x")) is not None
    assert memorystall.where(("do_exit",)) is None


def tree(root: Path, high_events: int, total_usec: int) -> Host:
    """A v2 machine with one container above its memory.high."""
    group = root / "sys/fs/cgroup/docker/x"
    group.mkdir(parents=True, exist_ok=True)
    self = root / "proc/self"
    self.mkdir(parents=True, exist_ok=True)
    (self / "mountinfo").write_text("30 20 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
    files = {
        "memory.current": f"{52 * MIB}\n",
        "memory.high": f"{48 * MIB}\n",
        "memory.max": "max\n",
        "memory.stat": f"anon {50 * MIB}\npgscan_direct 0\n",
        "memory.events": f"low 0\nhigh {high_events}\nmax 0\noom 0\noom_kill 0\n",
        "memory.events.local": f"low 0\nhigh {high_events}\nmax 0\noom 0\noom_kill 0\n",
        "memory.pressure": f"some avg10=0 total={total_usec}\nfull avg10=0 total={total_usec}\n",
        "cgroup.threads": "",
    }
    for name, text in files.items():
        (group / name).write_text(text)
    return Host(str(root), window_seconds=1)


def test_it_reads_every_level_before_and_after(tmp_path: Path) -> None:
    host = tree(tmp_path, 277, 0)
    target = Target(
        id="x",
        name="x",
        runtime="docker",
        init=TaskId(pid=1, start_ticks=1),
        cgroups={"": "/docker/x"},
    )
    watch = observe(host, target)
    next(watch)
    tree(tmp_path, 350, 1_000_000)
    host.next_moment()
    with pytest.raises(StopIteration) as end:
        next(watch)
    seen = end.value.value
    assert isinstance(seen, Stall)
    assert seen.own.moved("high") == 73
    assert seen.own.high_bytes == 48 * MIB
    assert seen.slowed() is seen.own or (seen.waited or 0) > 1
