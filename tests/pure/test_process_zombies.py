"""process/zombies judged on literal observations, and observed on a small tree."""

import os
from pathlib import Path

import msgspec
import pytest
from msgspec import structs

from whybox.cases.process.zombies.probe import Observation, judge, observe
from whybox.change import InProgram, WithInit
from whybox.kernel import zombie
from whybox.kernel.host import Host
from whybox.kernel.target import Target
from whybox.kernel.task import TaskId
from whybox.kernel.zombie import Level, Parent, Zombie
from whybox.model import Certainty, Severity, Verdict

SECOND_NS = 1_000_000_000
UPTIME = 100.0

PID1 = Parent(
    pid=500,
    nspid=1,
    comm="app",
    state="S",
    session=500,
    inside=True,
    ignores_sigchld=False,
    wait_channel="hrtimer_nanosleep",
    has_waited=False,
)


def ended(count: int, *, first: int = 600, session: int = 500, start: int = 100) -> list[Zombie]:
    """Zombies of process 500, which began 99 seconds ago unless said otherwise."""
    return [
        Zombie(id=TaskId(pid=pid, start_ticks=start), comm="worker", ppid=500, session=session)
        for pid in range(first, first + count)
    ]


def seen(
    before: list[Zombie],
    after: list[Zombie] | None = None,
    *,
    elapsed_ns: int = 2 * SECOND_NS,
    parent: Parent | None = PID1,
    limit: int | None = None,
    forkers: dict[int, int] | None = None,
) -> Observation:
    now = before if after is None else after
    current = len(now) + 1
    return Observation(
        elapsed_ns=elapsed_ns,
        pids_file="/sys/fs/cgroup/pids/x/pids.current",
        pids=(current, 1),
        levels=() if limit is None else (Level(path="/x", current=current, limit=limit),),
        before=tuple(before),
        after=tuple(now),
        dead_leaders=0,
        parents=() if parent is None else (parent,),
        forkers=forkers or {},
        frozen=False,
        now_seconds=UPTIME,
    )


def test_seventeen_that_stay_are_counted_and_their_parent_is_named() -> None:
    finding = judge(seen(ended(17)))
    assert (finding.verdict, finding.certainty) == (Verdict.FOUND, Certainty.CONFIRMED)
    assert finding.severity is Severity.WARNING
    assert finding.summary.startswith("17 zombies stay: app (PID 1, pid 500 on the host) does not")
    assert "18, of which 1 are listed" in finding.evidence[0].says


@pytest.mark.parametrize(("count", "severity"), [(1, "info"), (9, "info"), (10, "warning")])
def test_a_few_hurt_nobody(count: int, severity: str) -> None:
    finding = judge(seen(ended(count)))
    assert (finding.verdict, finding.severity) == (Verdict.FOUND, severity)


def test_a_few_that_become_more_do() -> None:
    finding = judge(seen(ended(3), ended(6), limit=103))
    assert finding.severity is Severity.WARNING
    assert "7 of 103 tasks are taken, 90 more a minute, full in 1.1 minutes" in finding.summary


@pytest.mark.parametrize(("limit", "severity"), [(34, "critical"), (35, "warning")])
def test_half_of_the_limit_is_critical(limit: int, severity: str) -> None:
    finding = judge(seen(ended(17), limit=limit))
    assert finding.severity == severity
    assert f"18 of {limit} tasks are taken" in finding.summary


def test_the_limit_of_an_ancestor_counts_too() -> None:
    """It has 26 tasks, 17 of them ours."""
    both = (Level(path="/pod/x", current=18, limit=1000), Level(path="/pod", current=26, limit=30))
    finding = judge(structs.replace(seen(ended(17)), levels=both))
    assert finding.severity is Severity.CRITICAL
    assert "26 of 30 tasks are taken" in finding.summary


def test_a_full_limit_is_not_said_to_fill_up() -> None:
    finding = judge(seen(ended(3), ended(20), limit=21))
    assert "full in" not in finding.summary


def test_one_that_never_waited_must_learn_to() -> None:
    finding = judge(seen(ended(17)))
    assert isinstance(finding.cures[0].change, InProgram)
    assert finding.cures[1].change == WithInit()
    assert "does not help with the program's own children" in finding.cures[1].advice


def test_one_that_waits_for_its_own_needs_an_init_for_the_others() -> None:
    finding = judge(seen(ended(17), parent=structs.replace(PID1, has_waited=True)))
    assert finding.cures[0].change == WithInit()
    assert isinstance(finding.cures[1].change, InProgram)


def test_another_session_tells_an_orphan() -> None:
    finding = judge(seen(ended(17, session=555)))
    assert finding.cures[0].change == WithInit()
    assert "17 of these are known to be orphans" in finding.cures[0].advice


def test_a_session_of_its_own_tells_nothing() -> None:
    (one,) = ended(1, session=600)
    assert isinstance(judge(seen([one])).cures[0].change, InProgram)


def test_who_was_seen_to_fork_them_decides() -> None:
    """PID 1 did wait for somebody once, a shell perhaps that became this program."""
    waits = structs.replace(PID1, has_waited=True)
    own = judge(seen(ended(3), ended(6), parent=waits, forkers={603: 500, 604: 500}))
    assert isinstance(own.cures[0].change, InProgram)
    orphans = judge(seen(ended(3), ended(6), forkers={603: 510, 604: 511}))
    assert orphans.cures[0].change == WithInit()


def test_one_that_waits_for_a_single_child_does_not_know_the_others() -> None:
    """A wrapper script: its program runs still, so it has waited for nobody yet."""
    wrapper = structs.replace(PID1, system_call="wait4 for child 7 alone")
    finding = judge(seen(ended(17), parent=wrapper))
    assert finding.cures[0].change == WithInit()
    assert "is in wait4 for child 7 alone and has SIGCHLD not handled" in finding.summary


@pytest.mark.parametrize(
    ("ignores", "blocks", "handles", "told"),
    [
        (True, False, False, "ignored"),
        (False, True, True, "blocked"),
        (False, False, True, "handled"),
        (False, False, False, "not handled"),
    ],
)
def test_what_the_parent_does_about_sigchld(
    ignores: bool, blocks: bool, handles: bool, told: str
) -> None:
    parent = structs.replace(
        PID1, ignores_sigchld=ignores, blocks_sigchld=blocks, handles_sigchld=handles
    )
    finding = judge(seen(ended(17), parent=parent))
    assert f"has SIGCHLD {told})" in finding.summary
    assert any(f"SIGCHLD (10000) is {told}" in evidence.says for evidence in finding.evidence)


def test_each_limit_says_when_it_is_met() -> None:
    grown = seen(ended(3), ended(6), limit=103)
    says = [e.says for e in judge(grown).evidence if e.source == "pids.max of /x"]
    assert says == ["103, of which 7 are taken, full in 1.1 minutes"]


def test_an_init_is_not_offered_where_pid_1_is_not_the_parent() -> None:
    finding = judge(seen(ended(17), parent=structs.replace(PID1, nspid=12)))
    assert "app (PID 12, pid 500 on the host)" in finding.summary
    assert isinstance(finding.cures[0].change, InProgram)
    assert all(cure.change != WithInit() for cure in finding.cures)


def test_a_parent_outside_is_the_engines_affair() -> None:
    for parent in (structs.replace(PID1, inside=False, nspid=500), None):
        finding = judge(seen(ended(3), parent=parent))
        assert finding.verdict is Verdict.FOUND
        assert [cure.change for cure in finding.cures] == [None]
        assert "outside" in finding.summary


def test_no_zombies_is_clear() -> None:
    assert judge(seen([])).verdict is Verdict.CLEAR


def test_zombies_that_come_and_go_are_clear() -> None:
    """A hundred children a second, each reaped: another one at each look."""
    assert judge(seen(ended(3), ended(4, first=900))).verdict is Verdict.CLEAR
    assert judge(seen(ended(30), [])).verdict is Verdict.CLEAR
    assert judge(seen([], ended(4))).verdict is Verdict.CLEAR


def test_the_same_pid_with_another_start_is_another_process() -> None:
    assert judge(seen(ended(3), ended(3, start=101))).verdict is Verdict.CLEAR


def test_many_that_came_up_within_the_window_are_unknown() -> None:
    finding = judge(seen([], ended(5)))
    assert (finding.verdict, "ask again" in finding.summary) == (Verdict.UNKNOWN, True)


def test_dead_first_threads_are_named_and_clear() -> None:
    finding = judge(structs.replace(seen([]), dead_leaders=17))
    assert finding.verdict is Verdict.CLEAR
    assert "17 first threads ended before others" in finding.summary


def test_at_one_glance_only_many_old_ones_are_found() -> None:
    glance = 1_000_000
    old = judge(seen(ended(5), elapsed_ns=glance))
    assert (old.verdict, old.certainty) == (Verdict.FOUND, Certainty.LIKELY)
    few = judge(seen(ended(4), elapsed_ns=glance))
    young = judge(seen(ended(5, start=9_600), elapsed_ns=glance))
    timeless = judge(structs.replace(seen(ended(5), elapsed_ns=glance), now_seconds=None))
    for finding in (few, young, timeless):
        assert finding.verdict is Verdict.UNKNOWN
        assert "--window 2s" in finding.summary
    assert judge(seen([], elapsed_ns=glance)).verdict is Verdict.CLEAR


def test_while_nobody_can_wait_it_is_unknown() -> None:
    assert judge(structs.replace(seen(ended(17)), frozen=True)).verdict is Verdict.UNKNOWN
    stopped = judge(seen(ended(17), parent=structs.replace(PID1, state="T")))
    assert stopped.verdict is Verdict.UNKNOWN
    assert "kill -CONT" in stopped.summary


def test_a_namespace_that_is_being_emptied_is_clear() -> None:
    ending = structs.replace(PID1, wait_channel="zap_pid_ns_processes")
    assert judge(seen(ended(17), parent=ending)).verdict is Verdict.CLEAR


def test_without_the_controller_it_is_found_all_the_same() -> None:
    finding = judge(structs.replace(seen(ended(17)), pids=None, pids_file=None))
    assert finding.verdict is Verdict.FOUND


def test_an_observation_survives_a_recording() -> None:
    kept = seen(ended(2), forkers={600: 500}, limit=9)
    assert msgspec.json.decode(msgspec.json.encode(kept), type=Observation) == kept


TARGET = Target(
    id="x",
    name="x",
    runtime="whybox",
    init=TaskId(pid=500, start_ticks=50),
    init_nspid=1,
    cgroups={"pids": "/x"},
    namespaces={"pid": 4026532000},
    host_namespaces={"pid": 4026531836},
)
STATUS = """Name:\tapp
State:\tS (sleeping)
Tgid:\t500
PPid:\t1
Uid:\t0\t0\t0\t0
Gid:\t0\t0\t0\t0
NSpid:\t500\t1
Threads:\t1
SigPnd:\t0000000000000000
ShdPnd:\t0000000000000000
SigBlk:\t0000000000000000
SigIgn:\t0000000000010000
SigCgt:\t0000000000000000
CapInh:\t0000000000000000
CapPrm:\t0000000000000000
CapEff:\t0000000000000000
CapBnd:\t0000000000000000
"""


def process(root: Path, pid: int, state: str, ppid: int, *, threads: int = 1, ns: int = 0) -> None:
    directory = root / "proc" / str(pid)
    (directory / "ns").mkdir(parents=True)
    (directory / "stat").write_text(
        f"{pid} (app) {state} {ppid} 500 500 0 -1 0 9 8 0 0 0 0 0 0 20 0 {threads} 0 {pid} 0 0\n"
    )
    (directory / "ns/pid").symlink_to(f"pid:[{ns or 4026532000}]")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """PID 1, two zombies, a dead leader, somebody else's zombie; a limit of 10."""
    process(tmp_path, 500, "S", 1)
    (tmp_path / "proc/500/status").write_text(STATUS)
    call = {"x86_64": 61, "aarch64": 260}.get(os.uname().machine, 260)
    (tmp_path / "proc/500/syscall").write_text(f"{call} 0x7 0x0 0x0 0x0 0x0 0x0 0x7ffd 0x7f01\n")
    process(tmp_path, 601, "Z", 500)
    process(tmp_path, 602, "Z", 77)
    process(tmp_path, 603, "Z", 500, threads=3)
    process(tmp_path, 604, "Z", 77, ns=4026531836)
    (tmp_path / "proc/uptime").write_text("100.00 7.00\n")
    (tmp_path / "proc/self").mkdir()
    (tmp_path / "proc/self/mountinfo").write_text(
        "39 31 0:36 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n"
    )
    group = tmp_path / "sys/fs/cgroup/pids/x"
    group.mkdir(parents=True)
    for name, text in {
        "pids.current": "5",
        "pids.max": "10",
        "pids.events": "max 0",
        "tasks": "500\n605\n606\n",
        "cgroup.procs": "500\n",
    }.items():
        (group / name).write_text(text + "\n")
    return tmp_path


def observed(root: Path) -> Observation:
    host = Host(str(root), window_seconds=2.0)
    watch = observe(host, TARGET)
    next(watch)
    host.next_moment()
    with pytest.raises(StopIteration) as end:
        next(watch)
    seen: Observation = end.value.value
    return seen


def test_a_tree_shows_its_zombies_and_nobody_elses(tree: Path) -> None:
    kept = observed(tree)
    assert [z.id.pid for z in kept.after] == [601, 602]
    assert (kept.before, kept.dead_leaders) == (kept.after, 1)
    (level,), (parent,) = kept.levels, kept.parents
    assert (kept.pids, level.path, level.current, level.limit) == ((5, 3), "/x", 5, 10)
    assert level.file.endswith("/pids/x/pids.max")
    assert (parent.nspid, parent.inside, parent.has_waited) == (1, True, True)
    assert (parent.ignores_sigchld, parent.system_call) == (True, "wait4 for child 7 alone")


def test_where_the_count_says_that_there_are_none_proc_is_not_walked(tree: Path) -> None:
    (tree / "sys/fs/cgroup/pids/x/pids.current").write_text("3\n")
    kept = observed(tree)
    assert (kept.before, kept.after) == ((), ())
    assert judge(kept).verdict is Verdict.CLEAR


def test_in_the_hosts_pid_namespace_the_parent_alone_tells(tree: Path) -> None:
    shared = structs.replace(TARGET, init_nspid=500, namespaces={"pid": 4026531836})
    look = zombie.look(Host(str(tree)), shared)
    assert [z.id.pid for z in look.zombies] == [601]
