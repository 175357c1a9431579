"""How long a function of the kernel takes for a container's tasks, or what it calls.

Which function is up to whoever asks: this is for when no other question fits. How long: a kprobe
and a kretprobe. What it calls (``--depth``): the kernel's tracer of function graphs.
"""

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import translate

from msgspec import Struct

from whybox.kernel import ftrace, task
from whybox.kernel.bpf import ability
from whybox.kernel.bpf.objects import Cost, Object, Refused, loaded
from whybox.kernel.graphsteps import TSC, Graph, Step
from whybox.kernel.host import Host
from whybox.kernel.sensors import functions as sensor
from whybox.kernel.symbols import KernelSymbols
from whybox.kernel.target import Target, processes
from whybox.trace import nearest
from whybox.trace.calltree import Call, CallTree
from whybox.trace.question import Options, Question, Session
from whybox.trace.session import ObjectSession

#: So many processes are named.
MOST_NAMED = 10

#: So many tracepoints are offered where no function can be traced.
MOST_OFFERED = 40

#: The tracer's own stack has room for so many (``FTRACE_RETFUNC_DEPTH``).
MOST_DEPTH = 50

#: How often it is looked who has joined the container by other ways than a fork.
_LOOK_SECONDS = 1.0

_NAME = re.compile(r"[A-Za-z_][\w.]{0,127}")

#: Where functions that no probe may be placed on are told, if debugfs is mounted.
_FORBIDDEN = "/sys/kernel/debug/kprobes/blacklist"


class Caller(Struct, frozen=True, kw_only=True):
    """The calls of one process; of one thread where the calls below are traced."""

    pid: int
    comm: str
    count: int
    sum_ns: int
    longest_ns: int


class Answer(Struct, frozen=True, kw_only=True):
    """The calls of one function by the container's tasks."""

    function: str
    calls: int
    """Those that ended."""
    sum_ns: int
    """From begin to end, sleep and interrupts included."""
    outer_ns: int
    """The same without calls from within another one, where the function calls itself."""
    nested: int
    longest_ns: int
    buckets: tuple[int, ...]
    """``buckets[n]``: calls of 2^n to 2^(n+1) ns."""
    open: int
    """Tasks that are in it now."""
    missed: int
    """Calls that began and of which the end was not seen, or that could not be followed."""
    callers: tuple[Caller, ...]
    """The costliest first."""
    tree: tuple[Call, ...] = ()
    """What it calls; empty unless asked for."""


class _Timed(ObjectSession):
    """How long: sums in the kernel."""

    def __init__(
        self, host: Host, target: Target, object: Object, function: str, notes: Sequence[str]
    ) -> None:
        super().__init__(host, target, object, notes)
        self._function = function

    @property
    def attached(self) -> Sequence[str]:
        return (f"kprobe/{self._function}", f"kretprobe/{self._function}")

    def events(self) -> Sequence[Struct]:
        return ()

    def lost(self) -> int:
        return 0

    def answer(self) -> Answer:
        seen = sensor.calls(self.object, self.slot)
        inside = tuple(sensor.open_calls(self.object, self.slot))
        # Who has ended has not come back from his last call, as far as was seen.
        living = [one for one in inside if self.host.exists(f"/proc/{one.tid}")]
        unseen = sum(one.watched + one.unwatched for one in inside)
        unseen -= sum(one.watched for one in living)
        callers = sorted(sensor.callers(self.object, self.slot), key=lambda c: -c.sum_ns)
        return Answer(
            function=self._function,
            calls=seen.count,
            sum_ns=seen.sum_ns,
            outer_ns=seen.outer_ns,
            nested=seen.nested,
            longest_ns=seen.longest_ns,
            buckets=seen.buckets,
            open=sum(1 for one in living if one.watched),
            missed=seen.unpaired + seen.untold + unseen,
            callers=tuple(
                Caller(
                    pid=c.pid,
                    comm=c.comm,
                    count=c.count,
                    sum_ns=c.sum_ns,
                    longest_ns=c.longest_ns,
                )
                for c in callers[:MOST_NAMED]
            ),
        )


class _Drawn:
    """What it calls: steps from the function tracer."""

    def __init__(
        self, host: Host, members: "_Members", tracing: Graph, function: str, depth: int
    ) -> None:
        self._host, self._members, self._tracing = host, members, tracing
        self._function = function
        self._symbols = KernelSymbols(host)
        self._tree = CallTree()
        self._names: dict[int, str] = {}
        self._looked, self._lost = time.monotonic(), 0
        where = "in an instance of its own" if tracing.in_instance else "the machine's only one"
        self.attached = (f"{ftrace.TRACER}/{function} ({where})",)
        self.notes = tuple(_notes_of_graph(tracing, depth))

    def events(self) -> Sequence[Struct]:
        self._take(self._tracing.read())
        now = time.monotonic()
        if now - self._looked > _LOOK_SECONDS:
            self._looked = now
            self._host.next_moment()
            self._tracing.watch(self._members.find())
        return ()

    def answer(self) -> Answer:
        ftrace.stop(self._tracing)
        self._take(self._tracing.rest())
        tree, roots = self._tree, self._tree.roots(self._name)
        return Answer(
            function=self._function,
            calls=tree.calls,
            sum_ns=sum(call.total_ns for call in roots),
            outer_ns=sum(call.total_ns for call in roots),
            nested=_nested(roots, self._function),
            longest_ns=max((call.longest_ns for call in roots), default=0),
            buckets=tuple(tree.buckets),
            open=tree.open_calls,
            missed=tree.broken,
            callers=tuple(
                Caller(
                    pid=one.pid,
                    comm=self._comm(one.pid),
                    count=one.count,
                    sum_ns=one.sum_ns,
                    longest_ns=one.longest_ns,
                )
                for one in tree.by_pid()[:MOST_NAMED]
            ),
            tree=roots,
        )

    def lost(self) -> int:
        return self._tracing.lost

    def cost(self) -> Cost | None:
        return None

    def adopt(self, target: Target) -> None:
        self._members.add(target)
        self._tracing.watch(self._members.find())

    def _take(self, steps: Sequence[Step]) -> None:
        if self._tracing.lost > self._lost:
            self._lost = self._tracing.lost
            self._tree.forget()
        for step in steps:
            if step.pid not in self._names and len(self._names) < MOST_NAMED * 100:
                self._names[step.pid] = _comm(self._host, step.pid)
        self._tree.add(steps)

    def _name(self, address: int) -> str:
        return self._symbols.frame(address).name

    def _comm(self, pid: int) -> str:
        return self._names.get(pid, "?")


class _Members:
    """The threads of the containers that are traced."""

    def __init__(self, host: Host, target: Target) -> None:
        self._host, self._targets = host, [target]

    def add(self, target: Target) -> None:
        """One more."""
        self._targets.append(target)

    def find(self) -> set[int]:
        """All that are there now."""
        found: set[int] = set()
        for target in self._targets:
            for pid in processes(self._host, target):
                try:
                    found.update(task.thread_ids(self._host, pid))
                except OSError:
                    continue  # it has ended
        return found


def _comm(host: Host, pid: int) -> str:
    try:
        return task.stat(host, pid).comm
    except OSError:
        return "?"


def _nested(roots: Sequence[Call], function: str) -> int:
    """Calls of the function below itself, at any depth."""
    found, waiting = 0, [below for call in roots for below in call.calls_to]
    while waiting:
        call = waiting.pop()
        found += call.calls if call.name == function else 0
        waiting += call.calls_to
    return found


def _notes_of_graph(tracing: Graph, depth: int) -> Iterator[str]:
    if not tracing.in_instance:
        yield (
            "this kernel's function tracer is the machine's only one: nobody else can use it now,"
            " and it is set back at the end"
        )
    if tracing.clock == TSC:
        yield (
            "times are taken from the processor's counter, the safest clock, which may differ"
            " between CPUs"
        )
    yield (
        f"calls deeper than {depth} are in the time of those that called them; every function of"
        " the kernel is a little slower meanwhile"
    )


def listed(host: Host, pattern: str) -> list[str]:
    """The functions that can be asked about, by a pattern such as ``tcp_*``, sorted.

    Raises ``Refused`` with the tracepoints of such names where there is no way to trace a function.
    """
    matching = re.compile(translate(pattern)).match
    probed = _why_no_kprobes(host)
    if probed is not None and ftrace.why_not(host) is not None:
        raise Refused(_refusal(host, probed, pattern, matching=True))
    known = ftrace.traceable(host) or ability.functions() - _forbidden(host)
    return sorted(name for name in known if matching(name) and _is_function(name))


def _forbidden(host: Host) -> set[str]:
    """What no kprobe may be placed on."""
    text = host.optional_text(_FORBIDDEN) or ""
    return {line.split()[1] for line in text.splitlines() if len(line.split()) > 1}


def _is_function(name: str) -> bool:
    # What a compiler puts before a function or splits off from it cannot be called.
    return bool(_NAME.fullmatch(name)) and not name.startswith(("__pfx_", "__cfi_"))


def _why_no_kprobes(host: Host) -> str | None:
    return ability.why_not(host) or ability.missing(host, "kprobe")


def _refusal(host: Host, reason: str, wanted: str, *, matching: bool = False) -> str:
    """Why a function cannot be traced, and what could be looked at instead."""
    try:
        events = ftrace.tracepoints(host)
    except OSError:
        events = ()
    if matching:
        fits = re.compile(translate(f"*{wanted.strip('*')}*")).match
        near = tuple(event for event in events if fits(event)) or nearest.tracepoints(
            wanted.replace("*", ""), events
        )
    else:
        near = nearest.tracepoints(wanted, events)
    lack = f"this kernel has {reason}" if reason.startswith("no ") else reason
    sentence = f"{lack}, so no function of it can be traced"
    if not near:
        return sentence
    shown = ", ".join(near[:MOST_OFFERED])
    more = f" and {len(near) - MOST_OFFERED} more" if len(near) > MOST_OFFERED else ""
    return f"{sentence}; the nearest tracepoints: {shown}{more}"


def _unknown(function: str, known: Sequence[str]) -> str:
    near = nearest.names(function, known)
    return f"this kernel has no function {function}" + (
        f"; did you mean {', '.join(near)}?" if near else ": see whybox trace functions --list"
    )


def _check(options: Options) -> str | None:
    if options.function is None:
        return "functions needs --function NAME; --list PATTERN tells which there are"
    if not _NAME.fullmatch(options.function):
        return f"{options.function!r} is no name of a function"
    if options.depth is not None and not 1 <= options.depth <= MOST_DEPTH:
        return f"--depth is from 1 to {MOST_DEPTH}"
    return None


@contextmanager
def _open(host: Host, target: Target, options: Options) -> Iterator[Session]:
    wrong = _check(options)
    if wrong is not None or options.function is None:
        raise Refused(wrong or "")
    if options.depth is None:
        with _timed(host, target, options.function) as session:
            yield session
    else:
        with _drawn(host, target, options.function, options.depth) as session:
            yield session


@contextmanager
def _timed(host: Host, target: Target, function: str) -> Iterator[Session]:
    reason = _why_no_kprobes(host)
    if reason is not None:
        raise Refused(_refusal(host, reason, function))
    if function not in ability.functions():
        raise Refused(_unknown(function, listed(host, "*")))
    with loaded(host, sensor.SPEC, attach=False, stats=True) as object:
        try:
            sensor.attach(object, function, trampoline(host))
        except OSError as error:
            why = ability.explained(error)
            raise Refused(f"the kernel lets {function} not be probed ({why})") from None
        # Only now is anybody watched: calls that begin meanwhile would lack their return.
        yield _Timed(host, target, object, function, ())


def trampoline(host: Host) -> int:
    """Where calls return to whose return is watched; 0: the kernel does not tell."""
    found: dict[str, int] = {}
    with open(host.path(ability.SYMBOLS), encoding="ascii", errors="replace") as file:
        for line in file:
            if "_trampoline" in line:
                address, _, name, *_ = line.split()
                found[name] = int(address, 16)
    return next((found[name] for name in sensor.TRAMPOLINES if name in found), 0)


@contextmanager
def _drawn(host: Host, target: Target, function: str, depth: int) -> Iterator[Session]:
    reason = ftrace.why_not(host)
    if reason is not None:
        raise Refused(_refusal(host, reason, function))
    known = ftrace.traceable(host)
    if known and function not in known:
        raise Refused(_unknown(function, known))
    members = _Members(host, target)
    with ftrace.graph(host, function, depth, members.find) as tracing:
        yield _Drawn(host, members, tracing, function, depth)


QUESTION = Question(open=_open, answer=Answer, check=_check)
