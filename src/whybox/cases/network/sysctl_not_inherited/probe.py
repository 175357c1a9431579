"""A network parameter was changed on the host, and the container's namespace has another value."""

from collections.abc import Iterable

from msgspec import Struct

from whybox.change import Sysctl
from whybox.kernel import netsysctl
from whybox.kernel.host import Host
from whybox.kernel.netsysctl import APART, INHERITED, Kind, Pair, Seen
from whybox.kernel.target import Target
from whybox.model import (
    Case,
    Certainty,
    Cure,
    Evidence,
    Finding,
    RuledOut,
    Safety,
    Severity,
    Verdict,
    Watch,
    clear,
    unknown,
)
from whybox.needs import living

#: How many are named in a sentence.
MOST_NAMED = 3

BEGINS = {
    Kind.INHERITED: "a namespace copies the first one's value once, when it is made",
    Kind.RESET: "a new namespace begins with the kernel's default, whatever the host has",
    Kind.INTERFACE: "an interface begins with the value of default in its own namespace",
}


class Observation(Struct, frozen=True, kw_only=True):
    """The parameters of host and container at the end of the window."""

    own: bool | None
    """It has a network namespace of its own."""
    inside: bool
    """Seen from inside the container."""
    asked: str | None
    """The one parameter that a person asked for, as a path below ``/proc/sys/net``."""
    place: str | None
    """Whose values are the host's; ``None``: no other namespace can be seen."""
    seen: Seen | None


def observe(host: Host, target: Target) -> Watch[Observation]:
    """Compare at the end: a parameter is there at every moment."""
    word = host.asked.get("sysctl")
    asked = None if word is None else netsysctl.key(word)
    place = None
    if target.own("net") is not False and target.runtime != "self":
        place = netsysctl.host_of(host, target)
    yield
    return Observation(
        own=target.own("net"),
        inside=target.runtime == "self",
        asked=asked,
        place=place,
        seen=None if place is None else netsysctl.seen(host, target, place, asked),
    )


def judge(seen: Observation) -> Finding:
    """Found where the host's was changed and the container's is what a namespace begins with."""
    if seen.own is False:
        return clear("It uses the host's network: what is set on the host is its own.")
    if seen.seen is None:
        return unknown(
            "the host's parameters cannot be seen from inside: ask on the host"
            if seen.inside
            else "no namespace can be seen that would be its host's: ask on the host, as root"
        )
    if seen.asked is not None:
        return _answer(seen.seen, seen.asked)
    return _compared(seen.seen)


def _compared(seen: Seen) -> Finding:
    missed = [pair for pair in seen.pairs if _is_missed(pair, seen)]
    if missed:
        return _found(missed, seen)
    given = [pair for pair in seen.pairs if pair.differs and pair.key not in APART]
    said = f"Of {len(seen.pairs)} network parameters none was changed on the host that it lacks."
    if given:
        values = "; ".join(f"{p.name} is {_own(p)}, on the host {_host(p)}" for p in given)
        said += f" It has values of its own: {values}."
        if any(p.key in INHERITED for p in given):
            said += " What it copied when it was made may be what the host had then."
    return clear(said, evidence=tuple(_apart(seen.pairs)))


def _is_missed(pair: Pair, seen: Seen) -> bool:
    """Somebody changed the host's, and the container has what it began with.

    What the container has beside that was given to it, by its engine or from inside.
    """
    begins = netsysctl.defaults(pair.key, seen.ehash)
    return pair.differs and _host(pair) not in begins and _own(pair) in begins


def _found(missed: list[Pair], seen: Seen) -> Finding:
    names = ", ".join(p.name for p in missed[:MOST_NAMED])
    more = f" and {len(missed) - MOST_NAMED} more" if len(missed) > MOST_NAMED else ""
    kinds = {netsysctl.kind(pair, seen.inherit) for pair in missed}
    why = "; ".join(text for kind, text in BEGINS.items() if kind in kinds)
    if len(missed) == 1:
        values = f"{_shown(_host(missed[0]))} there and {_shown(_own(missed[0]))} in the container"
        said = f"It did not get what was changed on the host: {names} is {values}"
    else:
        said = f"It did not get what was changed on the host: {names}{more}"
    return Finding(
        verdict=Verdict.FOUND,
        summary=f"{said}; {why}.{_idle(seen)}",
        severity=_severity(seen),
        # A person may have given the container the kernel's default on purpose.
        certainty=Certainty.LIKELY,
        evidence=(*_evidence(missed), *_apart(seen.pairs)),
        ruled_out=(
            RuledOut(
                "a value that was given to the container",
                f"it has what a namespace begins with: {_values(missed)}",
            ),
            RuledOut(
                "a parameter of the whole machine", "the container has a file of its own for it"
            ),
        ),
        cures=(_cure(missed, seen),),
    )


def _severity(seen: Seen) -> Severity:
    """Where no socket is open nothing goes by these parameters now."""
    return Severity.INFO if seen.sockets == 0 else Severity.WARNING


def _idle(seen: Seen) -> str:
    return " It has no TCP or UDP socket that would go by it now." if seen.sockets == 0 else ""


def _evidence(pairs: Iterable[Pair]) -> Iterable[Evidence]:
    for pair in pairs:
        says = f"{_shown(_host(pair))} on the host, {_shown(_own(pair))} in its namespace"
        yield Evidence(f"sysctl {pair.name}", says)


def _apart(pairs: Iterable[Pair]) -> Iterable[Evidence]:
    """What differs and is meant to."""
    for pair in pairs:
        if pair.differs and pair.key in APART:
            says = f"{_shown(_host(pair))} on the host, {_shown(_own(pair))} in its namespace"
            yield Evidence(f"sysctl {pair.name}", f"{says}, as usual: {APART[pair.key]}")


def _values(pairs: Iterable[Pair]) -> str:
    return ", ".join(f"{pair.name} {_shown(_own(pair))}" for pair in pairs)


def _cure(pairs: list[Pair], seen: Seen) -> Cure:
    first, *others = [(pair.name, _host(pair)) for pair in pairs]
    sealed = " From inside it cannot be written: /proc/sys is mounted read-only."
    return Cure(
        advice="Give its namespace the host's value now, and its successor by docker run --sysctl "
        "or, in Kubernetes, by the pod's securityContext.sysctls; sockets that exist may keep what "
        f"they began with.{sealed if seen.sealed else ''}",
        change=Sysctl(*first, also=tuple(others)),
        safety=Safety.MUTATING,
    )


def _answer(seen: Seen, asked: str) -> Finding:
    """What a person wants to know of one parameter."""
    pair = next(iter(seen.pairs), None)
    kind = None if pair is None else netsysctl.kind(pair, seen.inherit)
    if pair is None or kind is None:
        name = Pair(key=asked, host=None, own=None).name
        return unknown(
            f"neither the host nor the container has {name}: it is misspelt, of an interface that "
            "is not there, or of a kernel module that is not loaded"
        )
    if kind in (Kind.GLOBAL, Kind.SHARED, Kind.READ_ONLY):
        return clear(_of_the_machine(pair, kind), evidence=tuple(_modes(pair)))
    if pair.host is None:
        return clear(f"{pair.name} is the container's alone, {_shown(_own(pair))}; {BEGINS[kind]}.")
    if not pair.differs:
        return _same(pair, kind, seen)
    return _different(pair, kind, seen)


def _of_the_machine(pair: Pair, kind: Kind) -> str:
    value = _shown(_host(pair) if pair.host is not None else _own(pair))
    match kind:
        case Kind.GLOBAL:
            return (
                f"{pair.name} is one for the whole machine: the host's {value} counts for the "
                "container too, which has no such file. It can be changed on the host alone."
            )
        case Kind.SHARED:
            return (
                f"{pair.name} is one for the whole machine: the container may read the host's "
                f"{value} and not change it. It can be changed on the host alone."
            )
        case _:
            return f"{pair.name} is read-only in a container: {_shown(_own(pair))}."


def _same(pair: Pair, kind: Kind, seen: Seen) -> Finding:
    return clear(
        f"{pair.name} is {_shown(_own(pair))} in the container as on the host. Each namespace has "
        f"its own, and {BEGINS[kind]}: a later change on the host does not get here."
        f"{_sealed(seen)}",
        evidence=tuple(_modes(pair)),
    )


def _different(pair: Pair, kind: Kind, seen: Seen) -> Finding:
    begins = netsysctl.defaults(pair.key, seen.ehash)
    missed = _is_missed(pair, seen)
    if missed:
        who = "the host's was changed, and the container has what it began with"
    elif pair.key in APART:
        who = f"as usual: {APART[pair.key]}"
    elif kind is Kind.INHERITED:
        who = "the host's was changed after it was made, or it was given a value of its own"
    elif _own(pair) not in begins and begins:
        who = "the container was given a value of its own, by its engine or from inside"
    else:
        who = "which of the two was changed cannot be told"
    return Finding(
        verdict=Verdict.FOUND,
        summary=f"{pair.name} is {_shown(_own(pair))} in the container and {_shown(_host(pair))} "
        f"on the host: {who}. Each namespace has its own; {BEGINS[kind]}.{_sealed(seen)}",
        severity=_severity(seen) if missed else Severity.INFO,
        certainty=Certainty.CONFIRMED,
        evidence=tuple(_modes(pair)),
        ruled_out=(
            RuledOut(
                "a parameter of the whole machine", "the container has a file of its own for it"
            ),
        ),
        cures=(_cure([pair], seen),),
    )


def _sealed(seen: Seen) -> str:
    return " Inside it cannot be written (EROFS): /proc/sys is read-only." if seen.sealed else ""


def _modes(pair: Pair) -> Iterable[Evidence]:
    for where, value in (("on the host", pair.host), ("in its namespace", pair.own)):
        says = "no such file"
        if value is not None:
            says = f"{_shown(value.text)}, {'writable' if value.writable else 'mode 0444'}"
        yield Evidence(f"/proc/sys/net/{pair.key} ({where})", says)


def _host(pair: Pair) -> str:
    return "" if pair.host is None or pair.host.text is None else pair.host.text


def _own(pair: Pair) -> str:
    return "" if pair.own is None or pair.own.text is None else pair.own.text


def _shown(text: str | None) -> str:
    return "not readable" if text is None else text or "empty"


CASE = Case(
    title="A change on the host did not reach the container",
    question="Why does my /proc/sys/net change not take effect?",
    question_zh="我修改了 /proc/sys/net 下的参数,为什么在容器中不起效?",
    lesson="15",
    needs=(living,),
    observation=Observation,
    observe=observe,
    judge=judge,
)
