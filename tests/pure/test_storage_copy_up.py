"""storage/copy_up judged on literal observations."""

import msgspec
import pytest

from whybox.cases.storage.copy_up.probe import Observation, judge
from whybox.change import InProgram, Volume
from whybox.kernel.copies import NOT_WATCHED, Call, Calls, told
from whybox.kernel.overlay import Overlay
from whybox.kernel.sensors.files import Copied, Done
from whybox.kernel.surplus import Writer, Written
from whybox.kernel.upper import CopiedUp, Upper, Watched
from whybox.model import Certainty, Finding, Severity, Verdict

MIB = 1 << 20
MS = 1_000_000
BEGAN_NS = 1_800_000_000_000_000_000
NOBODY = Written(wchar=0, surplus_bytes=0, writers=())
ROOT = Overlay(
    mountpoint="/",
    upperdir="/engine/1/diff",
    workdir="/engine/1/work",
    lowerdirs=("/engine/0/diff",),
    userxattr=False,
    volatile=False,
)


def copy(
    path: str = "data/big",
    *,
    size: int = 64 * MIB,
    lower: int | None = 64 * MIB,
    took_ms: float | None = 600,
    born_ns: int = BEGAN_NS + 700 * MS,
    metacopy: bool = False,
) -> CopiedUp:
    return CopiedUp(
        path=path,
        size_bytes=size,
        lower_bytes=lower,
        metacopy=metacopy,
        btime_ns=None if took_ms is None else born_ns,
        landed_ns=born_ns + int((took_ms or 0) * MS),
    )


def upper(*files: CopiedUp, free: int = 0, **more: object) -> Upper:
    base = Upper(began_ns=BEGAN_NS, count=len(files), files=files, free_bytes=free)
    return msgspec.structs.replace(base, **more)


def written(surplus: int, *, wchar: int = 1, copying: bool | None = False) -> Written:
    """One process in whose name so much was written, beside what it wrote itself."""
    writer = Writer(pid=7, comm="db", write_bytes=surplus + wchar, wchar=wchar, copying=copying)
    return Written(wchar=wchar, surplus_bytes=surplus, writers=(writer,))


def judged(
    *files: CopiedUp,
    by: Written = NOBODY,
    before: Upper | None = None,
    after: Upper | None = None,
    mount: Overlay = ROOT,
    reason: str | None = None,
    calls: Calls = NOT_WATCHED,
) -> Finding:
    watched = Watched(
        mount=mount,
        reason=reason,
        before=before or upper(),
        after=after or upper(*files),
    )
    return judge(
        Observation(init_pid=7, root_fstype="overlay", mounts=(watched,), written=by, calls=calls)
    )


def called(path: str = "/data/big", *, size: int = 64 * MIB) -> Calls:
    """One call that copied was seen."""
    call = Call(pid=9, comm="db", name="openat", path=path, took_ns=616 * MS, written_bytes=size)
    return Calls(seen=(call,))


def test_a_large_file_that_landed_in_the_window_is_found_with_its_numbers() -> None:
    finding = judged(copy(size=64 * MIB + 1), by=written(64 * MIB))
    assert finding.verdict is Verdict.FOUND
    assert (finding.severity, finding.certainty) == (Severity.WARNING, Certainty.CONFIRMED)
    assert "/data/big, 64 MiB in 0.60 s" in finding.summary
    (file, mount, account) = finding.evidence
    assert file.source == "/engine/1/diff/data/big"
    assert "trusted.overlay.origin is set, 67108864 bytes of the layer below" in file.says
    assert mount.source == "/proc/7/mountinfo"
    assert (account.source, "wchar +1" in account.says) == ("/proc/7/io", True)
    assert len(finding.ruled_out) == 3


def test_the_first_cure_is_a_volume_at_the_directory_of_the_file() -> None:
    cures = judged(copy(), by=written(64 * MIB)).cures
    assert cures[0].change == Volume("/data")
    assert all(cure.verify == "" and cure.commands == () for cure in cures)


def test_a_volume_holds_all_the_files_or_else_the_largest_ones_directory() -> None:
    near = judged(copy("data/a/x"), copy("data/b/y"), by=written(128 * MIB))
    far = judged(copy("data/x"), copy("srv/y"), by=written(128 * MIB))
    assert near.cures[0].change == Volume("/data")
    assert far.cures[0].change == Volume("/data")


def test_a_file_in_the_root_directory_cannot_be_cured_by_a_volume_there() -> None:
    assert isinstance(judged(copy("big"), by=written(64 * MIB)).cures[0].change, InProgram)


def test_a_file_below_another_overlay_mount_is_named_as_the_container_names_it() -> None:
    mount = msgspec.structs.replace(ROOT, mountpoint="/srv")
    finding = judged(copy(), by=written(64 * MIB), mount=mount)
    assert "/srv/data/big" in finding.summary
    assert finding.cures[0].change == Volume("/srv/data")


def test_a_copy_that_began_before_the_window_and_landed_in_it_counts() -> None:
    early = copy(born_ns=BEGAN_NS - 400 * MS)
    assert judged(early, by=written(30 * MIB)).verdict is Verdict.FOUND


@pytest.mark.parametrize(
    ("size", "took_ms", "verdict"),
    [
        (MIB, 20, Verdict.FOUND),
        (MIB - 1, 20, Verdict.CLEAR),
        (MIB, 19, Verdict.CLEAR),
        (16 * MIB, 19, Verdict.CLEAR),
    ],
)
def test_a_file_is_felt_from_1_mib_and_20_ms_on(
    size: int, took_ms: float, verdict: Verdict
) -> None:
    finding = judged(copy(size=size, lower=size, took_ms=took_ms), by=written(size))
    assert finding.verdict is verdict


def test_several_quick_copies_are_felt_from_16_mib_on() -> None:
    files = [copy(f"data/{n}", size=8 * MIB, lower=8 * MIB, took_ms=12) for n in range(2)]
    assert judged(*files, by=written(16 * MIB)).verdict is Verdict.FOUND
    assert judged(files[0], by=written(8 * MIB)).verdict is Verdict.CLEAR


def small(count: int) -> list[CopiedUp]:
    return [copy(f"many/{n}", size=100, lower=100, took_ms=1.2) for n in range(count)]


def test_more_than_100_small_files_are_a_storm() -> None:
    finding = judged(*small(101))
    assert finding.verdict is Verdict.FOUND
    assert finding.certainty is Certainty.CONFIRMED
    assert finding.summary.startswith("101 files of the image were copied up")
    assert judged(*small(100)).verdict is Verdict.CLEAR


def test_small_copies_that_are_not_synced_are_no_storm() -> None:
    volatile = msgspec.structs.replace(ROOT, volatile=True)
    assert judged(*small(300), mount=volatile).verdict is Verdict.CLEAR


def test_copies_before_the_window_are_history_and_the_sentence_says_so() -> None:
    old = copy(born_ns=BEGAN_NS - 12_000 * MS)
    finding = judged(before=upper(old))
    assert finding.verdict is Verdict.CLEAR
    assert "1 file of 64 MiB copied up before it, which was 12 s ago" in finding.summary


def test_a_file_that_was_only_small_below_was_not_copied_large() -> None:
    """A log of 100 bytes in the image, to which the program wrote 64 MiB itself."""
    finding = judged(copy(lower=100, took_ms=900), by=written(0, wchar=64 * MIB))
    assert finding.verdict is Verdict.CLEAR


def test_a_file_that_was_truncated_on_opening_and_written_anew_was_not_copied() -> None:
    rewritten = judged(copy(took_ms=700), by=Written(wchar=64 * MIB, surplus_bytes=0, writers=()))
    assert rewritten.verdict is Verdict.CLEAR
    assert "written anew" in rewritten.summary
    emptied = judged(copy(size=0, took_ms=30))
    assert emptied.verdict is Verdict.CLEAR


def test_a_file_in_its_place_at_once_was_truncated_by_somebody_who_ended() -> None:
    assert judged(copy(took_ms=8)).verdict is Verdict.CLEAR


def test_without_anybody_living_who_did_it_a_copy_is_likely() -> None:
    finding = judged(copy())
    assert (finding.verdict, finding.certainty) == (Verdict.FOUND, Certainty.LIKELY)


def test_a_copy_whose_call_was_seen_is_confirmed_though_nobody_lives_who_made_it() -> None:
    finding = judged(copy(), calls=called())
    assert (finding.verdict, finding.certainty) == (Verdict.FOUND, Certainty.CONFIRMED)
    (seen,) = [e for e in finding.evidence if e.source == "raw_syscalls:sys_exit"]
    assert seen.says == (
        "db 9: openat of /data/big took 616 ms, and had 67108864 bytes written that it did not give"
    )


def test_a_call_on_another_file_proves_nothing() -> None:
    finding = judged(copy(), calls=called("/data/other"))
    assert finding.certainty is Certainty.LIKELY
    assert not [e for e in finding.evidence if e.source == "raw_syscalls:sys_exit"]


def test_a_call_settles_whether_a_file_without_a_mark_is_a_copy() -> None:
    after = upper(unmarked=(copy(),))
    finding = judged(after=after, calls=called())
    assert (finding.verdict, finding.certainty) == (Verdict.FOUND, Certainty.CONFIRMED)
    assert judged(after=after, calls=called("/else")).verdict is Verdict.UNKNOWN


def test_a_call_below_another_overlay_mount_is_told_by_the_path_in_the_container() -> None:
    mount = msgspec.structs.replace(ROOT, mountpoint="/srv")
    finding = judged(copy(), mount=mount, calls=called("/srv/data/big"))
    assert finding.certainty is Certainty.CONFIRMED


def test_calls_are_harmless_to_print_and_the_largest_come_first() -> None:
    def one(path: str, size: int) -> Copied:
        done = Done(
            at_ns=1,
            took_ns=1,
            slot=1,
            pid=9,
            tid=9,
            comm="\x1bdb",
            call="openat",
            kind="open",
            path=path,
            error=None,
            read_bytes=0,
            written_bytes=size,
            copying_ns=0,
            truncated=False,
        )
        return Copied(done=done, bytes=size, exact=True)

    first, second = told([one("/a", 1), one("/b\n", 2)])
    assert (first.path, second.path, first.comm) == ("/b\\n", "/a", "\\x1bdb")


def test_a_copy_of_the_inode_alone_is_cheap() -> None:
    assert judged(copy(metacopy=True)).verdict is Verdict.CLEAR


def test_a_file_system_without_birth_times_leaves_the_size_to_judge_by() -> None:
    assert judged(copy(took_ms=None), by=written(64 * MIB)).verdict is Verdict.FOUND
    little = copy(size=4 * MIB, lower=4 * MIB, took_ms=None)
    assert judged(little, by=written(4 * MIB)).verdict is Verdict.CLEAR


def test_an_unmarked_file_over_one_with_several_names_is_unknown_without_an_account() -> None:
    after = upper(unmarked=(copy(),))
    finding = judged(after=after)
    assert finding.verdict is Verdict.UNKNOWN
    assert "several names" in finding.summary
    assert judged(after=after, by=written(64 * MIB)).verdict is Verdict.FOUND


def test_a_copy_under_way_at_the_end_is_found_by_the_stack() -> None:
    finding = judged(by=written(300 * MIB, copying=True))
    assert finding.verdict is Verdict.FOUND
    assert "db, 300 MiB so far" in finding.summary
    assert finding.evidence[0].source == "/proc/7/task/*/stack"


def test_a_stack_that_shows_nothing_leaves_it_unknown_while_the_disk_fills() -> None:
    finding = judged(
        by=written(300 * MIB), before=upper(free=900 * MIB), after=upper(free=600 * MIB)
    )
    assert finding.verdict is Verdict.UNKNOWN
    assert "--window" in finding.summary


def test_writing_to_a_mapping_is_no_copy() -> None:
    """Its pages are charged as a copy's are, but no new blocks are taken."""
    assert judged(by=written(300 * MIB)).verdict is Verdict.CLEAR


def test_what_was_not_seen_whole_is_unknown() -> None:
    finding = judged(after=upper(incomplete="it holds more than 50000 entries"))
    assert finding.verdict is Verdict.UNKNOWN
    assert "50000" in finding.summary


def test_a_copy_is_found_even_where_not_all_was_seen() -> None:
    after = upper(copy(), incomplete="it holds more than 50000 entries")
    assert judged(after=after, by=written(64 * MIB)).verdict is Verdict.FOUND


def test_an_upper_directory_out_of_sight_is_unknown_with_its_reason() -> None:
    finding = judged(reason="its upper directory /x cannot be seen from here")
    assert (finding.verdict, "cannot be seen" in finding.summary) == (Verdict.UNKNOWN, True)


def test_a_window_without_length_is_unknown() -> None:
    watched = Watched(mount=ROOT, before=upper())
    seen = Observation(init_pid=7, root_fstype="overlay", mounts=(watched,), written=NOBODY)
    assert judge(seen).verdict is Verdict.UNKNOWN
    assert "--window" in judge(seen).summary


@pytest.mark.parametrize(
    ("fstype", "verdict"),
    [("ext4", Verdict.CLEAR), ("fuse.fuse-overlayfs", Verdict.UNKNOWN), (None, Verdict.UNKNOWN)],
)
def test_without_an_overlay_mount_the_root_decides(fstype: str | None, verdict: Verdict) -> None:
    seen = Observation(init_pid=7, root_fstype=fstype, mounts=(), written=NOBODY)
    assert judge(seen).verdict is verdict


def test_names_from_the_container_cannot_speak_to_the_terminal() -> None:
    hostile = written(300 * MIB, copying=True)
    writers = (msgspec.structs.replace(hostile.writers[0], comm="\x1b[31mdb"),)
    finding = judged(by=msgspec.structs.replace(hostile, writers=writers))
    assert "\x1b" not in finding.summary


def test_an_observation_survives_a_recording() -> None:
    watched = Watched(mount=ROOT, before=upper(), after=upper(copy(), unmarked=(copy(),)))
    seen = Observation(
        init_pid=7,
        root_fstype="overlay",
        mounts=(watched,),
        written=written(64 * MIB),
        calls=called(),
    )
    again = msgspec.json.decode(msgspec.json.encode(seen), type=Observation)
    assert again == seen
    assert judge(again) == judge(seen)
