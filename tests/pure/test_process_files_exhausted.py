"""process/files_exhausted judged on literal observations, and its readers on small trees."""

import os
from pathlib import Path

import msgspec
import pytest

from whybox.cases.process.files_exhausted.probe import Observation, judge
from whybox.change import HostSysctl, InProgram, OpenFiles
from whybox.kernel import descriptors, rlimits
from whybox.kernel.descriptors import Kinds, Table
from whybox.kernel.host import Host
from whybox.kernel.inotify import Holder, Shortage
from whybox.kernel.task import TaskId
from whybox.model import Certainty, Severity, Verdict

SECOND_NS = 1_000_000_000


def table(
    count: int | None = 5,
    soft: int | None = 64,
    *,
    hard: int | None = 64,
    pid: int = 7,
    comm: str = "server",
    at_most: int = 0,
) -> Table:
    """One process."""
    return Table(
        id=TaskId(pid=pid, start_ticks=1),
        comm=comm,
        uid=1000,
        count=count,
        at_most=at_most,
        soft=soft,
        hard=hard,
    )


def kinds(
    *found: tuple[str, int], path: str | None = None, of_path: int = 0, close_wait: int = 0
) -> Kinds:
    """What they are."""
    return Kinds(
        looked_at=sum(n for _, n in found),
        kinds=found,
        path=path,
        of_path=of_path,
        close_wait=close_wait,
    )


def seen(*tables: Table, before: tuple[Table, ...] = (), **more: object) -> Observation:
    """Two seconds on a machine with room."""
    base = Observation(
        elapsed_ns=2 * SECOND_NS,
        processes=len(tables),
        before=before or tables,
        after=tables,
        file_nr=(1000, 100_000),
        nr_open=1_048_576,
    )
    return msgspec.structs.replace(base, **more)


def shortage(*holders: Holder, watches: bool = False) -> Shortage:
    """No room for uid 1000."""
    return Shortage(uid=1000, watches=watches, limit=128, holders=holders)


def holder(pid: int, instances: int, watches: int | None = None) -> Holder:
    """Somebody with inotify."""
    return Holder(
        pid=pid, comm=f"p{pid}", group=f"/docker/{pid}", instances=instances, watches=watches
    )


def test_full_is_critical_and_twice_as_many_are_allowed() -> None:
    finding = judge(seen(table(64), table(3, pid=8), kinds=kinds(("sockets", 60), ("pipes", 4))))
    assert (finding.verdict, finding.severity) == (Verdict.FOUND, Severity.CRITICAL)
    assert finding.certainty is Certainty.CONFIRMED
    assert "64 of 64 descriptors" in finding.summary
    assert "mostly sockets (60 of 64" in finding.summary
    assert finding.cures[0].change == OpenFiles(128)


@pytest.mark.parametrize(("count", "verdict"), [(121, Verdict.CLEAR), (122, Verdict.FOUND)])
def test_nearly_full_begins_at_95_percent_and_is_likely(count: int, verdict: Verdict) -> None:
    finding = judge(seen(table(count, 128, hard=128)))
    assert finding.verdict is verdict
    if verdict is Verdict.FOUND:
        assert (finding.certainty, finding.severity) == (Certainty.LIKELY, Severity.WARNING)


def test_a_low_limit_with_little_open_is_clear() -> None:
    finding = judge(seen(table(5, 64)))
    assert (finding.verdict, finding.summary) == (
        Verdict.CLEAR,
        "At most 5 of 64 descriptors are open, by server (pid 7).",
    )


def test_no_limit_at_all_is_clear() -> None:
    assert judge(seen(table(10**6, None, hard=None))).verdict is Verdict.CLEAR


@pytest.mark.parametrize("soft", [0, 1, 3])
def test_a_sandbox_that_forbade_itself_to_open_is_clear(soft: int) -> None:
    assert judge(seen(table(7, soft, hard=soft))).verdict is Verdict.CLEAR


def test_a_hard_limit_that_is_higher_is_not_lowered_and_is_told() -> None:
    finding = judge(seen(table(1024, 1024, hard=524_288)))
    assert finding.cures[0].change == OpenFiles(65_536)
    assert "itself, up to 524288" in finding.cures[0].advice
    finding = judge(seen(table(1024, 1024, hard=4096)))
    assert finding.cures[0].change == OpenFiles(4096)


def test_no_more_than_the_kernel_allows() -> None:
    finding = judge(seen(table(1_000_000, 1_000_000, hard=1_000_000)))
    assert finding.cures[0].change == OpenFiles(1_048_576)


@pytest.mark.parametrize(
    ("what", "says"),
    [
        (kinds(("files", 60), ("pipes", 4), path="/data/x", of_path=58), "holds /data/x open 58"),
        (kinds(("sockets", 64), close_wait=50), "50 sockets the other end is closed"),
        (kinds(("deleted files", 60), ("pipes", 4)), "60 of its files are deleted"),
    ],
)
def test_a_leak_is_mended_first(what: Kinds, says: str) -> None:
    finding = judge(seen(table(64), kinds=what))
    assert says in finding.cures[0].advice
    assert isinstance(finding.cures[0].change, InProgram)
    assert isinstance(finding.cures[1].change, OpenFiles)


def test_growth_is_of_the_same_process_and_gives_a_time() -> None:
    finding = judge(seen(table(80, 200, hard=200), before=(table(60, 200, hard=200),)))
    assert "20 more than 2.0 s before, full in 12 s at that pace" in finding.summary
    other = msgspec.structs.replace(table(60, 200), id=TaskId(pid=7, start_ticks=2))
    assert "more than" not in judge(seen(table(80, 200), before=(other,))).summary


def test_what_may_not_be_listed_is_unknown_only_where_it_could_be_full() -> None:
    finding = judge(seen(table(None, 1024, at_most=1024)))
    assert finding.verdict is Verdict.UNKNOWN
    assert "as root" in finding.summary
    assert judge(seen(table(None, 1024, at_most=256))).verdict is Verdict.CLEAR


def test_inotify_used_up_by_itself() -> None:
    finding = judge(
        seen(table(132, 32_768), shortages=(shortage(holder(7, 122), holder(8, 6)),), members=(7,))
    )
    assert (finding.verdict, finding.severity) == (Verdict.FOUND, Severity.WARNING)
    assert "122 are held here, 122 by p7 (pid 7)" in finding.summary
    assert finding.cures[0].change == HostSysctl("fs.inotify.max_user_instances", "256")
    assert "132 of 32768" in finding.ruled_out[0].because


def test_inotify_used_up_by_a_neighbour_is_the_neighbours() -> None:
    finding = judge(seen(table(), shortages=(shortage(holder(9, 128)),), members=(7,)))
    assert (finding.severity, finding.certainty) == (Severity.INFO, Certainty.LIKELY)
    assert "0 are held here; p9 (pid 9) in /docker/9 has 128" in finding.summary


def test_watches_are_another_error_and_another_parameter() -> None:
    short = shortage(holder(7, 1, 120), watches=True)
    finding = judge(seen(table(), shortages=(short,), members=(7,)))
    assert "ENOSPC" in finding.summary
    assert finding.cures[0].change == HostSysctl("fs.inotify.max_user_watches", "256")


def test_the_machines_table_is_the_machines() -> None:
    finding = judge(seen(table(), file_nr=(1000, 1000)))
    assert (finding.verdict, finding.severity) == (Verdict.FOUND, Severity.CRITICAL)
    assert "ENFILE" in finding.summary
    assert finding.cures[0].change == HostSysctl("fs.file-max", "2000")
    assert judge(seen(table(), file_nr=(949, 1000))).verdict is Verdict.CLEAR


def test_a_limit_of_its_own_comes_before_what_is_shared() -> None:
    finding = judge(seen(table(64), shortages=(shortage(holder(9, 128)),), members=(7,)))
    assert "64 of 64" in finding.summary
    assert not any(other.what == "inotify" for other in finding.ruled_out)


def test_a_hostile_name_is_only_text() -> None:
    hostile = "\x1b[31m) 9 (x"
    finding = judge(
        seen(table(64, comm=hostile), kinds=kinds(("files", 64), path="/\n", of_path=64))
    )
    assert hostile in finding.summary


def process(root: Path, pid: int, *, fdsize: int, soft: int, descriptors: int) -> None:
    """A process of a kernel that does not tell the number by the size."""
    folder = root / f"proc/{pid}"
    (folder / "fd").mkdir(parents=True)
    for number in range(descriptors):
        os.symlink(f"socket:[{number}]", folder / "fd" / str(number))
    numbers = " ".join(["0"] * 15 + ["20", "0", "1", "0", "99", "0", "0"])
    (folder / "stat").write_text(f"{pid} (a b) S 1 {numbers}")
    (folder / "status").write_text(f"Name:\ta b\nFDSize:\t{fdsize}\n")
    (folder / "limits").write_text(f"Max open files            {soft}      4096      files\n")


def test_before_6_2_only_a_table_that_could_be_full_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process(tmp_path, 7, fdsize=64, soft=1024, descriptors=60)
    process(tmp_path, 8, fdsize=64, soft=64, descriptors=64)
    monkeypatch.setattr(descriptors, "_sized", lambda _: False)
    few, full = descriptors.tables(Host(str(tmp_path)), (7, 8, 9))
    assert (few.count, few.at_most, few.may_be_full) == (None, 64, False)
    assert (full.count, full.share) == (64, 1.0)
    found = descriptors.kinds(Host(str(tmp_path)), 8)
    assert found is not None
    assert found.kinds == (("sockets", 64),)


def test_the_close_wait_sockets_of_a_process_are_told_by_their_inodes(tmp_path: Path) -> None:
    process(tmp_path, 8, fdsize=64, soft=64, descriptors=4)
    (tmp_path / "proc/8/net").mkdir()
    row = "   0: 0100007F:1F90 0100007F:C350 {} 0:0 00:0 0 1000 0 {} 1 0 100 0 0 10 0\n"
    (tmp_path / "proc/8/net/tcp").write_text(
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n"
        + row.format("08", 1)
        + row.format("01", 2)
        + row.format("08", 99)
    )
    found = descriptors.kinds(Host(str(tmp_path)), 8)
    assert found is not None
    assert found.close_wait == 1


def test_limits_are_parsed_and_unlimited_is_none() -> None:
    text = (
        "Limit                     Soft Limit           Hard Limit           Units     \n"
        "Max open files            1024                 unlimited            files     \n"
        "Max nice priority         0                    0                    \n"
        "garbage\n"
    )
    said = rlimits.parse(text)
    assert (said["Max open files"].soft, said["Max open files"].hard) == (1024, None)
    assert "Limit" not in said


def test_of_many_processes_those_with_the_most_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for pid in range(100, 200):
        process(tmp_path, pid, fdsize=32, soft=1024, descriptors=1)
    process(tmp_path, 200, fdsize=256, soft=256, descriptors=250)
    monkeypatch.setattr(descriptors, "_sized", lambda _: False)
    looked_at = descriptors.tables(Host(str(tmp_path)), tuple(range(100, 201)))
    assert len(looked_at) == descriptors.MOST_PROCESSES
    assert 250 in [one.count for one in looked_at]
