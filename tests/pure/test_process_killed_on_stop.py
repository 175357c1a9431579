"""process/killed_on_stop judged on literal observations of a stop that was seen."""

import msgspec
import pytest
from msgspec import structs

from tests.pure.stop_observations import (
    ASKED,
    INIT,
    KILL,
    TERM,
    TERM_BIT,
    TWO,
    look,
    member,
    prospect,
    seen,
    sent,
    zap,
)
from whybox.cases.process.killed_on_stop.observation import Observation
from whybox.cases.process.killed_on_stop.probe import judge
from whybox.change import InProgram, StopTimeout, WithInit
from whybox.kernel.signals import Sent
from whybox.kernel.target import Exit
from whybox.model import Certainty, Finding, Severity, Verdict

# A stop that was seen.


def test_children_that_were_left_behind_are_counted() -> None:
    finding = judge(seen(prospect(*TWO), ASKED, zap(501, 1.1), zap(502, 1.1)))
    assert (finding.verdict, finding.certainty) == (Verdict.FOUND, Certainty.CONFIRMED)
    assert finding.severity is Severity.WARNING
    assert "the kernel killed 2 processes (worker 501, worker 502)" in finding.summary
    assert "they could handle SIGTERM, and nobody had passed it on" in finding.summary
    assert isinstance(finding.cures[0].change, InProgram)
    assert all(cure.change != WithInit() for cure in finding.cures)


def test_children_that_were_told_and_not_waited_for() -> None:
    told = sent(TERM, 501, 1.0, by=INIT)
    finding = judge(seen(prospect(TWO[0]), ASKED, told, zap(501, 1.0002)))
    assert "it had been sent SIGTERM, but nobody waited more than 0.2 ms" in finding.summary


def test_children_without_a_handler_lose_nothing() -> None:
    plain = member(501, handles=False)
    finding = judge(seen(prospect(plain), ASKED, zap(501, 1.1)))
    assert (finding.verdict, finding.severity) == (Verdict.FOUND, Severity.INFO)


def test_grandchildren_below_an_init_are_its_childs_affair() -> None:
    family = (member(501, "main", handles=False), member(502, ppid=501))
    passed = sent(TERM, 501, 1.0, by=INIT)
    finding = judge(seen(prospect(*family), ASKED, passed, zap(502, 1.1)))
    assert "only main (PID 2, pid 501 on the host) had been told" in finding.summary
    assert finding.cures[0].change is None  # tini -g, which may do
    assert finding.cures[1].advice.startswith("Let main pass SIGTERM on")


def test_a_family_that_ended_in_order_is_clear() -> None:
    told = [sent(TERM, one.id.pid, 1.0, by=INIT) for one in TWO]
    finding = judge(seen(prospect(*TWO), ASKED, *told))
    assert finding.verdict is Verdict.CLEAR
    assert "nobody was killed" in finding.summary


@pytest.mark.parametrize("result", [0, 1])
def test_a_zombie_is_killed_by_nothing(result: int) -> None:
    """Kernels differ in what they say of a signal to one that has ended."""
    late = structs.replace(zap(601, 1.1), result=result)
    assert judge(seen(prospect(), ASKED, late, zombies=(601,))).verdict is Verdict.CLEAR


def test_whom_somebody_started_from_outside_is_not_missed() -> None:
    visitor = structs.replace(member(501), entered=True)
    finding = judge(seen(prospect(visitor), ASKED, zap(501, 1.1)))
    assert finding.verdict is Verdict.CLEAR
    assert "1 process (worker 501), started from outside" in finding.summary


def test_a_grace_period_that_ran_out_is_measured() -> None:
    finding = judge(seen(prospect(), ASKED, sent(KILL, INIT, 3.5)))
    assert (finding.verdict, finding.severity) == (Verdict.FOUND, Severity.WARNING)
    assert finding.summary.startswith("2.5 s after SIGTERM runc (pid 90) killed PID 1 (app)")
    assert finding.cures[0].change == StopTimeout(30)


def test_a_long_one_is_given_three_times_as_long() -> None:
    finding = judge(seen(prospect(), ASKED, sent(KILL, INIT, 31.0)))
    assert finding.cures[0].change == StopTimeout(90)


def test_a_deaf_one_and_what_goes_with_it() -> None:
    ignored = sent(TERM, INIT, 1.0, result=1)
    stop = (ignored, sent(KILL, INIT, 11.0), zap(501, 11.001))
    with_children = judge(seen(prospect(TWO[0], at=look(cgt=0)), *stop))
    assert "no handler for SIGTERM" in with_children.summary
    assert "1 process (worker 501) went with it" in with_children.summary
    # An init would end the program, and leave its child to be killed.
    assert isinstance(with_children.cures[0].change, InProgram)
    alone = judge(seen(prospect(at=look(cgt=0)), *stop[:2]))
    assert alone.cures[0].change == WithInit()
    refusing = judge(seen(prospect(at=look(cgt=0, ign=TERM_BIT)), *stop[:2]))
    assert isinstance(refusing.cures[0].change, InProgram)


def test_a_shell_waits_for_its_foreground() -> None:
    behind = structs.replace(member(501, "web"), interruptible=False)
    front = member(502, "sleep", handles=False)
    stop = (ASKED, sent(KILL, INIT, 11.0))
    shell = prospect(behind, front, comm="bash", shell=True)
    finding = judge(seen(shell, *stop, zap(501, 11.001), zap(502, 11.001)))
    assert "here sleep (PID 3, pid 502 on the host)" in finding.summary
    # It was there before, and is not among those who were killed: the trap did not wait for it.
    assert "was not done in time" in judge(seen(shell, *stop, zap(501, 11.001))).summary
    waits = judge(seen(prospect(behind, comm="bash", shell=True), *stop))
    assert "was not done in time" in waits.summary


def test_a_stopped_one_could_not_hear() -> None:
    stop = (ASKED, sent(KILL, INIT, 11.0))
    assert "(State T)" in judge(seen(prospect(at=look(state="T")), *stop)).summary
    halt = sent(19, INIT, 0.5)
    assert "(State T)" in judge(seen(prospect(), halt, *stop)).summary
    went_on = sent(18, INIT, 0.7)
    assert "(State T)" not in judge(seen(prospect(), halt, went_on, *stop)).summary


def test_one_that_does_not_go_when_killed() -> None:
    finding = judge(seen(prospect(), ASKED, sent(KILL, INIT, 11.0), ended=False))
    assert finding.verdict is Verdict.FOUND
    assert "held up in do_wait" in finding.summary


# Look-alikes.


def outright(*what: Sent) -> Finding:
    return judge(seen(prospect(*TWO), *what, sent(KILL, INIT, 2.0), zap(501, 2.0001)))


def test_one_that_nobody_asked_was_killed_by_hand() -> None:
    assert outright().verdict is Verdict.CLEAR
    assert "killed outright by runc (pid 90)" in outright().summary


def test_a_signal_from_inside_does_not_make_a_kill_a_stop() -> None:
    assert outright(sent(TERM, INIT, 1.0, by=501)).verdict is Verdict.CLEAR


def test_a_stop_that_began_before_the_window_is_one() -> None:
    early = structs.replace(seen(prospect(), sent(KILL, INIT, 2.0)), engine_asked=True)
    finding = judge(early)
    assert finding.verdict is Verdict.FOUND
    assert "before this window" in finding.summary


def test_the_oom_killer_is_another_case() -> None:
    oom = sent(KILL, INIT, 2.0, by=501, code=128)
    finding = judge(seen(prospect(*TWO), oom, zap(502, 2.001), oom=1))
    assert finding.verdict is Verdict.CLEAR
    assert "memory/oom_killed" in finding.summary


def test_an_init_that_asked_for_too_much_memory_kills_nobody() -> None:
    """Its child was the OOM killer's victim, in the init's context; then the init ended."""
    victim = sent(KILL, 501, 1.0, by=INIT, code=128)
    finding = judge(seen(prospect(TWO[0]), victim, sent(TERM, INIT, 2.0), oom=1))
    assert finding.verdict is Verdict.CLEAR


def test_an_init_that_ends_since_its_child_was_out_of_memory() -> None:
    victim = sent(KILL, 501, 1.0, by=77, code=128)
    finding = judge(seen(prospect(*TWO), victim, zap(502, 1.5), oom=1))
    assert finding.verdict is Verdict.CLEAR
    assert "memory/oom_killed" in finding.summary


def test_workers_that_are_replaced_while_nobody_stops_it() -> None:
    kill = sent(KILL, 501, 1.0, by=INIT)
    assert judge(seen(prospect(*TWO), kill, ended=False)).verdict is Verdict.CLEAR
    stopped = judge(seen(prospect(*TWO), ASKED, structs.replace(kill, seconds=1.5)))
    assert "had killed 1 process (worker 501) itself" in stopped.summary


def test_a_stop_signal_that_is_sigkill_is_what_somebody_wanted() -> None:
    before = structs.replace(prospect(at=look(cgt=0)), stop_signal=KILL)
    killed = structs.replace(seen(before, sent(KILL, INIT, 1.0)), stop_signal=KILL)
    assert judge(killed).verdict is Verdict.CLEAR
    assert judge(structs.replace(seen(before, ended=False), stop_signal=KILL)).verdict is (
        Verdict.CLEAR
    )


def test_nobody_watched_is_unknown() -> None:
    blind = structs.replace(seen(prospect(*TWO)), unwatched="no tracefs")
    finding = judge(blind)
    assert (finding.verdict, "no tracefs" in finding.summary) == (Verdict.UNKNOWN, True)


def test_names_from_a_container_are_told_as_they_are() -> None:
    """Views make them harmless; nothing here may stumble over them."""
    odd = member(501, "a\x1b[31m\n(")
    assert judge(seen(prospect(odd), ASKED, zap(501, 1.1))).verdict is Verdict.FOUND


def test_an_observation_survives_a_recording() -> None:
    kept = seen(prospect(*TWO), ASKED, zap(501, 1.1), exit=Exit(source="", status="exited"))
    assert msgspec.json.decode(msgspec.json.encode(kept), type=Observation) == kept
