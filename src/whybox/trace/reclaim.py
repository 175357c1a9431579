"""Who stalled for memory, how long and for what; and whom the OOM killer killed."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from msgspec import Struct

from whybox.kernel import oomkill, tracefs
from whybox.kernel.bpf.objects import Cost, Object, Refused
from whybox.kernel.cgroup import Group
from whybox.kernel.host import Host
from whybox.kernel.sensors import oom
from whybox.kernel.sensors import reclaim as sensor
from whybox.kernel.sensors.oom import Killed, Kills
from whybox.kernel.sensors.reclaim import BUCKETS, Kind, Printed, Share, Stall, Sums
from whybox.kernel.target import Target
from whybox.trace.budget import Budget, Watched
from whybox.trace.question import Options, Question
from whybox.trace.session import ObjectSession

#: Single stalls are told from this length on, unless asked otherwise.
SLOWER_NS = 10_000_000

#: So many processes, and kills, are named in the answer.
MOST_NAMED = 20

#: Processes that are counted apart where the kernel does not count.
MOST_SHARES = 4096

NAMES = {
    Kind.DIRECT: "direct reclaim",
    Kind.GROUP: "reclaim at a limit",
    Kind.DIRTY: "dirty-page pause",
    Kind.COMPACT: "compaction",
    Kind.THROTTLED: "throttled within reclaim",
}


class Slow(Struct, frozen=True, kw_only=True):
    """One long stall of one task."""

    at_ns: int
    """Its end, of the monotonic clock; of a pause for dirty pages, its beginning."""
    what: str
    pid: int
    tid: int
    comm: str
    lasted_ns: int
    pages: int
    """That it freed meanwhile."""
    order: int
    """2^order pages in a row were wanted."""
    gfp: int
    device: str
    """Of a pause for dirty pages: what is written to, as ``254:0``."""


class Kill(Struct, frozen=True, kw_only=True):
    """The OOM killer ended a process of the container, or one elsewhere on its behalf."""

    at_ns: int
    victim_pid: int
    victim_comm: str
    victim_inside: bool
    """Whether it was in this container."""
    anon_rss_bytes: int | None
    shmem_rss_bytes: int | None
    """Of shared memory and tmpfs, which outlives the victim if a file holds it."""
    trigger_pid: int
    trigger_comm: str
    trigger_inside: bool
    full: str | None
    """The group that was full; ``None``: the machine was, or its name is not known."""
    of_the_host: bool
    """Whether no group was full: the machine ran out."""
    usage_bytes: int | None
    limit_bytes: int | None


class Stalls(Struct, frozen=True, kw_only=True):
    """All stalls of one kind."""

    what: str
    count: int
    sum_ns: int
    longest_ns: int
    pages: int
    buckets: tuple[int, ...]
    """``buckets[n]``: stalls of 2^n to 2^(n+1) µs."""


class Process(Struct, frozen=True, kw_only=True):
    """The stalls of one kind of one process."""

    what: str
    pid: int
    comm: str
    count: int
    sum_ns: int
    longest_ns: int
    pages: int


class Answer(Struct, frozen=True, kw_only=True):
    """All stalls of the trace."""

    stalls: tuple[Stalls, ...]
    """The kinds that there were. Being throttled is a part of reclaim, not one more."""
    processes: tuple[Process, ...]
    """Those that stalled longest."""
    kills: tuple[Kill, ...]
    killed: int
    """How many of its processes the OOM killer ended."""
    memory: Budget | None
    """``None``: it has no memory group of its own that can be seen."""


# By the sensors.


class _Session(ObjectSession):
    """Sums by the kernel; single events for what is long, and for every kill."""

    def __init__(self, host: Host, target: Target, object: Object, kills: "_Killed") -> None:
        super().__init__(host, target, object, (*_gaps(object), *kills.notes))
        self._ring = object.ring()
        self._kills = kills
        self._budget = Watched(host, target)

    @property
    def attached(self) -> Sequence[str]:
        return (*self.object.attached, *self._kills.attached)

    def events(self) -> Sequence[Struct]:
        self._budget.look()
        stalls = [slow(sensor.stall(raw)) for raw in self._ring.read()]
        told: list[Slow | Kill] = [*stalls, *self._kills.read()]
        return sorted(told, key=lambda event: event.at_ns)

    def answer(self) -> Answer:
        sums = sensor.sums(self.object, self.slot)
        return answered(sums, sensor.shares(self.object, self.slot), self._kills, self._budget)

    def lost(self) -> int:
        return super().lost() + self._kills.lost

    def cost(self) -> Cost | None:
        return _both(self.object.cost(), self._kills.cost())

    def adopt(self, target: Target) -> None:
        super().adopt(target)
        self._kills.adopt(target)
        self._budget = Watched(self.host, target)


class _Killed:
    """The kills so far, by the sensor of its own; none where that is not to be had."""

    def __init__(self, host: Host, target: Target, kills: Kills | None, notes: Sequence[str]):
        self.notes = notes
        self.told: list[Kill] = []
        self.count = 0
        self._host, self._kills = host, kills
        self._groups: Mapping[int, Group] = {}
        self.adopt(target)

    @property
    def attached(self) -> Sequence[str]:
        return () if self._kills is None else self._kills.object.attached

    @property
    def lost(self) -> int:
        return 0 if self._kills is None else self._kills.lost

    def cost(self) -> Cost | None:
        return None if self._kills is None else self._kills.object.cost()

    def adopt(self, target: Target) -> None:
        if self._kills is not None:
            self._kills.scope.add(self._host, target, slot=1)
            self._groups = {**self._groups, **oomkill.groups(self._host, target)}

    def read(self) -> list[Kill]:
        new = [] if self._kills is None else self._kills.read()
        kills = [kill(self._host, one, self._groups) for one in new]
        self.count += sum(one.victim_inside for one in kills)
        self.told += kills[: MOST_NAMED - len(self.told)]
        return kills


def kill(host: Host, one: Killed, groups: Mapping[int, Group]) -> Kill:
    """One kill with the path of the group that was full."""
    known = oomkill.witnessed(host, one, groups)
    return Kill(
        at_ns=one.at_ns,
        victim_pid=one.victim_pid,
        victim_comm=one.victim_comm,
        victim_inside=one.slot != 0,
        anon_rss_bytes=one.anon_rss_bytes,
        shmem_rss_bytes=one.shmem_rss_bytes,
        trigger_pid=one.trigger_pid,
        trigger_comm=one.trigger_comm,
        trigger_inside=one.trigger_slot != 0,
        full=known.oom_memcg,
        of_the_host=known.global_oom,
        usage_bytes=known.usage_bytes,
        limit_bytes=known.limit_bytes,
    )


def slow(one: Stall) -> Slow:
    """One stall as it is told on."""
    return Slow(
        at_ns=one.at_ns,
        what=NAMES[one.kind],
        pid=one.pid,
        tid=one.tid,
        comm=one.comm,
        lasted_ns=one.lasted_ns,
        pages=one.pages,
        order=one.order,
        gfp=one.gfp,
        device=one.device,
    )


def answered(
    sums: Mapping[Kind, Sums], shares: Iterable[Share], kills: _Killed, budget: Watched
) -> Answer:
    """The answer from what was counted."""
    longest = sorted(shares, key=lambda share: -share.sum_ns)[:MOST_NAMED]
    return Answer(
        stalls=tuple(
            Stalls(
                what=NAMES[kind],
                count=one.count,
                sum_ns=one.sum_ns,
                longest_ns=one.longest_ns,
                pages=one.pages,
                buckets=one.buckets,
            )
            for kind, one in sums.items()
            if one.count
        ),
        processes=tuple(_process(share) for share in longest),
        kills=tuple(kills.told),
        killed=kills.count,
        memory=budget.since(),
    )


def _process(share: Share) -> Process:
    return Process(
        what=NAMES[share.kind],
        pid=share.pid,
        comm=share.comm,
        count=share.count,
        sum_ns=share.sum_ns,
        longest_ns=share.longest_ns,
        pages=share.pages,
    )


def _gaps(object: Object) -> Iterator[str]:
    for kind, program in sensor.SEEN_BY.items():
        lack = object.choice.left.get(program)
        if lack is not None:
            yield f"not seen: {NAMES[kind]} ({lack})"


def _both(one: Cost | None, other: Cost | None) -> Cost | None:
    if one is None or other is None:
        return one or other
    return Cost(
        run_ns=one.run_ns + other.run_ns,
        runs=one.runs + other.runs,
        missed=one.missed + other.missed,
    )


# By the tracepoints' text.


class _Text:
    """What the kernel does not count is counted here."""

    def __init__(
        self, host: Host, target: Target, printed: Printed, slower_ns: int, reason: str
    ) -> None:
        self._printed, self._slower_ns = printed, slower_ns
        self._sums: dict[Kind, Sums] = {}
        self._shares: dict[tuple[Kind, int], Share] = {}
        self._host, self._budget = host, Watched(host, target)
        self._kills = _Killed(host, target, None, ())
        self.attached: Sequence[str] = tuple(f"tracefs/{place}" for place in sensor.POINTS)
        self.notes: Sequence[str] = (
            f"{reason}: the text of tracepoints is read instead; OOM kills are not seen, nor "
            "tasks that ended before it could be told whose they were",
        )

    def events(self) -> Sequence[Struct]:
        self._budget.look()
        new = tuple(self._printed.read())
        for one in new:
            self._sums[one.kind] = added(self._sums.get(one.kind, Sums()), one)
            self._share(one)
        return [slow(one) for one in new if one.lasted_ns >= self._slower_ns]

    def answer(self) -> Answer:
        return answered(self._sums, self._shares.values(), self._kills, self._budget)

    def lost(self) -> int:
        return self._printed.lost

    def cost(self) -> Cost | None:
        return None

    def adopt(self, target: Target) -> None:
        self._printed.target = target
        self._budget = Watched(self._host, target)

    def _share(self, one: Stall) -> None:
        key = (one.kind, one.pid)
        known = self._shares.get(key)
        if known is None and len(self._shares) >= MOST_SHARES:
            return
        self._shares[key] = Share(
            kind=one.kind,
            pid=one.pid,
            comm=one.comm,
            count=1 + (known.count if known else 0),
            sum_ns=one.lasted_ns + (known.sum_ns if known else 0),
            longest_ns=max(one.lasted_ns, known.longest_ns if known else 0),
            pages=one.pages + (known.pages if known else 0),
        )


def added(sums: Sums, one: Stall) -> Sums:
    """The sums with one more stall."""
    usec = max(one.lasted_ns // 1000, 1)
    bucket = min(usec.bit_length() - 1, BUCKETS - 1)
    buckets = list(sums.buckets)
    buckets[bucket] += 1
    return Sums(
        count=sums.count + 1,
        sum_ns=sums.sum_ns + one.lasted_ns,
        longest_ns=max(sums.longest_ns, one.lasted_ns),
        pages=sums.pages + one.pages,
        buckets=tuple(buckets),
    )


@contextmanager
def _open(host: Host, target: Target, options: Options) -> Iterator[_Session | _Text]:
    slower_ns = SLOWER_NS if options.slower_ns is None else options.slower_ns
    with ExitStack() as stack:
        try:
            object = stack.enter_context(sensor.attached(host, slower_ns))
        except Refused as refused:
            yield _printed(host, target, slower_ns, str(refused.strerror), stack)
            return
        yield _Session(host, target, object, _killed(host, target, stack))


def _killed(host: Host, target: Target, stack: ExitStack) -> _Killed:
    try:
        kills = stack.enter_context(oom.attached(host, stats=True))
    except Refused as refused:
        return _Killed(host, target, None, (f"OOM kills are not seen: {refused.strerror}",))
    return _Killed(host, target, kills, ())


def _printed(host: Host, target: Target, slower_ns: int, reason: str, stack: ExitStack) -> _Text:
    recording = stack.enter_context(tracefs.attempt(host, sensor.POINTS))
    if recording.recorder is None:
        raise Refused(f"{reason}; {recording.reason}")
    return _Text(host, target, Printed(host, target, recording.recorder), slower_ns, reason)


QUESTION = Question(open=_open, events=(Slow, Kill), answer=Answer)
