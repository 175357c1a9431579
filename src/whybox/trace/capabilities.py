"""Which capabilities a container really uses, and the minimal set to run it with."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from msgspec import Struct

from whybox.kernel import capability
from whybox.kernel.bpf.objects import Object, loaded
from whybox.kernel.capabilityuse import Meaning, Weighed, called, held, meaning
from whybox.kernel.host import Host
from whybox.kernel.sensors import capabilities as sensor
from whybox.kernel.sensors import checks
from whybox.kernel.sensors.capabilities import Check, Flag
from whybox.kernel.symbols import KernelSymbols
from whybox.kernel.target import Target
from whybox.trace.question import Options, Question
from whybox.trace.session import ObjectSession

#: So many places are told for each capability.
MOST_PLACES = 10


class Place(Struct, frozen=True, kw_only=True):
    """Where a capability was asked for."""

    syscall: str | None
    """``None``: in no system call, as in a page fault."""
    site: str | None
    """The kernel's function that asked; ``None``: it is not known."""
    count: int
    comm: str
    """Of the first."""
    pid: int


class Use(Struct, frozen=True, kw_only=True):
    """A capability that was asked for."""

    capability: str
    count: int
    places: tuple[Place, ...]
    """The ten most frequent."""
    held: bool = True
    """Of a refused one: whether it is held, and only not over what it was asked for."""


class Noise(Struct, frozen=True, kw_only=True):
    """Checks that say nothing about what the container needs."""

    what: str
    capability: str
    count: int


class Answer(Struct, frozen=True, kw_only=True):
    """The capabilities of a container, as used in the window."""

    used: tuple[Use, ...]
    """Asked for, held and granted, in the order of their numbers: the minimal set."""
    refused: tuple[Use, ...]
    """Asked for and not had."""
    held: tuple[str, ...]
    """What any of its processes holds (CapEff)."""
    unused: tuple[str, ...]
    """Held and not used in the window."""
    noise: tuple[Noise, ...]
    """What was left out, the most frequent first."""
    from_start: bool
    """Whether a start of the container was in the window."""


def uses(weighed: Iterable[Weighed], which: Meaning) -> Iterator[Use]:
    """The capabilities that were asked for with this meaning, in the order of their numbers."""
    found: Mapping[int, list[tuple[Check, Sequence[str]]]] = defaultdict(list)
    for check, path, means in weighed:
        if means is which:
            found[check.capability].append((check, path))
    for number, all in sorted(found.items()):
        yield Use(
            capability=name(number),
            count=sum(check.count for check, _ in all),
            places=tuple(_places(all))[:MOST_PLACES],
            held=any(Flag.HELD in check.flags for check, _ in all),
        )


def _places(all: Iterable[tuple[Check, Sequence[str]]]) -> list[Place]:
    counts: Counter[tuple[str | None, str | None]] = Counter()
    firsts: dict[tuple[str | None, str | None], Check] = {}
    for check, path in all:
        where = (called(check), path[0] if path else None)
        counts[where] += check.count
        firsts.setdefault(where, check)
    return [
        Place(
            syscall=where[0],
            site=where[1],
            count=count,
            comm=firsts[where].comm,
            pid=firsts[where].pid,
        )
        for where, count in counts.most_common()
    ]


def noise(weighed: Iterable[Weighed]) -> list[Noise]:
    """What says nothing, counted by what it is."""
    counts: Counter[tuple[Meaning, int]] = Counter()
    for check, _, means in weighed:
        if means not in (Meaning.USED, Meaning.REFUSED):
            counts[means, check.capability] += check.count
    return [
        Noise(what=means.value, capability=name(number), count=count)
        for (means, number), count in counts.most_common()
    ]


def name(number: int) -> str:
    """A capability by its number.

    >>> name(21), name(63)
    ('SYS_ADMIN', 'CAP_63')
    """
    return capability.names(1 << (number & 63))[0]


def told(weighed: Sequence[Weighed], held: int, *, from_start: bool) -> Answer:
    """The answer from checks that were weighed, and the mask of what is held."""
    used = tuple(uses(weighed, Meaning.USED))
    names = {use.capability for use in used}
    return Answer(
        used=used,
        refused=tuple(uses(weighed, Meaning.REFUSED)),
        held=capability.names(held),
        unused=tuple(one for one in capability.names(held) if one not in names),
        noise=tuple(noise(weighed)),
        from_start=from_start,
    )


class _Session(ObjectSession):
    """Sums only; what is held is read from the processes."""

    def __init__(self, host: Host, target: Target, object: Object) -> None:
        super().__init__(host, target, object)
        checks.begin_epoch(object)
        self._target = target
        self._symbols = KernelSymbols(host)
        self._held = held(host, target)
        self._from_start = False

    def adopt(self, target: Target) -> None:
        super().adopt(target)
        checks.begin_epoch(self.object)
        self._target, self._from_start = target, True

    def events(self) -> Sequence[Struct]:
        return ()

    def answer(self) -> Answer:
        self.host.next_moment()
        self._held |= held(self.host, self._target)
        weighed = [self._weighed(check) for check in sensor.checks(self.object)]
        return told(weighed, self._held, from_start=self._from_start)

    def _weighed(self, check: Check) -> Weighed:
        path = checks.path(self._symbols, checks.stack(self.object, check.stack))
        return check, path, meaning(check, path)


@contextmanager
def _open(host: Host, target: Target, options: Options) -> Iterator[_Session]:
    with loaded(host, sensor.SPEC, stats=True) as object:
        yield _Session(host, target, object)


QUESTION = Question(open=_open, answer=Answer)
