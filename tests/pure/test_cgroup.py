"""Control groups on small trees: v1, v2 and hybrid, from outside and from inside."""

from pathlib import Path

import pytest

from whybox.kernel import cgroup
from whybox.kernel.host import Host, ParseError

V1 = (
    "40 20 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
    "41 20 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)
UNIFIED = "42 20 0:32 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n"
PATHS = {"cpu": "/docker/x", "cpuacct": "/docker/x", "memory": "/above/docker/x", "": "/docker/x"}


def host(root: Path, mountinfo: str) -> Host:
    """A machine with these mounts."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/mountinfo").write_text(mountinfo)
    return Host(str(root))


def test_each_controller_has_its_own_path(tmp_path: Path) -> None:
    machine = host(tmp_path, V1)
    cpu = cgroup.group(machine, PATHS, "cpu")
    memory = cgroup.group(machine, PATHS, "memory")
    assert cpu is not None
    assert memory is not None
    assert cpu.directory == "/sys/fs/cgroup/cpu/docker/x"
    assert memory.directory == "/sys/fs/cgroup/memory/above/docker/x"


def test_on_a_hybrid_machine_a_v1_controller_stays_there_and_pressure_is_unified(
    tmp_path: Path,
) -> None:
    machine = host(tmp_path, V1 + UNIFIED)
    memory, unified = cgroup.group(machine, PATHS, "memory"), cgroup.unified(machine, PATHS)
    assert memory is not None
    assert unified is not None
    assert (memory.version, unified.version) == (1, 2)
    assert unified.directory == "/sys/fs/cgroup/unified/docker/x"


def test_a_controller_without_a_v1_tree_is_looked_for_in_the_unified_one(tmp_path: Path) -> None:
    pids = cgroup.group(host(tmp_path, V1 + UNIFIED), PATHS, "pids")
    assert pids is not None
    assert pids.version == 2


def test_inside_a_container_the_mount_shows_less_than_the_path_says(tmp_path: Path) -> None:
    inside = V1.replace(" / /sys/fs/cgroup/cpu ", " /docker/x /sys/fs/cgroup/cpu ")
    machine = host(tmp_path, inside)
    cpu = cgroup.group(machine, PATHS, "cpu")
    assert cpu is not None
    assert cpu.directory == "/sys/fs/cgroup/cpu"
    assert cpu.parent() is None
    assert cgroup.group(machine, {"cpu": "/docker/other"}, "cpu") is None
    assert cgroup.group(machine, {"cpu": "/../../y"}, "cpu") is None


def test_the_lineage_ends_at_the_root(tmp_path: Path) -> None:
    memory = cgroup.group(host(tmp_path, V1), PATHS, "memory")
    assert memory is not None
    paths = [group.path for group in memory.lineage()]
    assert paths == ["/above/docker/x", "/above/docker", "/above", "/"]


def test_members_are_those_of_nested_groups_too_and_a_deep_nest_is_no_crash(
    tmp_path: Path,
) -> None:
    machine = host(tmp_path, V1)
    place = tmp_path / "sys/fs/cgroup/cpu/docker/x"
    place.mkdir(parents=True)
    (place / "cgroup.procs").write_text("7\n3\n")
    nested = place
    for _ in range(1200):
        nested = nested / "n"
        nested.mkdir()
    (nested / "cgroup.procs").write_text("5\n")
    group = cgroup.group(machine, PATHS, "cpu")
    assert group is not None
    found = cgroup.members(machine, group)
    # What removes temporary directories calls itself for each level.
    (nested / "cgroup.procs").unlink()
    while nested != place:
        nested.rmdir()
        nested = nested.parent
    assert found == (3, 5, 7)


def test_a_line_that_is_no_membership_is_told_with_the_line() -> None:
    with pytest.raises(ParseError, match="nonsense"):
        cgroup.membership("nonsense")


def test_a_keyed_file_with_a_word_for_a_number_is_told() -> None:
    with pytest.raises(ParseError, match=r"cpu\.stat.*nr_periods many"):
        cgroup.keyed("cpu.stat", "nr_periods many")
