"""memory/oom_killed: what the memory was, and who else is at the limit."""

from pathlib import Path

import pytest
from msgspec import structs

from tests.pure.oom_observations import KILL, MIB, memory, seen
from tests.pure.oom_reports import records, report
from whybox.cases.memory.oom_killed.probe import judge
from whybox.change import MemoryLimit
from whybox.kernel import oom, oomneighbours
from whybox.kernel.casualties import Level
from whybox.kernel.cgroup import Group
from whybox.kernel.host import Host
from whybox.kernel.oomkill import Kernel
from whybox.kernel.oomneighbours import Neighbour, Neighbours

V2_STATS = (
    "Memory cgroup stats for /box:",
    "anon 4194304",
    "file 8388608",
    "kernel 41943040",
    "kernel_stack 1048576",
    "pagetables 20971520",
    "percpu 0",
    "sock 2097152",
    "shmem 8388608",
    "slab_reclaimable 1048576",
    "slab_unreclaimable 16777216",
    "slab 17825792",
)


def reported(*lines: str) -> list[str]:
    """A report with more of what the group held."""
    told = report()
    at = next(n for n, line in enumerate(told) if line.startswith("memory: usage"))
    return [*told[: at + 1], *lines, *told[at + 1 :]]


def test_a_report_tells_what_the_kernel_kept() -> None:
    (kill,) = oom.parse(records(*reported(*V2_STATS)))
    assert kill.held_kernel == Kernel(
        total=40 * MIB, page_tables=20 * MIB, slab=17 * MIB, stacks=MIB, sockets=2 * MIB
    )
    assert dict((word, size) for size, word in kill.held_kernel.parts) == {
        "page tables": 20 * MIB,
        "kernel objects (slab)": 17 * MIB,
        "kernel stacks": MIB,
        "socket buffers": 2 * MIB,
        "other kernel memory": 2 * MIB,
    }


def test_v1_tells_the_sum_and_a_kernel_without_sum_its_parts() -> None:
    v1 = (
        "memory+swap: usage 65536kB, limit 65536kB, failcnt 0",
        "kmem: usage 40960kB, limit 1kB, failcnt 0",
    )
    (kill,) = oom.parse(records(*reported(*v1)))
    assert kill.held_kernel == Kernel(total=40 * MIB)
    assert kill.held_kernel.parts[-1] == (40 * MIB, "other kernel memory")
    older = [line for line in V2_STATS if not line.startswith(("kernel 4", "slab 1"))]
    (kill,) = oom.parse(records(*reported(*older)))
    assert kill.held_kernel == Kernel(
        page_tables=20 * MIB, slab=17 * MIB, stacks=MIB, sockets=2 * MIB
    )
    assert oom.parse(records(*report()))[0].held_kernel is None


def test_what_the_kernel_kept_is_named_where_it_is_much() -> None:
    kernel = Kernel(total=42 * MIB, page_tables=40 * MIB, slab=MIB, sockets=4 * MIB)
    found = judge(seen(structs.replace(KILL, held_anon_bytes=16 * MIB, held_kernel=kernel)))
    assert "40 MiB page tables, 4.0 MiB socket buffers" in found.summary
    assert "slab" not in found.summary


@pytest.mark.parametrize(
    ("held", "words"),
    [
        ({"held_shmem_bytes": 60 * MIB, "held_anon_bytes": MIB}, "tmpfs or shared memory"),
        ({"held_kernel": Kernel(page_tables=61 * MIB)}, "page tables"),
        ({"held_kernel": Kernel(slab=61 * MIB)}, "kernel's own objects"),
        ({"held_kernel": Kernel(stacks=61 * MIB)}, "fewer threads"),
        ({"held_kernel": Kernel(sockets=61 * MIB)}, "does not read"),
    ],
)
def test_the_advice_is_about_what_it_was(held: dict[str, object], words: str) -> None:
    found = judge(seen(structs.replace(KILL, **held)))
    assert found.cures[0].change == MemoryLimit(128 * MIB)
    assert words in found.cures[-1].advice


def test_anonymous_memory_needs_no_word_of_its_own() -> None:
    assert len(judge(seen(KILL)).cures) == 2


def neighbour(path: str, current: int, limit: int | None = None) -> Neighbour:
    return Neighbour(
        path=path,
        file=f"/sys/fs/cgroup{path}/memory.current",
        current_bytes=current,
        limit_bytes=limit,
        needed_bytes=None,
    )


def test_who_shares_a_parents_limit_is_named() -> None:
    kill = structs.replace(KILL, oom_memcg="/pod", task_memcg="/pod/b")
    levels = (
        Level(memory=memory("/pod/b", limit_bytes=None, oom_kill=1)),
        Level(memory=memory("/pod")),
    )
    around = Neighbours(sharing=(neighbour("/pod/a", 40 * MIB), neighbour("/pod/c", 4096)))
    found = judge(seen(kill, id="b", runtime="lxc", path="/pod/b", levels=levels, around=around))
    assert "(it is shared with /pod/a with 40 MiB)" in found.summary
    assert any(e.says == f"{40 * MIB}, below the same limit" for e in found.evidence)


def test_who_is_close_to_a_limit_of_its_own_is_evidence() -> None:
    around = Neighbours(close=(neighbour("/docker/y", 63 * MIB, 64 * MIB),))
    said = [e.says for e in judge(seen(KILL, around=around)).evidence]
    assert f"{63 * MIB} of {64 * MIB}, close to a limit of its own" in said


def group(root: Path, path: str, *, anon: int, file: int, limit: int | None) -> None:
    directory = root / f"sys/fs/cgroup{path}"
    directory.mkdir(parents=True)
    (directory / "memory.current").write_text(f"{anon + file}\n")
    (directory / "memory.max").write_text("max\n" if limit is None else f"{limit}\n")
    (directory / "memory.stat").write_text(f"anon {anon}\nfile {file}\nshmem 0\n")


def test_groups_around_are_read_and_page_cache_brings_nobody_close(tmp_path: Path) -> None:
    group(tmp_path, "/pod/own", anon=MIB, file=0, limit=None)
    group(tmp_path, "/pod/big", anon=40 * MIB, file=0, limit=None)
    group(tmp_path, "/pod/close", anon=15 * MIB, file=MIB, limit=16 * MIB)
    group(tmp_path, "/pod/cache", anon=MIB, file=15 * MIB, limit=16 * MIB)
    top = "/sys/fs/cgroup"
    own = Group(controller="", version=2, path="/pod/own", directory=f"{top}/pod/own", top=top)
    found = oomneighbours.neighbours(Host(str(tmp_path)), own, "/pod")
    assert [one.path for one in found.sharing] == ["/pod/big", "/pod/cache", "/pod/close"]
    assert [one.path for one in found.close] == ["/pod/close"]
    mine = oomneighbours.neighbours(Host(str(tmp_path)), own, "/pod/own")
    assert mine.sharing == ()
    assert oomneighbours.neighbours(Host(str(tmp_path)), None, None) == Neighbours()
