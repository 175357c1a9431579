"""A packet filter that lets nothing out, or nobody in to a published port."""

from msgspec import structs

from whybox.kernel.flow import Step
from whybox.model import Certainty, Evidence, Finding, RuledOut, Severity, Verdict

from . import told, words


def judged(shut: tuple[Step, ...], way_out: Finding) -> Finding:
    """The first such filter, if all else is whole.

    That nothing may go out can be meant so; that nobody reaches a published port cannot.
    """
    if way_out.verdict is Verdict.FOUND or not shut:
        return way_out
    step = min(shut, key=lambda each: each.way != "in")
    found = _inward(step) if step.way == "in" else _outward(step)
    return structs.replace(found, ruled_out=(*way_out.ruled_out, *_counted(step)))


def _inward(step: Step) -> Finding:
    return told.broken(
        f"Nobody reaches its published port {step.facts.get('port')}: at {step.name} in "
        f"{step.space}, {step.says}.",
        *_evidence(step),
        cure=words.rule_cure(step),
    )


def _outward(step: Step) -> Finding:
    return told.broken(
        f"Nothing new that it sends gets out: at {step.name} in {step.space}, {step.says}. "
        "If that is not meant so, this is the broken hop.",
        *_evidence(step),
        cure=words.rule_cure(step),
        severity=Severity.WARNING,
        certainty=Certainty.LIKELY,
    )


def _evidence(step: Step) -> tuple[Evidence, ...]:
    if step.rule is None:
        return ()
    counted = "" if step.rule.packets is None else f", {step.rule.packets} packets so far"
    return (Evidence(f"{step.rule} (in {step.space})", f"{step.rule.text}{counted}"),)


def _counted(step: Step) -> tuple[RuledOut, ...]:
    return (RuledOut("a rule for some addresses only", "it matches wherever the packet goes"),)
