"""The BPF layer without a kernel: what is built, whom a sensor watches, how values are cut."""

import io
from collections.abc import Mapping
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

import hatch_build
from whybox.kernel.bpf import scope
from whybox.kernel.bpf.maps import Map
from whybox.kernel.host import Host
from whybox.kernel.target import Target
from whybox.kernel.task import TaskId

PROGRAM = """\
#include "core.h"
SEC("tp_btf/sched_switch")
int on_switch(u64 *context)
{
	struct task_struct *next = (struct task_struct *)context[2];

	return next->pid == 77;
}
LICENSE_SECTION;
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> ELFFile:
    source = tmp_path_factory.mktemp("bpf") / "one.bpf.c"
    source.write_text(PROGRAM)
    (made,) = hatch_build.compile_all([source])
    return ELFFile(io.BytesIO(made.read_bytes()))


def test_an_object_keeps_its_types_and_loses_its_debugging_sections(compiled: ELFFile) -> None:
    sections = {section.name: section["sh_size"] for section in compiled.iter_sections()}
    assert sections[".BTF"] > 0
    assert sections[".BTF.ext"] > 0
    assert sections["tp_btf/sched_switch"] > 0
    assert not any(size for name, size in sections.items() if ".debug" in name)
    assert compiled.header["e_machine"] == "EM_BPF"


def test_symbols_still_name_their_sections(compiled: ELFFile) -> None:
    symbols = compiled.get_section_by_name(".symtab")
    assert isinstance(symbols, SymbolTableSection)
    found = symbols.get_symbol_by_name("on_switch")
    assert found is not None
    (function,) = found
    assert compiled.get_section(function["st_shndx"]).name == "tp_btf/sched_switch"


def test_what_is_built_is_not_built_again(tmp_path: Path) -> None:
    source = tmp_path / "one.bpf.c"
    source.write_text(PROGRAM)
    (made,) = hatch_build.compile_all([source])
    first = made.stat().st_mtime_ns
    hatch_build.compile_all([source])
    assert made.stat().st_mtime_ns == first
    source.write_text(PROGRAM + "\n")
    hatch_build.compile_all([source])
    assert made.stat().st_mtime_ns > first
    assert [file.name for file in tmp_path.iterdir() if file.suffix not in (".c", ".o")] == []


def target(cgroups: Mapping[str, str], **namespaces: int) -> Target:
    return Target(
        id="x",
        name="x",
        runtime="docker",
        init=TaskId(pid=7, start_ticks=1),
        cgroups=cgroups,
        namespaces=namespaces,
        host_namespaces={"pid": 1, "net": 2},
    )


def host(root: Path, mounts: str, *directories: str) -> Host:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/mountinfo").write_text(mounts)
    for directory in directories:
        (root / directory).mkdir(parents=True)
    return Host(str(root))


V2 = "30 1 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
V1 = (
    "30 1 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    "31 1 0:27 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n"
    "32 1 0:28 / /sys/fs/cgroup/cpuacct rw - cgroup cgroup rw,cpuacct\n"
)


def test_on_v2_a_container_is_told_by_its_group_and_level(tmp_path: Path) -> None:
    there = host(tmp_path, V2, "sys/fs/cgroup/a.slice/docker-1.scope")
    (mark,) = scope.marks(there, target({"": "/a.slice/docker-1.scope"}))
    inode = (tmp_path / "sys/fs/cgroup/a.slice/docker-1.scope").stat().st_ino
    assert (mark.kind, mark.id, mark.tree, mark.level) == (scope.CGROUP, inode, 0, 2)


def test_on_v1_it_is_told_in_the_tree_where_it_has_a_group(tmp_path: Path) -> None:
    there = host(tmp_path, V1, "sys/fs/cgroup/pids/docker/1")
    (mark,) = scope.marks(there, target({"pids": "/docker/1", "cpuacct": "/", "": "/"}))
    assert (mark.kind, mark.tree, mark.level) == (scope.CGROUP, scope.TREES["pids"], 2)


def test_without_a_group_it_is_told_by_its_pid_namespace(tmp_path: Path) -> None:
    there = host(tmp_path, V1)
    (mark,) = scope.marks(there, target({"pids": "/", "": "/"}, pid=77))
    assert (mark.kind, mark.id) == (scope.PIDNS, 77)


def test_with_nothing_of_its_own_it_is_one_process(tmp_path: Path) -> None:
    there = host(tmp_path, V1)
    (mark,) = scope.marks(there, target({"pids": "/", "": "/"}, pid=1))
    assert (mark.kind, mark.id) == (scope.PROCESS, 7)


def test_its_packets_are_told_by_a_network_of_its_own_alone(tmp_path: Path) -> None:
    there = host(tmp_path, V1)
    kinds = [m.kind for m in scope.marks(there, target({"": "/"}, pid=77, net=99))]
    assert kinds == [scope.PIDNS, scope.NETNS]
    kinds = [m.kind for m in scope.marks(there, target({"": "/"}, pid=77, net=2))]
    assert kinds == [scope.PIDNS]


def test_values_of_all_cpus_are_cut_at_whole_words() -> None:
    found = Map(fd=0, name="x", key_size=4, value_size=12, max_entries=1, percpu=True)
    assert found.split(bytes(range(32))) == (bytes(range(12)), bytes(range(16, 28)))
