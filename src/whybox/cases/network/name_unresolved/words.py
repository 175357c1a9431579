"""The sentences, the evidence and the cures of a lookup in trouble."""

from collections.abc import Iterable

from whybox.change import InProgram, Nameservers
from whybox.kernel import dns
from whybox.kernel.dnswatch import Question, Refusal
from whybox.kernel.lookups import Lookups, Observation, settled_ns
from whybox.kernel.resolvconf import NOBODY
from whybox.model import (
    Certainty,
    Cure,
    Evidence,
    Finding,
    RuledOut,
    Safety,
    Severity,
    Verdict,
)

MOST_NAMED = 3
_PACKETS = "DNS packets in its network namespace"


def file(seen: Observation) -> Iterable[Evidence]:
    """What its resolv.conf says."""
    config = seen.config
    source = "/etc/resolv.conf (in the container)"
    if config is None:
        yield Evidence(source, seen.unread or "no such file")
        return
    servers = ", ".join(config.nameservers) or f"none, so {NOBODY} is asked"
    search = f"; search {' '.join(config.search)}" if config.search else ""
    options = f"ndots:{config.ndots} timeout:{config.timeout_s} attempts:{config.attempts}"
    yield Evidence(source, f"nameserver {servers}{search}; {options}")


def packets(seen: Observation, lookups: Lookups) -> Iterable[Evidence]:
    """What each server was asked and said."""
    counts = lookups.counts().items()
    said = [f"{server}: {asked} asked, {answered} answered" for server, (asked, answered) in counts]
    if said:
        yield Evidence(_PACKETS, "; ".join(said))


def _evidence(
    seen: Observation, lookups: Lookups, questions: Iterable[Question]
) -> tuple[Evidence, ...]:
    each = [_told(question, seen) for question in list(questions)[:MOST_NAMED]]
    return (
        *file(seen),
        *packets(seen, lookups),
        *(Evidence(_PACKETS, said) for said in each),
    )


def _told(question: Question, seen: Observation) -> str:
    """One question and what became of it."""
    kind = dns.QTYPES.get(question.qtype, f"type {question.qtype}")
    said = [f"{a.server} {_rcode(a.rcode)} after {_seconds(a.after_ns)}" for a in question.answers]
    said += [f"{r.server} {r.code}, says {r.told_by}" for r in question.refusals]
    waited = seen.window_ns - question.asked_ns
    result = "; ".join(said) or f"no answer within {_seconds(waited)}"
    return f"{kind} {question.name} of {', '.join(question.servers)}: {result}"


def _rcode(number: int) -> str:
    return dns.RCODES.get(number, f"code {number}")


def _seconds(nanoseconds: int) -> str:
    if nanoseconds < 10_000_000:
        return f"{nanoseconds / 1e6:.1f} ms"
    return f"{nanoseconds / 1e9:.1f} s" if nanoseconds >= 1e9 else f"{nanoseconds / 1e6:.0f} ms"


def _names(names: Iterable[str]) -> str:
    distinct = list(dict.fromkeys(names))
    more = f" and {len(distinct) - MOST_NAMED} more" if len(distinct) > MOST_NAMED else ""
    return ", ".join(distinct[:MOST_NAMED]) + more


def _and(servers: Iterable[str]) -> str:
    return " and ".join(servers)


def _found(
    summary: str,
    seen: Observation,
    lookups: Lookups,
    questions: tuple[Question, ...],
    *cures: Cure,
    ruled_out: tuple[RuledOut, ...],
    severity: Severity | None = None,
    certainty: Certainty = Certainty.CONFIRMED,
) -> Finding:
    # Critical: not one name was resolved.
    works = any(settled_ns(question) is not None for question in lookups.old)
    return Finding(
        verdict=Verdict.FOUND,
        summary=summary,
        severity=severity or (Severity.WARNING if works else Severity.CRITICAL),
        certainty=certainty,
        evidence=_evidence(seen, lookups, questions),
        ruled_out=ruled_out,
        cures=cures,
    )


_ANSWERED = RuledOut(
    "a name that does not exist", "that is an answer, NXDOMAIN, and comes as fast as any"
)
_NO_REFUSAL = RuledOut(
    "a nameserver that is not running", "its host would refuse at once by ICMP: none came"
)


def waiting(seen: Observation, lookups: Lookups) -> Finding:
    """A server is silent, slow, or some of what is sent to it is lost."""
    dead, questions = lookups.dead, lookups.waiting
    good = [s for s in seen.heard if s not in (*dead, *lookups.forwarders)]
    if not dead:
        return _slow(seen, lookups, good)
    verb = "do" if len(dead) > 1 else "does"
    asked = sum(lookups.counts()[server][0] for server in dead)
    said = f"Its nameserver{'s' * (len(dead) > 1)} {_and(dead)} {verb} not answer: "
    said += f"none of {asked} question{'s' * (asked > 1)} got an answer from there."
    waited = max((settled_ns(q) or 0 for q in lookups.late), default=0)
    if good and waited:
        said += f" {_and(good)} answers, but only after {_seconds(waited)}: it is asked later."
    elif good:
        said += f" {_and(good)} answers; but each lookup waits for the other first."
    elif lookups.forwarders:
        said += f" {_and(lookups.forwarders)}, whom its programs ask, waits for it."
    elif seen.config is not None:
        said += f" Each attempt waits {seen.config.timeout_s} s, as resolv.conf says."
    return _found(
        said, seen, lookups, questions, *_without(seen, dead, good),
        ruled_out=(_ANSWERED, _NO_REFUSAL),
    )  # fmt: skip


def held(seen: Observation, lookups: Lookups) -> Finding:
    """A socket has waited since before the window, and the question was repeated just now."""
    servers = _and(lookups.held_and_asked)
    return _found(
        f"Its nameserver {servers} does not answer: a socket has waited for it since before this "
        f"window of {_seconds(seen.window_ns)}, and nothing came.",
        seen,
        lookups,
        seen.questions,
        *_without(seen, lookups.held_and_asked, list(seen.heard)),
        ruled_out=(_ANSWERED, _NO_REFUSAL),
        certainty=Certainty.LIKELY,
    )


def _without(seen: Observation, dead: tuple[str, ...], good: list[str]) -> Iterable[Cure]:
    configured = () if seen.config is None else seen.config.nameservers
    left = tuple(server for server in configured if server in good)
    if left:
        yield Cure(
            advice=f"Ask {_and(left)} alone: take {_and(dead)} out of its resolv.conf, for new "
            "containers by --dns or the engine's configuration.",
            change=Nameservers(use=left, drop=dead),
            safety=Safety.MUTATING,
        )
    yield Cure(
        advice=f"Find out why {_and(dead)} {'do' if len(dead) > 1 else 'does'} not answer: whether "
        "it is the right address, whether it answers others, and whether a firewall drops UDP "
        "port 53 on the way: whybox trace packets. Or name a server that answers: "
        "docker run --dns ADDRESS.",
        safety=Safety.INSPECT,
    )


def _slow(seen: Observation, lookups: Lookups, good: list[str]) -> Finding:
    late, silent = lookups.late, lookups.silent
    slow = [q for q in late if any(a.after_ns >= 900_000_000 for a in q.answers)]
    asked = (s for q in (*late, *silent) for s in q.servers)
    servers = dict.fromkeys(s for s in asked if s not in lookups.forwarders)
    if silent and not slow:
        said = (
            f"{len(silent)} of {len(lookups.old)} questions to {_and(servers)} got no answer "
            "within a second, others did: packets are lost, or it is slow."
        )
    else:
        longest = max((settled_ns(q) or 0 for q in late), default=0)
        said = (
            f"Its nameserver {_and(good or servers)} is slow, or what is sent to it is lost and "
            f"repeated: {len(late)} of {len(lookups.old)} questions took up to {_seconds(longest)}."
        )
    cure = Cure(
        advice="Look where its packets are dropped (whybox trace packets), and at the nameserver: "
        "whom it asks itself. A cache in the container or on the node answers what is asked again.",
        safety=Safety.INSPECT,
    )
    return _found(
        said, seen, lookups, lookups.waiting, cure,
        ruled_out=(_ANSWERED, RuledOut("a nameserver that is dead", f"{_and(good)} answered")),
        certainty=Certainty.LIKELY,
    )  # fmt: skip


def refused(seen: Observation, lookups: Lookups) -> Finding:
    """Somebody said at once that there is no such port, or no way."""
    questions = lookups.refused or tuple(q for q in seen.questions if q.refusals)
    told = next(r for q in questions for r in q.refusals)
    others = [s for s in seen.heard if s != told.server]
    said = f"Its nameserver {told.server} {_refusal(told)}"
    configured = () if seen.config is None else seen.config.nameservers
    if not configured:
        said += " Its resolv.conf names no server."
    names = _names(q.name for q in questions)
    return _found(
        f"{said} A lookup fails at once: {names}.",
        seen,
        lookups,
        questions,
        *_elsewhere(told, configured, others),
        ruled_out=(
            _ANSWERED,
            RuledOut("a nameserver that is silent", "a refusal came, and at once"),
        ),
    )


def _refusal(told: Refusal) -> str:
    if told.code == dns.PORT_UNREACHABLE and told.told_by == told.server:
        inside = told.server.startswith("127.") or told.server == "::1"
        where = ", within the container itself" if inside else ""
        return f"refuses: nobody listens at its UDP port {dns.PORT}{where}."
    return f"is not reached: {told.told_by} says {told.code}."


def _elsewhere(told: Refusal, configured: tuple[str, ...], good: list[str]) -> Iterable[Cure]:
    left = tuple(server for server in configured if server in good)
    change = Nameservers(use=left, drop=(told.server,)) if left else None
    if told.told_by == told.server:
        advice = f"Start the nameserver at {told.server}, or name one that runs: docker run --dns."
    else:
        advice = (
            f"{told.told_by} is what stands in the way: a firewall rule (REJECT), or no route. "
            f"Let UDP port {dns.PORT} pass, or name a server that can be reached."
        )
    yield Cure(advice=advice, change=change, safety=Safety.MUTATING)


def failed(seen: Observation, lookups: Lookups) -> Finding:
    """The server answers that it cannot or will not."""
    questions = lookups.failed
    answers = [answer for question in questions for answer in question.answers]
    codes = _and(dict.fromkeys(_rcode(answer.rcode) for answer in answers))
    failing = dict.fromkeys(a.server for a in answers if a.server not in lookups.forwarders)
    servers = _and(failing or dict.fromkeys(answer.server for answer in answers))
    names = _names(question.name for question in questions)
    cure = Cure(
        advice=f"Look into the log of {servers}: SERVFAIL is that whom it asks does not answer it "
        "or DNSSEC fails; REFUSED is that it does not serve this client or zone. Or name another "
        "server: docker run --dns ADDRESS.",
        safety=Safety.INSPECT,
    )
    return _found(
        f"{servers} answers {codes} for {names}: the nameserver is there, and fails itself.",
        seen,
        lookups,
        questions,
        cure,
        ruled_out=(
            RuledOut("a name that does not exist", "that would be NXDOMAIN"),
            RuledOut("a nameserver that is silent", "it answers"),
        ),
    )


def searched(seen: Observation, lookups: Lookups, name: str, forms: int, took_ns: int) -> Finding:
    """Every question is answered in time, but one name makes too many of them."""
    config = seen.config
    domains = 0 if config is None else len(config.search)
    questions = tuple(q for q in lookups.old if q.name == name or q.name.startswith(f"{name}."))
    do = f"ask for {name}. with a dot at its end, which no search list is put behind"
    cure = Cure(
        advice=f"Let the program {do}; or give the container fewer domains: docker run "
        "--dns-search ., in Kubernetes dnsConfig with ndots:1.",
        change=InProgram(do),
        safety=Safety.LOW_RISK,
    )
    return _found(
        f"The search list makes {forms} names of {name}, one after the other: together they took "
        f"{_seconds(took_ns)}, though each was answered in time. It has {domains} domains, and "
        f"ndots is {1 if config is None else config.ndots}.",
        seen,
        lookups,
        questions,
        cure,
        ruled_out=(RuledOut("a nameserver that is silent", "each question was answered"),),
        severity=Severity.WARNING,
    )


def nameless(seen: Observation, lookups: Lookups, names: tuple[str, ...]) -> Finding:
    """The nameserver works, and says that there is no such name."""
    questions = tuple(q for q in lookups.old if any(q.name.startswith(name) for name in names))
    servers = _and(dict.fromkeys(a.server for q in questions for a in q.answers))
    forms = len({q.name for q in questions})
    to = "each" if len(names) > 1 else f"each of its {forms} forms" if forms > 1 else "it"
    cure = Cure(
        advice="Look at the name: a container's name is known only on a network that somebody "
        "made (docker network create), a service's only with its namespace.",
        safety=Safety.INSPECT,
    )
    return _found(
        f"There is no name {_names(names)}: {servers} answers NXDOMAIN to {to}.",
        seen,
        lookups,
        questions,
        cure,
        ruled_out=(RuledOut("a nameserver that fails", f"{servers} answers at once"),),
        severity=Severity.INFO,
    )
