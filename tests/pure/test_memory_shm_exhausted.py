"""memory/shm_exhausted: judged on literal observations."""

import errno

import pytest
from msgspec import structs

from whybox.cases.memory.shm_exhausted.probe import judge
from whybox.change import HostSysctl, InProgram, ShmSize, Sysctl
from whybox.kernel import sysvipc
from whybox.kernel.host import ParseError
from whybox.kernel.mountinfo import parse
from whybox.kernel.refusals import Refused, What, Window
from whybox.kernel.sharedmemory import SharedMemory, Use
from whybox.kernel.sysvipc import PAGE_BYTES, Limits, Segment
from whybox.kernel.tmpfs import Tmpfs, _wanted
from whybox.model import Finding, Severity, Verdict

MIB = 1 << 20
DEFAULTS = Limits(
    shmmax_bytes=18446744073692774399,
    shmall_pages=18446744073692774399,
    shmmni=4096,
    semmsl=32000,
    semmns=1024000000,
    semopm=500,
    semmni=32000,
    msgmni=32000,
)
SEGMENT = Segment(
    key=0,
    id=7,
    bytes=4096,
    resident_bytes=0,
    attached=0,
    creator_pid=31,
    uid=1000,
    created_at=1,
)
USE = Use(
    limits=DEFAULTS,
    segments=2,
    pages=2,
    detached=1,
    detached_bytes=4096,
    largest=(SEGMENT, structs.replace(SEGMENT, id=8, attached=2, creator_pid=32)),
    living=(32,),
    sets=0,
    semaphores=0,
    queues=0,
)
SHM = Tmpfs(
    mountpoint="/dev/shm",
    device="0:42",
    size_bytes=64 * MIB,
    free_bytes=64 * MIB,
    files=1000,
    free_files=999,
)


def seen(*refused: Refused, use: Use = USE, shm: Tmpfs = SHM, **changed: object) -> SharedMemory:
    plain = SharedMemory(
        ipc=use,
        ipc_reason=None,
        own_ipc=True,
        mounts=(shm,),
        mounts_reason=None,
        refused=Window(seen=refused, count=len(refused)),
        ended=False,
        memory_limit_bytes=None,
    )
    return structs.replace(plain, **changed)


def used(**changed: object) -> Use:
    return structs.replace(USE, **changed)


def limited(**changed: object) -> Use:
    """A use whose limits are others than the defaults."""
    limits = {name: changed.pop(name) for name in list(changed) if name in Limits.__struct_fields__}
    return used(limits=structs.replace(DEFAULTS, **limits), **changed)


def refused(what: What, error: int | None, size: int | None = None, **changed: object) -> Refused:
    how = "SIGBUS, si_code 2" if error is None else f"call {errno.errorcode[error]}"
    plain = Refused(what=what, how=how, errno=error, pid=9, comm="app", size_bytes=size)
    return structs.replace(plain, **changed)


def segment(error: int, size: int, **changed: object) -> Refused:
    return refused(What.SEGMENT, error, size, **changed)


def is_clear(found: Finding, *words: str) -> bool:
    return found.verdict is Verdict.CLEAR and all(word in found.summary for word in words)


def test_the_number_of_segments_is_found_with_who_left_them() -> None:
    use = limited(shmmni=12, segments=12, detached=11, detached_bytes=44 * 1024)
    found = judge(seen(segment(errno.ENOSPC, 4096), use=use))
    assert (found.verdict, found.severity) == (Verdict.FOUND, Severity.CRITICAL)
    for words in ("app (pid 9)", "12 segments exist and 12 may", "11 of 12 segments"):
        assert words in found.summary
    assert found.cures[0].change == Sysctl("kernel.shmmni", "24")
    assert "ipcrm -m 7" in found.cures[1].advice
    said = "\n".join(e.says for e in found.evidence)
    assert "shmid 7, 4.0 KiB, uid 1000, held by nobody, made by pid 31, which has ended" in said
    assert "2 attached, made by pid 32" in said


def test_exhausted_and_nobody_asked_is_a_warning() -> None:
    found = judge(seen(use=limited(shmmni=2)))
    assert (found.verdict, found.severity) == (Verdict.FOUND, Severity.WARNING)
    assert found.summary.startswith("The next who wants a shared memory segment is refused")
    assert judge(seen(use=limited(shmmni=3))).verdict is Verdict.CLEAR


def test_the_hosts_namespace_is_the_hosts_to_change() -> None:
    found = judge(seen(use=limited(shmmni=2), own_ipc=False))
    assert found.cures[0].change == HostSysctl("kernel.shmmni", "16")
    assert "host's IPC namespace" in found.cures[0].advice


def test_no_parameter_allows_more_than_the_kernel_can_count() -> None:
    found = judge(seen(use=limited(shmmni=32768, segments=32768)))
    assert all(cure.change is None for cure in found.cures)


@pytest.mark.parametrize(("pages", "asked"), [(256, 4096), (200, 100 * PAGE_BYTES)])
def test_pages_promised_to_segments_are_found(pages: int, asked: int) -> None:
    found = judge(seen(segment(errno.ENOSPC, asked), use=limited(shmall_pages=256, pages=pages)))
    assert f"{pages} pages" in found.summary
    assert found.cures[0].change == Sysctl("kernel.shmall", "512")


def test_what_was_given_back_since_is_told_by_the_nearer_limit() -> None:
    use = limited(shmmni=12, segments=10)
    found = judge(seen(segment(errno.ENOSPC, 4096), use=use))
    assert "10 segments exist and 12 may" in found.summary


def test_too_large_a_segment_is_found_only_where_it_was_seen() -> None:
    use = limited(shmmax_bytes=MIB)
    found = judge(seen(segment(errno.EINVAL, 2 * MIB), use=use))
    assert "one may have 1.0 MiB, and 2.0 MiB were wanted" in found.summary
    assert found.cures[0].change == Sysctl("kernel.shmmax", str(2 * MIB))
    assert judge(seen(use=use)).verdict is Verdict.CLEAR


@pytest.mark.parametrize(
    "one",
    [
        segment(errno.EINVAL, 0),
        segment(errno.EINVAL, MIB),
        segment(errno.EINVAL, 2 * MIB, key=42),
        segment(errno.ENOMEM, 4096),
    ],
)
def test_other_refusals_of_shmget_are_the_programs(one: Refused) -> None:
    use = limited(shmmax_bytes=MIB, known_keys=(42,))
    assert is_clear(judge(seen(one, use=use)), "was not for want of room")


def test_semaphores_and_queues_are_found_too() -> None:
    asked = refused(What.SEMAPHORES, errno.ENOSPC, 1)
    found = judge(seen(asked, use=limited(semmsl=250, semmns=32000, semmni=3, sets=3)))
    assert "3 sets exist and 3 may" in found.summary
    assert found.cures[0].change == Sysctl("kernel.sem", "250 64000 500 6")
    larger = refused(What.SEMAPHORES, errno.EINVAL, 300)
    found = judge(seen(larger, use=limited(semmsl=250, semmns=32000, semmni=3)))
    assert "a set may have 250 semaphores, and 300 were wanted" in found.summary
    found = judge(seen(refused(What.QUEUE, errno.ENOSPC), use=limited(msgmni=5, queues=5)))
    assert found.cures[0].change == Sysctl("kernel.msgmni", "16")


def test_a_full_dev_shm_is_found_with_its_largest_files() -> None:
    full = structs.replace(SHM, free_bytes=0, largest=(("dump", 60 * MIB),))
    asked = refused(What.TMPFS, errno.ENOSPC, device="0:42")
    found = judge(seen(asked, shm=full))
    assert found.severity is Severity.CRITICAL
    assert "64 MiB of 64 MiB are used, most of it by dump (60 MiB)" in found.summary
    assert found.cures[0].change == ShmSize(128 * MIB)
    assert judge(seen(shm=full)).severity is Severity.WARNING


def test_one_page_of_room_is_room() -> None:
    nearly = structs.replace(SHM, free_bytes=4096)
    assert is_clear(judge(seen(shm=nearly)), "/dev/shm")


def test_a_fault_without_room_is_found_although_its_file_is_gone() -> None:
    asked = refused(What.TMPFS, None, 200 * MIB, device="0:42")
    found = judge(seen(asked))
    assert "0 bytes of 64 MiB are used now, and it was full then" in found.summary
    assert found.cures[0].change == ShmSize(208 * MIB)
    assert any("before the end of its file" in r.because for r in found.ruled_out)


def test_a_size_above_the_memory_limit_says_so() -> None:
    full = structs.replace(SHM, free_bytes=0)
    found = judge(seen(shm=full, memory_limit_bytes=100 * MIB))
    assert "memory limit, which is 100 MiB" in found.cures[0].advice
    assert "limit" not in judge(seen(shm=full, memory_limit_bytes=1 << 30)).cures[0].advice


def test_another_tmpfs_is_told_by_its_name_and_an_unknown_one_not_at_all() -> None:
    other = structs.replace(SHM, mountpoint="/run", free_bytes=0)
    found = judge(seen(shm=other))
    assert "a page in /run" in found.summary
    assert isinstance(found.cures[0].change, InProgram)
    elsewhere = refused(What.TMPFS, errno.ENOSPC, device="0:77")
    assert judge(seen(elsewhere)).verdict is Verdict.CLEAR


def test_no_room_for_a_file_is_not_no_room_for_a_page() -> None:
    found = judge(seen(shm=structs.replace(SHM, free_files=0)))
    assert "a file in /dev/shm" in found.summary
    assert "nr_inodes" in found.summary
    unlimited = structs.replace(SHM, files=0, free_files=0)
    assert judge(seen(shm=unlimited)).verdict is Verdict.CLEAR


def test_other_kinds_of_sigbus_are_clear() -> None:
    for what in (What.BEYOND_END, What.BROKEN, What.HUGE_PAGES):
        assert judge(seen(refused(what, None, device="0:42"))).verdict is Verdict.CLEAR


def test_the_limit_that_somebody_ran_into_comes_first() -> None:
    full = structs.replace(SHM, free_bytes=0)
    use = limited(shmmni=2)
    found = judge(seen(segment(errno.ENOSPC, 4096), use=use, shm=full))
    assert "was refused a shared memory segment" in found.summary
    assert "; the same goes for a page in /dev/shm (64 MiB of 64 MiB are used)" in found.summary


def test_what_cannot_be_looked_at_is_unknown_unless_the_other_is_exhausted() -> None:
    closed = seen(ipc=None, ipc_reason="its IPC namespace cannot be looked at: not permitted")
    assert judge(closed).verdict is Verdict.UNKNOWN
    assert "as root" in judge(closed).summary
    full = structs.replace(SHM, free_bytes=0)
    assert judge(structs.replace(closed, mounts=(full,))).verdict is Verdict.FOUND


def test_of_one_that_ended_only_who_was_refused_is_told() -> None:
    gone = seen(ended=True, ipc=None, ipc_reason="it ended")
    assert is_clear(judge(gone), "Nobody was refused")
    bus = refused(What.TMPFS, None, device="0:42")
    asked = structs.replace(gone, refused=Window(seen=(bus,), count=1))
    assert judge(asked).verdict is Verdict.FOUND
    assert judge(structs.replace(gone, refused=Window(reason="no BTF"))).verdict is Verdict.UNKNOWN


def test_the_lists_of_a_namespace_are_parsed() -> None:
    shm = (
        "       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  "
        "cgid      atime      dtime      ctime                   rss                  swap\n"
        "    42          3  1600                  4097    31    32      1  1000     0     0     "
        "0          0          0          9                  4096                     0"
    )
    sem = "key semid perms nsems uid gid cuid cgid otime ctime\n1 2 600 250 0 0 0 0 0 0"
    msg = "key msqid perms cbytes qnum lspid lrpid uid gid cuid cgid stime rtime ctime"
    limits = ("1048576", "256", "3", "250\t32000\t32\t128", "32000")
    ipc = sysvipc.parsed([shm, sem, msg, *limits])
    assert (ipc.pages, ipc.semaphores, ipc.queues) == (2, 250, ())
    assert (ipc.segments[0].attached, ipc.segments[0].creator_pid) == (1, 31)
    assert (ipc.limits.shmall_pages, ipc.limits.semmni) == (256, 128)
    for broken in ([shm + "\nx", sem, msg, *limits], [shm, sem, msg, "x", *limits[1:]]):
        with pytest.raises(ParseError):
            sysvipc.parsed(broken)


def test_only_mounts_that_can_be_asked_without_waiting_are() -> None:
    lines = (
        "10 1 0:30 / / rw - overlay overlay rw",
        "11 10 0:31 / /dev rw - tmpfs tmpfs rw,size=65536k",
        "12 11 0:32 / /dev/shm rw - tmpfs shm rw,size=65536k",
        "13 10 0:33 / /ro ro - tmpfs tmpfs ro",
        "14 10 0:34 / /nfs rw - nfs4 server:/ rw",
        "15 14 0:35 / /nfs/run rw - tmpfs tmpfs rw",
        "16 10 0:36 / /twice rw - tmpfs tmpfs rw",
        "17 16 0:37 / /twice rw - fuse.x x rw",
        "18 10 0:31 /null /proc/kcore rw - tmpfs tmpfs rw,size=65536k",
        "19 10 0:38 / /creds rw - tmpfs tmpfs ro,nr_inodes=1",
    )
    assert [m.mountpoint for m in _wanted(parse("\n".join(lines)))] == ["/dev", "/dev/shm"]
