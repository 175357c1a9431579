"""Latency and size of a container's block IO, by device; throttled or queued."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from msgspec import Struct

from whybox.kernel import blockio
from whybox.kernel.blockio import Done, Limit
from whybox.kernel.bpf.objects import Cost, Object, Refused, loaded
from whybox.kernel.host import Host
from whybox.kernel.sensors import disk as sensor
from whybox.kernel.sensors.disk import SlowIo, Totals
from whybox.kernel.target import Target
from whybox.trace.question import Options, Question, Session
from whybox.trace.session import ObjectSession

#: Single IOs are told from this length on.
SLOWER_NS = 100_000_000

#: A wait is worth a word from this share of the whole time on.
WORTH = 0.1


class Io(Struct, frozen=True, kw_only=True):
    """One IO that took long."""

    at_ns: int
    """When it was completed, of the monotonic clock."""
    device: str
    kind: str
    """``read``, ``write``, ``flush``, ``discard``, ``other``."""
    bytes: int
    sector: int
    """Of 512 bytes, from the start of the device."""
    took_ns: int
    throttled_ns: int
    queued_ns: int
    device_ns: int
    failed: bool
    pid: int
    comm: str
    """Who submitted it: one of its tasks, or a thread of the kernel for it."""


class Kind(Struct, frozen=True, kw_only=True):
    """The IO of one kind on one device."""

    kind: str
    count: int
    bytes: int
    throttled_ns: int | None
    """Held back by a limit; ``None``, as the next: only counts are known."""
    queued_ns: int | None
    """In the block layer until it was issued to the device."""
    device_ns: int | None
    longest_ns: int | None
    """From submission to completion."""
    throttled: int
    """How many were held back."""
    errors: int


class Bound(Struct, frozen=True, kw_only=True):
    """A limit on the device, of the container or of a group above it."""

    what: str
    """``write bytes``, ``read IOs``, …: so many a second."""
    value: int
    file: str


class Device(Struct, frozen=True, kw_only=True):
    """One device."""

    major: int
    minor: int
    name: str | None
    kinds: tuple[Kind, ...]
    device_buckets: tuple[int, ...]
    """``[n]``: issued to completed in 2^n to 2^(n+1) µs; empty where only counts are known."""
    wait_buckets: tuple[int, ...]
    """The same of submitted to issued."""
    size_buckets: tuple[int, ...]
    """``[n]``: 2^n to 2^(n+1) times 512 bytes."""
    limits: tuple[Bound, ...]
    wait: str | None
    """Where the time went: ``throttled``, ``queued`` or ``device``; ``None``: not known."""
    others_count: int
    """What everybody else had the device do meanwhile."""
    others_bytes: int


class Answer(Struct, frozen=True, kw_only=True):
    """The block IO of the container."""

    devices: tuple[Device, ...]
    """The one with the longest waits first. Devices that it did not use are not told."""
    unfinished: int = 0
    """IOs that were issued to a device and not seen to end; they are in no sum."""


def answered(
    host: Host, slot: int, totals: Iterable[Totals], limits: Iterable[Limit], unfinished: int = 0
) -> Answer:
    """The answer from the sums of the programs."""
    mine: defaultdict[tuple[int, int], list[Totals]] = defaultdict(list)
    others: defaultdict[tuple[int, int], list[Totals]] = defaultdict(list)
    for one in totals:
        (mine if one.slot == slot else others)[one.device].append(one)
    devices = [_device(host, at, kinds, others[at], limits) for at, kinds in mine.items()]
    ranked = tuple(sorted(devices, key=_spent, reverse=True))
    return Answer(devices=ranked, unfinished=unfinished)


def _spent(device: Device) -> int:
    return sum(
        (kind.throttled_ns or 0) + (kind.queued_ns or 0) + (kind.device_ns or 0)
        for kind in device.kinds
    )


def _device(
    host: Host,
    at: tuple[int, int],
    kinds: Sequence[Totals],
    others: Sequence[Totals],
    limits: Iterable[Limit],
) -> Device:
    told = tuple(sorted(map(_kind, kinds), key=lambda kind: sensor.KINDS.index(kind.kind)))
    return Device(
        major=at[0],
        minor=at[1],
        name=blockio.device_name(host, at),
        kinds=told,
        device_buckets=_summed(one.device_buckets for one in kinds),
        wait_buckets=_summed(one.wait_buckets for one in kinds),
        size_buckets=_summed(one.size_buckets for one in kinds if one.kind != "flush"),
        limits=_bounds(at, limits),
        wait=where(told),
        others_count=sum(one.count for one in others),
        others_bytes=sum(one.bytes for one in others),
    )


def _kind(one: Totals) -> Kind:
    return Kind(
        kind=one.kind,
        count=one.count,
        bytes=one.bytes,
        throttled_ns=one.throttled_ns,
        queued_ns=one.queued_ns,
        device_ns=one.device_ns,
        longest_ns=one.longest_ns,
        throttled=one.throttled,
        errors=one.errors,
    )


def _summed(rows: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(sum(column) for column in zip(*rows, strict=True))


def _bounds(at: tuple[int, int], limits: Iterable[Limit]) -> tuple[Bound, ...]:
    return tuple(
        Bound(what=limit.what, value=limit.value, file=limit.file)
        for limit in limits
        if limit.device == at
    )


def where(kinds: Iterable[Kind]) -> str | None:
    """Where most of the time went; ``None``: no time is known."""
    spent = {"throttled": 0, "queued": 0, "device": 0}
    for kind in kinds:
        spent["throttled"] += kind.throttled_ns or 0
        spent["queued"] += kind.queued_ns or 0
        spent["device"] += kind.device_ns or 0
    most = max(spent, key=lambda name: spent[name])
    return most if spent[most] else None


class _Session(ObjectSession):
    """By the programs."""

    def __init__(self, host: Host, target: Target, object: Object) -> None:
        super().__init__(host, target, object, tuple(_gaps(host, target, object)))
        self._ring = object.ring()
        self._limits = blockio.limits(host, target)
        sensor.watch_group(host, object, target, self.slot)

    def events(self) -> Sequence[Struct]:
        return [self._told(sensor.slow(raw)) for raw in self._ring.read()]

    def answer(self) -> Answer:
        left = sensor.unfinished(self.object, self.slot)
        return answered(self.host, self.slot, sensor.totals(self.object), self._limits, left)

    def adopt(self, target: Target) -> None:
        super().adopt(target)
        sensor.watch_group(self.host, self.object, target, self.slot)
        self._limits = blockio.limits(self.host, target)

    def _told(self, one: SlowIo) -> Io:
        name = blockio.device_name(self.host, one.device)
        return Io(
            at_ns=one.at_ns,
            device=name or f"{one.device[0]}:{one.device[1]}",
            kind=one.kind,
            bytes=one.bytes,
            sector=one.sector,
            took_ns=one.throttled_ns + one.queued_ns + one.device_ns,
            throttled_ns=one.throttled_ns,
            queued_ns=one.queued_ns,
            device_ns=one.device_ns,
            failed=one.error != 0,
            pid=one.pid,
            comm=one.comm,
        )


def _gaps(host: Host, target: Target, object: Object) -> Iterator[str]:
    group = blockio.io_group(host, target)
    if group is None:
        yield (
            "it has no block-IO group of its own: what threads of the kernel write back for it "
            "is not seen"
        )
    elif group.version == 1:
        yield (
            "pages that are written back are charged to the root on cgroup v1, so they are "
            "counted with the others and no limit holds them back"
        )
    if "on_timer" in object.choice.taken:
        yield (
            f"{object.choice.left['on_throttle']}: of whole disks, how long a limit held IO back "
            "is told from its timer, which is right in sum; a single one may have waited longer "
            "than is told"
        )


class _Sums:
    """Without programs: the kernel's own counts."""

    def __init__(self, host: Host, target: Target, reason: str) -> None:
        self._host, self._target = host, target
        self._mine = _by_kind(blockio.done_by(host, target))
        self._all = _by_kind(blockio.done_on(host))
        self._earlier: dict[tuple[tuple[int, int], str], tuple[int, int]] = {}
        self.attached: Sequence[str] = ("/proc/diskstats", "io.stat or blkio.throttle.*")
        self.notes: Sequence[str] = (f"{reason}; instead: {sensor.SPEC.falls_back}",)

    def events(self) -> Sequence[Struct]:
        return ()

    def answer(self) -> Answer:
        self._host.next_moment()
        mine = _plus(self._earlier, _since(self._mine, blockio.done_by(self._host, self._target)))
        every = _since(self._all, blockio.done_on(self._host))
        limits = blockio.limits(self._host, self._target)
        return counted(self._host, mine, every, limits)

    def lost(self) -> int:
        return 0

    def cost(self) -> Cost | None:
        return None

    def adopt(self, target: Target) -> None:
        done = _since(self._mine, blockio.done_by(self._host, self._target))
        self._earlier = _plus(self._earlier, done)
        self._target = target
        self._mine = {}


_Counts = Mapping[tuple[tuple[int, int], str], tuple[int, int]]


def _by_kind(done: Iterable[Done]) -> _Counts:
    return {(one.device, one.kind): (one.count, one.bytes) for one in done}


def _since(before: _Counts, done: Iterable[Done]) -> _Counts:
    now = _by_kind(done)
    gains = {}
    for key, (count, size) in now.items():
        then = before.get(key, (0, 0))
        if count > then[0] or size > then[1]:
            gains[key] = (count - then[0], size - then[1])
    return gains


def _plus(one: _Counts, other: _Counts) -> dict[tuple[tuple[int, int], str], tuple[int, int]]:
    both = dict(one)
    for key, (count, size) in other.items():
        known = both.get(key, (0, 0))
        both[key] = (known[0] + count, known[1] + size)
    return both


def counted(host: Host, mine: _Counts, every: _Counts, limits: Iterable[Limit]) -> Answer:
    """The answer from counts alone."""
    kinds: defaultdict[tuple[int, int], list[Kind]] = defaultdict(list)
    for (at, kind), (count, size) in mine.items():
        kinds[at].append(
            Kind(
                kind=kind,
                count=count,
                bytes=size,
                throttled_ns=None,
                queued_ns=None,
                device_ns=None,
                longest_ns=None,
                throttled=0,
                errors=0,
            )
        )
    return Answer(
        devices=tuple(_counted(host, at, told, every, limits) for at, told in kinds.items())
    )


def _counted(
    host: Host, at: tuple[int, int], kinds: list[Kind], every: _Counts, limits: Iterable[Limit]
) -> Device:
    all_of_it = [gain for (device, _), gain in every.items() if device == at]
    return Device(
        major=at[0],
        minor=at[1],
        name=blockio.device_name(host, at),
        kinds=tuple(kinds),
        device_buckets=(),
        wait_buckets=(),
        size_buckets=(),
        limits=_bounds(at, limits),
        wait=None,
        others_count=max(0, sum(g[0] for g in all_of_it) - sum(k.count for k in kinds)),
        others_bytes=max(0, sum(g[1] for g in all_of_it) - sum(k.bytes for k in kinds)),
    )


@contextmanager
def _open(host: Host, target: Target, options: Options) -> Iterator[Session]:
    slower = SLOWER_NS if options.slower_ns is None else options.slower_ns
    before = sensor.before(host, slower)
    with ExitStack() as stack:
        try:
            loading = loaded(host, sensor.SPEC, before=before, stats=True)
            object = stack.enter_context(loading)
        except Refused as refusal:
            yield _Sums(host, target, str(refusal.strerror))
            return
        yield _Session(host, target, object)


QUESTION = Question(open=_open, events=(Io,), answer=Answer)
