"""security/privileged_needlessly judged on literal observations, and its cures in every tongue."""

import json

import pytest
from msgspec import structs

from whybox.cases.security.privileged_needlessly.probe import judge
from whybox.change import Change, OnlyCapabilities, SeccompProfile
from whybox.kernel import capability, devicerules
from whybox.kernel.host import Host
from whybox.kernel.rights import Given, Rights, Used, worth_watching
from whybox.kernel.sensors import checks
from whybox.kernel.target import Target
from whybox.kernel.task import TaskId
from whybox.model import Certainty, Verdict
from whybox.runtimes.commands import commands

FULL = (1 << 41) - 1
CHOWN = Used(name="CHOWN", count=4, comm="app", call="chown", site="setattr_prepare")
SYS_ADMIN = Used(name="SYS_ADMIN", count=1, comm="app", call="mount", site="path_mount")
PRIVILEGED = Rights(
    init_pid=7,
    contained=True,
    user_namespace=False,
    held=FULL,
    bounding=FULL,
    holder="app (pid 7)",
    filtered=False,
    proc_sys_writable=True,
    used=(CHOWN,),
    calls=("chown", "mount", "fork (32-bit)"),
)


def holding(*names: str, used: tuple[Used, ...] = ()) -> Rights:
    held = capability.DEFAULT | capability.mask(names)
    return structs.replace(PRIVILEGED, held=held, used=used, filtered=True)


def test_everything_held_and_one_used() -> None:
    finding = judge(PRIVILEGED)
    assert finding.verdict is Verdict.FOUND
    assert finding.certainty is Certainty.LIKELY
    assert "27 capabilities beyond the ordinary" in finding.summary
    assert "used 1 of all that it holds (CHOWN)" in finding.summary
    assert "was not exercised" in finding.summary
    assert finding.cures[0].change == OnlyCapabilities(("CHOWN",))


def test_an_ordinary_container_is_clear_whatever_it_uses() -> None:
    ordinary = holding()
    assert judge(ordinary).verdict is Verdict.CLEAR
    assert judge(structs.replace(ordinary, held=0)).verdict is Verdict.CLEAR
    assert not worth_watching(ordinary)
    assert judge(structs.replace(ordinary, reason="no BPF")).verdict is Verdict.CLEAR


@pytest.mark.parametrize(
    ("names", "used", "verdict"),
    [
        (("SYS_ADMIN",), (), Verdict.FOUND),
        (("SYS_ADMIN",), (SYS_ADMIN,), Verdict.CLEAR),
        (("SYS_PTRACE", "SYS_ADMIN"), (SYS_ADMIN,), Verdict.FOUND),
        (("NET_ADMIN", "SYS_NICE", "IPC_LOCK", "SYS_TIME"), (), Verdict.CLEAR),
        (("NET_ADMIN", "SYS_NICE", "IPC_LOCK", "SYS_TIME", "SYSLOG"), (), Verdict.FOUND),
    ],
)
def test_what_leads_out_or_is_much_and_was_not_used(
    names: tuple[str, ...], used: tuple[Used, ...], verdict: Verdict
) -> None:
    assert judge(holding(*names, used=used)).verdict is verdict


def test_what_ends_at_a_user_namespace_is_clear() -> None:
    assert judge(structs.replace(PRIVILEGED, user_namespace=True)).verdict is Verdict.CLEAR


def test_a_process_of_the_hosts_is_no_container() -> None:
    assert judge(structs.replace(PRIVILEGED, contained=False)).verdict is Verdict.CLEAR


def test_use_that_cannot_be_watched_is_unknown() -> None:
    finding = judge(structs.replace(PRIVILEGED, reason="this kernel has no tracepoint"))
    assert finding.verdict is Verdict.UNKNOWN


def test_devices_and_mounts_that_were_used_are_kept_and_the_others_named() -> None:
    devices = (
        Given(what="/dev/fuse", of_host="10:229", used=2),
        Given(what="/dev/vda", of_host="254:0"),
    )
    mounts = (
        Given(what="/host", of_host="/", rules=True),
        Given(what="/data", of_host="/srv/data", used=3),
    )
    finding = judge(structs.replace(PRIVILEGED, devices=devices, mounts=mounts))
    assert "nor opened anything of /dev/vda, /host" in finding.summary
    assert finding.cures[0].change == OnlyCapabilities(("CHOWN",), ("/dev/fuse",))
    assert "it used: /data" in finding.cures[0].advice


def test_a_profile_has_the_calls_that_were_seen_and_those_of_a_start() -> None:
    change = judge(PRIVILEGED).cures[1].change
    assert isinstance(change, SeccompProfile)
    assert {"chown", "mount", "execve"} <= set(change.names)
    assert "fork (32-bit)" not in change.names


def said(change: Change, runtime: str, path: str = "/x/y.service") -> tuple[str, ...]:
    target = Target(
        id=path if runtime == "systemd" else "c" * 64,
        name="web",
        runtime=runtime,
        init=TaskId(pid=7, start_ticks=1),
        cgroups={"": path},
    )
    return commands(target, change, Host("/nonexistent"))


def test_the_smaller_set_in_every_tongue() -> None:
    change = OnlyCapabilities(("CHOWN", "NET_RAW"), ("/dev/fuse",))
    (docker,) = said(change, "docker")
    assert docker.startswith(
        "docker run --cap-drop ALL --cap-add CHOWN --cap-add NET_RAW --device /dev/fuse "
    )
    (unit,) = said(change, "systemd")
    assert "CapabilityBoundingSet=CAP_CHOWN CAP_NET_RAW" in unit
    (patch,) = said(change, "containerd", "/kubepods/pod1/c")
    assert '"capabilities":{"drop":["ALL"],"add":["CHOWN","NET_RAW"]}' in patch
    assert '"allowPrivilegeEscalation":false' in patch
    (admin,) = said(OnlyCapabilities(("SYS_ADMIN",)), "containerd", "/kubepods/pod1/c")
    assert "allowPrivilegeEscalation" not in admin


def test_a_profile_is_written_in_the_form_that_engines_read() -> None:
    written, run = said(SeccompProfile(("chown", "read")), "docker")
    profile = json.loads(written.removeprefix("echo '").rpartition("' > ")[0])
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    assert profile["syscalls"] == [{"names": ["chown", "read"], "action": "SCMP_ACT_ALLOW"}]
    assert "--security-opt seccomp=profile.json" in run


def test_devices_are_allowed_by_the_rules_of_v1() -> None:
    rules = devicerules.parse("c 1:* rw\nb 8:0 r")
    assert devicerules.permitted(rules, "c", 1, 9) == "rw"
    assert devicerules.permitted(rules, "b", 8, 0) == "r"
    assert devicerules.permitted(rules, "b", 1, 9) == ""


def test_more_containers_than_the_programs_tell_apart_are_refused() -> None:
    checks.told_apart(255)
    with pytest.raises(OSError, match="more than 255 containers"):
        checks.told_apart(256)
