"""Changes that let a container's processes end in order."""

import math

from whybox.change import InProgram, StopTimeout, WithInit
from whybox.kernel import signals, stopping
from whybox.kernel.disposition import Hearing
from whybox.kernel.stopping import Member, Prospect
from whybox.model import Cure, Safety

#: How much longer than it was given a slow one should get: that it is slow is known, not how slow.
MORE = 3
LEAST_SECONDS = 30


def forward(prospect: Prospect, told: Member | None = None) -> tuple[Cure, ...]:
    """The first process ends before the others: it must tell them, and wait. ``told`` is the
    child that an init has told, and that must do it in its place."""
    name = signals.name(prospect.stop_signal)
    who = prospect.first.comm if told is None else told.comm
    wait = Cure(
        advice=(
            f"Let {who} pass {name} on to every child (PID 1 may call kill(-1, {name}), which "
            "reaches all but itself) and wait until none is left (waitpid until ECHILD) before it "
            "ends. A shell: trap 'kill -TERM $pid; wait $pid' TERM, with the child in the "
            "background; or exec, where there is one program only."
        ),
        change=InProgram("pass the stop signal on to every child and wait until all have ended"),
        safety=Safety.LOW_RISK,
    )
    by_init = prospect.first.init or told is not None
    return (*((_group(prospect),) if by_init else ()), wait, _manager(by_init))


def _group(prospect: Prospect) -> Cure:
    return Cure(
        advice=(
            f"{prospect.first.comm} tells its own child alone. tini -g, or tini with the variable "
            "TINI_KILL_PROCESS_GROUP=1, tells that child's whole process group; it still "
            "ends when the child ends, so the others must be as quick."
        ),
        safety=Safety.MUTATING,
    )


def _manager(by_init: bool) -> Cure:
    plain = "An init alone (docker run --init, tini) does not help: it tells its own child only. "
    return Cure(
        advice=(
            ("" if by_init else plain)
            + "Or run one program in each container, or a supervisor that tells all and waits."
        ),
        safety=Safety.MUTATING,
    )


def deaf(prospect: Prospect) -> tuple[Cure, ...]:
    """The first process never hears the signal (``process/pid1_ignores_signals``)."""
    name, how = signals.name(prospect.stop_signal), prospect.hearing
    handler = Cure(
        advice=(
            f"Let {prospect.first.comm} handle {name}, tell its children, wait for them and end. "
            "If a shell script starts it, start it there with exec. Another signal that it does "
            "handle can be made its STOPSIGNAL. See process/pid1_ignores_signals."
        ),
        change=InProgram(f"handle {name}: tell the children, wait for them, and end"),
        safety=Safety.LOW_RISK,
    )
    init = Cure(
        advice=(
            f"Run it under an init (docker run --init, tini): no longer PID 1, it ends by {name}."
        ),
        change=WithInit(),
        safety=Safety.MUTATING,
    )
    # An init ends the program and not what the program has started; what ignores goes on ignoring.
    alone = how is Hearing.DEFAULT and not stopping.able_to_end(prospect.members)
    return (init, handler) if alone else (handler,)


def slow(given_seconds: float, name: str) -> tuple[Cure, ...]:
    """It heard the signal and had not ended in time."""
    seconds = max(LEAST_SECONDS, math.ceil(MORE * given_seconds))
    more = Cure(
        advice=(
            f"Give it longer. It needs more than the {given_seconds:.1f} s that it had; how much "
            f"more was not seen, so {seconds} s are a guess: see how long the next stop takes."
        ),
        change=StopTimeout(seconds),
        safety=Safety.LOW_RISK,
    )
    less = Cure(
        advice=(
            "Or let it end sooner: refuse new work at once, finish or give up what is open within "
            "the time, and have work taken off it before (in Kubernetes preStop and readiness)."
        ),
        change=InProgram(f"end within the grace period of {name}"),
        safety=Safety.LOW_RISK,
    )
    return more, less


def background(prospect: Prospect, child: Member) -> tuple[Cure, ...]:
    """A shell's trap that waits for the command in its foreground."""
    name = signals.name(prospect.stop_signal).removeprefix("SIG")
    run = Cure(
        advice=(
            f"Start {child.comm} in the background and wait for it, for only `wait` is interrupted "
            f"by a trap: {child.comm} & pid=$!; trap 'kill -{name} $pid' {name}; wait $pid; "
            "wait $pid. Without a trap of its own let the shell exec it."
        ),
        change=InProgram("run the command in the background, pass the signal on, and wait"),
        safety=Safety.LOW_RISK,
    )
    return (run,)


def child_ignores(child: Member, name: str) -> tuple[Cure, ...]:
    """An init waits for a child that ignores the signal."""
    handle = Cure(
        advice=f"Let {child.comm} handle {name} and end; it ignores it now (SigIgn).",
        change=InProgram(f"handle {name} and end"),
        safety=Safety.LOW_RISK,
    )
    return (handle,)


def go_on(prospect: Prospect) -> tuple[Cure, ...]:
    """It was stopped or paused."""
    pid = prospect.init.pid
    advice = f"Let it run on before it is stopped: kill -CONT {pid}, or unpause the container."
    return (Cure(advice=advice, safety=Safety.LOW_RISK),)


def unblock() -> tuple[Cure, ...]:
    """It is blocked in the kernel."""
    advice = "Find out what it waits for in the kernel: see cpu/blocked_in_kernel."
    return (Cure(advice=advice, safety=Safety.INSPECT),)
