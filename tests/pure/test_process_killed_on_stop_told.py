"""process/killed_on_stop before a stop, and after one that nobody watched."""

import pytest
from msgspec import structs

from tests.pure.stop_observations import (
    ASKED,
    TERM_BIT,
    TWO,
    look,
    member,
    prospect,
    seen,
)
from whybox.cases.process.killed_on_stop.probe import judge
from whybox.kernel import stopping
from whybox.kernel.signals import Sent
from whybox.kernel.stopping import Prospect
from whybox.kernel.target import Exit, Target
from whybox.model import Certainty, Finding, Severity, Verdict

# Before a stop.


def foretold(before: Prospect, *what: Sent) -> Finding:
    return judge(seen(before, *what, ended=False))


def test_one_with_a_handler_is_clear_and_others_are_its_affair() -> None:
    assert foretold(prospect()).verdict is Verdict.CLEAR
    finding = foretold(prospect(*TWO))
    assert finding.verdict is Verdict.CLEAR
    assert "2 others with a handler are told only if it passes it on" in finding.summary


def test_a_deaf_one_is_foretold_as_information() -> None:
    finding = foretold(prospect(*TWO, at=look(cgt=0)))
    assert (finding.verdict, finding.certainty) == (Verdict.FOUND, Certainty.LIKELY)
    assert finding.severity is Severity.INFO
    assert "2 others with a handler for SIGTERM never get it" in finding.summary
    assert "10 s later it is killed" in finding.summary


def test_without_protection_no_handler_is_needed() -> None:
    finding = foretold(prospect(at=look(cgt=0), protected=False))
    assert finding.verdict is Verdict.CLEAR
    ignores = foretold(prospect(at=look(cgt=0, ign=TERM_BIT), protected=False))
    assert ignores.verdict is Verdict.FOUND


@pytest.mark.parametrize(("grace", "verdict"), [(99, "found"), (100, "clear")])
def test_a_foreground_command_must_be_older_than_the_grace_period(grace: int, verdict: str) -> None:
    """It is 99 seconds old."""
    before = prospect(member(501, "java", handles=False), shell=True, comm="sh", grace=grace)
    assert foretold(before).verdict == verdict


def test_a_shell_in_its_wait_is_clear() -> None:
    front = member(501, handles=False)
    behind = structs.replace(front, interruptible=False)
    suspended = prospect(front, at=look(wchan="sigsuspend"), shell=True, comm="dash")
    for before in (suspended, prospect(behind, shell=True, comm="bash")):
        assert foretold(before).verdict is Verdict.CLEAR


def test_tini_leaves_those_below_its_child() -> None:
    main, worker = member(501, "main", handles=False), member(502, ppid=501)
    waits = look(cgt=0, wchan="do_sigtimedwait")
    tini = prospect(main, worker, at=waits, comm="tini", init=True)
    finding = foretold(tini)
    assert finding.verdict is Verdict.FOUND
    assert "tini passes SIGTERM to main (PID 2, pid 501 on the host) alone" in finding.summary
    group = structs.replace(tini, first=structs.replace(tini.first, passes_to_group=True))
    handled = structs.replace(tini, members=(structs.replace(main, handles=True), worker))
    childless = structs.replace(tini, members=(main,))
    for healthy in (group, handled, childless):
        assert foretold(healthy).verdict is Verdict.CLEAR
    deaf = structs.replace(tini, members=(structs.replace(main, ignores=True),))
    assert "which ignores it" in foretold(deaf).summary


def test_one_that_is_being_stopped_is_unknown() -> None:
    finding = foretold(prospect(), ASKED)
    assert (finding.verdict, "--window 15s" in finding.summary) == (Verdict.UNKNOWN, True)


def test_a_paused_one_is_unknown_where_it_matters() -> None:
    for at, verdict in ((look(cgt=0), Verdict.UNKNOWN), (look(), Verdict.CLEAR)):
        paused = structs.replace(seen(prospect(at=at), ended=False), frozen=True)
        assert judge(paused).verdict is verdict


def test_one_that_is_never_killed_is_waited_for() -> None:
    assert foretold(prospect(at=look(cgt=0), grace=-1)).verdict is Verdict.CLEAR


# Dead.


def dead(
    *events: str, code: int | None = 137, oom: bool = False, at: tuple[int, ...] = ()
) -> Finding:
    exit = Exit(
        source="docker inspect x State",
        status="exited",
        exit_code=code,
        oom_killed=oom,
        events=events,
        events_at_ns=at,
    )
    return judge(seen(None, exit=exit))


STOP = ("start", "kill signal=15", "kill signal=9", "die exitCode=137", "stop")


def test_the_engines_events_tell_of_a_time_that_ran_out() -> None:
    stamps = tuple(n * 1_000_000_000 for n in (100, 200, 210, 211, 212))
    finding = dead(*STOP, at=stamps)
    assert (finding.verdict, finding.certainty) == (Verdict.FOUND, Certainty.CONFIRMED)
    assert "10.0 s after SIGTERM" in finding.summary
    assert dead(*STOP[:-1]).certainty is Certainty.LIKELY
    assert dead(*STOP, oom=True).verdict is Verdict.FOUND


@pytest.mark.parametrize(
    ("events", "code", "verdict", "says"),
    [
        (("start", "kill signal=9", "die exitCode=137"), 137, "clear", "killed outright"),
        (("start", "kill signal=9", "die exitCode=137", "stop"), 137, "clear", "SIGKILL at once"),
        (("start", "die exitCode=137"), 137, "clear", "sent it nothing"),
        (("start", "die exitCode=0"), 0, "clear", "Nobody stopped it"),
        (("start", "oom", "die exitCode=137"), 137, "clear", "memory/oom_killed"),
        (("start", "kill signal=15", "die exitCode=0", "stop"), 0, "unknown", "leaves no record"),
        (("start", "kill signal=15", "die exitCode=143", "stop"), 143, "unknown", "Stopped by"),
        ((), 137, "unknown", "may be a stop whose time ran out"),
        ((), 0, "unknown", "leaves no record"),
        (("die exitCode=137",), 137, "unknown", "may be"),
    ],
)
def test_what_the_events_cannot_tell_is_unknown(
    events: tuple[str, ...], code: int, verdict: str, says: str
) -> None:
    finding = dead(*events, code=code)
    assert (finding.verdict, says in finding.summary) == (verdict, True), finding.summary


def test_an_earlier_life_does_not_count() -> None:
    assert dead(*STOP, "start", "die exitCode=0", code=0).verdict is Verdict.CLEAR


def test_without_a_record_it_is_unknown() -> None:
    assert judge(seen(None)).verdict is Verdict.UNKNOWN


# What inspect prints.


def test_each_process_has_a_line_and_there_are_at_most_twenty() -> None:
    many = tuple(member(501 + n) for n in range(40))
    lines = stopping.lines(prospect(*many))
    assert lines[0].startswith("SIGTERM to its first process, SIGKILL after 10 s")
    assert lines[1] == "500 (inside 1) app: has a handler for SIGTERM"
    assert "is told if PID 1 passes it on" in lines[2]
    assert (lines[-1], len(lines)) == ("… and 21 more", 2 + 19 + 1)


def test_a_deaf_one_and_its_children_are_told_their_fate() -> None:
    lines = stopping.lines(prospect(*TWO, at=look(cgt=0)))
    assert lines[1].endswith("no default action: killed after 10 s")
    assert lines[2].endswith("is not told, and is killed when PID 1 has ended")


def test_the_grace_period_is_its_own_or_its_engines() -> None:
    docker = Target(id="x", name="x", runtime="docker", init=None)
    assert stopping.grace(docker) == (10, False)
    assert stopping.grace(structs.replace(docker, stop_seconds=3)) == (3, True)
    pod = structs.replace(docker, runtime="cri", cgroups={"pids": "/kubepods/pod1/x"})
    assert stopping.grace(pod) == (30, False)
