"""What a stop would do to a living container, as far as that is certain."""

from whybox.kernel import signals, stopping
from whybox.kernel.disposition import Hearing
from whybox.kernel.signals import Sent
from whybox.kernel.stopping import Doom, Prospect, Why
from whybox.model import (
    Certainty,
    Cure,
    Evidence,
    Finding,
    RuledOut,
    Verdict,
    clear,
    unknown,
)

from . import remedies


def foretold(seen: Prospect, *, frozen: bool | None, ending: Sent | None) -> Finding:
    """Information where somebody would be killed who could end in order; ``ending``: the stop
    signal that it has got already."""
    if seen.stop_signal == signals.KILL:
        return clear(
            "Its stop signal is SIGKILL: everybody in it is killed at once, as somebody wanted."
        )
    fate = stopping.doom(seen)
    if frozen and (fate is not None or seen.hearing is Hearing.UNSEEN):
        return unknown("It is paused, so what it does at a stop cannot be told: ask when it runs.")
    if fate is not None:
        return _found(seen, fate)
    if ending is not None:
        return _ending(seen, ending)
    if seen.hearing is Hearing.UNSEEN:
        return unknown(
            f"Whether its first process waits for {signals.name(seen.stop_signal)} (sigtimedwait, "
            "signalfd) could not be read: ask from the host, as root."
        )
    return clear(_survives(seen), evidence=_evidence(seen))


def _ending(seen: Prospect, ending: Sent) -> Finding:
    grace = f"{max(seen.grace_seconds, 1) + 5:.0f}s"
    return unknown(
        f"It was sent {signals.name(ending.signal)} by {ending.sender} in this window and has not "
        f"ended yet: who is killed in the end shows a longer one (--window {grace})."
    )


def _found(seen: Prospect, fate: Doom) -> Finding:
    why, cures = _why(seen, fate)
    return Finding(
        verdict=Verdict.FOUND,
        certainty=Certainty.LIKELY,
        summary=f"A stop will end in SIGKILL: {why}{_with_it(seen, fate)}.",
        evidence=_evidence(seen),
        ruled_out=(RuledOut("a stop that was seen", "nobody stopped it in this window"),),
        cures=cures,
    )


def _why(seen: Prospect, fate: Doom) -> tuple[str, tuple[Cure, ...]]:
    name, who, child = signals.name(seen.stop_signal), seen.first.comm, fate.cause
    late = f"{seen.grace_seconds} s later it is killed"
    if fate.why is Why.FOREGROUND and child is not None:
        says = (
            f"{who} is a shell, and its trap for {name} runs when {child.named} has ended; {late}"
        )
        return says, remedies.background(seen, child)
    if fate.why is Why.CHILD_IGNORES and child is not None:
        says = f"{who} passes {name} on to {child.named}, which ignores it; {late}"
        return says, remedies.child_ignores(child, name)
    if fate.why is Why.ABANDONED and child is not None:
        says = (
            f"{who} passes {name} to {child.named} alone, which ends by it, having no handler, and "
            f"{who} with it"
        )
        return says, remedies.forward(seen, child)
    if fate.why is Why.STOPPED:
        return f"{who} is stopped (State T) and hears nothing; {late}", remedies.go_on(seen)
    return f"{who} does not hear {name}; {late}", remedies.deaf(seen)


def _with_it(seen: Prospect, fate: Doom) -> str:
    if not fate.victims:
        return ""
    some = ", ".join(one.named for one in fate.victims[:3])
    more = " …" if len(fate.victims) > 3 else ""
    name, count = signals.name(seen.stop_signal), len(fate.victims)
    others, get = ("other", "gets") if count == 1 else ("others", "get")
    return f"; {count} {others} with a handler for {name} never {get} it: {some}{more}"


def _survives(seen: Prospect) -> str:
    name, able = signals.name(seen.stop_signal), stopping.able_to_end(seen.members)
    if seen.ends_by_default:
        return f"A stop ends its first process by {name}, which it does not handle."
    says = f"A stop is heard: {seen.first.comm} {_how(seen, name)}."
    if not able or seen.all_told:
        return says
    others = f"{len(able)} others with a handler are" if len(able) > 1 else "Another with one is"
    watch = f"watch one: whybox diagnose … --window {max(seen.grace_seconds, 1) + 5}s"
    return f"{says} {others} told only if it passes it on, which a stop alone shows ({watch})."


def _how(seen: Prospect, name: str) -> str:
    return {
        Hearing.SIGWAIT: f"waits for {name} by sigtimedwait",
        Hearing.SIGNALFD: f"reads {name} from a signalfd",
    }.get(seen.hearing, f"has a handler for {name}")


def _evidence(seen: Prospect) -> tuple[Evidence, ...]:
    look = seen.looks[-1]
    bit = f"{signals.name(seen.stop_signal)} is {1 << (seen.stop_signal - 1):x}"
    masks = (
        f"State {look.state}, SigBlk {look.leader.sig_blk:016x}, SigIgn {look.sig_ign:016x}, "
        f"SigCgt {look.sig_cgt:016x}; {bit}"
    )
    first = (
        Evidence(f"/proc/{seen.init.pid}/status", masks),
        Evidence(f"/proc/{seen.init.pid}/wchan", look.leader.wait_channel or "0"),
    )
    able = stopping.able_to_end(seen.members)
    if not able:
        return first
    named = ", ".join(str(one.id.pid) for one in able[:5]) + (" …" if len(able) > 5 else "")
    return (*first, Evidence(f"/proc/{able[0].id.pid}/status", f"SigCgt or SigBlk has it: {named}"))
