"""A lookup that fails or waits: whom it asked, and what came back."""

from collections.abc import Iterable

from whybox.kernel.asking import Asking
from whybox.kernel.host import Host
from whybox.kernel.lookups import Lookups, Observation
from whybox.kernel.resolvconf import NOBODY
from whybox.kernel.target import Target
from whybox.model import Case, Finding, Watch, clear, unknown
from whybox.needs import living

from . import words


def observe(host: Host, target: Target) -> Watch[Observation]:
    """Keep the questions and answers that pass; ask nothing, unless a person wants it."""
    asking = Asking(host, target)
    try:
        yield
        return asking.observed()
    finally:
        asking.close()


def judge(seen: Observation) -> Finding:
    """The worst first: what got no answer, what was refused, what failed, what took long."""
    if seen.unseen is not None:
        hint = "; ask on the host, as root" if seen.inside else ""
        return unknown(seen.unseen + hint, evidence=tuple(words.file(seen)))
    lookups = Lookups(seen)
    found = _found(seen, lookups)
    if found is None:
        return _clear(seen, lookups)
    if seen.own is False:
        return unknown(
            "it uses the host's network, and whose lookups these are is not seen: "
            + found.summary[0].lower()
            + found.summary[1:],
            evidence=found.evidence,
        )
    return found


def _found(seen: Observation, lookups: Lookups) -> Finding | None:
    if lookups.waiting and not lookups.refusing and (lookups.dead or not seen.lost):
        return words.waiting(seen, lookups)
    if not lookups.waiting and lookups.held_and_asked:
        return words.held(seen, lookups)
    if lookups.refused or lookups.refusing:
        return words.refused(seen, lookups)
    if lookups.failed:
        return words.failed(seen, lookups)
    if (search := lookups.longest_search()) is not None:
        return words.searched(seen, lookups, *search)
    if names := lookups.nameless():
        return words.nameless(seen, lookups, names)
    return None


def _clear(seen: Observation, lookups: Lookups) -> Finding:
    evidence = (*words.file(seen), *words.packets(seen, lookups))
    if lookups.waiting and seen.lost:
        return unknown(
            f"more names are asked for here than could be followed: {seen.lost} packets did not "
            "fit. Watch for a shorter time.",
            evidence=evidence,
        )
    if lookups.held and not lookups.old:
        servers = " and ".join(lookups.held)
        return unknown(
            f"a socket was connected to port 53 of {servers} all the time, and nothing came or "
            "went: it waits or is idle. Watch for longer: --window 12s",
            evidence=evidence,
        )
    if not lookups.old and seen.questions:
        return unknown(
            "its questions are too young to tell: watch for longer, such as --window 5s",
            evidence=evidence,
        )
    if not seen.questions and seen.unsent:
        return unknown(
            f"no question left it, and {seen.unsent} packets could not be sent, for want of a "
            "route or by a rule of its own: --lookup NAME tells which",
            evidence=evidence,
        )
    if not seen.questions:
        return clear(
            "It asked for no name in this window; --lookup NAME asks its nameservers."
            + _doubt(seen),
            evidence=evidence,
        )
    said = f"It asked {len(lookups.old)} questions for names, and each was answered in time."
    harmless = tuple(_harmless(seen, lookups))
    return clear(" ".join((said, *harmless)), evidence=evidence)


def _doubt(seen: Observation) -> str:
    """What will be in the way of the first name that it asks for."""
    if seen.unread is not None:
        return ""
    servers = () if seen.config is None else seen.config.nameservers
    if servers:
        return ""
    return f" Its resolv.conf names no server, so it would ask {NOBODY}."


def _harmless(seen: Observation, lookups: Lookups) -> Iterable[str]:
    quiet = [s for s, (asked, answered) in lookups.counts().items() if asked and not answered]
    if quiet:
        yield f"{', '.join(quiet)} did not answer, but somebody else did at once."


CASE = Case(
    title="Names are not resolved, or only after seconds",
    question="Why does name lookup fail or take seconds?",
    question_zh="容器里域名解析为什么失败或很慢?",
    lesson="16",
    needs=(living,),
    observation=Observation,
    observe=observe,
    judge=judge,
)
