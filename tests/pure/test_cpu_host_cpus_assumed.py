"""cpu/host_cpus_assumed judged on literal observations, and how programs are recognised."""

import os
import re
import struct
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from whybox import cases
from whybox.cases.cpu.host_cpus_assumed.probe import Observation, judge
from whybox.change import CpuQuota, InProgram
from whybox.kernel import sizing
from whybox.kernel.cpustops import Stops
from whybox.kernel.cpuwait import Thread
from whybox.kernel.host import Host
from whybox.kernel.sizing import Program
from whybox.kernel.teams import Team
from whybox.model import Certainty, Finding, Severity, Verdict, with_consequences

WINDOW_NS = 2_000_000_000

PLAIN = Program(pid=7, ppid=1, comm="app")
GO = structs.replace(PLAIN, runtime="Go", version="go1.22.4", why="/proc/7/exe: the note")


def team(
    size: int, leader: Program = PLAIN, *, wanted: float = 1.0, processes: bool = False
) -> Team:
    """Each wanted this share of the window."""
    return Team(
        processes=processes,
        size=size,
        leader=leader,
        wanted_ns=int(size * wanted * WINDOW_NS),
    )


def seen(
    *teams: Team,
    cores: float | None = 1.0,
    throttled: int = 20,
    online: int = 2,
    allowed: int | None = None,
    waited: float = 0.5,
) -> Observation:
    """Two seconds; each of two threads waited for this share of them."""
    threads = tuple(
        Thread(
            tid=n, run_ns=int((1 - waited) * WINDOW_NS), wait_ns=int(waited * WINDOW_NS), comm="app"
        )
        for n in range(2)
    )
    quota = Stops(
        path="/docker/x",
        file="cpu.stat",
        periods=20,
        throttled=throttled,
        stopped_usec=throttled * 50_000,
        quota_usec=round((cores or 0) * 100_000),
        period_usec=100_000,
    )
    return Observation(
        elapsed_ns=WINDOW_NS,
        group="/docker/x",
        levels=() if cores is None else (quota,),
        threads=threads,
        teams=teams,
        used_ns=WINDOW_NS,
        online=online,
        allowed=allowed,
    )


def test_as_many_threads_as_cpus_in_a_quota_for_fewer_are_likely_sized_by_them() -> None:
    finding = judge(seen(team(2)))
    assert (finding.verdict, finding.certainty) == (Verdict.FOUND, Certainty.LIKELY)
    assert finding.severity is Severity.CRITICAL
    assert "2 threads of app (pid 7) want to run at once on 2 CPUs" in finding.summary
    assert "pays for 1.00; together they were stopped in 20 of 20 periods" in finding.summary
    assert isinstance(finding.cures[0].change, InProgram)
    assert finding.cures[1].change == CpuQuota(2.0)


def test_workers_beside_which_others_want_most_of_it_are_not_the_cause() -> None:
    """As measured: nginx has as many workers as there are CPUs, and a loop of curl spends all."""
    nginx = structs.replace(PLAIN, comm="nginx", runtime="nginx", why="/proc/7/exe: nginx")
    workers = team(2, nginx, wanted=0.2, processes=True)
    assert judge(seen(workers, cores=0.3)).verdict is Verdict.CLEAR
    two = structs.replace(workers, leader=structs.replace(nginx, pid=8), wanted_ns=2 * WINDOW_NS)
    assert judge(seen(workers, two, cores=0.3)).verdict is Verdict.FOUND


def test_what_came_and_went_is_most_of_a_build() -> None:
    short = structs.replace(seen(team(2, wanted=0.6)), used_ns=9 * WINDOW_NS)
    assert judge(short).verdict is Verdict.CLEAR
    make = structs.replace(PLAIN, comm="make", runtime="make", why="/proc/7/exe: make")
    assert (
        judge(structs.replace(short, teams=(team(2, make, wanted=1.2),))).verdict is Verdict.FOUND
    )


def test_a_known_runtime_is_sure_and_its_knob_is_named() -> None:
    finding = judge(seen(team(5, GO, wanted=0.4), cores=2.0, online=4))
    assert finding.certainty is Certainty.CONFIRMED
    assert "go1.22.4" in finding.summary
    assert "GOMAXPROCS=2" in finding.cures[0].advice
    assert any("no GOMAXPROCS" in one.says for one in finding.evidence)


def test_a_knob_that_somebody_turned_is_told_as_it_stands() -> None:
    leader = structs.replace(GO, setting="GOMAXPROCS=8", number=8)
    assert "GOMAXPROCS=8" in str(judge(seen(team(8, leader))).evidence)


def test_go_that_reads_the_quota_is_not_accused() -> None:
    leader = structs.replace(GO, version="go1.25.1")
    assert judge(seen(team(2, leader), cores=0.5)).verdict is Verdict.CLEAR
    assert judge(seen(team(16, leader), cores=0.5, online=16)).verdict is Verdict.FOUND


def test_a_jvm_that_reads_the_quota_is_not_accused_of_one_helper() -> None:
    leader = structs.replace(PLAIN, runtime="JVM", why="/proc/7/maps: libjvm.so")
    assert judge(seen(team(2, leader))).verdict is Verdict.CLEAR
    told = structs.replace(leader, setting="-XX:-UseContainerSupport")
    assert judge(seen(team(2, told))).verdict is Verdict.FOUND
    assert judge(seen(team(16, leader), online=16)).verdict is Verdict.FOUND


def test_threads_that_were_not_stopped_are_no_finding() -> None:
    assert judge(seen(team(64, GO), throttled=0, online=64)).verdict is Verdict.CLEAR


def test_one_thread_that_wants_more_is_its_quota_alone() -> None:
    assert judge(seen(team(1), cores=0.5)).verdict is Verdict.CLEAR
    assert judge(seen(team(1, GO), cores=0.5, online=1)).verdict is Verdict.CLEAR


def test_no_more_threads_than_the_quota_has_cores_are_not_too_many() -> None:
    assert judge(seen(team(2), cores=1.5)).verdict is Verdict.CLEAR


@pytest.mark.parametrize("size", [3, 5, 20])
def test_a_number_that_is_not_the_cpus_speaks_for_nothing(size: int) -> None:
    assert judge(seen(team(size))).verdict is Verdict.CLEAR


def test_peaks_of_two_on_two_cpus_may_be_chance_and_of_many_are_not() -> None:
    assert judge(seen(team(2, wanted=0.3), cores=0.5)).verdict is Verdict.CLEAR
    assert judge(seen(team(16, wanted=0.3), cores=2.0, online=16)).verdict is Verdict.FOUND


def test_children_of_an_unknown_program_need_many_cpus_to_be_no_chance() -> None:
    assert judge(seen(team(2, processes=True))).verdict is Verdict.CLEAR
    assert judge(seen(team(16, processes=True), online=16)).verdict is Verdict.FOUND
    nginx = structs.replace(PLAIN, comm="nginx", runtime="nginx", why="/proc/7/exe: nginx")
    finding = judge(seen(team(2, nginx, processes=True)))
    assert "worker_processes 1;" in finding.cures[0].advice


def test_below_one_cpu_the_quota_comes_first() -> None:
    finding = judge(seen(team(2), cores=0.5))
    assert finding.cures[0].change == CpuQuota(2.0)
    assert isinstance(finding.cures[1].change, InProgram)


def test_a_cpuset_accuses_only_who_is_known_to_count_cpus() -> None:
    pool = structs.replace(
        PLAIN, runtime="Python multiprocessing", why="/proc/7/maps: _multiprocessing"
    )
    squeezed = seen(team(2, pool, processes=True), cores=None, allowed=1)
    finding = judge(squeezed)
    assert finding.verdict is Verdict.FOUND
    assert "it may use 1;" in finding.summary
    assert "Pool(1)" in finding.cures[0].advice
    assert judge(seen(team(2), cores=None, allowed=1)).verdict is Verdict.CLEAR
    unhurt = seen(team(2, pool, processes=True), cores=None, allowed=1, waited=0.01)
    assert judge(unhurt).verdict is Verdict.CLEAR


def test_the_quota_of_a_parent_is_named_and_raised_there() -> None:
    own = seen(team(2))
    parent = tuple(structs.replace(level, path="/pod") for level in own.levels)
    finding = judge(structs.replace(own, levels=parent))
    assert "the quota of /pod pays for 1.00" in finding.summary
    assert finding.cures[1].change == CpuQuota(2.0, cgroup="/pod")


def test_no_limit_is_clear_and_a_window_too_short_is_unknown() -> None:
    assert judge(seen(team(2), cores=None)).verdict is Verdict.CLEAR
    assert judge(structs.replace(seen(), elapsed_ns=10**8)).verdict is Verdict.UNKNOWN
    assert judge(seen()).verdict is Verdict.CLEAR


def test_being_throttled_is_its_consequence() -> None:
    cause = judge(seen(team(2))).of("cpu/host_cpus_assumed")
    seen_too = Finding(verdict=Verdict.FOUND, summary="", case="cpu/throttled")
    known = {name: cases.load(name) for name in ("cpu/throttled", "cpu/host_cpus_assumed")}
    both = with_consequences((seen_too, cause), known)
    assert both[0].explained_by == "cpu/host_cpus_assumed"
    assert both[1].explained_by is None


def test_an_observation_survives_being_kept() -> None:
    before = seen(team(2, GO))
    assert msgspec.json.decode(msgspec.json.encode(before), type=Observation) == before


def process(
    root: Path, *, exe: str = "app", maps: str = "", cmdline: bytes = b"app\0", environ: bytes = b""
) -> Host:
    """A process 7 as a tree of files."""
    there = root / "proc/7"
    (there / "task/7").mkdir(parents=True)
    stat = b"7 (a\x1bpp) S 1 7 7 0 -1 64 0 0 0 0 5 6 0 0 20 0 1 0 99" + b" 0" * 30
    (there / "stat").write_bytes(stat)
    (there / "maps").write_text(maps)
    (there / "cmdline").write_bytes(cmdline)
    (there / "environ").write_bytes(environ)
    (root / "bin").mkdir(exist_ok=True)
    (root / "bin" / exe).write_bytes(b"")
    os.symlink(root / "bin" / exe, there / "exe")
    return Host(str(root))


LINE = "7f0-7f1 r-xp 00000000 fe:00 42      "


@pytest.mark.parametrize(
    ("files", "runtime"),
    [
        (["/opt/jdk/lib/server/libjvm.so"], "JVM"),
        (["/usr/lib/libgomp.so.1.0.0"], "OpenMP"),
        (["/usr/lib/llvm/libomp.so.5"], "OpenMP"),
        (["/x/numpy.libs/libgomp-a34b3233.so.1"], "OpenMP"),
        (["/x/libscipy_openblas64_-99b.so"], "OpenBLAS"),
        (
            ["/x/_multiprocessing.cpython-311.so", "/dev/shm/sem.Xy (deleted)"],
            "Python multiprocessing",
        ),
        (["/x/_multiprocessing.cpython-311.so"], None),
        (["/usr/lib/libc.so.6", "/evil/libjvm.sox/y"], None),
    ],
)
def test_a_runtime_is_known_by_what_is_mapped(
    tmp_path: Path, files: list[str], runtime: str | None
) -> None:
    host = process(tmp_path, maps="".join(f"{LINE}{file}\n" for file in files))
    found = sizing.program(host, 7)
    assert found is not None
    assert found.runtime == runtime
    assert found.comm == "a\\x1bpp"


def test_knobs_are_read_where_they_are_set(tmp_path: Path) -> None:
    jvm = process(
        tmp_path / "a",
        maps=f"{LINE}/x/libjvm.so\n",
        environ=b"JAVA_TOOL_OPTIONS=-Xmx1g -XX:ActiveProcessorCount=6\0SECRET=x\0",
    )
    found = sizing.program(jvm, 7)
    assert found is not None
    assert (found.setting, found.number) == ("-XX:ActiveProcessorCount=6", 6)
    make = process(tmp_path / "b", exe="make", cmdline=b"\0".join((b"make", b"-j", b"16", b"all")))
    found = sizing.program(make, 7)
    assert found is not None
    assert (found.runtime, found.setting, found.number) == ("make", "-j 16", 16)
    node = process(tmp_path / "c", exe="node", environ=b"UV_THREADPOOL_SIZE=\x1b[31m12\0")
    found = sizing.program(node, 7)
    assert found is not None
    assert found.setting == "UV_THREADPOOL_SIZE=\\x1b[31m12"


def test_a_process_with_a_blocked_thread_is_not_looked_into(tmp_path: Path) -> None:
    host = process(tmp_path, exe="node")
    blocked = (tmp_path / "proc/7/stat").read_bytes().replace(b") S ", b") D ")
    (tmp_path / "proc/7/stat").write_bytes(blocked)
    found = sizing.program(host, 7)
    assert found is not None
    assert found.runtime is None


def go_file() -> bytes:
    """The least that has a note of Go's and its version, as the linker lays them out."""
    note = struct.pack("<III", 4, 4, 4) + b"Go\0\0abcd"
    data = b"\xff Go buildinf:\x08\x02" + b"\0" * 16 + b"\x08go1.22.4"
    head = b"\x7fELF\x02\x01" + b"\0" * 26 + struct.pack("<QQIHHHHHH", 64, 0, 0, 64, 56, 2, 0, 0, 0)
    segments = struct.pack("<IIQ", 4, 4, 176) + b"\0" * 40
    segments += struct.pack("<IIQ", 1, 6, 176 + len(note)) + b"\0" * 40
    return head + segments + note + data


def test_go_is_known_by_the_note_of_its_linker(tmp_path: Path) -> None:
    host = process(tmp_path)
    (tmp_path / "bin/app").write_bytes(go_file())
    found = sizing.program(host, 7)
    assert found is not None
    assert (found.runtime, found.version) == ("Go", "go1.22.4")


@given(st.binary(max_size=400), st.integers(0, 250))
def test_a_broken_program_harms_nobody(junk: bytes, at: int) -> None:
    whole = go_file()
    path = f"/proc/self/fd/{os.memfd_create('elf')}"
    descriptor = int(path.rpartition("/")[2])
    try:
        os.write(descriptor, whole[:at] + junk + whole[at + len(junk) :])
        version = sizing.built_with(path)
        assert version is None or re.fullmatch(r"go[\w.]*", version)
    finally:
        os.close(descriptor)
