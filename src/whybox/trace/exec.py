"""Every command that is run in a container, who started it, failed ones too, and storms of them."""

import errno
import os.path
import time
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from msgspec import Struct, structs

from whybox.kernel import tracefs
from whybox.kernel.bpf.objects import Cost, Object, Refused, loaded
from whybox.kernel.host import Host
from whybox.kernel.sensors import exec as sensor
from whybox.kernel.sensors.exec import Ended, Executed, Printed
from whybox.kernel.target import Target
from whybox.trace.question import Options, Question
from whybox.trace.session import ObjectSession

#: Commands and failures that are counted apart; ever new names must not fill memory.
MOST_KINDS = 1000

#: Commands whose end is awaited, and failures that may yet turn out to be a search.
MOST_RUNNING, MOST_PENDING = 16_384, 4096

#: A search along PATH asks for the next directory at once.
SEARCH_NS = 100_000_000

#: After these errors execvp(3) goes on to the next directory of PATH.
SEARCHED_ON = frozenset(
    (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ENODEV, errno.ESTALE, errno.ETIMEDOUT)
)

#: One command so often within one second is a storm.
STORM_PER_SECOND = 20

#: One file, many commands: which one is meant, the first argument tells.
MULTI_CALL = frozenset(("busybox", "toybox", "coreutils", "exe"))

#: Runtimes execute themselves within the container before they execute the container's program
#: (measured with Docker 20.10: ``runc init``).
RUNTIMES = frozenset(("runc", "crun", "youki", "containerd-shim", "conmon"))

#: What no kernel event tells; said once with every answer.
INVISIBLE = (
    "not seen, for they execute nothing: a shell's builtins, and what an interpreter reads from "
    "its standard input"
)


class Command(Struct, frozen=True, kw_only=True):
    """One command that began, or that could not."""

    at_ns: int
    """Of the monotonic clock."""
    pid: int
    """As the host counts."""
    nspid: int
    """As the container does."""
    uid: int
    """By the host's numbers, as the next."""
    euid: int
    parent_pid: int
    parent_comm: str
    inside: bool
    """Whether the parent is in the container too; if not, it came in from outside."""
    name: str
    """What it is called in the answer."""
    path: str
    arguments: tuple[str, ...]
    cut: bool
    """Whether there were more arguments."""
    error: str | None
    """Such as ``ENOENT``; ``None``: it was executed."""
    tried: int = 1
    """How many directories of PATH a failed one was looked for in."""
    runtime: bool = False
    """Whether it is a runtime's own step on the way to the container's program."""


class Exit(Struct, frozen=True, kw_only=True):
    """A command that was seen to begin ended with another status than 0."""

    at_ns: int
    pid: int
    nspid: int
    name: str
    status: int
    """128 and the signal's number, if it was one."""
    lasted_ns: int


class Kind(Struct, frozen=True, kw_only=True):
    """All runs of one command."""

    name: str
    count: int
    from_outside: int
    starter: str
    """The name of the parent that started most of them."""
    ended: int
    """How many of them were seen to end, in how much time, with how many statuses but 0."""
    lasted_ns: int
    bad: int
    most_per_second: int


class Failure(Struct, frozen=True, kw_only=True):
    """Commands that could not be executed."""

    name: str
    error: str
    count: int


class Answer(Struct, frozen=True, kw_only=True):
    """All commands of the trace."""

    executed: int
    from_outside: int
    by_runtime: int
    failed: int
    commands: tuple[Kind, ...]
    """The most frequent first."""
    storms: tuple[Kind, ...]
    """Those of the commands of which there were at least 20 within a second."""
    failures: tuple[Failure, ...]
    other: int
    """Commands beyond the first thousand names, which are not counted apart."""
    invisible: str = INVISIBLE


class _Runs:
    """What is known of one name so far."""

    def __init__(self) -> None:
        self.count = self.outside = self.ended = self.lasted_ns = self.bad = 0
        self.starters: Counter[str] = Counter()
        self.most = self._second = self._now = 0

    def begin(self, one: Command) -> None:
        self.count += 1
        self.outside += not one.inside
        if len(self.starters) < MOST_KINDS or one.parent_comm in self.starters:
            self.starters[one.parent_comm] += 1
        second = one.at_ns // 1_000_000_000
        self._now = self._now + 1 if second == self._second else 1
        self._second = second
        self.most = max(self.most, self._now)

    def end(self, one: Ended) -> None:
        self.ended += 1
        self.lasted_ns += one.lasted_ns
        self.bad += one.status != 0

    def told(self, name: str) -> Kind:
        return Kind(
            name=name,
            count=self.count,
            from_outside=self.outside,
            starter=self.starters.most_common(1)[0][0],
            ended=self.ended,
            lasted_ns=self.lasted_ns,
            bad=self.bad,
            most_per_second=self.most,
        )


class Tally:
    """Makes events of what the kernel told, and counts them."""

    def __init__(self) -> None:
        self._runs: dict[str, _Runs] = {}
        self._running: OrderedDict[int, str] = OrderedDict()
        self._pending: OrderedDict[int, Command] = OrderedDict()
        self._failures: Counter[tuple[str, str]] = Counter()
        self._executed = self._outside = self._runtime = self._other = 0

    def take(self, seen: Iterable[Executed | Ended], now_ns: int) -> list[Command | Exit]:
        """The events of what came since the last call; ``now_ns`` is of the monotonic clock."""
        told: list[Command | Exit] = []
        for one in seen:
            if isinstance(one, Ended):
                told += self._end(one)
            elif one.error is None:
                told += self._begin(command(one))
            else:
                told += self._fail(command(one))
        told += self._settle(now_ns - SEARCH_NS)
        return told

    def answer(self) -> Answer:
        """The counts so far. What failed just now is counted as failed."""
        failures = self._failures + Counter((p.name, str(p.error)) for p in self._pending.values())
        kinds = sorted(self._runs.items(), key=lambda item: -item[1].count)
        commands = tuple(runs.told(name) for name, runs in kinds)
        storms = tuple(k for k in commands if k.most_per_second >= STORM_PER_SECOND)
        return Answer(
            executed=self._executed,
            from_outside=self._outside,
            by_runtime=self._runtime,
            failed=failures.total(),
            commands=commands,
            storms=tuple(sorted(storms, key=lambda k: -k.most_per_second)),
            failures=tuple(
                Failure(name=name, error=error, count=count)
                for (name, error), count in failures.most_common()
            ),
            other=self._other,
        )

    def _begin(self, one: Command) -> Iterator[Command]:
        yield from self._after(one)
        self._executed += 1
        self._outside += not one.inside
        self._runtime += one.runtime
        if one.name in self._runs or len(self._runs) < MOST_KINDS:
            self._runs.setdefault(one.name, _Runs()).begin(one)
            self._running[one.pid] = one.name
            self._running.move_to_end(one.pid)
        else:
            self._other += 1
        if len(self._running) > MOST_RUNNING:
            self._running.popitem(last=False)
        yield one

    def _fail(self, one: Command) -> Iterator[Command]:
        before = self._pending.get(one.pid)
        if before is not None and goes_on(before, one):
            one = structs.replace(one, tried=before.tried + 1)
            del self._pending[one.pid]
        else:
            yield from self._after(one)
        self._pending[one.pid] = one
        if len(self._pending) > MOST_PENDING:
            yield self._failed(self._pending.popitem(last=False)[1])

    def _after(self, one: Command) -> Iterator[Command]:
        """What the same task had failed to execute before, unless that was the same search."""
        before = self._pending.pop(one.pid, None)
        if before is not None and not goes_on(before, one):
            yield self._failed(before)

    def _settle(self, until_ns: int) -> Iterator[Command]:
        """The failures that nothing followed."""
        while self._pending:
            pid, oldest = next(iter(self._pending.items()))
            if oldest.at_ns > until_ns:
                return
            del self._pending[pid]
            yield self._failed(oldest)

    def _failed(self, one: Command) -> Command:
        kind = (one.name, str(one.error))
        if kind not in self._failures and len(self._failures) >= MOST_KINDS:
            kind = ("others", kind[1])
        self._failures[kind] += 1
        return one

    def _end(self, one: Ended) -> Iterator[Exit]:
        name = self._running.pop(one.pid, None)
        if name is None:
            return
        self._runs[name].end(one)
        if one.status:
            yield Exit(
                at_ns=one.at_ns,
                pid=one.pid,
                nspid=one.nspid,
                name=name,
                status=one.status,
                lasted_ns=one.lasted_ns,
            )


def goes_on(before: Command, then: Command) -> bool:
    """Whether a task that failed with the one now looks for it in the next directory."""
    return (
        before.error in {errno.errorcode[number] for number in SEARCHED_ON}
        and before.path != then.path
        and os.path.basename(before.path) == os.path.basename(then.path)
        and then.at_ns - before.at_ns < SEARCH_NS
    )


def command(one: Executed) -> Command:
    """What the kernel told of it, as it is told on."""
    error = None if one.error is None else errno.errorcode.get(one.error, f"errno {one.error}")
    return Command(
        at_ns=one.at_ns,
        pid=one.pid,
        nspid=one.nspid,
        uid=one.uid,
        euid=one.euid,
        parent_pid=one.parent_pid,
        parent_comm=one.parent_comm,
        inside=one.parent_inside,
        name=name_of(one.path, one.arguments),
        path=one.path,
        arguments=one.arguments,
        cut=one.cut,
        error=error,
        runtime=is_runtime(one.arguments),
    )


def name_of(path: str, arguments: Sequence[str]) -> str:
    """What a command is called.

    >>> name_of("/usr/bin/ls", ["ls"]), name_of("/proc/self/exe", ["ls"])
    ('ls', 'ls')
    >>> name_of("/bin/busybox", ["busybox", "ls"])
    'ls'
    """
    name = os.path.basename(path)
    if name not in MULTI_CALL or not arguments:
        return name or path
    called = [os.path.basename(argument) for argument in arguments[:2]]
    return called[-1] if called[0] in MULTI_CALL else called[0]


def is_runtime(arguments: Sequence[str]) -> bool:
    """Whether these are the arguments of a runtime that enters the container: ``runc init``."""
    named = [os.path.basename(argument) for argument in arguments]
    return len(named) == 2 and named[0] in RUNTIMES and named[1] == "init"


class _Session(ObjectSession):
    """By the sensor."""

    def __init__(self, host: Host, target: Target, object: Object) -> None:
        super().__init__(host, target, object, (*_gaps(object),))
        self._ring = object.ring()
        self._tally = Tally()

    def events(self) -> Sequence[Struct]:
        return self._tally.take(sensor.decoded(self._ring.read()), time.monotonic_ns())

    def answer(self) -> Answer:
        return self._tally.answer()


def _gaps(object: Object) -> Iterator[str]:
    left = object.choice.left
    lacking = next((left[name] for name in sensor.FAILURES if name in left), None)
    if lacking is not None:
        yield f"commands that failed are not seen: {lacking}"
    if sensor.ENDS in left:
        yield f"how commands ended is not seen: {left[sensor.ENDS]}"


class _Text:
    def __init__(self, printed: Printed, reason: str) -> None:
        self._printed = printed
        self._tally = Tally()
        self.attached: Sequence[str] = (f"tracefs/{sensor.POINT}",)
        self.notes: Sequence[str] = (
            f"{reason}: the text of a tracepoint is read instead, so commands that failed are not "
            "seen, nor those that ended before it could be told whose they were",
        )

    def events(self) -> Sequence[Struct]:
        return self._tally.take(self._printed.read(), time.monotonic_ns())

    def answer(self) -> Answer:
        return self._tally.answer()

    def lost(self) -> int:
        return self._printed.lost

    def cost(self) -> Cost | None:
        return None

    def adopt(self, target: Target) -> None:
        self._printed.target = target


@contextmanager
def _open(host: Host, target: Target, options: Options) -> Iterator[_Session | _Text]:
    with ExitStack() as stack:
        try:
            object = stack.enter_context(loaded(host, sensor.SPEC, stats=True))
        except Refused as refused:
            reason = str(refused.strerror)
        else:
            yield _Session(host, target, object)
            return
        recording = stack.enter_context(tracefs.attempt(host, [sensor.POINT]))
        if recording.recorder is None:
            raise Refused(f"{reason}; {recording.reason}")
        yield _Text(Printed(host, target, recording.recorder), reason)


QUESTION = Question(open=_open, events=(Command, Exit), answer=Answer)
