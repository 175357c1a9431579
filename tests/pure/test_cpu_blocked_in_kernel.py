"""cpu/blocked_in_kernel judged on literal observations, and observed on small trees."""

from pathlib import Path

import pytest

from whybox.cases.cpu.blocked_in_kernel.probe import judge, observe
from whybox.cases.cpu.blocked_in_kernel.seen import Observation, Stuck
from whybox.change import InProgram, ThawFilesystem
from whybox.kernel import blockedfile, mountinfo, waitsite
from whybox.kernel.blocked import Blocked, Child, Detail, Sampled
from whybox.kernel.blockedfile import Place
from whybox.kernel.host import Host
from whybox.kernel.target import Target
from whybox.kernel.task import TaskId
from whybox.model import Certainty, Severity, Verdict

SECOND_NS = 1_000_000_000
FREEZE = ("percpu_rwsem_wait", "__percpu_down_read", "mnt_want_write", "path_openat")
VFORK = ("kernel_clone", "__do_sys_vfork")
DISK = ("folio_wait_bit_common", "filemap_read", "ext4_file_read_iter")
DATA = Place(
    path="/data/w1", fstype="ext4", source="/dev/loop0", mountpoint="/srv/data", exact=True
)


def stuck(
    tid: int = 100,
    stack: tuple[str, ...] = VFORK,
    *,
    switches: int | None = 0,
    sampled: tuple[int, int] | None = (40, 40),
    site: str | None = "",
    call: str | None = None,
    child: Child | None = None,
    place: Place | None = None,
    killed: bool = False,
    detailed: bool = True,
) -> Stuck:
    """A task in D at both looks; its ``wchan`` is where its stack begins."""
    detail = Detail(process=tid, stack=stack, call=call, arguments=(), killed=killed, child=child)
    return Stuck(
        tid=tid,
        comm="app",
        site=(stack[0] if stack else None) if site == "" else site,
        sampled=None if sampled is None else Sampled(blocked=sampled[0], samples=sampled[1]),
        switches=switches,
        detail=detail if detailed else None,
        place=place,
    )


def seen(
    *tasks: Stuck,
    elapsed_ns: int = 2 * SECOND_NS,
    threads: int = 20,
    late: tuple[Blocked, ...] = (),
    frozen: bool | None = False,
    blocked: tuple[int, int] | None = None,
    inside: bool = False,
    left_out: int = 0,
) -> Observation:
    """Two seconds of a container with twenty threads."""
    return Observation(
        elapsed_ns=elapsed_ns,
        init_pid=1000,
        inside=inside,
        threads=threads,
        left_out=left_out,
        running=(1, 1),
        blocked=blocked or (len(tasks), len(tasks) + len(late)),
        late=late,
        stuck=tasks,
        frozen=frozen,
        loadavg="6.10 4.02 1.11 7/500 4711",
    )


def late(tid: int, site: str | None) -> Blocked:
    return Blocked(tid=tid, start_ticks=1, comm="x", site=site, timeslices=1)


def test_no_task_in_d_is_clear_and_says_whose_the_load_is() -> None:
    finding = judge(seen())
    assert finding.verdict is Verdict.CLEAR
    assert "None of its 20 tasks" in finding.summary
    assert "0 tasks in D" in finding.evidence[0].says


def test_vfork_names_the_child_and_the_program_is_to_be_changed() -> None:
    child = Child(pid=107, comm="helper", state="S", site="hrtimer_nanosleep")
    finding = judge(seen(*(stuck(100 + n, child=child) for n in range(6))))
    assert (finding.verdict, finding.severity) == (Verdict.FOUND, Severity.WARNING)
    assert "6 of its 20 tasks" in finding.summary
    assert "helper (pid 107, state S at hrtimer_nanosleep)" in finding.summary
    assert isinstance(finding.cures[0].change, InProgram)


def test_a_child_that_wants_a_cpu_is_not_blocked_and_programs_may_start_slowly() -> None:
    child = Child(pid=107, comm="helper", state="R", site=None)
    finding = judge(seen(stuck(100, child=child)))
    assert finding.verdict is Verdict.CLEAR
    assert "cpu/throttled" in finding.summary
    assert judge(seen(stuck(100, switches=9))).verdict is Verdict.CLEAR


def test_a_frozen_file_system_is_named_and_thawed_where_the_host_has_it() -> None:
    finding = judge(seen(*(stuck(100 + n, FREEZE, call="openat", place=DATA) for n in range(5))))
    assert finding.certainty is Certainty.CONFIRMED
    assert "the ext4 of /dev/loop0 at /srv/data, which is frozen" in finding.summary
    assert finding.cures[0].change == ThawFilesystem(mountpoint="/srv/data")
    assert any(e.says == "openat of /data/w1" for e in finding.evidence)


def test_from_inside_nobody_can_thaw() -> None:
    finding = judge(seen(stuck(100, FREEZE, call="openat", place=DATA), inside=True))
    assert finding.verdict is Verdict.FOUND
    assert [cure.change for cure in finding.cures] == [None]


def test_a_frozen_file_system_that_is_not_known_gets_advice_and_no_change() -> None:
    finding = judge(seen(stuck(100, FREEZE, call="openat")))
    assert "a file system, which is frozen" in finding.summary
    assert finding.cures[0].change is None


@pytest.mark.parametrize(
    ("switches", "verdict"), [(0, Verdict.FOUND), (1, Verdict.FOUND), (2, Verdict.CLEAR)]
)
def test_a_disk_is_stuck_only_when_one_wait_takes_a_second(switches: int, verdict: Verdict) -> None:
    assert judge(seen(stuck(100, DISK, switches=switches))).verdict is verdict


def test_many_short_waits_are_told_with_their_length() -> None:
    finding = judge(seen(stuck(100, DISK, switches=999, sampled=(38, 40))))
    assert finding.verdict is Verdict.CLEAR
    assert "2 ms at a time, 95% of the window" in finding.summary


@pytest.mark.parametrize(
    ("sampled", "switches", "verdict"),
    [
        ((20, 40), 9, Verdict.FOUND),
        ((19, 40), 9, Verdict.CLEAR),
        ((40, 40), 19, Verdict.FOUND),
        ((40, 40), 20, Verdict.CLEAR),
    ],
)
def test_another_wait_must_last_a_tenth_of_a_second_and_half_of_the_window(
    sampled: tuple[int, int], switches: int, verdict: Verdict
) -> None:
    task = stuck(100, ("nfs_wait_bit_killable", "rpc_x"), sampled=sampled, switches=switches)
    assert judge(seen(task)).verdict is verdict


def test_a_paused_container_is_not_blocked() -> None:
    finding = judge(seen(stuck(100, ("__refrigerator",)), frozen=True))
    assert finding.verdict is Verdict.CLEAR
    assert "paused" in finding.summary


@pytest.mark.parametrize("site", ["__refrigerator", "hrtimer_nanosleep", "ep_poll"])
def test_a_part_that_is_frozen_on_v1_is_not_blocked(site: str) -> None:
    finding = judge(seen(stuck(100, (site, "x"))))
    assert finding.verdict is Verdict.CLEAR
    assert "frozen" in finding.summary


def test_a_glance_cannot_tell() -> None:
    finding = judge(seen(stuck(), elapsed_ns=1_000_000, threads=1))
    assert finding.verdict is Verdict.UNKNOWN
    assert "--window 2s" in finding.summary


def test_whoever_waits_for_a_lock_or_a_child_is_not_the_cause() -> None:
    locks = [stuck(200 + n, ("rwsem_down_write_slowpath", "x")) for n in range(9)]
    finding = judge(seen(*locks, stuck(99), stuck(100, FREEZE, place=DATA)))
    assert finding.summary.startswith("1 task of it is blocked")
    assert "10 more wait" in finding.summary
    assert isinstance(finding.cures[0].change, ThawFilesystem)


def test_pid_1_blocked_is_critical() -> None:
    nfs = ("rpc_wait_bit_killable", "nfs_x")
    assert judge(seen(stuck(100, nfs))).severity is Severity.WARNING
    assert judge(seen(stuck(1000, nfs))).severity is Severity.CRITICAL


def test_what_may_not_be_read_is_only_likely() -> None:
    finding = judge(seen(stuck(100, (), site=None)))
    assert (finding.verdict, finding.certainty) == (Verdict.FOUND, Certainty.LIKELY)
    assert "a place that may not be read here" in finding.summary


def test_without_a_stack_the_call_tells_a_frozen_file_system() -> None:
    task = stuck(100, (), site="percpu_rwsem_wait", call="openat")
    assert "frozen" in judge(seen(task)).summary
    other = stuck(100, (), site="percpu_rwsem_wait", call="clone")
    assert "a lock" in judge(seen(other)).summary


def test_memory_high_sends_to_the_case_of_memory() -> None:
    task = stuck(100, ("mem_cgroup_handle_over_high", "exit_to_user_mode_prepare"))
    finding = judge(seen(task))
    assert "memory.high" in finding.summary
    assert "memory/reclaim_stalled" in finding.cures[0].advice


def test_those_that_came_within_the_window_are_to_be_looked_at_again() -> None:
    came = tuple(late(n, "percpu_rwsem_wait") for n in range(3))
    assert judge(seen(late=came)).verdict is Verdict.UNKNOWN
    brief = tuple(late(n, "folio_wait_bit_common") for n in range(3))
    assert judge(seen(late=brief)).verdict is Verdict.CLEAR
    spawning = tuple(late(n, "kernel_clone") for n in range(3))
    assert judge(seen(late=spawning)).verdict is Verdict.CLEAR


def test_a_pending_kill_that_cannot_act_is_told() -> None:
    finding = judge(seen(stuck(100, FREEZE, killed=True)))
    assert any("SIGKILL is pending" in e.says for e in finding.evidence)


def test_more_threads_than_are_looked_at_are_told() -> None:
    assert "1000 more were not looked at" in judge(seen(threads=3000, left_out=1000)).summary


@pytest.mark.parametrize(
    ("stack", "kind"),
    [
        (("percpu_rwsem_wait", "__percpu_down_read", "vfs_write", "ksys_write"), "frozen"),
        (("percpu_rwsem_wait", "__percpu_down_read", "ovl_create_object", "x"), "frozen"),
        (("percpu_rwsem_wait", "cgroup_procs_write_start", "kernfs_fop_write_iter"), "lock"),
        (("folio_wait_bit_common", "shrink_folio_list", "try_to_free_mem_cgroup_pages"), "memory"),
        (("io_schedule", "folio_wait_bit_common", "do_swap_page"), "swap"),
        (("jbd2_log_wait_commit", "ext4_sync_file"), "journal"),
        (("request_wait_answer", "fuse_simple_request"), "fuse"),
        (("some_driver_wait",), "other"),
        ((), "other"),
    ],
)
def test_what_a_stack_means(stack: tuple[str, ...], kind: str) -> None:
    assert waitsite.kind(stack) == kind


MOUNTS = mountinfo.parse(
    "1 0 0:30 / / rw - overlay overlay rw,lowerdir=/l,upperdir=/var/lib/docker/o/diff,workdir=/w\n"
    "2 1 7:0 / /data rw - ext4 /dev/loop0 rw\n"
    "3 1 7:0 / /data/again rw - ext4 /dev/loop0 rw\n"
    "4 1 0:9 / /proc rw - proc proc rw\n"
)
OURS = mountinfo.parse(
    "20 0 254:0 / / rw - ext4 /dev/vda rw\n21 20 7:0 / /srv/data rw - ext4 /dev/loop0 rw\n"
)


@pytest.mark.parametrize(
    ("path", "mount_id"),
    [("/data/x", 2), ("/data/again/x", 3), ("/database", 1), ("/", 1), ("/data/../proc/x", 4)],
)
def test_the_mount_of_a_path_is_told_by_its_text(path: str, mount_id: int) -> None:
    mount = blockedfile.under(MOUNTS, path)
    assert mount is not None
    assert mount.mount_id == mount_id


def tree(root: Path, state: str, timeslices: int = 7) -> tuple[Host, Target]:
    """A v2 machine with one container of one thread, which is in a call to write to 3."""
    group = root / "sys/fs/cgroup/docker/x"
    group.mkdir(parents=True, exist_ok=True)
    (group / "cgroup.threads").write_text("50\n")
    (group / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    self = root / "proc/self"
    self.mkdir(parents=True, exist_ok=True)
    (self / "mountinfo").write_text(
        "30 20 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
        "31 20 7:0 / /srv/data rw - ext4 /dev/loop0 rw\n"
    )
    thread = root / "proc/50/task/50"
    thread.mkdir(parents=True, exist_ok=True)
    numbers = " ".join("0" for _ in range(18))
    (thread / "stat").write_text(f"50 (a) D) {state} 1 {numbers[:-2]} 99 0\n")
    (thread / "wchan").write_text("percpu_rwsem_wait")
    (thread / "schedstat").write_text(f"1 2 {timeslices}\n")
    (thread / "stack").write_text("".join(f"[<0>] {name}+0x1/0x2\n" for name in FREEZE))
    (thread / "syscall").write_text("1 0x3 0x7f 0x1 0x0 0x0 0x0 0x7ffc 0x7f00\n")
    (root / "proc/50/fdinfo").mkdir(parents=True, exist_ok=True)
    (root / "proc/50/fdinfo/3").write_text("pos:\t0\nmnt_id:\t2\n")
    (root / "proc/50/mountinfo").write_text("2 1 7:0 / /data rw - ext4 /dev/loop0 rw\n")
    target = Target(
        id="x",
        name="x",
        runtime="docker",
        init=TaskId(pid=50, start_ticks=99),
        cgroups={"": "/docker/x"},
    )
    return Host(str(root), window_seconds=1), target


def watched(root: Path, before: str, after: str) -> Observation:
    host, target = tree(root, before)
    host.next_moment()
    watch = observe(host, target)
    next(watch)
    tree(root, after)
    host.next_moment()
    with pytest.raises(StopIteration) as end:
        next(watch)
    found = end.value.value
    assert isinstance(found, Observation)
    return found


def test_it_finds_who_stays_and_where_it_writes(tmp_path: Path) -> None:
    (task,) = watched(tmp_path, "D", "D").stuck
    assert (task.tid, task.comm, task.switches, task.kind) == (50, "a) D", 0, "frozen")
    assert task.place is not None
    assert (task.place.mountpoint, task.place.exact) == ("/srv/data", True)


def test_whoever_was_in_d_at_one_look_alone_does_not_stay(tmp_path: Path) -> None:
    assert watched(tmp_path, "D", "S").stuck == ()
    found = watched(tmp_path, "R", "D")
    assert (found.stuck, len(found.late)) == ((), 1)
