"""What a box may use: set before the start, changed while it lives, and won over by a cure."""

import os
from pathlib import Path

import pytest

from tests.live.boxes import (
    directory,
    is_v1,
    read,
    said,
    status,
    until,
)
from tests.live.conftest import require
from whybox.change import (
    CpuBurst,
    CpuQuota,
    CpuSet,
    CpuWeight,
    MemoryHigh,
    MemoryLimit,
    OpenFiles,
    PidsLimit,
    RunAsUser,
    ShmSize,
    Unpause,
    Volume,
    WithInit,
    WithUserNamespace,
)
from whybox.kernel import capability, freezer, task
from whybox.kernel.host import Host
from whybox.lab import workload
from whybox.lab.box import Box

MIB = 1 << 20


def test_limits_are_in_the_groups() -> None:
    with Box() as box:
        box.cpu(cores=0.5, shares=512)
        box.memory(limit_bytes=64 * MIB)
        box.pids(limit=17)
        box.start(workload.idle())
        assert said(box, "cpu", "cpu.cfs_quota_us", "cpu.max").split()[0] == "50000"
        assert said(box, "cpu", "cpu.shares", "cpu.weight") == ("512" if is_v1("cpu") else "20")
        assert said(box, "memory", "memory.limit_in_bytes", "memory.max") == str(64 * MIB)
        assert said(box, "pids", "pids.max", "pids.max") == "17"


def test_a_burst_is_set_and_changed_where_the_kernel_has_one() -> None:
    # Since Linux kernel commit f4183717b370 ("sched/fair: Introduce the burstable CFS
    # controller") (in v5.14).
    with Box() as probe:
        probe.start(workload.idle())
        file = "cpu.cfs_burst_us" if is_v1("cpu") else "cpu.max.burst"
        if not (directory(probe, "cpu") / file).exists():
            pytest.skip("this kernel has no CPU burst")
    with Box() as box:
        box.cpu(cores=0.5, burst_usec=20_000)
        box.start(workload.idle())
        assert said(box, "cpu", "cpu.cfs_burst_us", "cpu.max.burst") == "20000"
        assert box.apply(CpuBurst(burst_usec=10_000))
        assert said(box, "cpu", "cpu.cfs_burst_us", "cpu.max.burst") == "10000"


def test_without_swap_means_none_where_swap_is_accounted() -> None:
    with Box() as box:
        box.memory(limit_bytes=64 * MIB)
        box.start(workload.idle())
        v1, v2 = "memory.memsw.limit_in_bytes", "memory.swap.max"
        file = directory(box, "memory") / (v1 if is_v1("memory") else v2)
        require(None if file.exists() else "swap is not accounted here")
        assert file.read_text().strip() == (str(64 * MIB) if is_v1("memory") else "0")


def test_parents_limits_are_the_parents() -> None:
    with Box() as box:
        box.cpu(parent_cores=0.25)
        box.memory(parent_limit_bytes=96 * MIB)
        box.start(workload.idle())
        cpu, memory = directory(box, "cpu").parent, directory(box, "memory").parent
        quota = "cpu.cfs_quota_us" if is_v1("cpu") else "cpu.max"
        limit = "memory.limit_in_bytes" if is_v1("memory") else "memory.max"
        assert (cpu / quota).read_text().split()[0] == "25000"
        assert (memory / limit).read_text().strip() == str(96 * MIB)
        assert said(box, "cpu", "cpu.cfs_quota_us", "cpu.max").split()[0] in ("-1", "max")


def test_it_runs_only_on_the_cpus_it_was_given() -> None:
    with Box() as box:
        box.cpu(cpus="0")
        box.start(workload.idle())
        assert os.sched_getaffinity(box.pid) == {0}


def test_a_quota_really_stops_it() -> None:
    with Box() as box:
        box.cpu(cores=0.2)
        box.start(workload.burn())
        assert until(
            lambda: "nr_throttled 0" not in (directory(box, "cpu") / "cpu.stat").read_text()
        )


def test_live_changes_of_its_limits() -> None:
    with Box() as box:
        box.cpu(cores=0.2)
        box.memory(limit_bytes=64 * MIB)
        box.start(workload.idle())
        assert box.apply(CpuQuota(cores=0.8))
        assert said(box, "cpu", "cpu.cfs_quota_us", "cpu.max").split()[0] == "80000"
        for limit in (256 * MIB, 32 * MIB):
            assert box.apply(MemoryLimit(bytes=limit))
            now = said(box, "memory", "memory.limit_in_bytes", "memory.max")
            assert now == str(limit), "up and down, whatever the limit with swap is"


def test_live_changes_of_its_parents_limits() -> None:
    with Box() as box:
        box.cpu(parent_cores=0.2)
        box.memory(parent_limit_bytes=64 * MIB)
        box.start(workload.idle())
        parent = str(Path(box.target().cgroups["cpu" if is_v1("cpu") else ""]).parent)
        assert box.apply(CpuQuota(cores=None, cgroup=parent))
        assert box.apply(MemoryLimit(bytes=128 * MIB, cgroup=parent))
        quota = "cpu.cfs_quota_us" if is_v1("cpu") else "cpu.max"
        limit = "memory.limit_in_bytes" if is_v1("memory") else "memory.max"
        assert (directory(box, "cpu").parent / quota).read_text().split()[0] in ("-1", "max")
        assert (directory(box, "memory").parent / limit).read_text().strip() == str(128 * MIB)


def test_what_takes_a_new_box_is_not_applied_to_a_living_one() -> None:
    with Box() as box:
        box.start(workload.idle())
        for change in (WithInit(), WithUserNamespace(), Volume("/x"), RunAsUser(1, 1)):
            assert not box.apply(change)
        assert not box.apply(CpuQuota(cores=1.0, cgroup="/somebody")), "it has no parent"


def test_cures_win_over_what_the_scenario_sets() -> None:
    with Box() as box:
        assert box.apply(CpuQuota(cores=0.9))
        assert box.apply(RunAsUser(4711, 4712))
        assert box.apply(WithInit())
        box.cpu(cores=0.2)
        box.user(0, 0)
        box.start(workload.idle())
        assert said(box, "cpu", "cpu.cfs_quota_us", "cpu.max").split()[0] == "90000"
        assert status(box.pid, "Uid").split()[0] == "4711"
        assert until(lambda: read(f"/proc/{box.pid}/comm") == "init\n")


def test_a_weight_a_cpuset_and_a_number_of_tasks_are_changed_while_it_lives() -> None:
    with Box() as box:
        box.cpu(cpus="0")
        box.pids(parent_limit=90)
        box.start(workload.idle())
        for change in (CpuWeight(2048), PidsLimit(50), PidsLimit(70, cgroup=box.name)):
            assert box.apply(change)
        assert said(box, "cpu", "cpu.shares", "cpu.weight") == ("2048" if is_v1("cpu") else "79")
        assert said(box, "pids", "pids.max", "pids.max") == "50"
        assert (directory(box, "pids").parent / "pids.max").read_text().strip() == "70"
        assert box.apply(CpuSet("0-1"))
        assert said(box, "cpuset", "cpuset.cpus", "cpuset.cpus") == "0-1"


def test_memory_high_is_set_and_lifted_on_v2_and_refused_on_v1() -> None:
    with Box() as box:
        if is_v1("memory"):
            box.memory_high(32 * MIB)
            with pytest.raises(OSError, match="cgroup v1 has no file for MemoryHigh"):
                box.start(workload.idle())
            return
        box.memory_high(32 * MIB)
        box.start(workload.idle())
        assert said(box, "memory", "", "memory.high") == str(32 * MIB)
        assert box.apply(MemoryHigh(None))
        assert said(box, "memory", "", "memory.high") == "max"


def open_files(pid: int) -> list[str]:
    """The soft and the hard limit."""
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    return next(line.split()[3:5] for line in lines if line.startswith("Max open files"))


def test_open_files_are_limited_for_all_and_changed_where_the_lab_may() -> None:
    with Box() as box:
        box.open_files(256)
        box.start(workload.idle())
        other = box.run(workload.idle())
        assert open_files(box.pid) == open_files(other) == ["256", "256"]
        # Another user's take CAP_SYS_RESOURCE; then only a new box has it.
        allowed = "SYS_RESOURCE" in capability.names(task.status(Host(), os.getpid()).cap_eff)
        assert box.apply(OpenFiles(512)) == allowed
        assert open_files(other) == (["512", "512"] if allowed else ["256", "256"])
    with Box() as box:
        box.open_files(256)
        box.apply(OpenFiles(512))
        box.start(workload.idle())
        assert open_files(box.pid) == ["512", "512"]


def test_shm_is_as_large_as_it_is_made_and_cured() -> None:
    for change, expected in ((None, 8 * MIB), (ShmSize(16 * MIB), 16 * MIB)):
        with Box() as box:
            box.shm(8 * MIB)
            if change is not None:
                box.apply(change)
            box.start(workload.idle())
            shm = os.statvfs(f"/proc/{box.pid}/root/dev/shm")
            assert shm.f_blocks * shm.f_frsize == expected


def test_a_paused_one_stands_still_until_it_is_thawed() -> None:
    with Box() as box:
        box.start(workload.idle())
        box.pause()
        assert until(lambda: freezer.frozen(Host(), box.target()) is True)
        assert box.apply(Unpause())
        assert until(lambda: freezer.frozen(Host(), box.target()) is False)
