"""The pieces that findings about a way are made of."""

from whybox.change import Change
from whybox.kernel import netview
from whybox.kernel.netview import Far, View
from whybox.model import Certainty, Cure, Evidence, Finding, Safety, Severity, Verdict


def broken(
    summary: str,
    *evidence: Evidence | None,
    cure: Cure,
    severity: Severity = Severity.CRITICAL,
    certainty: Certainty = Certainty.CONFIRMED,
) -> Finding:
    return Finding(
        verdict=Verdict.FOUND,
        summary=summary,
        evidence=tuple(each for each in evidence if each is not None),
        cures=(cure,),
        severity=severity,
        certainty=certainty,
    )


def cure(advice: str, change: Change | None = None) -> Cure:
    return Cure(advice=advice, change=change, safety=Safety.MUTATING)


def inside(words: str, says: str) -> Evidence:
    return Evidence(f"{words} (in its network namespace)", says)


def moved(before: View | None, after: View | None, name: str) -> Evidence | None:
    """A counter of the container's own namespace that moved in the window."""
    more = netview.moved(before, after, name)
    return inside("/proc/net/snmp", f"{name.replace('.', ' ')} +{more}") if more > 0 else None


def there(far: Far, words: str, says: str) -> Evidence:
    return Evidence(f"{words} (in {far.namespace})", says)


def published(ports: tuple[int, ...]) -> str:
    return f"published port{'s' if len(ports) > 1 else ''} {', '.join(map(str, ports))}"
