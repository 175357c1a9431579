"""memory/oom_killed: judged on literal observations."""

import pytest
from msgspec import structs

from tests.pure.oom_observations import (
    KILL,
    MIB,
    NOW,
    PATH,
    SECOND,
    SHORT,
    UNREADABLE,
    dead,
    ended,
    is_clear,
    memory,
    seen,
    v1,
)
from whybox.cases.memory.oom_killed.probe import judge
from whybox.change import InProgram, MemoryLimit
from whybox.kernel.casualties import Level
from whybox.kernel.kmsg import Reach
from whybox.kernel.memory import Memory
from whybox.kernel.oomkill import Consumer
from whybox.model import Certainty, Severity, Verdict


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
