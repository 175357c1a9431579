"""The words as data: what a case finds, and how it is said. Frozen, typed, no I/O.

The JSON that whybox prints is these types, written by msgspec; ``whybox schema`` publishes them.
"""

from collections.abc import Callable, Generator
from enum import StrEnum
from typing import Any, Generic, TypeAlias, TypeVar

from msgspec import Struct, structs

from whybox.change import Change
from whybox.kernel.host import Host
from whybox.kernel.target import Target

SCHEMA = "whybox.report/1"


class Verdict(StrEnum):
    """What a case says of a target."""

    FOUND = "found"
    CLEAR = "clear"
    UNKNOWN = "unknown"


class Certainty(StrEnum):
    """How well the evidence carries the verdict."""

    CONFIRMED = "confirmed"
    """The kernel said so, in this window or in its log."""
    LIKELY = "likely"
    """It follows from what was seen, but something that could contradict it was not visible."""


class Severity(StrEnum):
    """How much it hurts."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"

    @property
    def rank(self) -> int:
        """Larger is worse."""
        return list(Severity).index(self)


class Safety(StrEnum):
    """What following a cure can do to a running system."""

    INSPECT = "inspect"
    LOW_RISK = "low-risk"
    MUTATING = "mutating"
    DESTRUCTIVE = "destructive"


class Evidence(Struct, frozen=True):
    """A kernel file or event and what it says, so that a doubtful reader can repeat it."""

    source: str
    says: str


class RuledOut(Struct, frozen=True):
    """A look-alike, and the fact that excludes it."""

    what: str
    because: str


class Cure(Struct, frozen=True, kw_only=True):
    """A change that ends the trouble. whybox prints it and applies it only in its own labs."""

    advice: str
    safety: Safety
    change: Change | None = None
    """In the resource's own terms; ``None`` where only the program's author can change it."""
    commands: tuple[str, ...] = ()
    """The same change in the words of the target's own runtime."""
    verify: str = ""
    """A command that shows whether it helped."""


class Hop(Struct, frozen=True, kw_only=True):
    """One place on a way that was walked."""

    where: str
    """Whose network namespace it is in."""
    name: str
    says: str
    broken: bool = False
    back: bool = False
    """On the way of the answer."""


class Finding(Struct, frozen=True, kw_only=True):
    """What one case says of one target."""

    verdict: Verdict
    summary: str
    """One sentence. Of an unknown: the reason."""
    case: str = ""
    certainty: Certainty = Certainty.CONFIRMED
    severity: Severity = Severity.INFO
    evidence: tuple[Evidence, ...] = ()
    ruled_out: tuple[RuledOut, ...] = ()
    cures: tuple[Cure, ...] = ()
    hops: tuple[Hop, ...] = ()
    """The way, where one was walked."""
    explained_by: str | None = None
    """The case that is the cause of this one, where that was found too."""

    def of(self, case: str) -> "Finding":
        """The same finding, signed with the case's name."""
        return structs.replace(self, case=case)


def clear(summary: str, *, evidence: tuple[Evidence, ...] = ()) -> Finding:
    """It was looked at, and this is not the trouble."""
    return Finding(verdict=Verdict.CLEAR, summary=summary, evidence=evidence)


def unknown(reason: str, *, evidence: tuple[Evidence, ...] = ()) -> Finding:
    """It could not be looked at. The reason is a sentence with a way out where there is one."""
    return Finding(
        verdict=Verdict.UNKNOWN, summary=reason, certainty=Certainty.LIKELY, evidence=evidence
    )


def ago(seconds: float) -> str:
    """How long ago something was, as a sentence says it.

    >>> ago(119), ago(120), ago(-1)
    ('119 s', '2 min', '0 s')
    """
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


O = TypeVar("O")  # noqa: E741 -- an observation

#: A watch reads what it must, yields once for the window that all watches share, and reads again.
Watch: TypeAlias = Generator[None, None, O]

#: Why something that a case needs is missing, or ``None`` where it is there.
Need: TypeAlias = Callable[[Host, Target], str | None]


class Case(Struct, Generic[O], frozen=True, kw_only=True):
    """One way a container goes wrong."""

    title: str
    """The trouble as a short sentence."""
    question: str
    question_zh: str
    lesson: str
    observation: type[O]
    observe: Callable[[Host, Target], Watch[O]]
    """All the I/O and no thinking; exactly one ``yield``."""
    judge: Callable[[O], Finding]
    """All the thinking and no I/O."""
    needs: tuple[Need, ...] = ()
    explains: tuple[str, ...] = ()
    """Cases that are consequences of this one where both are found."""
    outlives: bool = False
    """Judges what is left when the target ends within the window; others are then unknown."""


AnyCase: TypeAlias = Case[Any]


class Seen(Struct, frozen=True, kw_only=True):
    """What one case observed: an observation, or why there is none."""

    case: str
    observation: Any = None
    reason: str | None = None


class Cost(Struct, frozen=True, kw_only=True):
    """What the run itself cost."""

    cpu_ms: float
    reads: int
    """Kernel files, links and directories that were read."""


class Diagnosis(Struct, frozen=True, kw_only=True):
    """All findings about one target."""

    target: Target
    findings: tuple[Finding, ...]

    def found(self) -> tuple[Finding, ...]:
        """What is wrong, the worst first, causes before their consequences."""
        hits = [f for f in self.findings if f.verdict is Verdict.FOUND]
        return tuple(sorted(hits, key=lambda f: (f.explained_by is not None, -f.severity.rank)))


class Report(Struct, frozen=True, kw_only=True):
    """All findings about some targets over one window."""

    schema: str = SCHEMA
    version: str
    window_seconds: float
    """As measured, not as asked for."""
    cost: Cost
    targets: tuple[Diagnosis, ...]

    def worst(self) -> Severity | None:
        """The severest thing found, or ``None``."""
        ranks = [f.severity for d in self.targets for f in d.found()]
        return max(ranks, key=lambda s: s.rank, default=None)


def with_consequences(
    findings: tuple[Finding, ...], cases: dict[str, AnyCase]
) -> tuple[Finding, ...]:
    """Mark each finding that another found case explains, unless it rules that very case out.

    Of a chain of causes it is the first one.
    """
    hits = {f.case: f for f in findings if f.verdict is Verdict.FOUND}
    excluded = {(name, other.what) for name, f in hits.items() for other in f.ruled_out}
    causes = {
        e: name
        for name in sorted(hits)
        for e in cases[name].explains
        if e in hits and (e, name) not in excluded
    }
    return tuple(
        structs.replace(f, explained_by=_first_cause(f.case, causes)) if f.case in causes else f
        for f in findings
    )


def _first_cause(case: str, causes: dict[str, str]) -> str:
    """Up the chain, and once around at most."""
    passed = {case}
    cause = causes[case]
    while cause in causes and causes[cause] not in passed:
        passed.add(cause)
        cause = causes[cause]
    return cause
