"""memory/oom_killed: kills that a sensor saw."""

from msgspec import structs

from tests.pure.oom_observations import (
    KILL,
    MIB,
    NOW,
    PATH,
    SECOND,
    UNREADABLE,
    WHOLE,
    memory,
    seen,
)
from whybox.cases.memory.oom_killed.probe import judge
from whybox.change import MemoryLimit
from whybox.kernel import casualties
from whybox.kernel.casualties import Level
from whybox.model import Certainty, Verdict

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


def test_a_kill_that_the_log_does_not_tell_yet_yields_to_one_before_it_which_it_does() -> None:
    before = structs.replace(KILL, seq=501, usec=NOW - SECOND, witnessed=True)
    latest = structs.replace(SEEN, victim_pid=4799, usec=NOW)
    found = judge(seen(before, latest, new_seq=500))
    assert (
        "worker (pid 4711) was OOM-killed in this window (killed 2 times in all)" in found.summary
    )
    assert any(e.says.startswith("memory: usage") for e in found.evidence)
    others = structs.replace(latest, oom_memcg="/docker")
    assert "pid 4799" in judge(seen(before, others, new_seq=500)).summary
