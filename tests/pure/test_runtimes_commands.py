"""A change in the words of each runtime: every change, every runtime, lines fit for a shell."""

import shlex
from pathlib import Path
from typing import get_args

import pytest
from msgspec import structs

from tests.pure.changes import (
    CHANGES,
    NO_FILE,
    PATHS,
    SAID_BY_NO_COMMAND,
    SAMPLES,
    SILENT,
    WRITES_FILES,
    machine,
    target,
    v1,
    v2,
)
from tests.pure.runtimes_tree import V1, V2, A
from whybox import change
from whybox.change import Change
from whybox.kernel.host import Host
from whybox.kernel.target import Target
from whybox.model import Cost, Cure, Diagnosis, Finding, Report, Safety, Verdict
from whybox.runtimes.commands import commands, with_commands, word

__all__ = ["v1", "v2"]  # fixtures


def test_there_is_a_sample_of_every_change() -> None:
    assert set(SAMPLES) == set(get_args(Change))


@pytest.mark.parametrize("kind", PATHS)
@pytest.mark.parametrize("one", CHANGES, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("mountinfo", [V1, V2], ids=["v1", "v2"])
def test_every_runtime_says_every_change_in_lines_that_a_shell_can_read(
    tmp_path: Path, kind: str, one: Change, mountinfo: str
) -> None:
    lines = commands(target(kind, mountinfo), one, machine(tmp_path, mountinfo))
    if kind in ("docker", "podman", "kubernetes") and not isinstance(one, NO_FILE[mountinfo]):
        assert bool(lines) != isinstance(one, (*SAID_BY_NO_COMMAND, *SILENT[kind]))
    for line in lines:
        assert shlex.split(line)
        assert "\n" not in line


def test_podman_says_it_with_its_own_name(v2: Host) -> None:
    said = commands(target("podman"), change.CpuQuota(1.5), v2)
    assert said == ("podman update --cpus 1.5 4f1caaaaaaaa",)
    said = commands(target("podman"), change.WithUserNamespace(), v2)
    assert said == ("podman run --userns=auto … --name web nginx:1",)


@pytest.mark.parametrize(
    ("swap", "expected"),
    [("0", "128m"), (f"{64 << 20}", "192m"), ("max", "-1"), ("1024", "131073k")],
)
def test_docker_keeps_what_may_be_swapped(tmp_path: Path, swap: str, expected: str) -> None:
    host = machine(tmp_path)
    (tmp_path / f"sys/fs/cgroup/docker/{A}/memory.swap.max").write_text(swap + "\n")
    (line,) = commands(target("docker"), change.MemoryLimit(128 << 20), host)
    assert line == f"docker update --memory 128m --memory-swap {expected} 4f1caaaaaaaa"


def test_the_memory_of_a_dead_container_is_the_sum_too(v2: Host) -> None:
    gone = Target(id=A, name="web", runtime="docker", init=None, cgroups={"": "/docker/gone"})
    (line,) = commands(gone, change.MemoryLimit(1000), v2)
    assert line == "docker update --memory 1000b --memory-swap 1000b 4f1caaaaaaaa"
    assert commands(gone, change.LinkUp("eth0"), v2) == ()


@pytest.mark.parametrize("kind", WRITES_FILES)
def test_without_an_engine_the_file_of_v2_is_written(v2: Host, kind: str) -> None:
    directory = f"/sys/fs/cgroup{PATHS[kind]}"
    expected: dict[Change, str] = {
        change.CpuQuota(0.9): f"echo 90000 > {shlex.quote(directory + '/cpu.max')}",
        change.CpuQuota(None): f"echo max > {shlex.quote(directory + '/cpu.max')}",
        change.CpuBurst(5): f"echo 5 > {shlex.quote(directory + '/cpu.max.burst')}",
        change.MemoryLimit(9): f"echo 9 > {shlex.quote(directory + '/memory.max')}",
    }
    assert {one: commands(target(kind), one, v2) for one in expected} == {
        one: (line,) for one, line in expected.items()
    }


@pytest.mark.parametrize("kind", WRITES_FILES)
def test_without_an_engine_the_file_of_v1_is_written(v1: Host, kind: str) -> None:
    cpu = f"/sys/fs/cgroup/cpu{PATHS[kind]}"
    expected: dict[Change, str] = {
        change.CpuQuota(0.9): f"echo 90000 > {shlex.quote(cpu + '/cpu.cfs_quota_us')}",
        change.CpuQuota(None): f"echo -1 > {shlex.quote(cpu + '/cpu.cfs_quota_us')}",
        change.CpuBurst(5): f"echo 5 > {shlex.quote(cpu + '/cpu.cfs_burst_us')}",
    }
    assert {one: commands(target(kind, V1), one, v1) for one in expected} == {
        one: (line,) for one, line in expected.items()
    }


def test_a_quota_is_a_share_of_the_period_that_is_set(tmp_path: Path) -> None:
    host = machine(tmp_path)
    (tmp_path / "sys/fs/cgroup/whybox-demo/cpu.max").write_text("max 20000\n")
    (line,) = commands(target("whybox"), change.CpuQuota(0.5), host)
    assert line == "echo 10000 > /sys/fs/cgroup/whybox-demo/cpu.max"


@pytest.mark.parametrize(
    ("memory", "both", "written"),
    [
        (64 << 20, 64 << 20, [("memsw", 128 << 20), ("", 128 << 20)]),
        (64 << 20, 300 << 20, [("memsw", (128 + 236) << 20), ("", 128 << 20)]),
        (256 << 20, 256 << 20, [("", 128 << 20)]),
        (64 << 20, 0x7FFFFFFFFFFFF000, [("", 128 << 20)]),
    ],
)
def test_v1_raises_memory_and_swap_before_memory(
    tmp_path: Path, memory: int, both: int, written: list[tuple[str, int]]
) -> None:
    host = machine(tmp_path, V1)
    group = "sys/fs/cgroup/memory/whybox-demo"
    (tmp_path / group / "memory.limit_in_bytes").write_text(f"{memory}\n")
    (tmp_path / group / "memory.memsw.limit_in_bytes").write_text(f"{both}\n")
    assert commands(target("whybox", V1), change.MemoryLimit(128 << 20), host) == tuple(
        f"echo {size} > /{group}/memory.{'memsw.' if name else ''}limit_in_bytes"
        for name, size in written
    )


def test_an_ancestors_limit_is_written_where_it_is(v2: Host, tmp_path: Path) -> None:
    for one, name, value in (
        (change.CpuQuota(2, cgroup="/docker"), "cpu.max", 200_000),
        (change.MemoryLimit(4096, cgroup="/docker"), "memory.max", 4096),
    ):
        expected = (f"echo {value} > /sys/fs/cgroup/docker/{name}",)
        assert commands(target("docker"), one, v2) == expected


def test_a_parameter_of_a_dead_containers_namespace_is_for_the_next_one(v2: Host) -> None:
    gone = structs.replace(target("docker"), init=None)
    said = commands(gone, change.Sysctl("kernel.shmmni", "9"), v2)
    assert said == ("docker run --sysctl kernel.shmmni=9 … --name web nginx:1",)


def test_reservations_are_raised_with_the_limit_on_huge_pages(v2: Host) -> None:
    one = change.HugepageLimit(8 << 20, 2 << 20, reserved=True)
    first, second = commands(target("docker"), one, v2)
    assert first.endswith("hugetlb.2MB.rsvd.max")
    assert second.endswith("hugetlb.2MB.max")


def test_a_group_that_is_not_there_is_not_written(v2: Host) -> None:
    assert commands(target("docker"), change.MemoryLimit(4096, cgroup="/nobody"), v2) == ()


def test_from_inside_only_the_network_can_be_changed(v2: Host) -> None:
    said = {type(one): commands(target("self"), one, v2) for one in CHANGES}
    assert said[change.LinkUp] == ("ip link set eth0 up",)
    assert said[change.MemoryLimit] == said[change.CpuQuota] == said[change.WithInit] == ()
    assert said[change.PidsLimit] == said[change.OpenFiles] == ()


def test_a_hostile_name_stays_one_word_and_harmless(v2: Host) -> None:
    nasty = "x; rm -rf /\x1b[31m'"
    (line,) = commands(target("docker"), change.LinkUp(nasty), v2)
    assert line == r"nsenter -t 7 -n ip link set $'x; rm -rf /\x1b[31m\'' up"


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("docker", "web"),
        ("kubernetes", "4f1caaaaaaaa"),
        ("systemd", "unit://app.service"),
        ("cgroup", "cgroup:///my group"),
        ("self", "self"),
    ],
)
def test_the_word_for_a_target_is_one_that_resolves(kind: str, expected: str) -> None:
    who = target(kind)
    if kind == "kubernetes":
        who = Target(id=A, name=A, runtime="containerd", init=None, cgroups=who.cgroups)
    assert word(who) == expected


def test_a_report_gets_commands_and_a_way_to_verify(v2: Host) -> None:
    cures = (
        Cure(advice="More.", safety=Safety.LOW_RISK, change=change.CpuQuota(0.9)),
        Cure(advice="Less.", safety=Safety.INSPECT),
        Cure(advice="Own.", safety=Safety.INSPECT, commands=("true",), verify="false"),
    )
    finding = Finding(
        verdict=Verdict.FOUND, case="cpu/throttled", summary="It is slow.", cures=cures
    )
    report = Report(
        version="0",
        window_seconds=1.0,
        cost=Cost(cpu_ms=0.0, reads=0),
        targets=(Diagnosis(target=target("docker"), findings=(finding,)),),
    )
    (filled,) = with_commands(report, v2).targets[0].findings
    verify = "whybox diagnose web --case cpu/throttled"
    assert [(cure.commands, cure.verify) for cure in filled.cures] == [
        (("docker update --cpus 0.9 4f1caaaaaaaa",), verify),
        ((), verify),
        (("true",), "false"),
    ]
