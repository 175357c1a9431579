"""storage/io_contended judged on literal observations; neighbours by the counters of groups."""

from pathlib import Path

import pytest
from msgspec import structs

from whybox.cases.storage.io_contended.probe import judge
from whybox.change import IoLimit
from whybox.kernel import iorivals
from whybox.kernel.blockio import Done
from whybox.kernel.diskwaits import Kind, Waits
from whybox.kernel.host import Host
from whybox.kernel.iocontention import Contention, Disk, Work, between, works
from whybox.kernel.iorivals import Moment, Rival, rivals
from whybox.kernel.task import TaskId
from whybox.model import Certainty, Severity, Verdict

MS = 1_000_000
MIB = 1 << 20
DISK = (8, 0)
ID = "ab" * 32
REFUSED = Waits(reason="no BPF here")


def own(each_ms: float = 6.0, *, count: int = 200, held_ms: int = 0, bytes: int = MIB) -> Waits:
    one = Kind(
        device=DISK,
        kind="write",
        count=count,
        bytes=bytes,
        held=1 if held_ms else 0,
        held_ns=held_ms * MS,
        queued_ns=int(0.75 * each_ms * MS * count),
        device_ns=int(0.25 * each_ms * MS * count),
        longest_ns=0,
    )
    return Waits(kinds=(one,))


def rival(share: float = 0.9, **more: object) -> Rival:
    one = Rival(
        name="docker abababababab",
        path=f"/docker/{ID}",
        source="/io.stat",
        read_bytes=0,
        write_bytes=int(share * 1000 * MIB),
        count=900,
    )
    return structs.replace(one, **more)


def seen(
    waits: Waits | None = None,
    *others: Rival,
    total: int = 1000 * MIB,
    waited_ms: int = 8000,
    waited: float | None = 0.6,
) -> Contention:
    """Two seconds; ``waited_ms`` by all IOs of the disk."""
    return Contention(
        elapsed_ns=2000 * MS,
        worth=True,
        disks=(
            Disk(
                device=DISK,
                name="sda",
                work=Work(count=1100, bytes=total, busy_ms=2000, waited_ms=waited_ms),
                own_count=200,
                own_bytes=MIB,
                rivals=others or (rival(),),
            ),
        ),
        waits=own() if waits is None else waits,
        waited_usec=None if waited is None else int(waited * 2_000_000),
    )


def test_a_neighbour_that_fills_the_queue_is_named_with_its_share() -> None:
    finding = judge(seen())
    assert finding.verdict is Verdict.FOUND
    assert (finding.certainty, finding.severity) == (Certainty.CONFIRMED, Severity.CRITICAL)
    assert finding.summary.startswith("docker abababababab fills the queue of sda, with 90%")
    assert "each of its 200 IOs waited 6 ms there, behind 4 IOs of others" in finding.summary
    change = finding.cures[0].change
    assert change == IoLimit("8:0", "write bytes", int(450 * MIB * 0.1), f"/docker/{ID}")


@pytest.mark.parametrize(
    ("there", "says"),
    [
        (seen(own(0.9)), "waits little"),
        (seen(own(6.0, count=20)), "waits little"),
        (seen(own(bytes=600 * MIB)), "nobody is in its way"),
        (seen(waited_ms=1500), "nobody is in its way"),
        (seen(own(held_ms=2000)), "its own limit"),
        (seen(waited=0.05), "5% of the time"),
        (structs.replace(seen(), disks=()), "used no disk"),
        (structs.replace(seen(), worth=False), "do not wait"),
    ],
    ids=["quick", "few", "its own", "no queue", "limit", "no waits", "no disk", "not worth it"],
)
def test_what_is_no_contention_is_clear(there: Contention, says: str) -> None:
    finding = judge(there)
    assert finding.verdict is Verdict.CLEAR, finding.summary
    assert says in finding.summary


def test_a_glance_is_unknown() -> None:
    assert judge(structs.replace(seen(), elapsed_ns=1000)).verdict is Verdict.UNKNOWN


def test_many_small_neighbours_are_others_and_get_no_limit() -> None:
    finding = judge(seen(None, rival(0.2), rival(0.2), rival(0.2)))
    assert finding.verdict is Verdict.FOUND
    assert finding.certainty is Certainty.LIKELY
    assert finding.summary.startswith("Others fill the queue of sda, with 100%")
    assert all(cure.change is None for cure in finding.cures)


def test_who_writes_through_the_cache_on_v1_is_likely_and_no_limit_holds_it() -> None:
    there = seen(None, rival(0.9, name="dd (pid 7)", path=None, cached=True))
    finding = judge(there)
    assert finding.certainty is Certainty.LIKELY
    assert "dd (pid 7)" in finding.summary
    assert all(cure.change is None for cure in finding.cures)


def test_a_neighbour_that_reads_is_limited_in_reading() -> None:
    finding = judge(seen(None, rival(0.1, read_bytes=800 * MIB)))
    change = finding.cures[0].change
    assert isinstance(change, IoLimit)
    assert change.what == "read bytes"


@pytest.mark.parametrize(
    ("there", "verdict"),
    [
        (seen(REFUSED), Verdict.FOUND),
        (seen(REFUSED, waited=None), Verdict.UNKNOWN),
        (seen(REFUSED, waited_ms=2100), Verdict.UNKNOWN),
        (seen(REFUSED, total=MIB), Verdict.CLEAR),
        (seen(REFUSED, waited=0.01), Verdict.CLEAR),
    ],
)
def test_without_the_sensor_the_disks_average_decides(there: Contention, verdict: Verdict) -> None:
    finding = judge(there)
    assert finding.verdict is verdict, finding.summary
    if verdict is Verdict.FOUND:
        assert finding.certainty is Certainty.LIKELY


def test_diskstats_gives_the_difference_of_whole_disks_and_parts() -> None:
    line = "   8       0 sda 1 0 8 1 3 0 16 5 0 7 60\n"
    then, now = works(line)[DISK], works(line.replace(" 60", " 90"))[DISK]
    assert (then.count, then.bytes, then.busy_ms, then.waited_ms) == (4, 24 * 512, 7, 60)
    assert between(then, now).waited_ms == 30
    assert between(None, now) == now
    assert works("nonsense\n8 0 sda\n8 0 sda a b c d e f g h i j k\n") == {}


def moment(**groups: int) -> Moment:
    """Bytes written by each group; two underscores stand for a slash."""
    return Moment(
        groups={
            "/" + path.replace("__", "/"): {
                (DISK, "write"): Done(device=DISK, kind="write", count=1, bytes=size)
            }
            for path, size in groups.items()
        },
        dirtied={},
    )


def host(root: Path, version: int) -> Host:
    mount = {
        1: "25 20 0:30 / /sys/fs/cgroup/blkio rw - cgroup cgroup rw,blkio\n",
        2: "25 20 0:30 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
    }
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/mountinfo").write_text(mount[version])
    return Host(str(root))


def test_groups_below_a_container_are_that_container_and_its_own_are_nobodys(
    tmp_path: Path,
) -> None:
    here = host(tmp_path, 2)
    tree = iorivals.tree(here)
    assert tree is not None
    before = moment(docker__x=0, system=0)
    after = moment(
        **{
            f"docker__{ID}": 900,
            f"docker__{ID}__inner": 500,
            "docker__x": 50,
            "docker__x__inner": 20,
            "docker": 950,
            "system__small.service": 5,
            "system": 100,
        }
    )
    found = rivals(here, tree, "/docker/x", DISK, before, after)
    assert [(one.name, one.write_bytes) for one in found] == [
        ("docker abababababab", 900),
        ("/system", 100),
        ("/system/small.service", 5),
    ]
    assert found[0].path == f"/docker/{ID}"
    assert rivals(here, tree, "/docker/x", (9, 9), before, after) == ()


def test_a_slice_is_told_by_the_service_that_did_most_of_it(tmp_path: Path) -> None:
    here = host(tmp_path, 2)
    tree = iorivals.tree(here)
    assert tree is not None
    after = moment(system=100, system__backup=95)
    found = rivals(here, tree, "/docker/x", DISK, moment(), after)
    assert [one.name for one in found] == ["/system/backup"]


def test_on_v1_what_the_root_group_did_has_the_name_of_who_wrote_most(tmp_path: Path) -> None:
    here = host(tmp_path, 1)
    for pid, path in ((7, "/docker/x"), (8, "/")):
        (tmp_path / f"proc/{pid}").mkdir()
        (tmp_path / f"proc/{pid}/cgroup").write_text(f"4:blkio:{path}\n")
    tree = iorivals.tree(here)
    assert tree is not None
    root = {"/": {(DISK, "write"): Done(device=DISK, kind="write", count=9, bytes=900)}}
    mine, other = TaskId(pid=7, start_ticks=1), TaskId(pid=8, start_ticks=1)
    after = Moment(groups=root, dirtied={mine: ("own", 5000), other: ("dd\x1b", 900)})
    (found,) = rivals(here, tree, "/docker/x", DISK, Moment(groups={}, dirtied={}), after)
    assert found.name == r"dd\x1b (pid 8)"
    assert (found.cached, found.path, found.write_bytes) == (True, None, 900)
