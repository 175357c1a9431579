"""What a tired person reads: the sentence first, then evidence, what was ruled out, the cure.

What only informs is a sentence, what is clear or unknown a line; ``verbose`` shows all at length.
"""

import textwrap
import time

from msgspec import Struct

from whybox.kernel.host import printable
from whybox.kernel.target import Target
from whybox.model import Cure, Diagnosis, Finding, Report, Severity, Verdict
from whybox.views import path

_MARKS = {Severity.CRITICAL: "✗", Severity.WARNING: "!", Severity.INFO: "·"}
_COLOURS = {Severity.CRITICAL: "1;31", Severity.WARNING: "1;33", Severity.INFO: "36"}


class Style(Struct, frozen=True, kw_only=True):
    """How to print: escape codes or not, and how wide."""

    colour: bool = False
    width: int = 100

    def paint(self, text: str, code: str) -> str:
        """The text in a colour, where colours are wanted."""
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour else text

    def wrapped(self, text: str, first: str, rest: str) -> list[str]:
        """Text from the kernel made harmless, and broken to the width."""
        return textwrap.wrap(
            printable(text),
            self.width,
            initial_indent=first,
            subsequent_indent=rest,
            break_long_words=False,
            break_on_hyphens=False,
        )


def report(report: Report, style: Style, *, verbose: bool = False) -> str:
    """All targets of a report, and what the run cost."""
    parts = [diagnosis(one, style, verbose=verbose) for one in report.targets]
    parts.append(style.paint(_cost(report), "2"))
    return "\n\n".join(parts)


def _cost(report: Report) -> str:
    return (
        f"one window of {report.window_seconds:.1f} s, {report.cost.reads} reads, "
        f"cost {report.cost.cpu_ms:.0f} ms CPU"
    )


def diagnosis(diagnosis: Diagnosis, style: Style, *, verbose: bool = False) -> str:
    """One target: what was found at length, the rest in a line."""
    blocks = [_heading(diagnosis.target, style)]
    blocks += [_found(f, diagnosis, style, verbose=verbose) for f in diagnosis.found()]
    clear = [f for f in diagnosis.findings if f.verdict is Verdict.CLEAR]
    # A way that a person asked about is shown also where it is whole.
    blocks += [_looked(f, style) for f in clear if verbose or f.hops]
    blocks.append("\n".join(_rest(diagnosis.findings, style, verbose=verbose)))
    return "\n\n".join(block for block in blocks if block)


def _heading(target: Target, style: Style) -> str:
    parts = [f"{target.runtime} {target.short_id}" if target.id != target.name else target.runtime]
    parts += [word for word in (target.image, life(target)) if word]
    return style.paint(printable(target.name), "1") + "   " + printable("  ".join(parts))


def life(target: Target) -> str:
    """How long it has been up, or how it ended."""
    end = target.exit
    if target.alive:
        started = target.created_at_ns if end is None else end.started_at_ns
        return "" if started is None else f"up {span((time.time_ns() - started) / 1e9)}"
    if end is None:
        return "not running"
    code = "" if end.exit_code is None else f" with {end.exit_code}"
    ago = "" if end.finished_at_ns is None else f", {_ago(end.finished_at_ns)}"
    return f"{end.status}{code}{ago}"


def _ago(when_ns: int) -> str:
    return f"{span((time.time_ns() - when_ns) / 1e9)} ago"


def span(seconds: float) -> str:
    """A length of time as people say it.

    >>> span(7300), span(95), span(3)
    ('2 h', '1 min', '3 s')
    """
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return (
                f"{seconds / size:.0f} {unit}" if unit != "min" else f"{int(seconds // size)} min"
            )
    return f"{max(seconds, 0):.0f} s"


def _found(finding: Finding, diagnosis: Diagnosis, style: Style, *, verbose: bool) -> str:
    mark = _MARKS[finding.severity]
    label = f"{finding.severity}, {finding.certainty}"
    name = style.paint(f"{mark} {finding.case}", _COLOURS[finding.severity])
    lines = [f"{name}   {style.paint(label, '2')}"]
    lines += style.wrapped(finding.summary, "  ", "  ")
    if finding.explained_by is not None:
        lines += style.wrapped(f"└ a consequence of {finding.explained_by}", "    ", "      ")
        return "\n".join(lines)
    if finding.severity is Severity.INFO and not verbose:
        # It hurts nobody now: a sentence is enough for somebody who looks for what does.
        return "\n".join(lines)
    lines += [f"    {line}" for line in path.drawn(finding.hops)]
    lines += _evidence(finding, style)
    lines += _ruled_out(finding, style)
    for cure in finding.cures:
        lines += _cure(cure, style)
    lines += _consequences(finding, diagnosis, style)
    return "\n".join(lines)


def _evidence(finding: Finding, style: Style) -> list[str]:
    lines = []
    for evidence in finding.evidence:
        lines += style.wrapped(f"{evidence.source}   {evidence.says}", "    ", "        ")
    return [style.paint(line, "2") for line in lines]


def _ruled_out(finding: Finding, style: Style) -> list[str]:
    lines = []
    for other in finding.ruled_out:
        lines += style.wrapped(f"not {other.what}: {other.because}", "    ", "        ")
    return lines


def _cure(cure: Cure, style: Style) -> list[str]:
    lines = style.wrapped(f"cure  {cure.advice}  ({cure.safety})", "    ", "          ")
    # A command is for copying: it is neither wrapped nor coloured.
    lines += [f"          $ {printable(command)}" for command in cure.commands]
    if cure.verify:
        lines.append(style.paint(f"          then: {printable(cure.verify)}", "2"))
    return lines


def _consequences(finding: Finding, diagnosis: Diagnosis, style: Style) -> list[str]:
    names = [f.case for f in diagnosis.findings if f.explained_by == finding.case]
    return style.wrapped(f"└ explains: {', '.join(names)}", "    ", "      ") if names else []


def _looked(finding: Finding, style: Style) -> str:
    lines = style.wrapped(finding.summary, f"✓ {finding.case}   ", "    ")
    lines += [f"    {line}" for line in path.drawn(finding.hops)]
    return "\n".join(lines + _evidence(finding, style))


def _rest(findings: tuple[Finding, ...], style: Style, *, verbose: bool) -> list[str]:
    looked = [f for f in findings if f.verdict is Verdict.CLEAR and not f.hops]
    clear = [] if verbose else looked
    unknown = [f for f in findings if f.verdict is Verdict.UNKNOWN]
    lines = []
    if clear:
        names = ", ".join(f.case for f in clear)
        lines += style.wrapped(f"✓ {len(clear)} clear: {names}", "", "  ")
    for reason in dict.fromkeys(f.summary for f in unknown):
        same = [f.case for f in unknown if f.summary == reason]
        lines += style.wrapped(f"? {len(same)} unknown: {', '.join(same)}: {reason}", "", "  ")
    return lines
