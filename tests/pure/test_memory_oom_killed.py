"""memory/oom_killed: judged on literal observations."""

import pytest
from msgspec import structs

from whybox.cases.memory.oom_killed.probe import Observation, judge
from whybox.change import InProgram, MemoryLimit
from whybox.kernel import casualties
from whybox.kernel.casualties import Level
from whybox.kernel.kmsg import Reach
from whybox.kernel.memory import Memory
from whybox.kernel.oomkill import Consumer, OomKill
from whybox.kernel.target import Exit
from whybox.model import Certainty, Finding, Severity, Verdict

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


def test_a_child_killed_in_the_window_is_found_with_victim_limit_and_memory() -> None:
    found = judge(seen(KILL, new_seq=500))
    assert found.verdict is Verdict.FOUND
    assert (found.severity, found.certainty) == (Severity.CRITICAL, Certainty.CONFIRMED)
    for words in ("worker (pid 4711)", "in this window", "own memory limit of 64 MiB"):
        assert words in found.summary
    assert "60 MiB anonymous, 3.0 MiB tmpfs and shared memory" in found.summary
    assert found.cures[0].change == MemoryLimit(128 * MIB)
    said = "\n".join(e.says for e in found.evidence)
    assert "constraint=CONSTRAINT_MEMCG" in said
    assert "memory: usage 65536kB, limit 65536kB" in said


def test_another_task_may_have_asked() -> None:
    found = judge(seen(structs.replace(KILL, trigger_comm="greedy", trigger_pid=4712)))
    assert "when greedy (pid 4712) asked for more" in found.summary
    assert any("oom_score" in r.because for r in found.ruled_out)


def test_the_first_process_is_named_as_such() -> None:
    assert ", its first process," in judge(seen(KILL, init_pid=4711)).summary


def test_a_kill_in_the_past_is_found_while_its_limit_is_in_force() -> None:
    found = judge(seen(KILL, structs.replace(KILL, usec=NOW - 20 * SECOND)))
    assert found.verdict is Verdict.FOUND
    assert "20 s ago (killed 2 times in all)" in found.summary


def test_a_kill_of_yesterday_is_no_alarm() -> None:
    old = structs.replace(KILL, usec=NOW - 2 * 86400 * SECOND)
    assert judge(seen(old)).severity is Severity.WARNING


def test_a_raised_limit_is_clear_and_says_what_was() -> None:
    found = judge(seen(KILL, own=memory(limit_bytes=128 * MIB, oom_kill=3, oom=3)))
    assert found.summary == (
        "It was OOM-killed 3 times, last 40 s ago at a limit of 64 MiB; the limit is 128 MiB now "
        "and nothing was killed since."
    )
    assert found.verdict is Verdict.CLEAR


def test_a_limit_that_was_lifted_is_clear() -> None:
    assert is_clear(judge(seen(KILL, own=memory(limit_bytes=None))), "the limit was lifted")


def test_a_second_kill_at_the_raised_limit_is_found() -> None:
    again = structs.replace(KILL, limit_bytes=128 * MIB, seq=600)
    found = judge(seen(KILL, again, own=memory(limit_bytes=128 * MIB)))
    assert found.verdict is Verdict.FOUND
    assert "limit of 128 MiB" in found.summary
    assert found.cures[0].change == MemoryLimit(256 * MIB)


def test_more_swap_is_a_raised_limit_too() -> None:
    kill = structs.replace(KILL, swap_limit_bytes=64 * MIB, swap_usage_bytes=64 * MIB)
    level = Level(memory=memory(oom_kill=1), swap_limit_bytes=128 * MIB)
    assert judge(seen(kill, levels=(level,))).verdict is Verdict.CLEAR


def test_memory_and_swap_together_are_named_as_the_limit() -> None:
    kill = structs.replace(
        KILL, usage_bytes=53 * MIB, limit_bytes=100 * MIB, swap_usage_bytes=200 * MIB
    )
    kill = structs.replace(kill, swap_limit_bytes=200 * MIB)
    found = judge(seen(kill, own=memory(limit_bytes=100 * MIB)))
    assert "limit of memory and swap together of 200 MiB" in found.summary


def test_a_parents_limit_is_the_parents() -> None:
    kill = structs.replace(KILL, oom_memcg="/pod", task_memcg="/pod/b")
    own = Level(memory=memory("/pod/b", limit_bytes=None, oom_kill=1))
    pod = Level(memory=memory("/pod"))
    found = judge(seen(kill, id="b", runtime="lxc", path="/pod/b", levels=(own, pod)))
    assert "its parent /pod reached the memory limit of 64 MiB" in found.summary
    assert found.cures[0].change == MemoryLimit(128 * MIB, cgroup="/pod")


def test_a_parents_raised_limit_is_clear() -> None:
    kill = structs.replace(KILL, oom_memcg="/pod", task_memcg="/pod/b")
    levels = (
        Level(memory=memory("/pod/b", limit_bytes=None, oom_kill=1)),
        Level(memory=memory("/pod", limit_bytes=128 * MIB)),
    )
    found = judge(seen(kill, id="b", runtime="lxc", path="/pod/b", levels=levels))
    assert is_clear(found, "the limit of /pod is 128 MiB now")


def test_a_host_that_ran_out_is_the_hosts_fault() -> None:
    hog = Consumer(pid=9, comm="java", rss_bytes=4096 * MIB)
    kill = structs.replace(
        KILL, global_oom=True, oom_memcg=None, limit_bytes=None, constraint="NONE", largest=hog
    )
    found = judge(seen(kill))
    assert found.verdict is Verdict.FOUND
    assert found.severity is Severity.CRITICAL
    assert "the host itself ran out of memory" in found.summary
    assert "java (pid 9) held most, 4096 MiB" in found.summary
    assert isinstance(found.cures[0].change, InProgram)
    assert "java" in found.cures[0].advice


def test_a_group_killed_together_is_told_by_its_chosen_victim() -> None:
    first = structs.replace(KILL, oom_group=True)
    second = structs.replace(first, victim_pid=4712, victim_comm="sleep", usec=first.usec)
    found = judge(seen(first, second))
    assert found.summary.startswith("worker (pid 4711)")
    assert "the whole group" in found.summary


def test_a_limit_that_the_machine_cannot_double_is_not_to_be_raised() -> None:
    found = judge(seen(KILL, total_bytes=100 * MIB))
    assert all(not isinstance(cure.change, MemoryLimit) for cure in found.cures)


def test_the_limit_recommended_has_room_for_half_as_much_again() -> None:
    kill = structs.replace(KILL, limit_bytes=100 * MIB)
    own = memory(limit_bytes=100 * MIB)
    assert judge(seen(kill, own=own)).cures[0].change == MemoryLimit(256 * MIB)


def test_nothing_counted_is_clear_although_the_log_is_closed() -> None:
    assert is_clear(judge(seen(log=UNREADABLE)), "Nothing in it was OOM-killed", "20 MiB of 64 MiB")


def test_page_cache_at_the_limit_is_clear() -> None:
    assert is_clear(judge(seen(own=memory(current_bytes=63 * MIB))), "page cache alone")


def test_a_container_that_waits_at_its_limit_is_not_killed() -> None:
    own = structs.replace(v1(oom_kill=0), kill_disabled=True, under_oom=True)
    assert is_clear(judge(seen(own=own)), "under_oom 1")


def test_without_a_log_v2_tells_its_own_limit_by_the_counters() -> None:
    own = memory(oom_kill=2, oom=2)
    found = judge(seen(own=own, log=UNREADABLE))
    assert (found.verdict, found.certainty) == (Verdict.FOUND, Certainty.LIKELY)
    assert "its own limit of 64 MiB was reached" in found.summary
    assert "not permitted" in found.summary
    assert found.cures[0].change == MemoryLimit(128 * MIB)
    assert found.severity is Severity.WARNING
    assert judge(seen(own=own, log=UNREADABLE, oom_kill_before=1)).severity is Severity.CRITICAL


def test_without_a_log_v2_with_no_oom_of_its_own_blames_those_above() -> None:
    found = judge(seen(own=memory(oom_kill=1, oom=0), log=UNREADABLE))
    assert (found.verdict, found.certainty) == (Verdict.FOUND, Certainty.LIKELY)
    assert "an ancestor's limit or the host's memory" in found.summary


def test_without_a_log_a_parent_that_ran_out_is_named() -> None:
    levels = (
        Level(memory=memory(oom_kill=1, limit_bytes=None)),
        Level(memory=memory("/docker"), oom_local=1),
    )
    found = judge(seen(levels=levels, log=UNREADABLE))
    assert "the limit of its parent /docker of 64 MiB was reached" in found.summary
    assert found.cures[0].change == MemoryLimit(128 * MIB, cgroup="/docker")


@pytest.mark.parametrize("own", [v1(oom_kill=1), memory(oom_kill=1, oom=1)])
def test_without_a_log_a_raised_limit_is_clear(own: Memory) -> None:
    assert judge(seen(own=own, log=UNREADABLE)).verdict is Verdict.FOUND
    raised = structs.replace(own, limit_bytes=128 * MIB)
    found = judge(seen(own=raised, log=UNREADABLE))
    assert (found.verdict, found.certainty) == (Verdict.CLEAR, Certainty.LIKELY)


def test_seen_from_inside_the_root_that_is_shown_is_its_own_group() -> None:
    own = memory("/", oom_kill=1, oom=1)
    found = judge(seen(own=own, id="self", runtime="self", path="/", log=UNREADABLE))
    assert found.cures[0].change == MemoryLimit(128 * MIB)


def test_a_kill_that_was_only_counted_in_the_window_is_found() -> None:
    found = judge(seen(own=memory(oom_kill=1, oom=1), oom_kill_before=0))
    assert found.verdict is Verdict.FOUND
    assert "only ten reports" in found.summary


def test_a_shared_groups_kills_are_not_a_processs_own() -> None:
    process = seen(own=memory(oom_kill=5, oom=5), id="77", runtime="process")
    assert judge(process).verdict is Verdict.CLEAR
    assert judge(structs.replace(process, log=UNREADABLE)).verdict is Verdict.UNKNOWN


def test_no_counter_and_no_log_is_unknown_with_a_way_out() -> None:
    found = judge(seen(own=memory(oom_kill=None), log=UNREADABLE))
    assert found.verdict is Verdict.UNKNOWN
    assert "as root on the host" in found.summary


def test_a_dead_container_that_was_killed_is_found() -> None:
    found = judge(dead(KILL, exit=ended(137, True)))
    assert (found.verdict, found.certainty) == (Verdict.FOUND, Certainty.CONFIRMED)
    assert found.severity is Severity.CRITICAL
    assert "reached its own memory limit of 64 MiB" in found.summary
    assert found.cures[0].change == MemoryLimit(128 * MIB)


@pytest.mark.parametrize("code", [0, 137, 139])
def test_a_dead_container_without_a_line_in_the_log_was_not(code: int) -> None:
    found = judge(dead(exit=ended(code, None)))
    assert is_clear(found, str(code))
    assert found.certainty is Certainty.CONFIRMED


def test_the_flag_of_the_engine_does_not_outweigh_the_log() -> None:
    assert judge(dead(exit=ended(137, True))).verdict is Verdict.CLEAR


def test_a_log_that_reaches_back_to_the_end_only_makes_it_likely() -> None:
    late = Reach(oldest_usec=NOW - 60 * SECOND)
    found = judge(dead(exit=ended(137, False), log=late))
    assert (found.verdict, found.certainty) == (Verdict.CLEAR, Certainty.LIKELY)


@pytest.mark.parametrize("log", [UNREADABLE, SHORT])
def test_without_the_log_the_engines_flag_is_likely(log: Reach) -> None:
    found = judge(dead(exit=ended(137, True, "oom", "die exitCode=137"), log=log))
    assert (found.verdict, found.certainty) == (Verdict.FOUND, Certainty.LIKELY)
    found = judge(dead(exit=ended(137, False), log=log))
    assert (found.verdict, found.certainty) == (Verdict.CLEAR, Certainty.LIKELY)


def test_a_flag_and_then_a_stop_by_the_engine_settles_nothing() -> None:
    exit = ended(137, True, "oom", "kill signal=9", "die exitCode=137")
    assert judge(dead(exit=exit, log=SHORT)).verdict is Verdict.UNKNOWN


def test_a_flag_where_the_killer_is_off_is_no_kill() -> None:
    own = structs.replace(v1(oom_kill=0), kill_disabled=True)
    gone = dead(exit=ended(137, True), log=UNREADABLE)
    gone = structs.replace(gone, path=PATH, levels=(Level(memory=own),))
    assert judge(gone).verdict is Verdict.UNKNOWN


def test_podman_and_silence_are_unknown() -> None:
    flagged = dead(exit=ended(137, False), log=UNREADABLE, runtime="podman")
    assert judge(flagged).verdict is Verdict.UNKNOWN
    assert judge(dead(exit=ended(137, None), log=SHORT)).verdict is Verdict.UNKNOWN
    assert judge(dead(log=UNREADABLE)).verdict is Verdict.UNKNOWN


def test_kills_of_which_the_log_does_not_say_whose_leave_it_open() -> None:
    assert judge(dead(exit=ended(137, None), nameless=3)).verdict is Verdict.UNKNOWN
    assert judge(dead(exit=ended(137, True), nameless=3)).verdict is Verdict.FOUND


def test_an_earlier_runs_kill_does_not_explain_this_end() -> None:
    old = structs.replace(KILL, usec=NOW - 900 * SECOND)
    found = judge(dead(old, exit=ended(137, False)))
    assert is_clear(found, "An earlier run of it was OOM-killed once")


def test_an_end_before_this_boot_is_not_in_this_log() -> None:
    old = structs.replace(dead(exit=ended(137, None)), start_usec=-SECOND, end_usec=-5)
    assert judge(old).verdict is Verdict.UNKNOWN


SEEN = structs.replace(
    KILL,
    seq=None,
    trigger_comm="greedy",
    trigger_pid=4712,
    held_anon_bytes=None,
    held_file_bytes=None,
    held_shmem_bytes=None,
    witnessed=True,
    logged=False,
)


def test_a_kill_that_was_seen_is_found_and_confirmed_although_the_log_is_closed() -> None:
    found = judge(seen(SEEN, own=memory(oom_kill=1, oom=1), oom_kill_before=0, log=UNREADABLE))
    assert (found.verdict, found.certainty) == (Verdict.FOUND, Certainty.CONFIRMED)
    for words in (
        "worker (pid 4711) was OOM-killed in this window",
        "own memory limit of 64 MiB",
        "when greedy (pid 4712) asked for more",
    ):
        assert words in found.summary
    assert found.evidence[0].source == "tracepoint oom:mark_victim"
    assert "pid=4711 comm=worker" in found.evidence[0].says
    assert "65536kB of 65536kB" in found.evidence[0].says
    assert all("log" not in r.because for r in found.ruled_out)
    assert found.cures[0].change == MemoryLimit(128 * MIB)


def test_a_kill_that_was_seen_says_when_it_was_a_parents_limit_or_the_hosts() -> None:
    parents = structs.replace(SEEN, oom_memcg="/docker")
    levels = (
        Level(memory=memory(limit_bytes=None, oom_kill=1)),
        Level(memory=memory("/docker")),
    )
    found = judge(seen(parents, levels=levels, log=UNREADABLE))
    assert "its parent /docker reached the memory limit of 64 MiB" in found.summary
    hosts = structs.replace(
        SEEN, global_oom=True, oom_memcg=None, limit_bytes=None, usage_bytes=None, constraint=None
    )
    found = judge(seen(hosts, log=UNREADABLE))
    assert "the host itself ran out of memory" in found.summary
    assert "no group above it was full" in found.evidence[0].says


def test_a_report_that_was_held_back_gets_its_group_from_what_was_seen() -> None:
    line = structs.replace(
        KILL, seq=501, oom_memcg=None, task_memcg=None, constraint=None, limit_bytes=None
    )
    other = structs.replace(line, seq=502, victim_pid=5000)
    mine, nameless = casualties.merged((), (line, other), (SEEN,), 500)
    assert nameless == (other,)
    (one,) = mine
    assert (one.seq, one.oom_memcg, one.witnessed, one.logged) == (501, PATH, True, True)
    assert one.anon_rss_bytes == 58 * MIB
    assert judge(seen(*mine, new_seq=500)).certainty is Certainty.CONFIRMED


def test_what_the_log_tells_in_full_and_was_seen_is_one_kill_with_both_as_evidence() -> None:
    mine, nameless = casualties.merged((KILL,), (), (SEEN,), 500)
    assert (len(mine), nameless) == (1, ())
    found = judge(seen(*mine, new_seq=500))
    assert "60 MiB anonymous" in found.summary
    assert {e.source for e in found.evidence} > {"tracepoint oom:mark_victim", WHOLE.source}


def test_a_kill_of_the_same_pid_before_the_window_is_another_one() -> None:
    old = structs.replace(KILL, seq=400, usec=NOW - 500 * SECOND)
    mine, _ = casualties.merged((old,), (), (SEEN,), 500)
    assert [k.witnessed for k in mine] == [False, True]


def test_what_was_counted_and_not_seen_says_why_nobody_saw_it() -> None:
    why = "this kernel tells no types"
    found = judge(seen(own=memory(oom_kill=1, oom=1), oom_kill_before=0, unwatched=why))
    assert found.certainty is Certainty.LIKELY
    assert why in found.summary
