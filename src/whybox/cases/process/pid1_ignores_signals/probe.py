"""PID 1 that a stop signal does not reach: ``signal_generate``, or masks with every way to wait."""

from msgspec import Struct

from whybox.change import InProgram, WithInit
from whybox.kernel import freezer, signals
from whybox.kernel.disposition import (
    Disposition,
    Hearing,
    best,
    disposition,
    disposition_of,
    own_pid_namespace,
    stays_pending,
)
from whybox.kernel.host import Host
from whybox.kernel.signals import Result, Tally
from whybox.kernel.target import Target
from whybox.model import (
    Case,
    Certainty,
    Cure,
    Evidence,
    Finding,
    RuledOut,
    Safety,
    Severity,
    Verdict,
    Watch,
    clear,
    unknown,
)
from whybox.needs import living

#: Signals that mean "end" even where the container's stop signal is another one.
ENDING = (signals.TERM, signals.INT)

#: What is pending this long is read by nobody; a moment may lie between arrival and reading.
LONG_PENDING_NS = 1_000_000_000

#: Signals by which programs that do not handle the stop signal can often be asked to end.
ALTERNATIVES = ("SIGINT", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGWINCH")


class Observation(Struct, frozen=True, kw_only=True):
    """The first process before and after, and what was sent to it meanwhile."""

    elapsed_ns: int
    pid: int
    nspid: int | None
    own_pid_namespace: bool | None
    stop_signal: int
    before: Disposition
    after: Disposition | None
    """``None``: it ended within the window."""
    frozen: bool | None
    sent: tuple[Tally, ...]
    engine_sent: bool
    """Whether the engine's events tell of a stop signal in this life of it."""
    unwatched: str | None
    """Why nobody watched what was sent."""

    @property
    def last(self) -> Disposition:
        """The latest look."""
        return self.after or self.before

    def hearing(self, signal: int) -> Hearing:
        """What becomes of a signal, by both looks."""
        return best([self.before, self.last], signal)

    def count(self, signal: int, result: Result) -> int:
        """How many of these met that fate in the window."""
        return sum(t.count for t in self.sent if (t.signal, t.result) == (signal, result))


def observe(host: Host, target: Target) -> Watch[Observation]:
    """Its masks and waits, before and after; every signal to it in between."""
    init = target.init
    if init is None:
        raise OSError("it is not running, so there is nothing to watch")
    stop = signals.number(target.stop_signal or "TERM") or signals.TERM
    wanted = (stop, *ENDING)
    started = host.monotonic_ns()
    before = disposition(host, init.pid, stop)
    with signals.watch(host, target) as watched:
        yield
        after = disposition_of(host, init, stop)
        # What a program tells itself is no attempt to stop it: Go ends by raising its last signal.
        sent = [s for s in watched.sent_to(init.pid) if not s.by_itself]
    return Observation(
        elapsed_ns=host.monotonic_ns() - started,
        pid=init.pid,
        nspid=target.init_nspid,
        own_pid_namespace=own_pid_namespace(host, target),
        stop_signal=stop,
        before=before,
        after=after,
        frozen=freezer.frozen(host, target),
        sent=signals.tallied(sent, (*wanted, signals.KILL)),
        engine_sent=target.exit is not None and signals.engine_sent(target.exit.events, wanted),
        unwatched=watched.reason,
    )


def judge(seen: Observation) -> Finding:
    """The kernel's own word first, the masks second."""
    return _other_trouble(seen) or _sent(seen) or _by_masks(seen)


def _other_trouble(seen: Observation) -> Finding | None:
    if seen.own_pid_namespace is False:
        return clear("It lives in the host's pid namespace, where signals have their usual effect.")
    if seen.nspid not in (1, None):
        return clear(f"It is {seen.nspid} in its pid namespace, not PID 1: signals work as usual.")
    if seen.after is None:
        return _ended(seen)
    if seen.after.ended:
        return clear("PID 1 has ended already: it is a zombie, which no signal concerns.")
    if seen.after.killed:
        return clear(
            "PID 1 ignores nothing: it has been killed already, and is held up in "
            f"{seen.after.leader.wait_channel or 'the kernel'} until its container's last task "
            "has left the kernel (see cpu/blocked_in_kernel)."
        )
    return None


def _ended(seen: Observation) -> Finding | None:
    """It is gone: found only where it ignored what was sent and only SIGKILL made it go."""
    reached = [t.signal for t in seen.sent if t.result != Result.IGNORED]
    if _ignored(seen) and reached == [signals.KILL] and seen.hearing(seen.stop_signal).deaf:
        return None
    if reached:
        return clear(f"It ended within the window, after it got {signals.name(reached[0])}.")
    return unknown("It ended within the window.")


def _ignored(seen: Observation) -> dict[int, int]:
    wanted = dict.fromkeys((seen.stop_signal, *ENDING))
    return {s: n for s in wanted if (n := seen.count(s, Result.IGNORED))}


def _sent(seen: Observation) -> Finding | None:
    """Somebody tried: what the kernel says became of it."""
    for signal, count in _ignored(seen).items():
        total = sum(t.count for t in seen.sent if t.signal == signal)
        end = "still runs" if seen.after is not None else "had to be killed"
        says = f"PID 1 ignored {count} of {total} {signals.name(signal)} and {end}"
        return _found(seen, signal, says, proved=True)
    stop, how = seen.stop_signal, seen.hearing(seen.stop_signal)
    name = signals.name(stop)
    if how is Hearing.BLOCKED and stays_pending(seen.last, stop):
        return _found(seen, stop, f"{name} was sent to PID 1 and stays pending", proved=True)
    held = how is Hearing.CAUGHT and seen.elapsed_ns >= LONG_PENDING_NS
    if held and stays_pending(seen.before, stop) and stays_pending(seen.last, stop):
        says = f"{name} was sent to PID 1 and its handler is never let in"
        return _found(seen, stop, says, proved=True)
    if how.deaf and seen.engine_sent and seen.after is not None:
        return _found(seen, stop, f"{name} was sent to PID 1, which still runs", proved=True)
    return None


def _by_masks(seen: Observation) -> Finding:
    stop, how = seen.stop_signal, seen.hearing(seen.stop_signal)
    name = signals.name(stop)
    if how.heard:
        return clear(_heard(seen, how), evidence=_evidence(seen, stop))
    if seen.frozen or seen.last.state in ("T", "t"):
        halted = "paused" if seen.frozen else f"stopped (State {seen.last.state})"
        return unknown(f"It is {halted}, so it answers no signal now: ask again when it runs.")
    if how is Hearing.UNSEEN:
        return unknown(
            f"PID 1 has no handler for {name}, and whether it waits for it in another way "
            "(sigtimedwait, signalfd) could not be read: ask from the host, as root."
        )
    says = f"PID 1 does not hear {name}, so a stop will wait out its grace period and then kill"
    return _found(seen, stop, says, proved=False)


def _heard(seen: Observation, how: Hearing) -> str:
    name = signals.name(seen.stop_signal)
    says = {
        Hearing.CAUGHT: f"PID 1 has a handler for {name}.",
        Hearing.SIGWAIT: f"PID 1 waits for {name} by sigtimedwait, as an init does.",
    }.get(how, f"PID 1 reads {name} from a signalfd.")
    if got := seen.count(seen.stop_signal, Result.DELIVERED):
        says += f" It got {got} in this window and still runs: slow to end, not deaf."
    if seen.count(signals.KILL, Result.IGNORED):
        says += " SIGKILL from inside was ignored, as by every PID 1: kill it from outside."
    return says


def _found(seen: Observation, signal: int, says: str, *, proved: bool) -> Finding:
    name, how = signals.name(signal), seen.hearing(signal)
    why = {
        Hearing.IGNORED: f"it has set {name} to be ignored",
        Hearing.BLOCKED: f"it blocks {name} and nothing reads it",
        Hearing.CAUGHT: f"it blocks {name}, or had no handler for it then",
    }.get(how, f"it has no handler for {name}, and the kernel drops what PID 1 does not handle")
    # Pending at a single moment may be just before it is read; ignored is ignored.
    doubt = how is Hearing.BLOCKED and seen.elapsed_ns < LONG_PENDING_NS
    return Finding(
        verdict=Verdict.FOUND,
        certainty=Certainty.CONFIRMED if proved and not doubt else Certainty.LIKELY,
        severity=Severity.WARNING if proved else Severity.INFO,
        summary=f"{says}: {why}.",
        evidence=_evidence(seen, signal),
        ruled_out=_ruled_out(seen, signal),
        cures=_cures(seen, signal, how),
    )


def _evidence(seen: Observation, signal: int) -> tuple[Evidence, ...]:
    look, leader = seen.last, seen.last.leader
    masks = (
        f"State {look.state}, NSpid {seen.nspid}, SigBlk {leader.sig_blk:016x}, "
        f"SigIgn {look.sig_ign:016x}, SigCgt {look.sig_cgt:016x}, "
        f"pending {look.pending:016x}; {signals.name(signal)} is {1 << (signal - 1):x}"
    )
    told = (Evidence("the engine's events", "a stop signal was sent to it"),)
    return (
        *_events(seen),
        Evidence(f"/proc/{seen.pid}/status", masks),
        Evidence(f"/proc/{seen.pid}/wchan", leader.wait_channel or "0"),
        *(told if seen.engine_sent else ()),
    )


def _events(seen: Observation) -> list[Evidence]:
    words = {0: "delivered", 1: "ignored", 2: "already pending"}
    says = [
        f"{t.count} times sig={t.signal} pid={seen.pid} res={t.result} "
        f"({words.get(t.result, 'lost')}), from {', '.join(t.senders)}"
        for t in seen.sent
    ]
    missed = [f"not watched: {seen.unwatched}"] if seen.unwatched else []
    return [Evidence("tracepoint signal:signal_generate", words) for words in says or missed]


def _ruled_out(seen: Observation, signal: int) -> tuple[RuledOut, ...]:
    look = seen.last
    where = look.leader.wait_channel or "user space"
    facts = [
        RuledOut("an init that waits by sigtimedwait", f"it was in {where} instead"),
        RuledOut("killed, and stuck in the kernel", "SIGKILL is not pending"),
        RuledOut("a zombie", f"its state is {look.state}"),
    ]
    if signals.has(look.leader.sig_blk, signal) and look.signalfd is not None:
        facts.append(RuledOut("a signalfd", f"its signalfds read {look.signalfd:016x}"))
    if seen.frozen is False:
        facts.append(RuledOut("paused", "its control groups are not frozen"))
    return tuple(facts)


def _cures(seen: Observation, signal: int, how: Hearing) -> tuple[Cure, ...]:
    name = signals.name(signal)
    handler = Cure(
        advice=(
            f"Let the program handle {name} and exit. If a shell script starts it, start it there "
            "with exec: then it, and not the shell, is PID 1 and gets the signal."
        ),
        change=InProgram(f"install a handler for {name} and exit"),
        safety=Safety.LOW_RISK,
    )
    init = Cure(
        advice=(
            "Run it under an init (docker run --init, tini, dumb-init; in Kubernetes "
            "shareProcessNamespace: true). No longer PID 1, it ends by the default action of "
            f"{name}."
        ),
        change=WithInit(),
        safety=Safety.MUTATING,
    )
    # What is ignored or blocked stays so under an init: only the program can change it.
    first = (init, handler) if how not in (Hearing.IGNORED, Hearing.BLOCKED) else (handler,)
    caught = [n for n in ALTERNATIVES if signals.has(seen.last.sig_cgt, signals.number(n) or 64)]
    if not caught or signal != seen.stop_signal:
        return first
    other = Cure(
        advice=(
            f"It does handle {', '.join(caught)}: if one of these makes it end, name it as "
            f"STOPSIGNAL in the image, or with --stop-signal {caught[0]}."
        ),
        safety=Safety.MUTATING,
    )
    return (*first, other)


CASE = Case(
    title="PID 1 does not hear the stop signal",
    question="Why can't I kill PID 1 in my container?",
    question_zh="为什么我在容器中不能 kill 1 号进程?",
    lesson="02",
    needs=(living,),
    observation=Observation,
    observe=observe,
    judge=judge,
    explains=("process/killed_on_stop",),
    outlives=True,
)
