"""OOM reports found among the records of the kernel log, whatever the tasks are called."""

import pytest

from tests.pure.oom_reports import MIB, records, report
from whybox.kernel import oom


def test_a_report_tells_victim_trigger_limit_and_what_was_held() -> None:
    (kill,) = oom.parse(records(*report(trigger="asks")))
    assert (kill.victim_pid, kill.victim_comm) == (20041, "allocate")
    assert (kill.trigger_comm, kill.trigger_pid) == ("asks", 77)
    assert (kill.oom_memcg, kill.task_memcg, kill.constraint) == ("/box", "/box", "MEMCG")
    assert kill.limit_bytes == 64 * MIB
    assert kill.anon_rss_bytes == 65024 * 1024
    assert not kill.global_oom


def test_a_parents_limit_is_not_the_victims_group() -> None:
    (kill,) = oom.parse(records(*report(oom_memcg="/pod", task_memcg="/pod/b")))
    assert (kill.oom_memcg, kill.task_memcg) == ("/pod", "/pod/b")


def test_the_machine_ran_out() -> None:
    (kill,) = oom.parse(records(*report(oom_memcg=None, task_memcg="/docker/x")))
    assert kill.global_oom
    assert (kill.oom_memcg, kill.task_memcg) == (None, "/docker/x")


@pytest.mark.parametrize(
    "name",
    ["a,b", "x,pid=1,uid=0", ") total-vm:1kB", "y,task_memcg=/other,task=z", "a invoked oom-k"],
)
def test_a_task_cannot_forge_a_report_by_its_name(name: str) -> None:
    (kill,) = oom.parse(records(*report(victim=name)))
    assert (kill.victim_pid, kill.victim_comm) == (20041, name)
    assert kill.task_memcg == "/box"


def test_what_a_user_wrote_into_the_log_is_no_report() -> None:
    assert oom.parse(records(*report(), facility=1)) == ()


def test_two_reports_one_after_the_other_stay_apart() -> None:
    lines = [*report(pid=1), *report(pid=2, oom_memcg="/other", task_memcg="/other")]
    kills = oom.parse(records(*lines))
    assert [(k.victim_pid, k.oom_memcg) for k in kills] == [(1, "/box"), (2, "/other")]


def test_records_of_others_in_between_do_not_matter() -> None:
    lines = report()
    mixed = [line for one in lines for line in (one, "eth0: link becomes ready")]
    assert oom.parse(records(*mixed)) == tuple(
        kill for kill in oom.parse(records(*mixed)) if kill.limit_bytes == 64 * MIB
    )
    assert len(oom.parse(records(*mixed))) == 1


def test_a_report_that_lost_its_head_still_names_the_victim() -> None:
    (kill,) = oom.parse(records(*report()[-2:]))
    assert (kill.victim_pid, kill.trigger_comm, kill.limit_bytes) == (20041, None, None)
