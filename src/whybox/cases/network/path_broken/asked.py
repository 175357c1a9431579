"""Whether somebody whom a person named can be reached: the walk and the attempt together."""

import errno

from msgspec import structs

from whybox.kernel.flow import MACHINE, SUSPECT, Attempt, Flow, Step
from whybox.model import (
    Certainty,
    Cure,
    Evidence,
    Finding,
    Hop,
    Safety,
    Severity,
    Verdict,
    clear,
    unknown,
)

from . import words

#: So long an answer may take; the kernel sends the first segment again after a second.
LEAST_NS = 1_000_000_000

#: Faults that let a connection be made all the same, and hurt later.
SOFT = frozenset({"narrow_end", "too_narrow", "same_address", "same_mac"})
#: Faults for which connect() is refused at once.
REFUSING = frozenset({"refused", "not_listening", "listens_elsewhere"})
#: Faults on the container's own way out, which its own hops tell better.
NEAR = frozenset(
    {"no_route", "link_off", "no_carrier", "peer_off", "unplugged", "bridge_off", "port_blocked",
     "forwarding", "neighbour"}
)  # fmt: skip


def judge(flow: Flow, way_out: Finding) -> Finding:
    """The first broken hop on the way to whom was asked for; ``way_out``: to anybody at all."""
    found = _judged(flow, way_out)
    tried = () if flow.attempt is None else (_tried(flow, flow.attempt),)
    return structs.replace(found, evidence=(*found.evidence, *tried), hops=hops(flow))


def _judged(flow: Flow, way_out: Finding) -> Finding:
    step = _first(flow)
    if step is None:
        return _unseen(flow)
    if _is_near(flow, step, way_out):
        return structs.replace(way_out, severity=Severity.CRITICAL)
    moved = flow.moved(step)
    evidence = [Evidence(f"{step.name} (in {step.space})", step.says)]
    if moved > 0:
        counter = step.meter if step.rule is None else f"packets counted by {step.rule}"
        evidence.append(Evidence(f"{counter} (in {step.space})", f"+{moved}"))
    return Finding(
        verdict=Verdict.FOUND,
        summary=words.sentence(flow, step),
        evidence=tuple(evidence),
        cures=words.cures(flow, step, _spoken(flow)),
        severity=_severity(flow, step),
        certainty=_certainty(flow, step, moved),
    )


def _first(flow: Flow) -> Step | None:
    """The first that stops it; what only hurts later comes after all of these."""
    broken = flow.broken()
    attempt = flow.attempt
    hard = [step for step in broken if step.fault not in SOFT]
    soft = [step for step in broken if step.fault in SOFT]
    if attempt is not None and attempt.connected:
        hard = []  # it got through, so none of these stops it
    # That nobody answers for an address may be the work of any other fault before the answer.
    hard.sort(key=lambda step: step.fault == "neighbour")
    if attempt is not None and attempt.errno == errno.ECONNREFUSED:
        hard.sort(key=lambda step: step.fault not in REFUSING)
    return next(iter(hard), None) or (_worst(soft) if _got_through(flow) else None)


def _got_through(flow: Flow) -> bool:
    return flow.attempt is None or flow.attempt.connected or _is_late(flow.attempt)


def _is_late(attempt: Attempt) -> bool:
    return attempt.errno is None


def _worst(soft: list[Step]) -> Step | None:
    """A way on which transfers hang says more than one that is only odd."""
    order = ("too_narrow", "narrow_end", "same_address", "same_mac")
    return min(soft, key=lambda step: order.index(step.fault or ""), default=None)


def _is_near(flow: Flow, step: Step, way_out: Finding) -> bool:
    if way_out.verdict is not Verdict.FOUND or step.way != "there" or step.fault not in NEAR:
        return False
    if step.fault == "neighbour":
        return step.facts.get("address", "?") in way_out.summary
    return step.space == "the container" or step is _first_behind(flow)


def _first_behind(flow: Flow) -> Step | None:
    """The first broken hop, if it is in the namespace at the other end of the container's wire."""
    spaces = list(dict.fromkeys(step.space for step in flow.steps if step.space != MACHINE))
    first = next(iter(flow.broken()), None)
    return first if first is not None and first.space in spaces[:2] else None


def _spoken(flow: Flow) -> tuple[str, ...]:
    """The container, and what its wire ends in: there commands can be given as printed."""
    spaces = dict.fromkeys(step.space for step in flow.steps if step.space != MACHINE)
    return (*tuple(spaces)[:2], MACHINE)


def _severity(flow: Flow, step: Step) -> Severity:
    if step.fault in ("narrow_end", "same_address", "same_mac"):
        return Severity.WARNING
    return Severity.CRITICAL


def _certainty(flow: Flow, step: Step, moved: int) -> Certainty:
    attempt = flow.attempt
    if moved > 0 and step.fault != SUSPECT:
        return Certainty.CONFIRMED
    if not step.certain or step.fault == SUSPECT:
        return Certainty.LIKELY
    refused = attempt is not None and attempt.errno == errno.ECONNREFUSED
    return Certainty.LIKELY if refused and step.fault not in REFUSING else Certainty.CONFIRMED


def _unseen(flow: Flow) -> Finding:
    """Every hop that can be seen is whole."""
    attempt, last = flow.attempt, flow.steps[-1] if flow.steps else None
    shown = [step for step in flow.steps if step.kind not in ("route", "unread")]
    passed = ", ".join(dict.fromkeys(step.name for step in shown))
    whole = f"every hop to {flow.to} that can be seen from here is whole ({passed})"
    unread = dict.fromkeys(step.space for step in flow.steps if step.kind == "unread")
    if unread:
        whole += f", but the packet filters of {', '.join(unread)} could not be read"
    if attempt is not None and attempt.connected:
        return clear(f"It reaches {flow.to}.")
    if attempt is None:
        return clear(f"{whole[0].upper()}{whole[1:]}.")
    number = attempt.errno
    if number is None and attempt.waited_ns < LEAST_NS:
        return unknown(f"{flow.to} has not answered yet: ask with --window 2s")
    leaves = "" if last is None else f" It leaves by {last.name}."
    if number == errno.ECONNREFUSED:
        said = f"{flow.to} itself refuses the connection: nobody listens there, or a filter there."
    elif number is None:
        said = f"Nobody answers from {flow.to}, although {whole}.{leaves}"
    else:
        said = f"{flow.to} is not reached ({_name(number)}), although {whole}.{leaves}"
    return Finding(
        verdict=Verdict.FOUND,
        summary=said,
        severity=Severity.WARNING,
        certainty=Certainty.LIKELY,
        cures=(_look_further(flow),),
    )


def _look_further(flow: Flow) -> Cure:
    sources = [step for step in flow.steps if step.kind == "nat" and step.name == "POSTROUTING"]
    own = "" if sources else " It keeps the container's own address: does it know the way back?"
    return Cure(advice=f"Look at {flow.to} and at what lies before it.{own}", safety=Safety.INSPECT)


def _name(number: int) -> str:
    return errno.errorcode.get(number, str(number))


def _tried(flow: Flow, attempt: Attempt) -> Evidence:
    if attempt.connected:
        says = "connected"
    elif attempt.errno is not None:
        says = _name(attempt.errno)
    else:
        again = f", sent {attempt.resent} times again" if attempt.resent else ""
        says = f"no answer in {attempt.waited_ns / 1e9:.1f} s{again}"
    return Evidence(f"connect() to {flow.to} (in its network namespace)", says)


def hops(flow: Flow) -> tuple[Hop, ...]:
    """The whole walk, to be drawn."""
    broken = set(map(id, flow.broken()))
    return tuple(
        Hop(
            where=step.space,
            name=step.name,
            says=step.says,
            broken=id(step) in broken,
            back=step.way == "back",
        )
        for step in flow.steps
    )
