"""kernel/casualties: whose a kill is, and memory/oom_killed observed on a small tree."""

from pathlib import Path

import msgspec
import pytest
from msgspec import structs

from whybox.cases.memory.oom_killed.probe import CASE, judge, observe
from whybox.change import MemoryLimit
from whybox.kernel.casualties import Casualties, bears, within
from whybox.kernel.host import Host
from whybox.kernel.target import Exit, Target
from whybox.kernel.task import TaskId
from whybox.model import Certainty, Finding, Verdict

MIB = 1 << 20
SECOND = 1_000_000
ID = "ab" * 32
PATH = f"/docker/{ID}"


def is_clear(found: Finding, *words: str) -> bool:
    return found.verdict is Verdict.CLEAR and all(word in found.summary for word in words)


def test_a_group_is_within_itself_and_nobody_is_within_the_root() -> None:
    assert within("/docker/a", "/docker/a")
    assert within("/docker/a/b", "/docker/a")
    assert not within("/docker/ab", "/docker/a")
    assert not within("/docker/a", "/")
    assert not within("/docker/a", None)


def test_an_id_in_a_path_is_a_containers_only_as_engines_write_it() -> None:
    assert bears(f"/system.slice/docker-{ID}.scope/inner", ID)
    assert bears(f"/machine.slice/libpod-{ID}.scope/container", ID)
    assert bears("/whybox-oom-1-2", "oom-1-2")
    assert not bears("/whybox-oom-1-23", "oom-1-2")
    assert not bears(f"/docker/{'cd' * 32}/x{ID}", ID)


EXIT = Exit(source="docker inspect", status="exited", exit_code=137, oom_killed=False)
MOUNTS = "30 20 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
INIT = "4000 (web) S 1 4000 4000 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 40000 0 0\n"


def tree(root: Path, log: str | None, limit: int = 64 * MIB, oom_kill: int = 1) -> Host:
    files = {
        "proc/self/mountinfo": MOUNTS,
        "proc/4000/stat": INIT,
        "proc/uptime": "1000.00 1.0\n",
        "proc/stat": "cpu 1\nbtime 1700000000\n",
        "proc/meminfo": "MemTotal:        8388608 kB\n",
        f"sys/fs/cgroup{PATH}/memory.current": f"{20 * MIB}\n",
        f"sys/fs/cgroup{PATH}/memory.max": f"{limit}\n",
        f"sys/fs/cgroup{PATH}/memory.peak": f"{64 * MIB}\n",
        f"sys/fs/cgroup{PATH}/memory.events": f"oom {oom_kill}\noom_kill {oom_kill}\n",
    }
    if log is not None:
        files["dev/kmsg"] = log
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return Host(root=str(root))


def report(usec: int, path: str = PATH) -> str:
    lines = (
        "worker invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0",
        "memory: usage 65536kB, limit 65536kB, failcnt 3",
        "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=x,mems_allowed=0,"
        f"oom_memcg={path},task_memcg={path},task=worker,pid=4711,uid=0",
        "Memory cgroup out of memory: Killed process 4711 (worker) total-vm:66784kB, "
        "anon-rss:65024kB, file-rss:548kB, shmem-rss:0kB, UID:0 pgtables:168kB oom_score_adj:0",
    )
    return "".join(f"4,{100 + n},{usec + n},-;{line}\n" for n, line in enumerate(lines))


TARGET = Target(
    id=ID,
    name="web",
    runtime="docker",
    init=TaskId(pid=4000, start_ticks=40000),
    cgroups={"": PATH},
)


def observed(host: Host, target: Target = TARGET) -> Casualties:
    watch = observe(host, target)
    next(watch)
    with pytest.raises(StopIteration) as end:
        next(watch)
    value = end.value.value
    assert isinstance(value, Casualties)
    return value


def test_observed_on_a_tree_and_cured_there(tmp_path: Path) -> None:
    found = judge(observed(tree(tmp_path, report(960 * SECOND))))
    assert found.verdict is Verdict.FOUND
    assert "40 s ago" in found.summary
    cured = judge(observed(tree(tmp_path, report(960 * SECOND), limit=128 * MIB)))
    assert is_clear(cured, "last 40 s ago at a limit of 64 MiB; the limit is 128 MiB now")


def test_an_observation_can_be_kept(tmp_path: Path) -> None:
    got = observed(tree(tmp_path, report(960 * SECOND)))
    kept = msgspec.json.decode(msgspec.json.encode(got), type=CASE.observation)
    assert judge(kept) == judge(got)


def test_another_containers_kill_is_not_its_own(tmp_path: Path) -> None:
    host = tree(tmp_path, report(960 * SECOND, "/docker/" + "cd" * 32), oom_kill=0)
    assert is_clear(judge(observed(host)), "Nothing in it was OOM-killed")


def test_a_log_that_may_not_be_read_on_a_tree(tmp_path: Path) -> None:
    found = judge(observed(tree(tmp_path, None)))
    assert (found.verdict, found.certainty) == (Verdict.FOUND, Certainty.LIKELY)


def test_a_dead_container_is_known_by_its_id(tmp_path: Path) -> None:
    gone = structs.replace(TARGET, init=None, cgroups={}, exit=EXIT)
    found = judge(observed(tree(tmp_path, report(960 * SECOND)), gone))
    assert (found.verdict, found.certainty) == (Verdict.FOUND, Certainty.CONFIRMED)
    assert found.cures[0].change == MemoryLimit(128 * MIB)


def test_a_path_that_was_another_containers_before(tmp_path: Path) -> None:
    path = "/system.slice/web.service"
    created = (1_700_000_000 + 900) * 10**9
    unit = structs.replace(
        TARGET, id="web.service", runtime="systemd", cgroups={"": path}, created_at_ns=created
    )
    host = tree(tmp_path, report(800 * SECOND, path) + report(950 * SECOND, path))
    assert len(observed(host, unit).kills) == 1


def test_restarts_of_the_same_container_are_counted(tmp_path: Path) -> None:
    log = "".join(report(second * SECOND) for second in (100, 200, 300, 990))
    assert "killed 4 times" in judge(observed(tree(tmp_path, log))).summary


def test_a_process_without_a_group_of_its_own_cannot_be_told(tmp_path: Path) -> None:
    host = tree(tmp_path, report(960 * SECOND))
    with pytest.raises(OSError, match="no memory control group of its own"):
        next(observe(host, structs.replace(TARGET, cgroups={"": "/"})))
