"""security/permission_denied judged on literal observations, and the gates at their edges."""

import struct

import pytest
from msgspec import structs

from whybox.cases.security.permission_denied.probe import judge
from whybox.change import AllowSystemCalls, FileAccess, GrantCapabilities, Sysctl, Volume
from whybox.kernel import capability, harm
from whybox.kernel.access import R, Step, W, Way, Who, X, permitted
from whybox.kernel.denials import Denied, Where, Window
from whybox.kernel.gate import gate
from whybox.kernel.host import ROOT_HOME
from whybox.kernel.intent import ids_of, intent
from whybox.model import Certainty, Severity, Verdict

DIRECTORY, REGULAR, DEVICE = 0o040000, 0o100000, 0o020000


def step(path: str, mode: int, uid: int = 0, gid: int = 0, *, of: int = 1000) -> Step:
    allowed = permitted(mode, uid, gid, Who(uid=of, gid=of))
    return Step(path=path, mode=mode, uid=uid, gid=gid, allowed=allowed)


ROOT = step("/", DIRECTORY | 0o755)


def denied(call: str = "openat", errno: str = "EACCES", **kept: object) -> Denied:
    """uid 1000 opens /data/file for writing, in a directory of root's."""
    plain = Denied(
        call=call,
        errno=errno,
        how="entered",
        comm="app",
        pid=7,
        uid=1000,
        gid=1000,
        held=0,
        own_user_ns=False,
        intent=intent(call, (0, 0, 0o101, 0, 0, 0), "/data/file"),
        path="/data/file",
        said="/data/file",
    )
    return structs.replace(plain, **kept)


def way(*steps: Step, missing: str | None = None, stopped: str | None = None) -> Way:
    return Way(steps=(ROOT, *steps), missing=missing, stopped=stopped, path="/data/file")


IN_ROOTS = way(step("/data", DIRECTORY | 0o755), missing="file")
DAC = capability.mask(["DAC_OVERRIDE", "DAC_READ_SEARCH"])


def test_nothing_refused_is_clear_and_not_seen_is_unknown() -> None:
    assert judge(Window()).verdict is Verdict.CLEAR
    assert judge(Window(reason="no BPF")).verdict is Verdict.UNKNOWN
    assert judge(Window(lost=3)).verdict is Verdict.UNKNOWN


def test_a_directory_of_roots_is_named_and_given_away() -> None:
    seen = Window(seen=(denied(way=IN_ROOTS, capabilities=2, times=3),))
    finding = judge(seen)
    assert finding.verdict is Verdict.FOUND
    assert finding.severity is Severity.CRITICAL
    assert "/data belongs to 0:0 with mode drwxr-xr-x" in finding.summary
    assert finding.cures[0].change == FileAccess("/data", uid=1000, gid=1000)


def test_the_first_component_that_bars_the_way_is_named() -> None:
    shut = way(step("/data", DIRECTORY | 0o700), stopped="not reached")
    its = gate(denied(way=shut, capabilities=DAC))
    assert its.step is not None
    assert (its.step.path, its.lacks) == ("/data", X)
    assert judge(Window(seen=(denied(way=shut),))).cures[0].change == FileAccess(
        "/data", mode=0o701
    )


def test_a_directory_that_lets_neither_pass_nor_write_is_given_away() -> None:
    shut = way(step("/data", DIRECTORY | 0o700), missing="file")
    finding = judge(Window(seen=(denied(way=shut),)))
    assert finding.cures[0].change == FileAccess("/data", uid=1000, gid=1000)


def test_an_existing_file_needs_nothing_of_its_directory() -> None:
    mine = step("/data/file", REGULAR | 0o644, 1000, 1000)
    its = gate(denied(way=way(step("/data", DIRECTORY | 0o755), mine)))
    assert its.name == "unknown"


def test_root_with_override_is_barred_by_no_mode_but_by_the_want_of_an_x() -> None:
    held = capability.mask(["DAC_OVERRIDE"])
    assert gate(denied(way=IN_ROOTS, held=held, uid=0)).name != "owner or mode"
    data = step("/data", REGULAR | 0o644)
    run = denied("execve", way=way(data), held=held, uid=0)
    run = structs.replace(run, intent=intent("execve", (0,), "/data"))
    assert gate(run).lacks == X
    assert judge(Window(seen=(run,))).cures[0].change == FileAccess("/data", mode=0o755)


def test_what_did_not_enter_is_seccomp_whatever_the_mode_is() -> None:
    one = denied("mount", "EPERM", how="seccomp", way=IN_ROOTS, path=None, said="")
    finding = judge(Window(seen=(one,)))
    assert "seccomp profile refuses mount" in finding.summary
    assert finding.cures[0].change == AllowSystemCalls(("mount",))
    assert "seccomp" not in {other.what for other in finding.ruled_out}


@pytest.mark.parametrize(
    ("names", "elsewhere", "expected"),
    [(["SYS_ADMIN"], 0, "capability"), (["SYS_ADMIN"], 1 << 21, "user namespace")],
)
def test_a_capability_and_one_that_reaches_not_so_far(
    names: list[str], elsewhere: int, expected: str
) -> None:
    one = denied("mount", "EPERM", capabilities=capability.mask(names), elsewhere=elsewhere)
    assert gate(one).name == expected


def test_a_capability_is_granted_alone() -> None:
    one = denied("sethostname", "EPERM", capabilities=1 << 21, uid=0, path=None)
    assert judge(Window(seen=(one,))).cures[0].change == GrantCapabilities(("SYS_ADMIN",))


def test_a_port_below_where_everybody_may() -> None:
    one = denied("bind", port=80, capabilities=1 << 10, path=None, said="")
    finding = judge(Window(seen=(one,), port_start=1024))
    assert "port 80 is below 1024" in finding.summary
    change = Sysctl("net.ipv4.ip_unprivileged_port_start", "80")
    assert finding.cures[0].change == change


def test_read_only_is_the_mounts_and_told_from_the_file_systems() -> None:
    here = Where(mountpoint="/data", fstype="ext4", options=("ro",), whole=("rw",))
    whole = structs.replace(here, options=("rw",), whole=("ro",))
    assert "mounted read-only here" in gate(denied(errno="EROFS", mount=here)).says
    assert "itself read-only" in gate(denied(errno="EROFS", mount=whole)).says
    root = structs.replace(here, mountpoint="/", fstype="overlay")
    change = judge(Window(seen=(denied(errno="EROFS", mount=root),))).cures[0].change
    assert change == Volume("/data")


def test_noexec_is_not_taken_for_a_mode() -> None:
    tmp = Where(mountpoint="/data", fstype="tmpfs", options=("rw", "noexec"), whole=("rw",))
    run = denied("execve", mount=tmp, way=way(step("/data", DIRECTORY | 0o777)))
    run = structs.replace(run, intent=intent("execve", (0,), "/data/file"))
    assert gate(run).option == "noexec"
    mapped = denied("mmap", "EPERM", mount=tmp, intent=intent("mmap", (0,), ""))
    assert gate(mapped).option == "noexec"


def test_immutable_binds_root_too() -> None:
    file = structs.replace(step("/data/file", REGULAR | 0o644, of=0), immutable=True)
    one = denied(errno="EPERM", way=way(step("/data", DIRECTORY | 0o755), file), uid=0)
    assert gate(one).name == "attribute"


def test_a_device_that_owner_and_mode_allow() -> None:
    node = step("/data/file", DEVICE | 0o666)
    one = denied(errno="EPERM", way=way(step("/data", DIRECTORY | 0o755), node))
    assert gate(structs.replace(one, device_allowed=False)).certain
    assert gate(structs.replace(one, device_allowed=True)).name == "unknown"


def test_a_profile_is_blamed_only_when_all_else_allows() -> None:
    mine = way(step("/data", DIRECTORY | 0o777), missing="file")
    one = denied(way=mine, label="docker-default (enforce)")
    finding = judge(Window(seen=(one,)))
    assert finding.certainty is Certainty.LIKELY
    assert "docker-default" in finding.summary
    assert gate(structs.replace(one, label="unconfined")).name == "unknown"


def test_a_server_decides_for_itself() -> None:
    nfs = Where(mountpoint="/data", fstype="nfs4", options=("rw",), whole=("rw",))
    stopped = Way(steps=(ROOT,), stopped="/data is nfs4: it decides itself", path="/data/file")
    assert gate(denied(mount=nfs, way=stopped, uid=0)).name == "file system"


@pytest.mark.parametrize(
    ("one", "harmless"),
    [
        (denied(made_good=1), True),
        (denied(times=2, made_good=1), False),
        (denied("setpriority", path=None, said=""), True),
        (denied("setpriority", path=None, said="", failed=1, calls_to_end=12, status=1), False),
        (denied("setpriority", path=None, said="", failed=1, calls_to_end=61, status=1), True),
        (denied("access", intent=intent("access", (0, 2), "/x")), True),
        (denied("kill", arguments=(1, 0)), True),
        (denied("kill", arguments=(1, 9), path=None, said=""), False),
        (denied(path="/app/__pycache__/x.pyc"), True),
        (denied(how="trapped"), False),
    ],
)
def test_what_is_no_trouble(one: Denied, harmless: bool) -> None:
    assert (harm.harmless(one) is not None) is harmless
    verdict = judge(Window(seen=(one,))).verdict
    assert verdict is (Verdict.CLEAR if harmless else Verdict.FOUND)


@pytest.mark.parametrize("call", ["setpgid", "setsid"])
def test_a_leader_that_may_not_join_another_lacks_no_right(call: str) -> None:
    one = denied(call, "EPERM", path="", said="", way=None, times=606)
    assert harm.harmless(one) is not None
    assert harm.harmless(structs.replace(one, how="seccomp")) is None


def test_a_read_is_trouble_when_it_is_tried_again_or_fatal() -> None:
    reads = intent("openat", (0, 0, 0), "/data/file")
    one = denied(intent=reads)
    assert harm.harmless(one) is not None
    assert harm.harmless(structs.replace(one, times=2)) is None
    assert harm.harmless(structs.replace(one, failed=1, calls_to_end=300, status=1)) is None
    private = structs.replace(one, times=2, path=f"{ROOT_HOME}/.config/rc")
    assert harm.harmless(private) is not None


def test_settings_in_roots_home_are_done_without_unless_it_ends_for_them() -> None:
    one = denied("mkdir", path=f"{ROOT_HOME}/.config", intent=intent("mkdir", (0,), ""), times=6)
    assert harm.harmless(one) is not None
    assert harm.harmless(structs.replace(one, failed=1, calls_to_end=9, status=1)) is None
    assert harm.harmless(structs.replace(one, uid=0)) is None


def test_the_last_refusal_before_the_end_is_the_one_that_decides() -> None:
    ends = {"failed": 1, "calls_to_end": 9, "status": 32}
    first = denied("setuid", "EPERM", path=None, said="", capabilities=1 << 7, times=3, **ends)
    last = denied("mount", "EPERM", path="/mnt", capabilities=1 << 21, last=True, **ends)
    assert "was refused mount of /mnt" in judge(Window(seen=(first, last))).summary


def test_what_cannot_be_done_comes_before_what_cannot_be_read() -> None:
    read = denied(intent=intent("openat", (0, 0, 0), "/etc/shadow"), path="/etc/shadow", times=9)
    finding = judge(Window(seen=(read, denied(way=IN_ROOTS))))
    assert "openat of /data/file" in finding.summary
    assert "Refused as well: openat of /etc/shadow" in finding.summary


def test_an_access_list_has_the_word_of_the_group() -> None:
    entries = [(0x01, 7, 0), (0x02, 6, 1000), (0x04, 5, 0), (0x10, 5, 0), (0x20, 1, 0)]
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *one) for one in entries)
    assert permitted(0o751, 0, 0, Who(uid=1000, gid=1000), acl) == R
    assert permitted(0o751, 0, 0, Who(uid=7, gid=0), acl) == R | X
    assert permitted(0o751, 0, 0, Who(uid=7, gid=7), acl) == X


def test_ids_that_a_call_names() -> None:
    assert ids_of("fchownat", (0, 0, 70000, 0xFFFFFFFF, 0, 0)) == (70000,)
    assert ids_of("setresuid", (1, 2, 0xFFFFFFFF)) == (1, 2)


def test_what_a_call_wants() -> None:
    assert intent("openat", (0, 0, 0o1101), "/x").of_parent == W | X
    assert intent("openat", (0, 0, 0o200000), "/x").what == "list"
    assert intent("unlink", (0,), "/x").what == "remove"
