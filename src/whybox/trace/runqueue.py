"""How long tasks wait for a CPU, as a histogram, and behind whom."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from msgspec import Struct

from whybox.kernel import cgroup, task
from whybox.kernel.bpf.objects import Cost, Object, Refused, loaded
from whybox.kernel.finding import recognise
from whybox.kernel.host import Host
from whybox.kernel.sensors import runqueue as sensor
from whybox.kernel.sensors.meter import Meter
from whybox.kernel.sensors.runqueue import Ahead
from whybox.kernel.target import Target, place, processes
from whybox.trace.question import Options, Question, Session
from whybox.trace.session import ObjectSession

#: So many of those who ran meanwhile are named.
MOST_NAMED = 10


class Neighbour(Struct, frozen=True, kw_only=True):
    """Who ran while the container waited."""

    who: str
    """A container by its engine and id, ``itself``, or a process of the host by its name."""
    pid: int
    waits: int
    wait_ns: int


class Answer(Struct, frozen=True, kw_only=True):
    """The waits of the container's tasks for a CPU."""

    waits: int
    wait_ns: int
    longest_ns: int | None
    buckets: tuple[int, ...]
    """``buckets[n]``: waits of 2^n to 2^(n+1) µs; empty where only sums are known."""
    behind: tuple[Neighbour, ...]
    """Of waits from 100 µs on: who left the CPU to it, the one who cost most first."""


class _Session(ObjectSession):
    """Sums only: nothing is told one by one."""

    def __init__(self, host: Host, target: Target, object: Object) -> None:
        super().__init__(host, target, object)
        self._meter = Meter(object, sensor.runs)

    def events(self) -> Sequence[Struct]:
        self._meter.tick()
        return ()

    def cost(self) -> Cost | None:
        return self._meter.cost()

    def lost(self) -> int:
        return self.object.missed()

    def answer(self) -> Answer:
        seen = sensor.waits(self.object, self.slot)
        return Answer(
            waits=seen.count,
            wait_ns=seen.sum_ns,
            longest_ns=seen.longest_ns,
            buckets=seen.buckets,
            behind=tuple(self._neighbours(sensor.ahead(self.object, self.slot))),
        )

    def _neighbours(self, ahead: Iterable[Ahead]) -> Iterator[Neighbour]:
        for one in sorted(ahead, key=lambda a: -a.sum_ns)[:MOST_NAMED]:
            who = f"{owner(self.host, one.pid, self._first)} ({one.comm})"
            yield Neighbour(who=who, pid=one.pid, waits=one.count, wait_ns=one.sum_ns)


def owner(host: Host, pid: int, target: Target) -> str:
    """Whose a process is: the container's own, another's by engine and id, or the host's."""
    try:
        paths = cgroup.membership_of(host, pid)
    except OSError:
        return "ended meanwhile"
    group = place(host, paths)
    mine = place(host, target.cgroups)
    if group is None:
        return "the host's"
    if mine is not None and f"{group.directory}/".startswith(f"{mine.directory}/"):
        return "its own"
    known = recognise(group.path)
    return group.path if known is None else f"{known[0]} {known[1][:12]}"


class _Sums:
    """Without a program: the kernel's own sums, of the tasks that can be seen."""

    attached = ("/proc/PID/task/TID/schedstat",)

    def __init__(self, host: Host, target: Target, reason: str) -> None:
        self._host, self._targets = host, [target]
        self._before = self._read()
        self._latest = dict(self._before)
        self.notes = (f"{reason}; instead: {sensor.SPEC.falls_back}",)

    def events(self) -> Sequence[Struct]:
        self._host.next_moment()
        self._latest |= self._read()  # of those who end, what they had at the last look
        return ()

    def answer(self) -> Answer:
        self.events()
        gains = [now - self._before.get(one, Tally(0, 0)) for one, now in self._latest.items()]
        return Answer(
            waits=sum(gain.slices for gain in gains),
            wait_ns=sum(gain.wait_ns for gain in gains),
            longest_ns=None,
            buckets=(),
            behind=(),
        )

    def lost(self) -> int:
        return 0

    def cost(self) -> Cost | None:
        return None

    def adopt(self, target: Target) -> None:
        self._targets.append(target)

    def _read(self) -> dict[tuple[int, int], "Tally"]:
        found: dict[tuple[int, int], Tally] = {}
        for target in self._targets:
            for pid in processes(self._host, target):
                found |= dict(self._tasks(pid))
        return found

    def _tasks(self, pid: int) -> Iterator[tuple[tuple[int, int], "Tally"]]:
        try:
            start = task.stat(self._host, pid).start_ticks
            for tid in task.thread_ids(self._host, pid):
                said = task.schedstat(self._host, pid, tid)
                yield (tid, start), Tally(said.timeslices, said.run_delay_ns)
        except OSError:
            return  # it has ended


class Tally(NamedTuple):
    """Of one task since it began."""

    slices: int
    wait_ns: int

    def __sub__(self, before: "Tally") -> "Tally":
        return Tally(self.slices - before.slices, self.wait_ns - before.wait_ns)


@contextmanager
def _open(host: Host, target: Target, options: Options) -> Iterator[Session]:
    with ExitStack() as stack:
        try:
            object = stack.enter_context(loaded(host, sensor.SPEC))
        except Refused as refusal:
            yield _Sums(host, target, str(refusal.strerror))
            return
        yield _Session(host, target, object)


QUESTION = Question(open=_open, answer=Answer)
