"""One driver proves every case on the kernel it runs on.

healthy → clear; look-alike → not found; reproduced → found, and nothing else; the printed cure
applied → clear; nothing left behind. What is reproduced is judged by all cases, the rest by the
case itself: there nothing is asked of the others, and emulated their looking takes ten seconds.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module

from msgspec import Struct

from whybox.diagnose import diagnose
from whybox.kernel.host import Host
from whybox.lab.box import Box
from whybox.lab.cure import change_of, new_box, treated
from whybox.lab.lab import Breaks, Lab, Scenario
from whybox.lab.residue import left_behind, traces
from whybox.model import AnyCase, Diagnosis, Finding, Verdict

Cases = Mapping[str, AnyCase]
Progress = Callable[[str], None]


class Step(Struct, frozen=True, kw_only=True):
    """One scenario and whether it went as it must."""

    scenario: str
    ok: bool
    says: str
    """The finding's sentence, or what went wrong."""
    found: tuple[str, ...] = ()
    """Every case that was found in it, of those that judged it: where it was reproduced all did,
    and this is one row of the matrix of labs and cases."""


class Proof(Struct, frozen=True, kw_only=True):
    """What became of one case on this kernel."""

    case: str
    proved: bool
    impossible: str | None = None
    """Why this kernel cannot make the trouble; then nothing else was tried."""
    healthy: Step | None = None
    look_alikes: tuple[Step, ...] = ()
    reproduced: tuple[Step, ...] = ()
    """The lab itself, then its variants."""
    cured: Step | None = None
    residue: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def failures(self) -> tuple[str, ...]:
        """What went wrong, a sentence each."""
        steps = [self.healthy, *self.look_alikes, *self.reproduced, self.cured]
        wrong = [f"{s.scenario}: {s.says}" for s in steps if s is not None and not s.ok]
        return (*wrong, *(f"left behind: {thing}" for thing in self.residue))


def load(case: str) -> Lab:
    """The lab of a case."""
    lab: object = import_module(f"whybox.cases.{case.replace('/', '.')}.lab").LAB
    if not isinstance(lab, Lab):
        raise TypeError(f"{case}: LAB is not a Lab")
    return lab


def impossible(lab: Lab, host: Host, *, may_break_kernel: bool) -> str | None:
    """Why a lab cannot be run here, or ``None``."""
    if lab.breaks is Breaks.KERNEL and not may_break_kernel:
        return "it can harm the machine: run it in a VM, or insist with --i-mean-it"
    return next((reason for need in lab.needs if (reason := need(host)) is not None), None)


def prove(name: str, lab: Lab, cases: Cases, progress: Progress = lambda _: None) -> Proof:
    """Prove one case by its lab, judging what is reproduced by all the cases."""
    began, before = time.monotonic(), traces()
    trial = _Trial(name, lab, cases, progress)
    healthy = trial.step("healthy", lab.healthy, trial.own, trial.must_be_clear)
    look_alikes = tuple(
        trial.step(f"look-alike: {what}", scenario, trial.own, trial.must_not_be_found)
        for what, scenario in lab.look_alikes.items()
    )
    reproduced, cured = trial.reproduced_and_cured()
    variants = tuple(
        trial.step(f"variant: {what}", scenario, cases, trial.must_be_found)
        for what, scenario in lab.variants.items()
    )
    residue = left_behind(before)
    steps = (healthy, *look_alikes, reproduced, *variants, cured)
    return Proof(
        case=name,
        proved=all(step.ok for step in steps) and not residue,
        healthy=healthy,
        look_alikes=look_alikes,
        reproduced=(reproduced, *variants),
        cured=cured,
        residue=residue,
        seconds=time.monotonic() - began,
    )


class _Trial:
    """The scenarios of one lab, each in a fresh box."""

    def __init__(self, name: str, lab: Lab, cases: Cases, progress: Progress) -> None:
        self.name = name
        self.lab = lab
        self.cases = cases
        self.own = {name: cases[name]}
        self.progress = progress

    def step(
        self,
        title: str,
        scenario: Scenario,
        judges: Cases,
        check: Callable[[Diagnosis], str | None],
    ) -> Step:
        """Run a scenario in a fresh box and check what is found in it."""
        self.progress(f"{self.name}: {title}")
        with _mishaps() as mishap, new_box(self.name) as box:
            scenario(box)
            return self._step(title, self._diagnosed(box, judges), check)
        return Step(scenario=title, ok=False, says=mishap[0])

    def reproduced_and_cured(self) -> tuple[Step, Step]:
        """Reproduce, then apply the very cure that was printed, and look again."""
        self.progress(f"{self.name}: reproduced")
        not_cured = Step(scenario="cured", ok=False, says="there was no finding to cure")
        with _mishaps() as mishap, new_box(self.name) as box:
            self.lab.reproduce(box)
            seen = self._diagnosed(box, self.cases)
            reproduced = self._step("reproduced", seen, self.must_be_found)
            cured = self._cured(box, self._finding(seen)) if reproduced.ok else not_cured
            return reproduced, cured
        return Step(scenario="reproduced", ok=False, says=mishap[0]), not_cured

    def _cured(self, box: Box, finding: Finding) -> Step:
        change = change_of(finding)
        if change is None:
            return Step(scenario="cured", ok=False, says="the finding offers no change to apply")
        title = f"cured by {change}"
        self.progress(f"{self.name}: {title}")
        with treated(self.name, self.lab, box, change) as cured:
            return self._step(title, self._diagnosed(cured, self.own), self.must_be_clear)

    def _diagnosed(self, box: Box, judges: Cases) -> Diagnosis:
        host = Host(window_seconds=self.lab.window_seconds)
        return diagnose(host, [box.target()], judges).targets[0]

    def _step(self, title: str, seen: Diagnosis, check: Callable[[Diagnosis], str | None]) -> Step:
        wrong = check(seen)
        says = self._finding(seen).summary if wrong is None else wrong
        found = tuple(finding.case for finding in seen.found())
        return Step(scenario=title, ok=wrong is None, says=says, found=found)

    def _finding(self, seen: Diagnosis) -> Finding:
        return next(finding for finding in seen.findings if finding.case == self.name)

    def must_be_clear(self, seen: Diagnosis) -> str | None:
        """Unknown is not clear: where it can be proved, it can be seen."""
        finding = self._finding(seen)
        return None if finding.verdict is Verdict.CLEAR else _told(finding)

    def must_not_be_found(self, seen: Diagnosis) -> str | None:
        """A look-alike may be clear or unknown."""
        finding = self._finding(seen)
        return None if finding.verdict is not Verdict.FOUND else _told(finding)

    def must_be_found(self, seen: Diagnosis) -> str | None:
        """Found, with the known numbers, and nothing else save what the lab declares."""
        finding = self._finding(seen)
        if finding.verdict is not Verdict.FOUND:
            return _told(finding)
        if others := [f for f in seen.found() if not self.is_expected(f)]:
            return "; ".join(f"also {_told(other)}" for other in others)
        return None if self.lab.numbers is None else self.lab.numbers(finding)

    def is_expected(self, other: Finding) -> bool:
        """Whether it is the lab's case, follows from it, or is declared to stand beside it."""
        return self.name in (other.case, other.explained_by) or other.case in self.lab.also


def _told(finding: Finding) -> str:
    return f"{finding.verdict} {finding.case}: {finding.summary}"


@contextmanager
def _mishaps() -> Iterator[list[str]]:
    """A lab that crashes has failed; the others still run."""
    mishap: list[str] = []
    try:
        yield mishap
    except Exception as error:  # noqa: BLE001 -- whatever a lab does, it is the lab's failure
        mishap.append(f"the lab crashed: {type(error).__name__}: {error}")
