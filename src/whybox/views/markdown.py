"""A report to paste into an issue."""

from whybox.kernel.host import printable
from whybox.model import Diagnosis, Finding, Report, Verdict


def report(report: Report) -> str:
    """All targets, one section each."""
    parts = [_target(one) for one in report.targets]
    parts.append(
        f"_whybox {report.version}, one window of {report.window_seconds:.1f} s, "
        f"{report.cost.cpu_ms:.0f} ms CPU_"
    )
    return "\n\n".join(parts)


def _target(diagnosis: Diagnosis) -> str:
    target = diagnosis.target
    blocks = [f"## {_text(target.name)} ({_text(target.runtime)} `{_code(target.short_id)}`)"]
    blocks += [_found(finding) for finding in diagnosis.found()]
    clear = [f.case for f in diagnosis.findings if f.verdict is Verdict.CLEAR]
    if clear:
        blocks.append(f"Clear: {', '.join(clear)}.")
    unknown = [f for f in diagnosis.findings if f.verdict is Verdict.UNKNOWN]
    if unknown:
        blocks.append("\n".join(f"* unknown: {f.case}: {_text(f.summary)}" for f in unknown))
    return "\n\n".join(blocks)


def _found(finding: Finding) -> str:
    blocks = [
        f"### {finding.case} ({finding.severity}, {finding.certainty})",
        _text(finding.summary),
        "\n".join(f"* `{_code(e.source)}`: {_text(e.says)}" for e in finding.evidence),
        "\n".join(f"* not {_text(r.what)}: {_text(r.because)}" for r in finding.ruled_out),
    ]
    for cure in finding.cures:
        blocks.append(f"Cure ({cure.safety}): {_text(cure.advice)}")
        if cure.commands:
            commands = "\n".join(printable(c) for c in cure.commands)
            blocks.append(f"```\n{commands}\n```")
    return "\n\n".join(block for block in blocks if block)


def _text(text: str) -> str:
    """Text of unknown origin, unable to form markup."""
    shown = printable(text)
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>#|" else c for c in shown)


def _code(text: str) -> str:
    return printable(text).replace("`", "'")
