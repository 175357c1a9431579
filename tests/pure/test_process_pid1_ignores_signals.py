"""process/pid1_ignores_signals judged on literal observations."""

from pathlib import Path

import msgspec
import pytest
from msgspec import structs

from whybox.cases.process.pid1_ignores_signals.probe import Observation, judge, observe
from whybox.change import InProgram, WithInit
from whybox.kernel.disposition import Disposition, Thread
from whybox.kernel.host import Host
from whybox.kernel.signals import INT, KILL, TERM, Tally
from whybox.kernel.target import Exit, Target
from whybox.kernel.task import TaskId
from whybox.model import Certainty, Severity, Verdict

SECOND_NS = 1_000_000_000
TERM_BIT = 0x4000


def look(
    *,
    blk: int = 0,
    ign: int = 0,
    cgt: int = 0,
    pending: int = 0,
    waits: bool | None = False,
    where: str | None = "hrtimer_nanosleep",
    state: str = "S",
    signalfd: int | None = 0,
) -> Disposition:
    """One moment of a PID 1 that sleeps, without any handler unless said otherwise."""
    return Disposition(
        state=state,
        threads=1,
        sig_ign=ign,
        sig_cgt=cgt,
        pending=pending,
        leader=Thread(tid=7, sig_blk=blk, sigwaits=waits, wait_channel=where),
        signalfd=signalfd,
    )


def sent(result: int, count: int = 7, signal: int = TERM) -> Tally:
    return Tally(signal=signal, result=result, count=count, senders=("kill-99",))


def seen(
    moment: Disposition,
    *tallies: Tally,
    after: Disposition | None = None,
    elapsed_ns: int = 2 * SECOND_NS,
    stop: int = TERM,
) -> Observation:
    """The same moment at both looks, unless another is given for the second."""
    return Observation(
        elapsed_ns=elapsed_ns,
        pid=7,
        nspid=1,
        own_pid_namespace=True,
        stop_signal=stop,
        before=moment,
        after=after or moment,
        frozen=False,
        sent=tallies,
        engine_sent=False,
        unwatched=None,
    )


def test_seven_ignored_signals_are_confirmed_and_counted() -> None:
    finding = judge(seen(look(), sent(1)))
    assert (finding.verdict, finding.certainty) == (Verdict.FOUND, Certainty.CONFIRMED)
    assert finding.severity is Severity.WARNING
    assert "ignored 7 of 7 SIGTERM and still runs" in finding.summary
    assert "7 times sig=15 pid=7 res=1 (ignored), from kill-99" in finding.evidence[0].says
    assert finding.cures[0].change == WithInit()


def test_without_a_signal_it_is_only_likely_and_hurts_nothing_yet() -> None:
    finding = judge(seen(look()))
    assert (finding.verdict, finding.certainty) == (Verdict.FOUND, Certainty.LIKELY)
    assert finding.severity is Severity.INFO
    assert finding.cures[0].change == WithInit()


@pytest.mark.parametrize(
    ("moment", "tally"),
    [
        (look(ign=TERM_BIT), sent(1)),
        (look(ign=TERM_BIT), None),
        (look(blk=TERM_BIT, pending=TERM_BIT), sent(2)),
        (look(blk=TERM_BIT), None),
    ],
)
def test_what_an_init_cannot_cure_is_not_cured_by_an_init(
    moment: Disposition, tally: Tally | None
) -> None:
    finding = judge(seen(moment, *((tally,) if tally else ())))
    assert finding.verdict is Verdict.FOUND
    assert isinstance(finding.cures[0].change, InProgram)
    assert all(cure.change != WithInit() for cure in finding.cures)


def test_a_blocked_signal_that_stays_pending_is_confirmed() -> None:
    finding = judge(seen(look(blk=TERM_BIT), after=look(blk=TERM_BIT, pending=TERM_BIT)))
    assert (finding.certainty, finding.severity) == (Certainty.CONFIRMED, Severity.WARNING)
    assert "stays pending" in finding.summary


def test_a_blocked_signal_at_one_glance_is_only_likely() -> None:
    """It may be just about to be read."""
    finding = judge(seen(look(blk=TERM_BIT, pending=TERM_BIT), elapsed_ns=1_000_000))
    assert (finding.certainty, finding.severity) == (Certainty.LIKELY, Severity.WARNING)


def test_a_handler_that_is_never_let_in_is_found_after_a_second_only() -> None:
    moment = look(blk=TERM_BIT, cgt=TERM_BIT, pending=TERM_BIT)
    assert judge(seen(moment)).verdict is Verdict.FOUND
    assert judge(seen(moment, elapsed_ns=SECOND_NS - 1)).verdict is Verdict.CLEAR


def test_the_engine_says_that_it_sent_one_and_it_is_deaf() -> None:
    told = structs.replace(seen(look()), engine_sent=True)
    finding = judge(told)
    assert (finding.certainty, finding.severity) == (Certainty.CONFIRMED, Severity.WARNING)
    assert finding.evidence[-1].source == "the engine's events"
    handled = structs.replace(seen(look(cgt=TERM_BIT)), engine_sent=True)
    assert judge(handled).verdict is Verdict.CLEAR


def test_ctrl_c_that_is_ignored_is_found_where_the_stop_signal_is_handled() -> None:
    finding = judge(seen(look(cgt=TERM_BIT), sent(1, 2, INT)))
    assert finding.verdict is Verdict.FOUND
    assert "ignored 2 of 2 SIGINT" in finding.summary


def test_another_stop_signal_is_asked_for_instead() -> None:
    """nginx stops by SIGQUIT, bit 4."""
    assert judge(seen(look(cgt=0x4), stop=3)).verdict is Verdict.CLEAR
    finding = judge(seen(look(cgt=TERM_BIT), stop=3))
    assert finding.verdict is Verdict.FOUND
    assert "SIGQUIT" in finding.summary


def test_a_signal_that_it_does_handle_is_offered_as_stop_signal() -> None:
    """Python handles SIGINT, bit 2, and nothing else."""
    finding = judge(seen(look(cgt=0x2)))
    assert "--stop-signal SIGINT" in finding.cures[-1].advice


LOOK_ALIKES = {
    "a handler": seen(look(cgt=TERM_BIT)),
    "a handler that got one and goes on": seen(look(cgt=TERM_BIT), sent(0)),
    "the Go runtime": seen(look(cgt=0xFFFFFFFE7FFBFEFF)),
    "tini in its wait": seen(look(ign=0x300000, waits=True, where="do_sigtimedwait")),
    "tini out of its wait at one look": seen(look(blk=TERM_BIT), after=look(waits=True)),
    "a signalfd": seen(look(blk=TERM_BIT, signalfd=TERM_BIT, where="ep_poll")),
    "a zombie": seen(look(), after=look(state="Z", where=None)),
    "killed and emptying its namespace": seen(
        look(pending=0x100, where="zap_pid_ns_processes"), sent(1)
    ),
    "killed and blocked": seen(look(pending=0x100, state="D", where="rwsem_down_read"), sent(1)),
    "the host's pid namespace": structs.replace(seen(look(), sent(1)), own_pid_namespace=False),
    "not PID 1": structs.replace(seen(look(), sent(1)), nspid=12),
    "SIGKILL from inside": seen(look(cgt=TERM_BIT), sent(1, 1, KILL)),
    "ended by the signal": structs.replace(seen(look(), sent(0), sent(1, 2)), after=None),
    "a second signal while it ends": structs.replace(
        seen(look(cgt=TERM_BIT), sent(0, 1), sent(1, 1)), after=None
    ),
}


@pytest.mark.parametrize("name", LOOK_ALIKES)
def test_a_look_alike_is_clear(name: str) -> None:
    assert judge(LOOK_ALIKES[name]).verdict is Verdict.CLEAR


def test_slow_to_end_is_told_from_deaf() -> None:
    assert (
        "slow to end, not deaf" in judge(LOOK_ALIKES["a handler that got one and goes on"]).summary
    )


def test_sigkill_from_inside_is_explained() -> None:
    assert "from outside" in judge(LOOK_ALIKES["SIGKILL from inside"]).summary


def test_stopped_or_paused_it_is_asked_again_later() -> None:
    assert judge(seen(look(state="T"))).verdict is Verdict.UNKNOWN
    assert judge(structs.replace(seen(look()), frozen=True)).verdict is Verdict.UNKNOWN
    assert judge(seen(look(state="T", cgt=TERM_BIT))).verdict is Verdict.CLEAR


def test_what_could_not_be_read_is_unknown_with_the_way_out() -> None:
    for moment in (look(waits=None), look(blk=TERM_BIT, signalfd=None)):
        finding = judge(seen(moment))
        assert finding.verdict is Verdict.UNKNOWN
        assert "as root" in finding.summary


def test_it_ignored_the_stop_signal_and_had_to_be_killed() -> None:
    gone = structs.replace(seen(look(), sent(1, 1), sent(0, 1, KILL)), after=None)
    finding = judge(gone)
    assert (finding.verdict, finding.certainty) == (Verdict.FOUND, Certainty.CONFIRMED)
    assert "had to be killed" in finding.summary


def test_killed_without_being_asked_first_is_not_this() -> None:
    gone = structs.replace(seen(look(), sent(0, 1, KILL)), after=None)
    assert judge(gone).verdict is Verdict.CLEAR
    assert judge(structs.replace(gone, sent=())).verdict is Verdict.UNKNOWN


def test_an_observation_survives_a_recording() -> None:
    kept = seen(look(blk=TERM_BIT), sent(1), sent(2, 3))
    assert msgspec.json.decode(msgspec.json.encode(kept), type=Observation) == kept


def target(*events: str, nspid: int = 1) -> Target:
    return Target(
        id="x",
        name="x",
        runtime="docker",
        init=TaskId(pid=7, start_ticks=99),
        init_nspid=nspid,
        namespaces={"pid": 4026532000},
        host_namespaces={"pid": 4026531836},
        exit=Exit(source="docker inspect", status="running", events=events),
        stop_signal="SIGTERM",
    )


STATUS = """Name:\tnosig
State:\tS (sleeping)
Tgid:\t7
PPid:\t1
Uid:\t0\t0\t0\t0
Gid:\t0\t0\t0\t0
NSpid:\t7\t1
Threads:\t1
SigPnd:\t0000000000000000
ShdPnd:\t0000000000000000
SigBlk:\t0000000000000000
SigIgn:\t0000000000000000
SigCgt:\t0000000000000000
CapInh:\t0000000000000000
CapPrm:\t0000000000000000
CapEff:\t0000000000000000
CapBnd:\t0000000000000000
"""


def observed(root: Path, target: Target, between: str = "") -> Observation:
    proc = root / "proc" / "7"
    (proc / "task/7").mkdir(parents=True)
    (proc / "status").write_text(STATUS)
    (proc / "stat").write_text("7 (nosig) S 1 7 7 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 99 0 0\n")
    (proc / "task/7/wchan").write_text("hrtimer_nanosleep")
    (root / "proc/self").mkdir()
    (root / "proc/self/mountinfo").write_text("")
    host = Host(str(root), window_seconds=1.0)
    watch = observe(host, target)
    next(watch)
    host.next_moment()
    if between:
        (proc / "stat").unlink()
    with pytest.raises(StopIteration) as end:
        next(watch)
    seen: Observation = end.value.value
    return seen


def test_a_tree_is_observed_and_says_why_no_signals_were_watched(tmp_path: Path) -> None:
    kept = observed(tmp_path, target("start", "kill signal=15"))
    assert kept.engine_sent
    assert kept.unwatched == "a recorded tree has no tracepoints"
    finding = judge(kept)
    assert finding.verdict is Verdict.FOUND
    assert finding.evidence[0].says.startswith("not watched: ")


def test_a_process_that_goes_within_the_window_is_observed_as_gone(tmp_path: Path) -> None:
    kept = observed(tmp_path, target(), between="it ends")
    assert kept.after is None
    assert judge(kept).verdict is Verdict.UNKNOWN
