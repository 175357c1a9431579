"""A container's lookups: what was seen in a window, and which of them were in trouble.

Nothing here reads. A *question* is one message with its number; a *name* is what a program asked
for, of which a resolver makes several questions: one a type, and one for each domain of its search
list.
"""

from collections.abc import Iterable, Iterator

from msgspec import Struct

from whybox.kernel import dns
from whybox.kernel.dnswatch import Question
from whybox.kernel.resolvconf import ResolvConf

#: A name that takes so long is felt. The shortest timeout that a resolver can be given is 1 s.
LEAST_NS = 900_000_000
#: A single question that is lost among many is the network's ordinary loss.
SHARE = 0.05
#: A resolver sends what follows at once.
_PAUSE_NS = 100_000_000
#: An answer that is not there after this is at least not at hand.
_MOMENT_NS = 50_000_000
_ADDRESSES = (1, 28)


class Observation(Struct, frozen=True, kw_only=True):
    """What was asked and answered in the window."""

    own: bool | None
    """It has a network namespace of its own."""
    inside: bool
    config: ResolvConf | None
    """``None``: it has no such file, or it could not be read."""
    unread: str | None
    """Why it could not be read."""
    unseen: str | None
    """Why its packets could not be seen."""
    questions: tuple[Question, ...]
    heard: tuple[str, ...]
    """Servers that answered anything."""
    opened: tuple[str, ...]
    """Servers that a socket was connected to when the window began."""
    held: tuple[str, ...]
    """Those of them that the same socket was connected to when it ended."""
    lost: int
    """Packets that did not fit."""
    unsent: int
    """Packets of any kind that could not be sent: no route, or its own rules forbid it."""
    serves: bool
    """Somebody in it answers others at port 53."""
    asked: str | None
    """The name that a person had us ask for."""
    window_ns: int


def settled_ns(question: Question) -> int | None:
    """After how long somebody knew: the name has this, or there is no such name."""
    known = (dns.NOERROR, dns.NXDOMAIN)
    return min((a.after_ns for a in question.answers if a.rcode in known), default=None)


class Lookups:
    """Questions in the light of the window that they were seen in."""

    def __init__(self, seen: Observation) -> None:
        self._seen = seen
        self.old = tuple(q for q in seen.questions if self._is_told(q))
        """Those of which it is known how they went."""
        self.silent = tuple(q for q in self.old if self._is_silent(q))
        self.late = tuple(q for q in self.old if (settled_ns(q) or 0) >= LEAST_NS)
        known = {q.name for q in self.old if settled_ns(q) is not None}
        failed = [q for q in self.old if settled_ns(q) is None and q not in self.silent]
        failed = [q for q in failed if q.name not in known]
        self.refused = tuple(q for q in failed if not q.answers)
        self.failed = tuple(q for q in failed if q.answers)

    @property
    def forwarders(self) -> tuple[str, ...]:
        """Nameservers in the container itself that ask others, such as Docker's 127.0.0.11.

        What they do not say, those others did not tell them.
        """
        configured = () if self._seen.config is None else self._seen.config.nameservers
        asked = {server for q in self._seen.questions for server in q.servers}
        inside = tuple(s for s in configured if s in asked and (s == "::1" or s[:4] == "127."))
        return inside if asked - set(configured) else ()

    @property
    def held(self) -> tuple[str, ...]:
        """Servers that a socket waited for, or was idle for, and that said nothing.

        A resolver asks again only after seconds: its question may be older than the window.
        """
        told = {refusal.server for q in self._seen.questions for refusal in q.refusals}
        beside = {*told, *self._seen.heard, *self.forwarders}
        quiet = all(question.asked_ns >= LEAST_NS for question in self._seen.questions)
        waited = self._seen.opened if quiet else self._seen.held
        enough = self._seen.window_ns >= LEAST_NS
        return tuple(server for server in waited if enough and server not in beside)

    @property
    def held_and_asked(self) -> tuple[str, ...]:
        """Those of which it is seen that something was wanted of them: the others may be idle."""
        old = [q for q in self._seen.questions if self._age_ns(q) >= _MOMENT_NS]
        asked = {server for q in old for server in q.servers}
        passed = {server for q in old for server in self._passed_over(q)}
        return tuple(server for server in self.held if server in asked | passed)

    def _passed_over(self, question: Question) -> Iterator[str]:
        """Servers before the one that was asked, who must have been asked before the window."""
        configured = () if self._seen.config is None else self._seen.config.nameservers
        for server in configured:
            if server in question.servers:
                return
            yield server

    @property
    def refusing(self) -> bool:
        """All that is waited for refuses, but ICMP's rate limit lets only some of that be seen."""
        told = {refusal.server for q in self._seen.questions for refusal in q.refusals}
        waited = {s for q in self.silent for s in q.servers}
        waited -= {*self._seen.heard, *self.forwarders}
        return bool(waited) and waited <= told

    def _is_told(self, question: Question) -> bool:
        answered = bool(question.answers or question.refusals)
        return answered or self._age_ns(question) >= LEAST_NS

    def _age_ns(self, question: Question) -> int:
        return self._seen.window_ns - question.asked_ns

    def _is_silent(self, question: Question) -> bool:
        told = {answer.server for answer in question.answers}
        told |= {refusal.server for refusal in question.refusals}
        waits = settled_ns(question) is None and bool(set(question.servers) - told)
        return waits and self._age_ns(question) >= LEAST_NS and not self._answered_beside(question)

    def _answered_beside(self, question: Question) -> bool:
        """Resolvers that ask several servers at once may number each question anew."""
        return any(
            other is not question
            and (other.name, other.qtype) == (question.name, question.qtype)
            and abs(other.asked_ns - question.asked_ns) < LEAST_NS
            and 0 <= other.asked_ns + settled - question.asked_ns < LEAST_NS
            for other in self._seen.questions
            if (settled := settled_ns(other)) is not None
        )

    @property
    def waiting(self) -> tuple[Question, ...]:
        """Those that took a second or for ever, where they are more than ordinary loss."""
        slow = (*self.silent, *self.late)
        return slow if len(slow) >= max(1.0, SHARE * len(self.old)) else ()

    @property
    def dead(self) -> tuple[str, ...]:
        """Servers that were waited for, and that answered nothing in the whole window."""
        told = {r.server for q in self._seen.questions for r in q.refusals}
        asked = dict.fromkeys(server for q in self.waiting for server in q.servers)
        beside = {*told, *self._seen.heard, *self.forwarders}
        return tuple(server for server in asked if server not in beside)

    def counts(self) -> dict[str, tuple[int, int]]:
        """By server: how many questions it was asked, and how many it answered."""
        found: dict[str, tuple[int, int]] = {}
        for question in self._seen.questions:
            told = {answer.server for answer in question.answers}
            for server in question.servers:
                asked, answered = found.get(server, (0, 0))
                found[server] = asked + 1, answered + (server in told)
        return found

    def nameless(self) -> tuple[str, ...]:
        """Names of which every form that was asked for does not exist."""
        if self._seen.serves:
            return ()  # what others want to know is their affair
        forms: dict[str, set[bool]] = {}
        for question in self.old:
            if question.qtype in _ADDRESSES:
                gone = bool(question.answers) and all(
                    answer.rcode == dns.NXDOMAIN for answer in question.answers
                )
                forms.setdefault(self._base(question.name), set()).add(gone)
        # As it was written it must have been asked for: else the search is not over.
        asked = {question.name for question in self.old}
        return tuple(name for name, gone in forms.items() if gone == {True} and name in asked)

    def _base(self, name: str) -> str:
        """The name without the domain that the search list put behind it."""
        search = () if self._seen.config is None else self._seen.config.search
        suffixes = (f".{domain}" for domain in search if name.endswith(f".{domain}"))
        longest = max(suffixes, key=len, default="")
        return name.removesuffix(longest)

    def longest_search(self) -> tuple[str, int, int] | None:
        """The name whose forms, each answered in time, took a second together.

        The name, how many forms, and how long; ``None``: there is none.
        """
        found = max(self._searches(), key=lambda one: one[2], default=None)
        return found if found is not None and found[2] >= LEAST_NS else None

    def _searches(self) -> Iterator[tuple[str, int, int]]:
        by_name: dict[str, list[Question]] = {}
        for question in sorted(self.old, key=lambda q: q.asked_ns):
            if (settled := settled_ns(question)) is not None and settled < LEAST_NS:
                by_name.setdefault(self._base(question.name), []).append(question)
        for name, asked in by_name.items():
            for chain in _chains(asked):
                forms = {question.name for question in chain}
                if len(forms) > 1:
                    end = max(q.asked_ns + (settled_ns(q) or 0) for q in chain)
                    yield name, len(forms), end - chain[0].asked_ns


def _chains(asked: Iterable[Question]) -> Iterator[list[Question]]:
    """Questions that follow at once on the answer to the one before; a form comes but once."""
    chain: list[Question] = []
    end = 0
    for question in asked:
        again = any((q.name, q.qtype) == (question.name, question.qtype) for q in chain)
        if chain and (again or question.asked_ns - end > _PAUSE_NS):
            yield chain
            chain = []
        chain.append(question)
        end = max(end if len(chain) > 1 else 0, question.asked_ns + (settled_ns(question) or 0))
    if chain:
        yield chain
