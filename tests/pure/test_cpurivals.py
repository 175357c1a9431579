"""Who else used the CPUs, read on small trees: neighbours, whybox itself, and damaged lines."""

from pathlib import Path

import pytest
from msgspec import structs

from whybox.kernel import cpucensus, cpurivals, cpuset, cpustat, cpuweight
from whybox.kernel.cgroup import Group
from whybox.kernel.cpucensus import Census, Process
from whybox.kernel.host import Host, ParseError
from whybox.kernel.target import Target

WINDOW_NS = 2_000_000_000


def tree(root: Path) -> Host:
    """A v1 machine: /docker with two containers, and a process of the host."""
    groups = {"": None, "docker": 1024, "docker/" + "a" * 64: 64, "docker/" + "b" * 64: 1024}
    for path, shares in groups.items():
        for name in ("cpu", "cpuacct"):
            (root / "sys/fs/cgroup" / name / path).mkdir(parents=True, exist_ok=True)
        if shares:
            (root / "sys/fs/cgroup/cpu" / path / "cpu.shares").write_text(f"{shares}\n")
        (root / "sys/fs/cgroup/cpuacct" / path / "cpuacct.usage").write_text("5000\n")
        for name in ("cpu", "cpuacct"):
            (root / "sys/fs/cgroup" / name / path / "cgroup.procs").write_text("")
    (root / "proc/self").mkdir(parents=True, exist_ok=True)
    (root / "proc/self/mountinfo").write_text(
        "30 20 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
        "31 20 0:27 / /sys/fs/cgroup/cpuacct rw - cgroup cgroup rw,cpuacct\n"
    )
    for pid, path in ((50, "/docker/" + "b" * 64), (60, "/")):
        (root / f"proc/{pid}").mkdir(exist_ok=True)
        (root / f"proc/{pid}/cgroup").write_text(f"2:cpuacct:{path}\n1:cpu:{path}\n")
        (root / f"proc/{pid}/status").write_text("Name:\tx\nCpus_allowed_list:\t0-1\n")
    return Host(str(root), window_seconds=2)


def test_neighbours_are_found_by_groups_and_processes_and_meet_at_their_level(
    tmp_path: Path,
) -> None:
    host = tree(tmp_path)
    path = "/docker/" + "a" * 64
    target = Target(
        id="a" * 64, name="a", runtime="docker", init=None, cgroups={"cpu": path, "cpuacct": path}
    )
    other = "/docker/" + "b" * 64
    before = Census(groups={"/": 0, "/docker": 0, path: 0, other: 0}, processes={})
    process = Process(
        pid=60,
        comm="make\x1b[0m",
        start_ticks=1,
        used_ns=10**9,
        nice=5,
        realtime=False,
        kernel=False,
    )
    inside = structs.replace(process, pid=50, comm="burn", used_ns=9 * 10**8)
    after = Census(
        groups={"/": 4 * 10**9, "/docker": 2 * 10**9, path: 10**9, other: 10**9},
        processes={60: process, 50: inside},
    )
    found = cpurivals.rivals(host, target, before, after, WINDOW_NS)
    assert [one.name for one in found] == ["docker " + "b" * 12, "make\\x1b[0m (pid 60)"]
    sibling, task = (one.contest for one in found)
    assert sibling is not None
    assert (sibling.level, sibling.own, sibling.rival) == (path, 64, 1024)
    assert task is not None
    assert (task.level, task.own, task.rival) == ("/docker", 1024, 336)


def test_whybox_is_nobodys_neighbour(tmp_path: Path) -> None:
    host = tree(tmp_path)
    (tmp_path / "proc/self/mountinfo").rename(tmp_path / "proc/60/mountinfo")
    (tmp_path / "proc/self").rmdir()
    (tmp_path / "proc/self").symlink_to("60")
    path = "/docker/" + "a" * 64
    cgroups = {"cpu": path, "cpuacct": path}
    target = Target(id="a" * 64, name="a", runtime="docker", init=None, cgroups=cgroups)
    (tmp_path / "proc/60/stat").write_text(stat_line(60, ticks=0))
    before = cpucensus.census(host)
    (tmp_path / "proc/60/stat").write_text(stat_line(60, ticks=100))
    (tmp_path / "sys/fs/cgroup/cpuacct/cpuacct.usage").write_text(f"{5000 + 10**9}\n")
    host.next_moment()
    after = cpucensus.census(host)
    assert after.observer is not None
    assert 60 not in after.processes
    assert cpurivals.rivals(host, target, before, after, WINDOW_NS) == ()
    assert cpucensus.observer_ns(host, target, before, after) == 10**9
    inside = structs.replace(target, runtime="self")
    assert cpucensus.observer_ns(host, inside, before, after) == 0
    (tmp_path / f"sys/fs/cgroup/cpu{path}/cgroup.procs").write_text("60\n")
    host.next_moment()
    assert cpucensus.observer_ns(host, target, before, after) == 0


def stat_line(pid: int, ticks: int) -> str:
    """``/proc/PID/stat`` of a process that has used so many clock ticks."""
    return f"{pid} (whybox) R 1 7 7 0 -1 64 0 0 0 0 {ticks} 0 0 0 20 0 1 0 99 {'0 ' * 18}0 0 0"


def test_an_idle_group_weighs_next_to_nothing(tmp_path: Path) -> None:
    group = Group(controller="cpu", version=2, path="/x", directory="/x", top="/")
    (tmp_path / "x").mkdir()
    (tmp_path / "x/cpu.weight").write_text("100\n")
    assert cpuweight.weight(Host(str(tmp_path)), group) == 1024
    (tmp_path / "x/cpu.idle").write_text("1\n")
    assert cpuweight.weight(Host(str(tmp_path)), group) == cpuweight.IDLE


def test_no_census_is_taken_in_a_window_of_no_length() -> None:
    assert cpucensus.census(Host()) == Census(groups={}, processes={})


@pytest.mark.parametrize("text", ["0-", "a", "3-1", "0-99999999", "-1"])
def test_a_list_of_cpus_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ParseError):
        cpuset.parse(text)


@pytest.mark.parametrize("line", ["cpu0 1 2 3", "cpux 1 2 3 4 5 6 7 8", "cpu0 a b c d e f g h"])
def test_a_line_of_proc_stat_that_is_none_is_refused(line: str) -> None:
    with pytest.raises(ParseError):
        cpustat.parse(line)


def test_counters_that_go_back_are_nothing() -> None:
    before, after = (cpustat.parse(f"cpu3 0 0 0 {idle} 0 0 0 0 0 0") for idle in (500, 400))
    (used,) = cpustat.used(before, after, WINDOW_NS)
    assert (used.idle_ns, used.busy_ns) == (0, WINDOW_NS)
