"""``whybox trace reclaim`` and the OOM sensor: decoding, sums and the view, on literal data."""

import struct
from pathlib import Path

from msgspec import structs

from whybox.kernel import oomkill
from whybox.kernel.cgroup import Group
from whybox.kernel.host import Host
from whybox.kernel.sensors import oom, reclaim
from whybox.kernel.sensors.oom import Held, Killed
from whybox.kernel.sensors.reclaim import Kind, Stall, Sums
from whybox.trace.budget import Budget
from whybox.trace.question import Answered, Happened
from whybox.trace.reclaim import NAMES, Answer, Process, Stalls, added, kill, slow
from whybox.views.trace import text

MIB = 1 << 20
PAGE = 4096
UNLIMITED = (1 << 63) // PAGE

OWN = Held(
    id=7,
    usage_bytes=64 * MIB,
    limit_bytes=64 * MIB,
    swap_usage_bytes=64 * MIB,
    swap_limit_bytes=None,
)
TOP = Held(
    id=1,
    usage_bytes=900 * MIB,
    limit_bytes=None,
    swap_usage_bytes=900 * MIB,
    swap_limit_bytes=None,
)
KILLED = Killed(
    at_ns=5_000_000,
    slot=1,
    trigger_slot=1,
    victim_pid=10,
    victim_comm="worker",
    trigger_pid=11,
    trigger_tid=12,
    trigger_comm="greedy",
    anon_rss_bytes=60 * MIB,
    file_rss_bytes=MIB,
    shmem_rss_bytes=0,
    score_adj=0,
    levels=(OWN, TOP),
    trigger_groups=(7, 1),
)
STALL = Stall(
    at_ns=2_000_000_000,
    slot=1,
    kind=Kind.GROUP,
    pid=5,
    tid=6,
    comm="writer",
    lasted_ns=12_000_000,
    pages=32,
    order=0,
    gfp=0xCC0,
    device="",
)


def group(id: int, path: str, version: int = 2) -> tuple[int, Group]:
    made = Group(
        controller="memory",
        version=version,
        path=path,
        directory=f"/nowhere{path}",
        top="/nowhere",
    )
    return id, made


GROUPS = dict((group(7, "/docker/a"), group(3, "/docker"), group(1, "/")))


def test_a_kill_is_decoded() -> None:
    head = struct.pack(
        "=QIIIIIiqqqqII16s16s",
        *(99, 1, 0, 10, 11, 12, -5),
        *(256, 512, 3, -4),
        *(2, 1, b"work\xffr", b"greedy\0x"),
    )
    levels = struct.pack("=QQQQQ", 7, 100, 100, 1, UNLIMITED) + struct.pack(
        "=QQQQQ", 1, 500, UNLIMITED, 0, 0
    )
    raw = head + levels.ljust(12 * 40, b"\0") + struct.pack("=12Q", 1, *[9] * 11)
    seen = oom.killed(raw)
    assert (seen.victim_pid, seen.victim_comm, seen.slot) == (10, "work\\xffr", 1)
    assert (seen.trigger_pid, seen.trigger_tid, seen.trigger_slot) == (11, 12, 0)
    assert seen.trigger_comm == "greedy"
    assert (seen.anon_rss_bytes, seen.file_rss_bytes) == (512 * PAGE, 256 * PAGE)
    assert seen.shmem_rss_bytes is None
    assert [held.limit_bytes for held in seen.levels] == [100 * PAGE, None]
    assert seen.levels[0].swap_limit_bytes is None
    assert seen.trigger_groups == (1,)


def test_the_group_that_was_full_is_the_lowest_that_holds_victim_and_trigger() -> None:
    parent = structs.replace(OWN, id=3)
    below = structs.replace(KILLED, levels=(OWN, parent, TOP), trigger_groups=(7, 3, 1))
    assert below.over(v1=False) == OWN
    beside = structs.replace(below, trigger_groups=(8, 3, 1))
    assert beside.over(v1=False) == parent
    elsewhere = structs.replace(below, trigger_groups=(8, 1))
    assert elsewhere.over(v1=False) is None


def test_a_group_is_full_a_little_below_its_limit_and_on_v1_with_swap() -> None:
    nearly = structs.replace(OWN, usage_bytes=64 * MIB - 64 * PAGE)
    assert structs.replace(KILLED, levels=(nearly, TOP)).over(v1=False) == nearly
    swapped = structs.replace(OWN, usage_bytes=50 * MIB, swap_limit_bytes=64 * MIB)
    assert structs.replace(KILLED, levels=(swapped, TOP)).over(v1=True) == swapped
    # v2 counts swap alone there: full swap is no reason by itself.
    assert structs.replace(KILLED, levels=(swapped, TOP)).over(v1=False) is None


def test_what_was_seen_is_a_kill_with_paths() -> None:
    host = Host.recorded({})
    seen = oomkill.witnessed(host, KILLED, GROUPS)
    assert (seen.oom_memcg, seen.task_memcg, seen.global_oom) == ("/docker/a", "/docker/a", False)
    assert (seen.limit_bytes, seen.trigger_pid, seen.usec) == (64 * MIB, 12, 5000)
    assert (seen.witnessed, seen.logged) == (True, False)
    empty = structs.replace(KILLED, levels=(structs.replace(OWN, usage_bytes=MIB), TOP))
    hosts = oomkill.witnessed(host, empty, GROUPS)
    assert (hosts.global_oom, hosts.oom_memcg, hosts.limit_bytes) == (True, None, None)


def test_a_group_inside_of_the_container_is_found_by_its_id(tmp_path: Path) -> None:
    inner = tmp_path / "cg" / "own" / "inner"
    inner.mkdir(parents=True)
    host = Host()
    own = Group(
        controller="memory",
        version=2,
        path="/own",
        directory=str(tmp_path / "cg" / "own"),
        top=str(tmp_path / "cg"),
    )
    id = inner.stat().st_ino
    seen = structs.replace(
        KILLED, levels=(structs.replace(OWN, id=id), TOP), trigger_groups=(id, 1)
    )
    groups = {own_id: g for own_id, g in ((host.inode(own.directory), own),)}
    assert oomkill.witnessed(host, seen, groups).oom_memcg == "/own/inner"


def test_without_a_window_nobody_is_watched() -> None:
    host = Host.recorded({})
    with oomkill.watch(host, None) as witness:  # type: ignore[arg-type]
        assert witness.reason == "nothing can be killed in a window of no length"
        assert witness.kills(host) == ()
        assert not witness.complete


def test_a_stall_is_decoded() -> None:
    raw = struct.pack(
        "=QQQIIIIII16s32s", 9, 8, 7, 1, 2, 5, 6, 0, 0, b"\x1b[1m\0", b"254:0\0garbage"
    )
    seen = reclaim.stall(raw)
    assert (seen.kind, seen.lasted_ns, seen.pages, seen.tid) == (Kind.DIRTY, 8, 7, 6)
    assert (seen.comm, seen.device) == ("\x1b[1m", "254:0")


def test_stalls_add_up() -> None:
    sums = Sums()
    for lasted in (500, 1_000, 3_000_000, 1 << 62):
        sums = added(sums, structs.replace(STALL, lasted_ns=lasted))
    assert (sums.count, sums.longest_ns, sums.pages) == (4, 1 << 62, 128)
    assert (sums.buckets[0], sums.buckets[11], sums.buckets[31]) == (2, 1, 1)


def test_the_view_tells_stalls_and_kills() -> None:
    (line,) = text("reclaim", Happened(event=slow(STALL)))
    assert line == ("2.000000 writer 5, thread 6: reclaim at a limit for 12 ms, 32 pages freed")
    paused = structs.replace(STALL, kind=Kind.DIRTY, pages=0, device="254:0", comm="a\x1b[1m\nb")
    (line,) = text("reclaim", Happened(event=slow(paused)))
    assert "a\\x1b[1m\\nb" in line
    assert line.endswith("dirty-page pause for 12 ms, writing to 254:0")
    told = kill(Host.recorded({}), KILLED, GROUPS)
    (line,) = text("reclaim", Happened(event=told))
    assert "OOM kill: worker 10 which held 60 MiB, when greedy 11 asked for more" in line
    assert line.endswith("/docker/a was at its limit of 64 MiB")
    theirs = structs.replace(told, victim_inside=False, of_the_host=True, trigger_inside=True)
    (line,) = text("reclaim", Happened(event=theirs))
    assert "of another container," in line
    assert line.endswith("the host had no memory left")


def test_the_view_of_the_answer() -> None:
    buckets = tuple(3 if n == 4 else 0 for n in range(32))
    answer = Answer(
        stalls=(
            Stalls(
                what=NAMES[Kind.GROUP],
                count=3,
                sum_ns=60_000,
                longest_ns=30_000,
                pages=96,
                buckets=buckets,
            ),
        ),
        processes=(
            Process(
                what=NAMES[Kind.GROUP],
                pid=5,
                comm="wri\x07ter",
                count=3,
                sum_ns=60_000,
                longest_ns=30_000,
                pages=96,
            ),
        ),
        kills=(kill(Host.recorded({}), KILLED, GROUPS),),
        killed=1,
        memory=Budget(
            path="/docker/a",
            usage_bytes=63 * MIB,
            limit_bytes=64 * MIB,
            peak_bytes=None,
            max_events=3,
            high_events=0,
            major_faults=None,
            refaults=12,
            some_ns=70_000,
            full_ns=0,
        ),
    )
    said = "\n".join(text("reclaim", Answered(answer=answer)))
    assert "reclaim at a limit: 3 times, 60 us in all, 20 us on average, 30 us at most" in said
    assert "16 us     3" in said
    assert "wri\\x07ter 5: reclaim at a limit" in said
    assert "the OOM killer ended 1 of its processes:" in said
    assert "holds 63 MiB, with a limit of 64 MiB" in said
    assert "was at its limit 3 times; read 12 pages again" in said
    empty = structs.replace(answer, stalls=(), processes=(), kills=(), killed=0, memory=None)
    assert "\n".join(text("reclaim", Answered(answer=empty))).strip() == (
        "none of its tasks had to wait for memory"
    )
