"""security/root_is_host_root judged on literal observations, and observed on small trees."""

from pathlib import Path

import msgspec
import pytest

from whybox.cases.security.root_is_host_root.probe import Observation, Root, judge, observe
from whybox.change import RunAsUser, WithUserNamespace
from whybox.kernel.exposure import Shown
from whybox.kernel.host import Host
from whybox.kernel.namespace import INITIAL
from whybox.kernel.target import Target
from whybox.kernel.task import TaskId
from whybox.kernel.uidmap import Range
from whybox.model import Certainty, Severity, Verdict

DEFAULT_CAPS = 0xA80425FB
SYS_ADMIN = 1 << 21
HOST = INITIAL["user"]
PRIVATE = 4026532500
IDENTITY = (Range(inside=0, outside=0, count=4294967295),)
REMAPPED = (Range(inside=0, outside=100000, count=65536),)

#: The mounts of `docker run`, as far as they matter.
ORDINARY = (
    Shown(mountpoint="/", fstype="overlay", writable=True, host_path="/d/overlay2/1/merged"),
    Shown(mountpoint="/proc", fstype="proc", writable=True, host_path=None),
    Shown(mountpoint="/dev", fstype="tmpfs", writable=True, host_path=None),
    Shown(mountpoint="/sys", fstype="sysfs", writable=False, host_path=None),
    Shown(mountpoint="/sys/fs/cgroup", fstype="cgroup", writable=False, host_path=None),
    Shown(mountpoint="/data", fstype="ext4", writable=True, host_path="/d/volumes/v/_data"),
    Shown(mountpoint="/etc/hosts", fstype="ext4", writable=True, host_path="/d/containers/1/hosts"),
    Shown(mountpoint="/proc/sys", fstype="proc", writable=False, host_path=None),
)


def root(
    pid: int = 7,
    *,
    nspid: int = 1,
    comm: str = "app",
    caps: int = DEFAULT_CAPS,
    seccomp: int | None = 2,
    user_namespace: int | None = HOST,
) -> Root:
    return Root(
        id=TaskId(pid=pid, start_ticks=pid),
        nspid=nspid,
        comm=comm,
        user_namespace=user_namespace,
        cap_eff=caps,
        seccomp=seccomp,
        no_new_privs=False,
    )


def seen(*roots: Root, tasks: int | None = None, **more: object) -> Observation:
    """A container of `docker run`, looked at from the host."""
    base = Observation(
        reader_namespace=HOST,
        reader_map=IDENTITY,
        init_pid=7,
        init_uid=0 if roots else 1000,
        init_map=IDENTITY,
        init_no_new_privs=False,
        tasks=len(roots) or 1 if tasks is None else tasks,
        roots=roots,
        mounts=ORDINARY,
        devices=(),
        shared=(),
    )
    return msgspec.structs.replace(base, **more)


def test_an_ordinary_container_that_runs_as_root_is_worth_knowing() -> None:
    finding = judge(seen(root()))
    assert finding.verdict is Verdict.FOUND
    assert (finding.severity, finding.certainty) == (Severity.INFO, Certainty.CONFIRMED)
    assert finding.summary == "It runs as root: uid 0 inside is uid 0 outside."
    assert [e.source for e in finding.evidence] == ["/proc/7/status", "/proc/7/uid_map"]
    assert finding.evidence[1].says == "0 0 4294967295"
    assert finding.ruled_out


def test_the_first_cure_is_another_user_and_then_a_user_namespace() -> None:
    cures = judge(seen(root())).cures
    assert [cure.change for cure in cures] == [RunAsUser(1000, 1000), WithUserNamespace(), None]


def test_another_user_is_clear_and_setuid_programs_are_mentioned() -> None:
    finding = judge(seen())
    assert finding.verdict is Verdict.CLEAR
    assert "uid 1000" in finding.summary
    assert "setuid" in finding.summary
    sealed = judge(seen(init_no_new_privs=True))
    assert "setuid" not in sealed.summary


def test_root_of_a_user_namespace_is_somebody_else_outside() -> None:
    """From the host its uid is read as 100000, so it is not among the root tasks."""
    finding = judge(seen(init_uid=100000, init_map=REMAPPED))
    assert finding.verdict is Verdict.CLEAR
    assert "uid 0 inside is uid 100000 outside" in finding.summary


def test_from_inside_a_user_namespace_root_is_whom_the_map_says() -> None:
    inside = root(1, user_namespace=PRIVATE)
    remapped = judge(seen(inside, reader_namespace=PRIVATE, reader_map=REMAPPED))
    assert remapped.verdict is Verdict.CLEAR
    assert "uid 100000" in remapped.summary
    rootless = (Range(inside=0, outside=1000, count=1),)
    assert judge(seen(inside, reader_namespace=PRIVATE, reader_map=rootless)).verdict is (
        Verdict.CLEAR
    )


@pytest.mark.parametrize("ranges", [IDENTITY, (Range(inside=0, outside=0, count=1),), None])
def test_from_inside_a_user_namespace_that_keeps_root_it_is_unknown(
    ranges: tuple[Range, ...] | None,
) -> None:
    finding = judge(seen(root(1), reader_namespace=PRIVATE, reader_map=ranges))
    assert finding.verdict is Verdict.UNKNOWN
    assert "ask on the host" in finding.summary


def test_from_inside_without_a_user_namespace_it_is_found() -> None:
    finding = judge(seen(root(1, user_namespace=HOST), init_pid=1))
    assert (finding.verdict, finding.certainty) == (Verdict.FOUND, Certainty.CONFIRMED)


def test_where_the_own_user_namespace_is_hidden_the_map_makes_it_likely() -> None:
    finding = judge(seen(root(), reader_namespace=None))
    assert (finding.verdict, finding.certainty) == (Verdict.FOUND, Certainty.LIKELY)


def test_a_launcher_that_stays_root_is_named() -> None:
    finding = judge(seen(root(comm="tini"), tasks=5))
    assert finding.verdict is Verdict.FOUND
    assert "1 of its 5 processes run as root, tini (1)" in finding.summary


def test_a_worker_that_is_root_under_another_init_is_named() -> None:
    finding = judge(seen(root(9, nspid=3, comm="cron"), tasks=2, init_uid=1000))
    assert "1 of its 2 processes run as root, cron (3)" in finding.summary


def mounted(
    at: str,
    host_path: str | None,
    *,
    fstype: str = "ext4",
    writable: bool = True,
    socket: str | None = None,
) -> tuple[Shown, ...]:
    more = Shown(
        mountpoint=at, fstype=fstype, writable=writable, host_path=host_path, socket=socket
    )
    return (*ORDINARY, more)


DANGERS = {
    "the engine's socket": seen(
        root(), mounts=mounted("/s", "/run/docker.sock", socket="/run/docker.sock")
    ),
    "the socket in a directory that is mounted read-only": seen(
        root(), mounts=mounted("/run", "/run", writable=False, socket="/run/docker.sock")
    ),
    "the host's root directory": seen(root(), mounts=mounted("/host", "/")),
    "the host's /etc": seen(root(), mounts=mounted("/host/etc", "/etc")),
    "the units of the host's systemd": seen(root(), mounts=mounted("/u", "/etc/systemd/system")),
    "the engine's whole store": seen(root(), mounts=mounted("/d", "/var/lib/docker")),
    "the host's /dev": seen(root(), mounts=mounted("/hostdev", "/dev", fstype="devtmpfs")),
    "a writable sysfs": seen(root(), mounts=mounted("/sys", None, fstype="sysfs")),
    "a writable v1 cgroup": seen(root(), mounts=mounted("/sys/fs/cgroup/x", None, fstype="cgroup")),
    "a writable /proc/sys": seen(root(), mounts=ORDINARY[:-1]),
    "SYS_ADMIN": seen(root(caps=DEFAULT_CAPS | SYS_ADMIN)),
    "no seccomp": seen(root(seccomp=0)),
    "a disk": seen(root(), devices=("vda",)),
    "the host's processes": seen(root(), shared=("pid",)),
    "the host's network": seen(root(), shared=("net",)),
}


@pytest.mark.parametrize("danger", DANGERS.values(), ids=list(DANGERS))
def test_what_leads_to_the_host_makes_it_a_warning_with_evidence(danger: Observation) -> None:
    finding = judge(danger)
    assert finding.severity is Severity.WARNING
    assert "which matters here since" in finding.summary
    assert len(finding.evidence) == 3


HARMLESS = {
    "no capability, no seccomp": seen(root(caps=0, seccomp=0)),
    "a kernel without seccomp": seen(root(seccomp=None)),
    "a weaker capability than the default ones": seen(root(caps=1)),
    "/etc read-only": seen(root(), mounts=mounted("/e", "/etc", writable=False)),
    "the time zone": seen(root(), mounts=mounted("/etc/localtime", "/usr/share/zoneinfo/UTC")),
    "a configuration of its own": seen(root(), mounts=mounted("/etc/app", "/etc/app")),
    "data below the home of root": seen(root(), mounts=mounted("/data", "/root/data")),
    "devices that could not be looked at": seen(root(), devices=None),
    "a process of the host itself": seen(root(), mounts=(), shared=("pid", "net", "mnt")),
    "capabilities of a user namespace": seen(
        root(caps=(1 << 41) - 1, seccomp=0, user_namespace=PRIVATE)
    ),
}


@pytest.mark.parametrize("state", HARMLESS.values(), ids=list(HARMLESS))
def test_what_does_not_lead_to_the_host_leaves_it_at_info(state: Observation) -> None:
    finding = judge(state)
    assert finding.verdict is Verdict.FOUND
    assert finding.severity is Severity.INFO, finding.summary


def test_dangers_without_root_are_not_this_case() -> None:
    assert judge(seen(mounts=mounted("/host", "/"), devices=("vda",))).verdict is Verdict.CLEAR


def test_names_from_the_container_cannot_speak_to_the_terminal() -> None:
    finding = judge(seen(root(comm="\x1b[2Jx", seccomp=0), tasks=2))
    said = finding.summary + "".join(e.says for e in finding.evidence)
    assert "\x1b" not in said


def test_an_observation_survives_a_recording() -> None:
    kept = msgspec.json.encode(DANGERS["a disk"])
    assert msgspec.json.decode(kept, type=Observation) == DANGERS["a disk"]


STATUS = """Name:\t{name}
State:\tS (sleeping)
Tgid:\t{pid}
PPid:\t1
Uid:\t{uid}\t{uid}\t{uid}\t{uid}
Gid:\t0\t0\t0\t0
NSpid:\t{pid}\t{nspid}
Threads:\t1
SigPnd:\t0
ShdPnd:\t0
SigBlk:\t0
SigIgn:\t0
SigCgt:\t0
CapInh:\t0
CapPrm:\t00000000a80425fb
CapEff:\t00000000a80425fb
CapBnd:\t00000000a80425fb
NoNewPrivs:\t0
Seccomp:\t2
"""
MOUNTINFO = "30 1 0:50 / / rw - overlay overlay rw,upperdir=/u\n"


class Tree:
    """Processes in files: one container, whose first process is 70."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.host = Host(str(root))
        self.task("self", "whybox", 0, 1)
        (root / "proc/self/ns").mkdir()
        (root / "proc/self/ns/user").symlink_to(f"user:[{HOST}]")
        (root / "proc/self/uid_map").write_text("0 0 4294967295\n")
        (root / "proc/self/mountinfo").write_text("1 0 8:1 / / rw - ext4 /dev/sda1 rw\n")

    def task(self, pid: int | str, name: str, uid: int, nspid: int) -> None:
        """One process of that user."""
        directory = self.root / f"proc/{pid}"
        directory.mkdir(parents=True, exist_ok=True)
        number = pid if isinstance(pid, int) else 1
        said = STATUS.format(name=name, uid=uid, pid=number, nspid=nspid)
        (directory / "status").write_text(said)
        (directory / "stat").write_text(f"{number} ({name}) S 1 " + "0 " * 17 + "5 0\n")
        (directory / "mountinfo").write_text(MOUNTINFO)
        (directory / "uid_map").write_text("0 0 4294967295\n")

    def group(self, *pids: int) -> None:
        """The container's processes."""
        group = self.root / "sys/fs/cgroup/c"
        group.mkdir(parents=True, exist_ok=True)
        (group / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids))
        with (self.root / "proc/self/mountinfo").open("a") as file:
            file.write("2 1 0:30 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")

    def target(self) -> Target:
        return Target(
            id="c",
            name="c",
            runtime="docker",
            init=TaskId(pid=70, start_ticks=5),
            cgroups={"": "/c"},
        )


def watched(tree: Tree, between: str = "") -> Observation:
    watch = observe(tree.host, tree.target())
    next(watch)
    tree.host.next_moment()
    if between:
        tree.task(71, "runc", 1000, 2)
    with pytest.raises(StopIteration) as end:
        next(watch)
    value: Observation = end.value.value
    return value


def test_the_tasks_of_the_group_are_read_with_their_effective_uid(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.task(70, "tini", 0, 1)
    tree.task(71, "app", 1000, 2)
    tree.group(70, 71)
    seen = watched(tree)
    assert [(r.id.pid, r.comm, r.nspid, r.seccomp) for r in seen.roots] == [(70, "tini", 1, 2)]
    assert (seen.tasks, seen.init_uid, seen.init_map) == (2, 0, IDENTITY)
    assert judge(seen).severity is Severity.INFO


def test_a_task_that_is_root_only_at_first_is_the_engine_starting_one(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.task(70, "app", 1000, 1)
    tree.task(71, "runc", 0, 2)
    tree.group(70, 71)
    seen = watched(tree, between="it becomes uid 1000")
    assert seen.roots == ()
    assert judge(seen).verdict is Verdict.CLEAR


def test_a_process_that_vanished_and_a_device_directory_out_of_reach_do_no_harm(
    tmp_path: Path,
) -> None:
    tree = Tree(tmp_path)
    tree.task(70, "app", 0, 1)
    tree.group(70, 999)
    seen = watched(tree)
    assert [r.id.pid for r in seen.roots] == [70]
    assert seen.devices is None


def test_root_that_is_kept_to_come_back_to_counts() -> None:
    kept = msgspec.structs.replace(root(), kept=True)
    finding = judge(seen(kept))
    assert finding.verdict is Verdict.FOUND
    assert any(e.says.endswith("uid 0 kept to come back to") for e in finding.evidence)


def test_roots_group_is_told_of_another_user() -> None:
    other = msgspec.structs.replace(seen(), init_uid=1000, init_gid=0)
    assert "uid 1000 in root's group 0" in judge(other).summary
