"""Readers of limits of tasks, and of who the tasks are, on small trees."""

from pathlib import Path

from whybox.kernel import crowd, forkrefusal, rlimits
from whybox.kernel.cgroup import Group
from whybox.kernel.host import Host
from whybox.kernel.target import Target

STATUS = """Name:\tx
State:\tS (sleeping)
Tgid:\t{pid}
PPid:\t1
Uid:\t{uid}\t{uid}\t{uid}\t{uid}
Gid:\t0\t0\t0\t0
Threads:\t{threads}
SigPnd:\t0
ShdPnd:\t0
SigBlk:\t0
SigIgn:\t0
SigCgt:\t0
CapInh:\t0
CapPrm:\t0
CapEff:\t{caps}
CapBnd:\t0
"""


def process(
    root: Path,
    pid: int,
    *,
    comm: str = "x",
    ppid: int = 1,
    threads: int = 1,
    state: str = "S",
    uid: int = 1000,
    caps: str = "0",
    nproc: str = "40",
) -> None:
    """One process of a small tree."""
    folder = root / f"proc/{pid}"
    folder.mkdir(parents=True, exist_ok=True)
    rest = f"{state} {ppid} 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 {threads} 0 99 0 0"
    (folder / "stat").write_text(f"{pid} ({comm}) {rest}")
    (folder / "status").write_text(STATUS.format(pid=pid, uid=uid, threads=threads, caps=caps))
    (folder / "limits").write_text(
        f"Max processes             {nproc}     unlimited     processes\n"
    )


def group(root: Path, procs: list[int], threads: list[int]) -> Group:
    """A v2 group with these members."""
    directory = root / "sys/fs/cgroup/x"
    directory.mkdir(parents=True)
    (directory / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in procs))
    (directory / "cgroup.threads").write_text("".join(f"{pid}\n" for pid in threads))
    return Group(
        controller="pids",
        version=2,
        path="/x",
        directory="/sys/fs/cgroup/x",
        top="/sys/fs/cgroup",
    )


def test_a_master_of_workers_is_no_bomb_and_a_chain_of_itself_is(tmp_path: Path) -> None:
    pids = list(range(10, 20))
    for pid in pids:
        process(tmp_path, pid, comm="nginx", ppid=10)
    where = group(tmp_path, pids, pids)
    flat = crowd.crowd(Host(str(tmp_path)), where, 10)
    assert (flat.processes, flat.threads, flat.zombies, flat.of_kind) == (10, 10, 0, 10)
    assert flat.parent is not None
    assert (flat.parent.pid, flat.of_parent, flat.multiplies) == (10, 10, False)
    for pid in pids:
        process(tmp_path, pid, comm=":", ppid=pid - 1)
    assert crowd.crowd(Host(str(tmp_path)), where, 10).multiplies


def test_a_first_thread_that_ended_before_the_others_is_no_zombie(tmp_path: Path) -> None:
    process(tmp_path, 10)
    process(tmp_path, 11, state="Z", threads=3)
    where = group(tmp_path, [10, 11], [10, 12, 13])
    assert crowd.crowd(Host(str(tmp_path)), where, 4).zombies == 0
    assert crowd.crowd(Host(str(tmp_path)), where, 6).zombies == 2


def test_a_group_that_emptied_while_we_looked_is_a_crowd_of_nobody(tmp_path: Path) -> None:
    none = crowd.crowd(Host(str(tmp_path)), group(tmp_path, [99], []), 0)
    assert (none.largest, none.of_kind, none.of_zombies, none.of_threads) == (None, 0, False, False)


def test_a_users_tasks_are_counted_only_where_somebody_limited_them(tmp_path: Path) -> None:
    (tmp_path / "proc/sys/kernel").mkdir(parents=True)
    (tmp_path / "proc/sys/kernel/threads-max").write_text("192731\n")
    process(tmp_path, 10, threads=5)
    process(tmp_path, 11, threads=7)
    process(tmp_path, 12, uid=1001)
    (mine,) = rlimits.users(Host(str(tmp_path)), [10, 11])
    assert (mine.uid, mine.limit, mine.pid) == (1000, 40, 10)
    process(tmp_path, 10, nproc="96365")
    process(tmp_path, 11, nproc="unlimited")
    assert rlimits.users(Host(str(tmp_path)), [10, 11]) == ()


def test_root_and_who_may_administer_have_no_such_limit(tmp_path: Path) -> None:
    process(tmp_path, 10, uid=0)
    process(tmp_path, 11, caps="0000000000200000")
    process(tmp_path, 12, caps="0000000001000000")
    assert rlimits.users(Host(str(tmp_path)), [10, 11, 12]) == ()


def test_the_machine_says_how_many_tasks_it_has(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/loadavg").write_text("0.10 0.20 0.30 2/345 678\n")
    said = rlimits.machine(Host(str(tmp_path)))
    assert said is not None
    assert (said.tasks, said.limit) == (345, None)
    assert rlimits.machine(Host(str(tmp_path / "none"))) is None


def test_the_log_tells_of_this_container_and_of_no_other(tmp_path: Path) -> None:
    id = "4f1c" * 16
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/kmsg").write_text(
        f"6,1,1000000,-;cgroup: fork rejected by pids controller in /docker/{'0' * 64}\n"
        f"6,2,2000000,-;cgroup: fork rejected by pids controller in /docker/{id}/init.scope\n"
        f"12,3,3000000,-;cgroup: fork rejected by pids controller in /docker/{id}\n"
    )
    target = Target(id=id, name="x", runtime="docker", init=None)
    said = forkrefusal.refusal(Host(str(tmp_path)), target)
    assert said.line is not None
    assert said.line.endswith("/init.scope")  # facility 1 is a user's: whoever writes to /dev/kmsg
    other = Target(id="5" * 64, name="y", runtime="docker", init=None)
    assert forkrefusal.refusal(Host(str(tmp_path)), other).line is None
