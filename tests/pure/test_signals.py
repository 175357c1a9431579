"""Names and numbers of signals, and the rules by which PID 1 hears them."""

import os
import signal as standard
import threading
from pathlib import Path

import pytest
from msgspec import structs

from whybox.kernel import signals
from whybox.kernel.disposition import (
    Disposition,
    Hearing,
    Thread,
    best,
    disposition,
    hearing,
    stays_pending,
)
from whybox.kernel.host import Host
from whybox.kernel.signals import KILL, TERM, Sent, Tally

TERM_BIT = 0x4000


@pytest.mark.parametrize(
    ("said", "number"),
    [
        ("SIGTERM", 15),
        ("term", 15),
        (" 3 ", 3),
        ("SIGQUIT", 3),
        ("RTMIN+3", 37),
        ("SIGRTMIN+3", 37),
        ("SIGRTMAX-1", 63),
        ("RTMAX", 64),
        ("0", None),
        ("65", None),
        ("", None),
        ("SIG", None),
        ("RTMIN+31", None),
        ("RTMAX+1", None),
        ("١٥", None),
        ("SIGNONSENSE", None),
    ],
)
def test_a_signal_is_read_as_engines_write_it(said: str, number: int | None) -> None:
    assert signals.number(said) == number


def test_every_number_has_a_name_that_leads_back_to_it() -> None:
    for number in standard.valid_signals():
        assert signals.number(signals.name(number)) == number
    assert signals.name(33) == "signal 33"


def test_a_mask_counts_from_signal_1() -> None:
    assert signals.has(TERM_BIT, TERM)
    assert signals.has(0x100, KILL)
    assert not signals.has(TERM_BIT, KILL)


def test_signals_of_one_kind_and_fate_are_counted_together() -> None:
    one = Sent(signal=15, pid=7, result=1, code=0, seconds=1.0, sender_pid=9, sender="kill")
    others = [structs.replace(one, sender_pid=n) for n in range(10, 15)]
    noise = structs.replace(one, signal=17)
    assert signals.tallied([one, one, *others, noise], (15,)) == (
        Tally(signal=15, result=1, count=7, senders=("kill-9", "kill-10", "kill-11")),
    )


@pytest.mark.parametrize(
    ("events", "told"),
    [
        (("start", "kill signal=15"), True),
        (("start", "kill signal=SIGTERM"), True),
        (("start", "kill signal=1"), False),
        (("start", "kill signal=15", "die exitCode=137", "start"), False),
        (("exec_start: sh", "kill signal=15", "exec_die exitCode=0"), True),
        ((), False),
    ],
)
def test_an_engine_tells_of_this_life_only(events: tuple[str, ...], told: bool) -> None:
    assert signals.engine_sent(events, (15,)) is told


def thread(tid: int = 7, blk: int = 0, waits: bool | None = False, **more: int) -> Thread:
    return Thread(tid=tid, sig_blk=blk, sigwaits=waits, wait_channel=None, **more)


def seen(
    leader: Thread | None = None,
    *others: Thread,
    ign: int = 0,
    cgt: int = 0,
    signalfd: int | None = 0,
    pending: int = 0,
) -> Disposition:
    return Disposition(
        state="S",
        threads=1 + len(others),
        sig_ign=ign,
        sig_cgt=cgt,
        pending=pending,
        leader=leader or thread(),
        others=others,
        signalfd=signalfd,
    )


BLOCKS = thread(blk=TERM_BIT)


@pytest.mark.parametrize(
    ("look", "how"),
    [
        (seen(), Hearing.DEFAULT),
        (seen(cgt=TERM_BIT), Hearing.CAUGHT),
        (seen(cgt=0xFFFFFFFE7FFBFEFF), Hearing.CAUGHT),  # the Go runtime
        (seen(ign=TERM_BIT), Hearing.IGNORED),
        (seen(BLOCKS), Hearing.BLOCKED),
        (seen(BLOCKS, ign=TERM_BIT), Hearing.BLOCKED),  # a blocked signal is never ignored
        (seen(BLOCKS, cgt=TERM_BIT), Hearing.CAUGHT),
        (seen(BLOCKS, signalfd=TERM_BIT), Hearing.SIGNALFD),
        (seen(BLOCKS, signalfd=0x1), Hearing.BLOCKED),
        (seen(BLOCKS, signalfd=None), Hearing.UNSEEN),
        (seen(thread(waits=True)), Hearing.SIGWAIT),  # tini
        (seen(thread(waits=True, waits_for=0x10000)), Hearing.DEFAULT),
        (seen(thread(waits=True, waits_for=TERM_BIT)), Hearing.SIGWAIT),
        (seen(thread(blk=TERM_BIT, waits=True)), Hearing.BLOCKED),  # it waits for others
        (seen(thread(waits=None)), Hearing.UNSEEN),
        (seen(thread(waits=None), ign=TERM_BIT), Hearing.IGNORED),
        (seen(thread(blk=TERM_BIT, waits=None)), Hearing.UNSEEN),
        (seen(BLOCKS, thread(8, waits=True)), Hearing.SIGWAIT),
        (seen(BLOCKS, thread(8, TERM_BIT)), Hearing.BLOCKED),
        (seen(BLOCKS, thread(8)), Hearing.DEFAULT),
        (seen(BLOCKS, thread(8), ign=TERM_BIT), Hearing.IGNORED),
        (seen(BLOCKS, thread(8, waits=None)), Hearing.UNSEEN),
        (seen(thread(), thread(8, waits=True)), Hearing.DEFAULT),  # dropped before it is asked
    ],
)
def test_the_masks_and_the_waits_decide_together(look: Disposition, how: Hearing) -> None:
    assert hearing(look, TERM) is how


def test_threads_that_could_not_be_looked_at_leave_it_open() -> None:
    assert hearing(structs.replace(seen(BLOCKS), others=None), TERM) is Hearing.UNSEEN


def test_one_look_at_which_it_waits_is_enough() -> None:
    outside, waiting = seen(BLOCKS), seen(thread(waits=True))
    assert best([outside, waiting], TERM) is Hearing.SIGWAIT
    assert best([waiting, outside], TERM) is Hearing.SIGWAIT
    assert best([outside, outside], TERM) is Hearing.BLOCKED


def test_pending_is_held_back_only_by_a_mask() -> None:
    assert stays_pending(seen(BLOCKS, pending=TERM_BIT), TERM)
    assert not stays_pending(seen(pending=TERM_BIT), TERM)
    assert not stays_pending(seen(BLOCKS), TERM)


def test_it_is_killed_where_sigkill_is_pending_or_its_namespace_is_being_emptied() -> None:
    zap = structs.replace(thread(), wait_channel="zap_pid_ns_processes")
    assert seen(pending=0x100).killed
    assert seen(zap).killed
    assert not seen(pending=TERM_BIT).killed


STATUS = """Name:\tx
State:\t{state}
Tgid:\t7
Pid:\t7
PPid:\t1
Uid:\t0\t0\t0\t0
Gid:\t0\t0\t0\t0
NSpid:\t7\t1
Threads:\t{threads}
SigPnd:\t0000000000000000
ShdPnd:\t{pending:016x}
SigBlk:\t{blk:016x}
SigIgn:\t0000000000000000
SigCgt:\t0000000000000000
CapInh:\t0000000000000000
CapPrm:\t0000000000000000
CapEff:\t0000000000000000
CapBnd:\t0000000000000000
"""


def status(blk: int = 0, *, threads: int = 1, pending: int = 0, state: str = "S (sleeping)") -> str:
    return STATUS.format(blk=blk, threads=threads, pending=pending, state=state)


def test_a_small_tree_is_read_with_its_threads_and_signalfds(tmp_path: Path) -> None:
    proc = tmp_path / "proc" / "7"
    for directory in ("fd", "fdinfo", "task/7", "task/8"):
        (proc / directory).mkdir(parents=True)
    (proc / "status").write_text(status(TERM_BIT, threads=2, pending=TERM_BIT))
    (proc / "task/7/wchan").write_text("ep_poll")
    (proc / "task/8/status").write_text(status(TERM_BIT, threads=2))
    (proc / "task/8/wchan").write_text("do_sigtimedwait")
    (proc / "fd/3").symlink_to("anon_inode:[signalfd]")
    (proc / "fdinfo/3").write_text("pos:\t0\nflags:\t02\nsigmask:\t0000000000004000\n")
    (proc / "fd/4").symlink_to("/dev/null")
    look = disposition(Host(str(tmp_path)), 7, TERM)
    assert look.signalfd == TERM_BIT
    assert look.others is not None
    assert [(t.tid, t.sigwaits) for t in look.others] == [(8, True)]
    assert (look.leader.sigwaits, look.pending) == (False, TERM_BIT)


def test_what_may_not_be_read_is_not_known(tmp_path: Path) -> None:
    """The kernel prints 0 for a wchan that we may not see, and refuses the rest."""
    proc = tmp_path / "proc" / "7"
    (proc / "task/7").mkdir(parents=True)
    (proc / "status").write_text(status(TERM_BIT))
    (proc / "task/7/wchan").write_text("0")
    look = disposition(Host(str(tmp_path)), 7, TERM)
    assert (look.signalfd, look.leader.sigwaits) == (None, None)


def test_a_running_task_waits_for_nothing(tmp_path: Path) -> None:
    proc = tmp_path / "proc" / "7"
    (proc / "task/7").mkdir(parents=True)
    (proc / "status").write_text(status(state="R (running)"))
    (proc / "task/7/wchan").write_text("0")
    (proc / "task/7/syscall").write_text("running\n")
    assert hearing(disposition(Host(str(tmp_path)), 7, TERM), TERM) is Hearing.DEFAULT


def test_our_own_process_is_seen_as_python_says_it_is() -> None:
    caught = {n for n in standard.valid_signals() if callable(standard.getsignal(n))}
    look = disposition(Host(), os.getpid(), TERM)
    assert {n for n in caught if not signals.has(look.sig_cgt, n)} == set()
    assert look.threads == len(os.listdir("/proc/self/task")) >= threading.active_count()
