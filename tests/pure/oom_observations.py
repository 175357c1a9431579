"""Literal observations of memory/oom_killed, which its tests vary."""

from msgspec import structs

from whybox.cases.memory.oom_killed.probe import Observation
from whybox.kernel.casualties import Level
from whybox.kernel.kmsg import Reach
from whybox.kernel.memory import Memory
from whybox.kernel.oomkill import OomKill
from whybox.kernel.target import Exit
from whybox.model import Finding, Verdict

MIB = 1 << 20
SECOND = 1_000_000
ID = "ab" * 32
PATH = f"/docker/{ID}"
NOW = 1000 * SECOND


def memory(path: str = PATH, **changed: object) -> Memory:
    plain = Memory(
        directory=f"/sys/fs/cgroup{path}",
        path=path,
        version=2,
        current_bytes=20 * MIB,
        limit_bytes=64 * MIB,
        peak_bytes=64 * MIB,
        oom=0,
        oom_kill=0,
        oom_kill_local=0,
        max_events=0,
        failcnt=None,
        oom_group=False,
        kill_disabled=None,
        under_oom=None,
        events_file=f"/sys/fs/cgroup{path}/memory.events",
    )
    return structs.replace(plain, **changed)


def v1(path: str = PATH, **changed: object) -> Memory:
    return memory(path, version=1, oom=None, kill_disabled=False, under_oom=False, **changed)


KILL = OomKill(
    usec=NOW - 40 * SECOND,
    seq=500,
    victim_pid=4711,
    victim_comm="worker",
    constraint="MEMCG",
    oom_memcg=PATH,
    task_memcg=PATH,
    trigger_comm="worker",
    trigger_pid=4711,
    limit_bytes=64 * MIB,
    usage_bytes=64 * MIB,
    held_anon_bytes=60 * MIB,
    held_file_bytes=0,
    held_shmem_bytes=3 * MIB,
    anon_rss_bytes=58 * MIB,
    file_rss_bytes=0,
    shmem_rss_bytes=0,
    oom_score_adj=0,
)
UNREADABLE = Reach(reason="the kernel log may not be read from here (Operation not permitted)")
WHOLE = Reach(oldest_usec=0, complete=True)
SHORT = Reach(oldest_usec=NOW - SECOND)


def seen(*kills: OomKill, own: Memory | None = None, **changed: object) -> Observation:
    plain = Observation(
        id=ID,
        runtime="docker",
        path=PATH,
        init_pid=4000,
        ended=False,
        kills=kills,
        new_seq=None,
        log=WHOLE,
        now_usec=NOW,
        start_usec=NOW - 600 * SECOND,
        end_usec=NOW,
        oom_kill_before=None,
        levels=(Level(memory=own or memory(oom_kill=len(kills))),),
        exit=None,
        total_bytes=8192 * MIB,
    )
    told = structs.replace(plain, **changed)
    before = changed.get("oom_kill_before", told.levels[0].memory.oom_kill)
    return structs.replace(told, oom_kill_before=before)


def dead(*kills: OomKill, exit: Exit | None = None, **changed: object) -> Observation:
    gone = structs.replace(seen(*kills), ended=True, init_pid=None, path=None, levels=())
    end = NOW - 39 * SECOND
    return structs.replace(gone, oom_kill_before=None, exit=exit, end_usec=end, **changed)


def ended(code: int, oom_killed: bool | None, *events: str) -> Exit:
    return Exit(
        source="docker inspect",
        status="exited",
        exit_code=code,
        oom_killed=oom_killed,
        events=events,
    )


def is_clear(found: Finding, *words: str) -> bool:
    return found.verdict is Verdict.CLEAR and all(word in found.summary for word in words)
