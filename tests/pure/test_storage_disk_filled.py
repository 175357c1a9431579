"""storage/disk_filled judged on literal observations."""

import errno

import pytest
from msgspec import structs

from whybox.cases.storage.disk_filled.probe import judge
from whybox.change import EmptyFile, InProgram, LayerLimit, LogLimit, ProjectQuota, VolumeLimit
from whybox.kernel.diskfill import DiskUse, FileSystem, Holder
from whybox.kernel.diskplaces import Kind
from whybox.kernel.diskroom import Project, Room, room
from whybox.kernel.diskuse import Heavy, Use
from whybox.kernel.heldfiles import Held
from whybox.kernel.refusals import Refused, What
from whybox.model import Certainty, Finding, Severity, Verdict

MIB = 1 << 20
GIB = 1 << 30
ROOM = Room(
    size_bytes=100 * GIB,
    free_bytes=50 * GIB,
    available_bytes=45 * GIB,
    files=1000,
    free_files=900,
)
FULL = structs.replace(ROOM, free_bytes=0, available_bytes=0)
REFUSED = Refused(
    what=What.DISK, how="write ENOSPC", errno=errno.ENOSPC, pid=7, comm="db", device="8:1"
)
LAYER = Holder(
    owner="",
    kind=Kind.LAYER,
    name="",
    mountpoint="/",
    use=Use(bytes=80 * GIB, files=9, largest=(Heavy(path="/var/x", bytes=GIB, growing=True),)),
)
HELD = Held(
    pid=31,
    comm="logger",
    descriptor=5,
    path="/data/log",
    device="8:1",
    bytes=80 * GIB,
    named=False,
    writing=True,
    growing=True,
)


def of_held(held: Held = HELD) -> Holder:
    return Holder(
        owner="",
        kind=None,
        name=held.comm,
        mountpoint=held.path,
        use=Use(bytes=held.bytes, files=1, written=True),
        held=held,
    )


def disk(
    said: Room = FULL,
    *holders: Holder,
    before: Room | None = None,
    others: tuple[Holder, ...] = (),
    refused: tuple[Refused, ...] = (),
    fstype: str = "ext4",
    options: tuple[str, ...] = ("rw",),
    project: Project | None = None,
) -> FileSystem:
    return FileSystem(
        device="8:1",
        fstype=fstype,
        options=options,
        mountpoint="/",
        layer=True,
        on_host="/",
        project=project,
        before=before or said,
        room=said,
        refused=refused,
        holders=holders,
        others=others,
    )


def judged(*disks: FileSystem, elsewhere: tuple[Refused, ...] = (), **more: object) -> Finding:
    seen = DiskUse(
        disks=disks,
        unseen=(),
        elsewhere=elsewhere,
        watched=None,
        seconds=2.0,
        root=("overlay", True),
    )
    return judge(structs.replace(seen, **more))


def test_a_full_disk_is_told_with_who_holds_most_of_it() -> None:
    finding = judged(disk(FULL, LAYER, refused=(REFUSED,)))
    assert (finding.verdict, finding.severity) == (Verdict.FOUND, Severity.CRITICAL)
    assert "No room is left on the disk beneath / (ext4, 100 GiB)" in finding.summary
    assert "db (pid 7) was refused (write ENOSPC) once" in finding.summary
    assert "Most of it is the writable layer: 80 GiB of 100 GiB" in finding.summary
    assert "/var/x (1.0 GiB)" in finding.summary


def test_a_full_disk_on_which_nobody_was_refused_is_a_warning() -> None:
    assert judged(disk(FULL, LAYER)).severity is Severity.WARNING


def test_what_is_kept_for_root_is_told() -> None:
    kept = structs.replace(FULL, free_bytes=5 * GIB)
    assert "but for 5.0 GiB that root may take" in judged(disk(kept, LAYER)).summary


def test_a_megabyte_is_room_on_a_small_disk_and_none_on_a_large_one() -> None:
    crumbs = structs.replace(FULL, available_bytes=MIB, free_bytes=MIB)
    assert judged(disk(crumbs)).verdict is Verdict.FOUND
    small = structs.replace(crumbs, size_bytes=16 * MIB)
    assert judged(disk(small)).verdict is Verdict.CLEAR


def test_a_removed_file_that_is_held_is_cut_off_through_its_descriptor() -> None:
    finding = judged(disk(FULL, of_held()))
    assert "a file that has no name any more, /data/log, which logger (pid 31) holds open" in (
        finding.summary
    )
    assert finding.cures[0].change == EmptyFile("/proc/31/fd/5")
    assert not any(one.what.startswith("a removed file") for one in finding.ruled_out)


def test_a_removed_file_that_is_only_mapped_needs_the_program() -> None:
    mapped = structs.replace(HELD, descriptor=None)
    finding = judged(disk(FULL, of_held(mapped)))
    assert "has mapped" in finding.summary
    assert isinstance(finding.cures[0].change, InProgram)


def test_a_log_is_bounded_and_may_be_cut_off_until_then() -> None:
    log = structs.replace(
        LAYER,
        kind=Kind.LOG,
        mountpoint="/d/containers/4f",
        use=Use(bytes=GIB * 80, files=3, largest=(Heavy(path="/d/x", bytes=GIB, growing=True),)),
    )
    finding = judged(disk(FULL, log))
    assert "the log in /d/containers/4f" in finding.summary
    assert finding.cures[0].change == LogLimit(10 * MIB, 3)
    assert finding.cures[1].change == EmptyFile("/d/x")


@pytest.mark.parametrize("quota", [True, False])
def test_a_layer_is_bounded_as_its_disk_allows(quota: bool) -> None:
    on = {"fstype": "xfs", "options": ("rw", "prjquota")} if quota else {}
    change = judged(disk(FULL, LAYER, **on)).cures[0].change  # type: ignore[arg-type]
    assert change == LayerLimit(bytes=40 * GIB, directory="/var", quota=quota)


def test_an_empty_dir_is_given_a_limit() -> None:
    scratch = structs.replace(LAYER, kind=Kind.EMPTY_DIR, name="scratch", mountpoint="/scratch")
    change = judged(disk(FULL, scratch)).cures[0].change
    assert change == VolumeLimit("scratch", 40 * GIB)


def test_inodes_are_told_from_blocks() -> None:
    out = structs.replace(ROOM, free_files=0)
    many = structs.replace(LAYER, use=Use(files=950, crowded=("/var/sessions", 940)))
    finding = judged(disk(out, many))
    assert "All 1000 inodes" in finding.summary
    assert "45 GiB still free" in finding.summary
    assert "940 names in /var/sessions alone" in finding.summary
    assert finding.ruled_out[0].what == "blocks"


def test_a_file_system_that_makes_inodes_as_needed_is_not_out_of_them() -> None:
    assert judged(disk(structs.replace(ROOM, files=0, free_files=0))).verdict is Verdict.CLEAR


def test_without_blocks_there_are_no_inodes_on_xfs_and_blocks_are_what_lacks() -> None:
    both = structs.replace(FULL, free_files=0)
    assert "No room is left" in judged(disk(both, LAYER)).summary


def test_a_project_quota_is_told_and_can_be_raised() -> None:
    quota = Room(size_bytes=10 * MIB, free_bytes=0, available_bytes=0, files=1000, free_files=900)
    project = Project(id=42, disk_bytes=100 * GIB)
    finding = judged(disk(quota, LAYER, project=project, fstype="xfs"))
    assert "Its project quota is used up, 10 MiB" in finding.summary
    assert "project 42, a part of 100 GiB" in finding.summary
    change = ProjectQuota(id=42, mountpoint="/", fstype="xfs", bytes=20 * MIB, files=1000)
    assert finding.cures[0].change == change


def test_a_quota_without_a_project_is_told_by_its_error() -> None:
    said = structs.replace(REFUSED, errno=errno.EDQUOT, how="write EDQUOT")
    finding = judged(disk(ROOM, refused=(said,)))
    assert "A quota is used up" in finding.summary
    assert not any(one.what == "a quota" for one in finding.ruled_out)


def test_what_it_holds_itself_is_told_of_a_users_quota() -> None:
    said = structs.replace(REFUSED, errno=errno.EDQUOT, how="write EDQUOT")
    finding = judged(disk(ROOM, LAYER, refused=(said,)))
    assert "It holds 80 GiB there itself, above all /var/x" in finding.summary


def test_a_process_of_the_host_with_nothing_open_on_a_full_disk_is_clear() -> None:
    finding = judged(shared=True, root=("ext4", True))
    assert finding.verdict is Verdict.CLEAR
    assert "the host's mounts" in finding.summary


def test_somebody_else_who_fills_it_is_named() -> None:
    theirs = structs.replace(LAYER, owner="docker 4f1c2a9d1e3b")
    mine = structs.replace(LAYER, use=Use(bytes=GIB))
    finding = judged(disk(FULL, mine, others=(theirs,)))
    assert "Not by this container: it holds 1.0 GiB of 100 GiB" in finding.summary
    assert "Docker 4f1c2a9d1e3b holds 80 GiB: the writable layer" in finding.summary
    assert isinstance(finding.cures[0].change, InProgram)


def test_a_large_share_is_its_own_even_beside_a_larger_one() -> None:
    theirs = structs.replace(LAYER, owner="docker 4f1c2a9d1e3b", use=Use(bytes=50 * GIB))
    mine = structs.replace(LAYER, use=Use(bytes=40 * GIB))
    finding = judged(disk(FULL, mine, others=(theirs,)))
    assert "Its own largest share is the writable layer: 40 GiB" in finding.summary
    assert "Docker 4f1c2a9d1e3b holds 50 GiB" in finding.summary


def test_what_nobody_here_holds_is_said_not_to_be_seen() -> None:
    finding = judged(disk(FULL))
    assert "It holds nothing there itself" in finding.summary
    assert "is not seen from here (du -x /)" in finding.summary


def test_from_inside_the_state_is_found_and_the_holder_is_not() -> None:
    finding = judged(disk(FULL), inside=True)
    assert "not all seen from inside" in finding.summary


def test_a_refusal_with_room_left_is_about_one_large_piece() -> None:
    large = structs.replace(REFUSED, how="fallocate ENOSPC", size_bytes=60 * GIB)
    finding = judged(disk(ROOM, refused=(large,)))
    assert "There was not room enough" in finding.summary
    assert "one file was to be 60 GiB long" in finding.summary


def test_a_refusal_on_a_disk_with_hardly_any_room_is_a_full_disk() -> None:
    few = structs.replace(FULL, available_bytes=2 * GIB, free_bytes=2 * GIB)
    assert "No room is left" in judged(disk(few, LAYER, refused=(REFUSED,))).summary


def test_nearly_full_is_a_warning_only_while_it_fills_and_soon() -> None:
    few = structs.replace(FULL, available_bytes=2 * GIB, free_bytes=2 * GIB)
    writer = structs.replace(LAYER, use=structs.replace(LAYER.use, written=True))
    quick = structs.replace(few, available_bytes=few.available_bytes + GIB)
    slow = structs.replace(few, available_bytes=few.available_bytes + MIB)
    found = judged(disk(few, writer, before=quick))
    assert (found.verdict, found.certainty) == (Verdict.FOUND, Certainty.LIKELY)
    assert "at this rate nothing in 4 s" in found.summary
    assert judged(disk(few, writer, before=slow)).verdict is Verdict.CLEAR
    assert judged(disk(few, LAYER, before=quick)).verdict is Verdict.CLEAR
    noise = structs.replace(few, available_bytes=few.available_bytes + 4096)
    assert "does not get fuller" in judged(disk(few, writer, before=noise)).summary


@pytest.mark.parametrize(
    ("what", "how", "words"),
    [
        (What.ELSEWHERE, "inotify_add_watch ENOSPC", "watches, namespaces, mounts or keys"),
        (What.NAME, "mkdir ENOSPC", "cgroup.max.descendants"),
        (What.TMPFS, "write ENOSPC", "a tmpfs, which is memory"),
        (What.SEGMENT, "shmget ENOSPC", "its IPC namespace"),
    ],
)
def test_the_same_error_with_room_on_the_disk_is_clear_and_named(
    what: What, how: str, words: str
) -> None:
    finding = judged(disk(ROOM), elsewhere=(structs.replace(REFUSED, what=what, how=how),))
    assert finding.verdict is Verdict.CLEAR
    assert how in finding.summary
    assert words in finding.summary


def test_of_two_disks_the_one_that_refused_somebody_is_told_first() -> None:
    other = structs.replace(disk(FULL, LAYER), mountpoint="/data", refused=(REFUSED,))
    finding = judged(disk(FULL, LAYER), other)
    assert "beneath /data" in finding.summary
    assert "The same goes for / (blocks)." in finding.summary


def test_a_container_that_writes_to_no_disk_is_clear_and_one_on_a_network_unknown() -> None:
    assert judged(root=("tmpfs", True)).verdict is Verdict.CLEAR
    assert "is read-only" in judged(root=("overlay", False)).summary
    assert judged(unseen=("/ (fuse.fuse-overlayfs)",)).verdict is Verdict.UNKNOWN


def test_what_was_not_looked_at_is_said() -> None:
    left_out = ("/: it holds more than 50000 entries",)
    finding = judged(structs.replace(disk(FULL, LAYER), incomplete=left_out))
    assert any(one.source == "not looked at" for one in finding.evidence)


def test_a_statfs_is_read_in_its_own_blocks() -> None:
    import os

    said = os.statvfs_result((1024, 4096, 1000, 100, 50, 10, 5, 5, 0, 255))
    assert room(said) == Room(
        size_bytes=4096000,
        free_bytes=409600,
        available_bytes=204800,
        files=10,
        free_files=5,
    )
