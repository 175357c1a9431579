"""Literal observations of containers before, at and after a stop."""

from whybox.cases.process.killed_on_stop.observation import Observation
from whybox.kernel.disposition import Disposition, Thread
from whybox.kernel.signals import Sent
from whybox.kernel.stopping import First, Member, Prospect
from whybox.kernel.target import Exit
from whybox.kernel.task import TaskId

TERM, KILL = 15, 9
TERM_BIT, CHLD_BIT = 0x4000, 0x10000
INIT, ENGINE = 500, 90


def look(
    *, cgt: int = TERM_BIT, ign: int = 0, blk: int = 0, state: str = "S", wchan: str = "do_wait"
) -> Disposition:
    leader = Thread(tid=INIT, sig_blk=blk, sigwaits="sigtimedwait" in wchan, wait_channel=wchan)
    return Disposition(state=state, threads=1, sig_ign=ign, sig_cgt=cgt, pending=0, leader=leader)


def member(pid: int, comm: str = "worker", *, ppid: int = INIT, handles: bool = True) -> Member:
    return Member(
        id=TaskId(pid=pid, start_ticks=100),
        nspid=pid - INIT + 1,
        comm=comm,
        ppid=ppid,
        handles=handles,
        ignores=False,
        interruptible=True,
    )


def prospect(
    *members: Member,
    at: Disposition | None = None,
    comm: str = "app",
    shell: bool = False,
    init: bool = False,
    protected: bool = True,
    grace: int = 10,
) -> Prospect:
    return Prospect(
        stop_signal=TERM,
        grace_seconds=grace,
        grace_known=False,
        protected=protected,
        first=First(comm=comm, shell=shell, init=init),
        looks=(at or look(),),
        init=TaskId(pid=INIT, start_ticks=50),
        nspid=1 if protected else INIT,
        members=members,
        unlisted=0,
        now_seconds=100.0,
    )


def sent(
    signal: int, pid: int, seconds: float, *, by: int = ENGINE, result: int = 0, code: int = 0
) -> Sent:
    sender = {ENGINE: "runc", INIT: "app"}.get(by, "other")
    return Sent(
        signal=signal,
        pid=pid,
        result=result,
        code=code,
        seconds=seconds,
        sender_pid=by,
        sender=sender,
        comm="app" if pid == INIT else "worker",
    )


def zap(pid: int, seconds: float) -> Sent:
    return sent(KILL, pid, seconds, by=INIT, code=128)


def seen(
    before: Prospect | None,
    *what: Sent,
    ended: bool = True,
    oom: int = 0,
    zombies: tuple[int, ...] = (),
    exit: Exit | None = None,
) -> Observation:
    after = None if ended or before is None else before.looks[-1]
    return Observation(
        elapsed_ns=2_000_000_000,
        stop_signal=TERM,
        prospect=before,
        after=after,
        frozen=False,
        sent=what,
        unwatched=None,
        oom_kills=oom,
        zombies=zombies,
        engine_asked=False,
        exit=exit,
    )


#: Two children who could end in order.
TWO = (member(501), member(502))
ASKED = sent(TERM, INIT, 1.0)
