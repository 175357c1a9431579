"""memory/page_cache_thrashing judged on literal observations, and observed on small trees."""

import os
from pathlib import Path

import pytest
from msgspec import structs

from whybox.cases.memory.page_cache_thrashing.probe import Observation, judge, observe
from whybox.change import InProgram, MemoryHigh, MemoryLimit
from whybox.kernel import memorystat, reading, residency
from whybox.kernel.host import Host
from whybox.kernel.memorystat import MemoryStat
from whybox.kernel.reading import Account, File, Reader, Reading
from whybox.kernel.squeeze import Level, Squeeze, Waits
from whybox.kernel.target import Target
from whybox.kernel.task import TaskId
from whybox.model import Certainty, Severity, Verdict

MIB = 1 << 20
PAGES = MIB // 4096
SECOND_NS = 1_000_000_000


def memory(**sizes: int | None) -> MemoryStat:
    """100 MiB that are full of clean page cache, with 2 MiB of heap."""
    known: dict[str, int | None] = {
        "anon_bytes": 2 * MIB,
        "shmem_bytes": 0,
        "file_bytes": 97 * MIB,
        "evictable_bytes": 97 * MIB,
        "locked_bytes": 0,
        "dirty_bytes": 0,
        "kernel_bytes": MIB,
        "slab_reclaimable_bytes": MIB // 2,
        "swap_bytes": None,
        "refault_file": None,
        "refault_anon": None,
        "majfault": None,
    }
    return structs.replace(EMPTY, **(known | sizes))


EMPTY = memorystat.parse("anon 0\nfile 0", version=2)


def level(
    path: str = "/docker/x",
    *,
    limit: int | None = 100 * MIB,
    current: int = 99 * MIB,
    soft: bool = False,
) -> Level:
    file = f"/sys/fs/cgroup{path}/memory.max"
    return Level(path=path, file=file, limit_bytes=limit, current_bytes=current, soft=soft)


def waits(share: float, resource: str = "memory") -> Waits:
    usec = round(share * 5_000_000)
    return Waits(file=f"{resource}.pressure", some_usec=usec, full_usec=usec)


def squeezed(*levels: Level, refaults: int | None = 0, **rest: object) -> Squeeze:
    """Five seconds at the limit in which nobody waited."""
    known = Squeeze(
        elapsed_ns=5 * SECOND_NS,
        levels=levels or (level(),),
        now=memory(),
        refault_file=refaults,
        refault_anon=0,
        majfault=0,
        memory=waits(0),
        io=waits(0, "io"),
        host_reclaimed=0,
        oom_kills=0,
        oom_kills_ever=0,
        total_bytes=16 << 30,
    )
    return structs.replace(known, **rest)


def file(size: int, cached: int, path: str = "/data/f", *, steady: bool = True) -> File:
    return File(
        path=path,
        size_bytes=size * MIB,
        cached_bytes=cached * MIB,
        pid=7,
        comm="db",
        steady=steady,
    )


def read(*files: File, bytes: int = 300 * MIB) -> Reading:
    return Reading(readers=(Reader(pid=7, comm="db", read_bytes=bytes),), files=files)


THRASHING = squeezed(refaults=200 * PAGES, memory=waits(0.3))


def test_full_of_cache_that_nobody_reads_again_is_clear_and_says_what_is_really_needed() -> None:
    finding = judge(Observation(squeeze=squeezed()))
    assert finding.verdict is Verdict.CLEAR
    assert finding.summary == (
        "Full, and harmless: it holds 99 MiB of 100 MiB: 97 MiB are page cache, of which 98 MiB "
        "can be given up at once. It really needs 2.5 MiB (2.0 MiB anonymous, the rest the "
        "kernel's). Nothing was read again in these 5.0 s."
    )


def test_cache_that_is_read_again_while_tasks_wait_names_file_limit_and_cure() -> None:
    finding = judge(Observation(squeeze=THRASHING, reading=read(file(150, 90))))
    assert (finding.verdict, finding.certainty) == (Verdict.FOUND, Certainty.CONFIRMED)
    assert finding.severity is Severity.CRITICAL
    assert "200 MiB" in finding.summary
    assert "limit of 100 MiB" in finding.summary
    assert "/data/f (150 MiB, 90 MiB cached), which db (pid 7) reads" in finding.summary
    assert "refault_file +51200" in finding.evidence[0].says
    # All of the file and the 2.5 MiB that are needed, a tenth more, in steps of 8.
    assert finding.cures[0].change == MemoryLimit(168 * MIB)
    assert isinstance(finding.cures[1].change, InProgram)


def test_an_ancestors_limit_is_raised_by_what_is_missing_and_others_are_named() -> None:
    own = level(limit=None, current=60 * MIB)
    pod = level("/pod", current=100 * MIB)
    finding = judge(
        Observation(
            squeeze=squeezed(own, pod, refaults=200 * PAGES, memory=waits(0.3)),
            reading=read(file(90, 50)),
        )
    )
    assert "of its parent /pod, 40 MiB of which others hold, is too small" in finding.summary
    assert finding.cures[0].change == MemoryLimit(160 * MIB, cgroup="/pod")


def test_memory_high_is_raised_as_memory_high() -> None:
    seen = squeezed(level(soft=True), refaults=200 * PAGES, memory=waits(0.3))
    finding = judge(Observation(squeeze=seen, reading=read(file(120, 80))))
    assert "memory.high of 100 MiB" in finding.summary
    assert isinstance(finding.cures[0].change, MemoryHigh)


def test_the_host_that_is_short_of_memory_is_named_as_such() -> None:
    seen = squeezed(
        level(limit=None),
        refaults=200 * PAGES,
        memory=waits(0.3),
        host_reclaimed=300 * PAGES,
    )
    finding = judge(Observation(squeeze=seen))
    assert finding.verdict is Verdict.FOUND
    assert "it is the host that is short of memory" in finding.summary
    assert finding.cures[0].change is None


@pytest.mark.parametrize("reclaimed", [0, 10])
def test_reading_again_where_nothing_is_pressed_is_warming_up(reclaimed: int) -> None:
    seen = squeezed(
        level(limit=400 * MIB),
        refaults=200 * PAGES,
        memory=waits(0.3),
        host_reclaimed=reclaimed,
    )
    finding = judge(Observation(squeeze=seen))
    assert finding.verdict is Verdict.CLEAR
    assert "warming up" in finding.summary


def test_a_writer_that_waits_for_its_disk_is_told_apart() -> None:
    seen = squeezed(memory=waits(0.2), now=memory(dirty_bytes=60 * MIB))
    finding = judge(Observation(squeeze=seen))
    assert finding.verdict is Verdict.CLEAR
    assert "waited 20 % of the time for what must be written" in finding.summary


def test_tmpfs_counts_as_need_not_as_cache() -> None:
    now = memory(file_bytes=0, evictable_bytes=0, shmem_bytes=95 * MIB)
    finding = judge(Observation(squeeze=squeezed(now=now)))
    assert finding.verdict is Verdict.CLEAR
    assert "harmless" not in finding.summary
    assert "95 MiB are tmpfs and shared memory, which only deleting frees" in finding.summary
    assert "needs 98 MiB" in finding.summary


def test_names_of_files_are_cache_and_v1_cannot_say_how_much_of_the_kernels_they_are() -> None:
    now = memory(
        file_bytes=0, evictable_bytes=0, kernel_bytes=95 * MIB, slab_reclaimable_bytes=None
    )
    finding = judge(Observation(squeeze=squeezed(now=now)))
    assert "harmless" in finding.summary
    assert "needs at most 97 MiB" in finding.summary


def test_what_comes_from_swap_is_swapping() -> None:
    seen = structs.replace(THRASHING, refault_anon=300 * PAGES)
    finding = judge(Observation(squeeze=seen))
    assert finding.verdict is Verdict.CLEAR
    assert "memory/swapping" in finding.summary


FULL_OF_HEAP = memory(anon_bytes=95 * MIB, file_bytes=MIB, evictable_bytes=MIB)


@pytest.mark.parametrize(
    ("soft", "kills", "other"),
    [(True, 0, "memory/reclaim_stalled"), (False, 3, "memory/oom_killed")],
)
def test_program_text_that_suffers_from_heap_yields_to_the_cause(
    soft: bool, kills: int, other: str
) -> None:
    seen = squeezed(
        level(soft=soft),
        refaults=20 * PAGES,
        memory=waits(0.5),
        now=FULL_OF_HEAP,
        oom_kills=kills,
    )
    finding = judge(Observation(squeeze=seen))
    assert finding.verdict is Verdict.CLEAR
    assert other in finding.summary


def test_heap_that_leaves_no_room_for_programs_is_found_where_nothing_else_is() -> None:
    seen = squeezed(refaults=20 * PAGES, memory=waits(0.5), now=FULL_OF_HEAP)
    finding = judge(Observation(squeeze=seen))
    assert finding.verdict is Verdict.FOUND
    assert "95 MiB of which cannot give way" in finding.summary.replace("96 MiB", "95 MiB")


def test_without_pressure_files_it_is_likely() -> None:
    seen = squeezed(refaults=300 * PAGES, memory=None, io=None)
    finding = judge(Observation(squeeze=seen))
    assert (finding.verdict, finding.certainty) == (Verdict.FOUND, Certainty.LIKELY)


def test_without_pressure_files_a_little_is_not_enough() -> None:
    assert (
        judge(Observation(squeeze=squeezed(refaults=20 * PAGES, memory=None, io=None))).verdict
        is Verdict.CLEAR
    )


def test_waiting_for_the_disk_counts_where_most_reads_are_such() -> None:
    slow = squeezed(refaults=50 * PAGES, io=waits(0.9, "io"))
    again = judge(Observation(squeeze=slow, reading=read(bytes=60 * MIB)))
    fresh = judge(Observation(squeeze=slow, reading=read(bytes=900 * MIB)))
    assert (again.verdict, again.certainty) == (Verdict.FOUND, Certainty.LIKELY)
    assert fresh.verdict is Verdict.CLEAR


def test_a_trickle_is_clear_whoever_waits() -> None:
    finding = judge(Observation(squeeze=squeezed(refaults=4 * PAGES, memory=waits(0.9))))
    assert finding.verdict is Verdict.CLEAR
    assert "4.0 MiB had to be read again" in finding.summary


def test_files_that_come_and_go_make_the_cure_a_step_and_say_so() -> None:
    finding = judge(Observation(squeeze=THRASHING, reading=read(file(3, 0, steady=False))))
    assert finding.cures[0].change == MemoryLimit(224 * MIB)
    assert "not known" in finding.cures[0].advice


def test_a_huge_file_of_which_little_was_read_is_not_wanted_in_memory() -> None:
    finding = judge(Observation(squeeze=THRASHING, reading=read(file(100_000, 90))))
    change = finding.cures[0].change
    assert isinstance(change, MemoryLimit)
    assert change.bytes <= 344 * MIB


def test_more_than_the_machine_has_is_not_advised() -> None:
    seen = structs.replace(THRASHING, total_bytes=128 * MIB)
    finding = judge(Observation(squeeze=seen, reading=read(file(150, 90))))
    assert isinstance(finding.cures[0].change, InProgram)


def test_a_kernel_that_does_not_count_makes_it_unknown_only_at_the_limit() -> None:
    full = judge(Observation(squeeze=squeezed(refaults=None)))
    roomy = judge(Observation(squeeze=squeezed(level(current=MIB), refaults=None)))
    assert full.verdict is Verdict.UNKNOWN
    assert "workingset_refault_file" in full.summary
    assert roomy.verdict is Verdict.CLEAR


def test_no_window_says_the_state_and_leaves_the_rest_open() -> None:
    finding = judge(Observation(squeeze=squeezed(elapsed_ns=1000)))
    assert finding.verdict is Verdict.UNKNOWN
    assert "97 MiB are page cache" in finding.summary
    assert "--window 2s" in finding.summary


@pytest.mark.parametrize(
    ("current", "peak", "full"),
    [(96, None, True), (80, 100, True), (80, 90, False), (60, 100, False), (80, None, False)],
)
def test_a_group_that_gave_up_a_large_folio_is_still_full(
    current: int, peak: int | None, full: bool
) -> None:
    peak_bytes = None if peak is None else peak * MIB
    assert structs.replace(level(current=current * MIB), peak_bytes=peak_bytes).full is full


def test_no_limit_anywhere() -> None:
    finding = judge(Observation(squeeze=squeezed(level(limit=None))))
    assert "has no memory limit" in finding.summary


V1 = (
    "cache 8192\nrss 4096\nshmem 4096\ninactive_file 4096\nhierarchical_memory_limit 9\n"
    "total_cache 16384\ntotal_rss 8192\ntotal_shmem 4096\ntotal_inactive_file 8192\n"
    "total_active_file 4096\ntotal_unevictable 4096\ntotal_inactive_anon 12288\ntotal_dirty 1\n"
    "total_workingset_refault_file 5\n"
)


def test_v1_counts_groups_below_and_keeps_kernel_memory_apart() -> None:
    now = memorystat.parse(V1, version=1, kernel_bytes=100)
    assert (now.file_bytes, now.anon_bytes, now.refault_file) == (12288, 8192, 5)
    assert now.locked_bytes == 4096
    assert now.needed_bytes == 8192 + 4096 + 4096 + 100
    assert now.refault_anon is None


def test_v2_without_the_kernels_sum_adds_its_parts() -> None:
    now = memorystat.parse("anon 1\nfile 2\nslab 10\npagetables 5\nkernel_stack 1", version=2)
    assert now.kernel_bytes == 16


def test_residency_of_a_file_is_what_was_read_of_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * MIB)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        assert residency.cached_bytes(descriptor, MIB) == MIB
        assert residency.cached_bytes(descriptor, 0) == 0
    finally:
        os.close(descriptor)


def test_readers_are_those_who_read_in_the_window() -> None:
    def account(read: int | None, faults: int = 0) -> Account:
        return Account(comm="db", read_bytes=read, majflt=faults, open=frozenset())

    one, two, new = (TaskId(pid=n, start_ticks=n) for n in (1, 2, 3))
    before = {one: account(100), two: account(5)}
    after = {one: account(100), two: account(9), new: account(None, faults=2)}
    seen = reading.reading(Host("/nonexistent"), before, after)
    assert [(r.pid, r.read_bytes) for r in seen.readers] == [(3, 8192), (2, 4)]
    assert not seen.steady


def tree(root: Path, refaults: int, *, met: int = 0) -> Host:
    """A v2 machine with one container in it."""
    group = root / "sys/fs/cgroup/docker/x"
    group.mkdir(parents=True, exist_ok=True)
    (root / "proc/self").mkdir(parents=True, exist_ok=True)
    (root / "proc/self/mountinfo").write_text(
        "30 20 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
    )
    (root / "proc/vmstat").write_text("pgsteal_kswapd 1\npgsteal_direct 2\n")
    (root / "proc/meminfo").write_text("MemTotal: 1000 kB\n")
    files = {
        "memory.stat": f"anon 1\nfile 9\nworkingset_refault_file {refaults}\n",
        "memory.current": "100\n",
        "memory.max": "100\n",
        "memory.high": "max\n",
        "memory.events": "max 9\noom 0\noom_kill 0\n",
        "memory.events.local": f"max {met}\nhigh 0\n",
        "memory.pressure": f"some avg10=0 total={refaults}\nfull avg10=0 total={refaults}\n",
    }
    for name, text in files.items():
        (group / name).write_text(text)
    return Host(str(root), window_seconds=1)


def test_it_reads_v2_files_before_and_after(tmp_path: Path) -> None:
    host = tree(tmp_path, 10)
    target = Target(
        id="x",
        name="x",
        runtime="docker",
        init=TaskId(pid=1, start_ticks=1),
        cgroups={"": "/docker/x"},
    )
    watch = observe(host, target)
    next(watch)
    tree(tmp_path, 40, met=3)
    host.next_moment()
    with pytest.raises(StopIteration) as end:
        next(watch)
    seen = end.value.value.squeeze
    assert seen.refault_file == 30
    assert seen.refault_anon is None
    assert seen.memory.some_usec == 30
    assert seen.levels[0].met == 3
    assert seen.pressed_by is seen.levels[0]
    assert seen.host_reclaimed == 0
    assert seen.total_bytes == 1_024_000
