"""Slow file operations and copy-ups of a container, with the path inside it."""

import errno
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from msgspec import Struct

from whybox.kernel import overlay, upper
from whybox.kernel.bpf.objects import Cost, Object, Refused, loaded
from whybox.kernel.host import Host
from whybox.kernel.mountinfo import mounts
from whybox.kernel.overlay import Overlay
from whybox.kernel.sensors import files as sensor
from whybox.kernel.sensors.files import MOST_MOUNTS, Copied, Done
from whybox.kernel.target import Target
from whybox.kernel.upper import CopiedUp, Survey
from whybox.trace.question import Options, Question, Session
from whybox.trace.session import ObjectSession

#: Operations are told from this length on; copies always.
SLOWER_NS = 10_000_000

#: So many files are told apart, and so many copies and files are in the answer.
MOST_FILES, MOST_COPIES, MOST_NAMED = 10_000, 1000, 100

BUCKETS = 32


class Operation(Struct, frozen=True, kw_only=True):
    """One operation that was slow, or that copied a file of the image."""

    at_ns: int
    """When it ended, of the monotonic clock."""
    took_ns: int
    pid: int
    """By the host's numbers."""
    comm: str
    operation: str
    """``open``, ``chmod``, ``read``, …"""
    call: str
    """The system call."""
    path: str
    """As the process sees it; ``…/`` where the way up to its root was too long."""
    error: str | None
    """Such as ``ENOENT``; ``None``: it succeeded."""
    read_bytes: int
    """From the disk in its name."""
    written_bytes: int
    """Dirtied in its name."""
    copied_bytes: int | None
    """Of a file of the image that it copied; ``None``: it copied none."""
    confirmed: bool
    """Whether the copy was seen in the upper layer."""


class CopyUp(Struct, frozen=True, kw_only=True):
    """One file of the image that was copied."""

    path: str
    bytes: int
    took_ns: int | None
    """The whole call; ``None``, as the next two, where the call was not seen."""
    pid: int | None
    comm: str | None
    call: str | None


class Kind(Struct, frozen=True, kw_only=True):
    """The slow operations of one kind."""

    operation: str
    count: int
    errors: int
    sum_ns: int
    longest_ns: int
    buckets: tuple[int, ...]
    """``buckets[n]``: operations of 2^n to 2^(n+1) µs; the first, everything below 2 µs."""


class File(Struct, frozen=True, kw_only=True):
    """A file on which operations were slow."""

    path: str
    count: int
    sum_ns: int
    longest_ns: int


class Answer(Struct, frozen=True, kw_only=True):
    """What was slow, and what was copied."""

    slower_ns: int
    """From which length on an operation counts as slow here."""
    copies: int
    copied_bytes: int
    copying_ns: int
    """The calls that copied, in all."""
    copied: tuple[CopyUp, ...]
    """The largest of them."""
    kinds: tuple[Kind, ...]
    """The one that cost most first; with the copies that were slow."""
    files: tuple[File, ...]
    """Where most of that time went."""
    others: int
    """Slow operations on files beyond the first ten thousand, which are not told apart."""


class _Spent:
    """Operations that belong together."""

    def __init__(self) -> None:
        self.count = self.errors = self.sum_ns = self.longest_ns = 0
        self.buckets = [0] * BUCKETS

    def add(self, one: Done) -> None:
        self.count += 1
        self.errors += one.error is not None
        self.sum_ns += one.took_ns
        self.longest_ns = max(self.longest_ns, one.took_ns)
        self.buckets[bucket(one.took_ns)] += 1


def bucket(ns: int) -> int:
    """Which power of two, in microseconds.

    >>> bucket(0), bucket(1_999), bucket(2_000), bucket(1 << 62)
    (0, 0, 1, 31)
    """
    return min(max(0, (ns // 1000).bit_length() - 1), BUCKETS - 1)


class Tally:
    """Counts the operations that are told."""

    def __init__(self, slower_ns: int) -> None:
        self._slower_ns = slower_ns
        self._kinds: dict[str, _Spent] = {}
        self._files: dict[str, _Spent] = {}
        self._copied: list[CopyUp] = []
        self._copies = self._bytes = self._copying_ns = self._others = 0

    def take(self, one: Done, copied: Copied | None) -> Operation | None:
        """Count it; the event, unless it was neither slow nor a copy."""
        if copied is not None:
            self._copy(one, copied)
        if one.took_ns >= self._slower_ns:
            self._slow(one)
        elif copied is None:
            return None
        return operation(one, copied)

    def _copy(self, one: Done, copied: Copied) -> None:
        self._copies += 1
        self._bytes += copied.bytes
        self._copying_ns += one.took_ns
        self._copied.append(
            CopyUp(
                path=one.path,
                bytes=copied.bytes,
                took_ns=one.took_ns,
                pid=one.pid,
                comm=one.comm,
                call=one.call,
            )
        )
        if len(self._copied) >= 2 * MOST_COPIES:
            self._copied = largest(self._copied)

    def _slow(self, one: Done) -> None:
        self._kinds.setdefault(one.kind, _Spent()).add(one)
        if one.path in self._files or len(self._files) < MOST_FILES:
            self._files.setdefault(one.path, _Spent()).add(one)
        else:
            self._others += 1

    def answer(self) -> Answer:
        """The counts so far."""
        kinds = sorted(self._kinds.items(), key=lambda item: -item[1].sum_ns)
        files = sorted(self._files.items(), key=lambda item: -item[1].sum_ns)
        return Answer(
            slower_ns=self._slower_ns,
            copies=self._copies,
            copied_bytes=self._bytes,
            copying_ns=self._copying_ns,
            copied=tuple(largest(self._copied)),
            kinds=tuple(_kind(name, spent) for name, spent in kinds),
            files=tuple(_file(path, spent) for path, spent in files[:MOST_NAMED]),
            others=self._others,
        )


def largest(copied: Iterable[CopyUp]) -> list[CopyUp]:
    """The largest copies, as many as an answer has."""
    return sorted(copied, key=lambda one: -one.bytes)[:MOST_COPIES]


def _kind(name: str, spent: _Spent) -> Kind:
    return Kind(
        operation=name,
        count=spent.count,
        errors=spent.errors,
        sum_ns=spent.sum_ns,
        longest_ns=spent.longest_ns,
        buckets=tuple(spent.buckets),
    )


def _file(path: str, spent: _Spent) -> File:
    return File(path=path, count=spent.count, sum_ns=spent.sum_ns, longest_ns=spent.longest_ns)


def operation(one: Done, copied: Copied | None) -> Operation:
    """As it is told."""
    error = None if one.error is None else errno.errorcode.get(one.error, f"errno {one.error}")
    return Operation(
        at_ns=one.at_ns,
        took_ns=one.took_ns,
        pid=one.pid,
        comm=one.comm,
        operation=one.kind,
        call=one.call,
        path=one.path,
        error=error,
        read_bytes=one.read_bytes,
        written_bytes=one.written_bytes,
        copied_bytes=None if copied is None else copied.bytes,
        confirmed=copied is not None and copied.exact,
    )


class _Session(ObjectSession):
    """By the sensor."""

    def __init__(self, host: Host, target: Target, object: Object, slower_ns: int) -> None:
        self._layers, reasons = sensor.layers(host, target)
        super().__init__(host, target, object, tuple(_gaps(reasons)))
        self._ring = object.ring()
        self._tally = Tally(slower_ns)

    def events(self) -> Sequence[Struct]:
        offset_ns = sensor.clock_offset_ns()
        seen = [sensor.done(raw) for raw in self._ring.read()]
        told = [self._tally.take(one, self._layers.copied(one, offset_ns)) for one in seen]
        return [one for one in told if one is not None]

    def answer(self) -> Answer:
        return self._tally.answer()

    def adopt(self, target: Target) -> None:
        super().adopt(target)
        self._layers = sensor.layers(self.host, target)[0]


def _gaps(reasons: Sequence[str]) -> Iterator[str]:
    for reason in reasons:
        yield (
            f"{reason}; so a copy is told by what its call had the kernel write, from 1 MiB on, "
            "and its size is that"
        )


class _Landed:
    """Without the sensor: what landed in the upper layers meanwhile."""

    def __init__(self, host: Host, target: Target, reason: str) -> None:
        self._host = host
        self._before = list(_surveyed(host, target))
        self.attached: Sequence[str] = tuple(mount.upperdir for mount, _ in self._before)
        self.notes: Sequence[str] = (f"{reason}; instead: {sensor.SPEC.falls_back}",)

    def events(self) -> Sequence[Struct]:
        return ()

    def answer(self) -> Answer:
        copied = [
            landed(mount, file)
            for mount, survey in self._before
            for file in upper.landed(self._host, mount, survey).files
        ]
        return Answer(
            slower_ns=0,
            copies=len(copied),
            copied_bytes=sum(one.bytes for one in copied),
            copying_ns=sum(one.took_ns or 0 for one in copied),
            copied=tuple(largest(copied)),
            kinds=(),
            files=(),
            others=0,
        )

    def lost(self) -> int:
        return 0

    def cost(self) -> Cost | None:
        return None

    def adopt(self, target: Target) -> None:
        self._before += _surveyed(self._host, target)


def _surveyed(host: Host, target: Target) -> Iterator[tuple[Overlay, Survey]]:
    init = target.init
    found = () if init is None else overlay.overlays(mounts(host, init.pid))
    for mount in found[:MOST_MOUNTS]:
        survey = upper.begin(host, mount)
        if not isinstance(survey, str):
            yield mount, survey


def landed(mount: Overlay, file: CopiedUp) -> CopyUp:
    """A copy of which only the outcome was seen."""
    return CopyUp(
        path=f"{mount.mountpoint.rstrip('/')}/{file.path}",
        bytes=file.contents_bytes,
        took_ns=file.took_ns,
        pid=None,
        comm=None,
        call=None,
    )


@contextmanager
def _open(host: Host, target: Target, options: Options) -> Iterator[Session]:
    slower = SLOWER_NS if options.slower_ns is None else options.slower_ns
    before = sensor.before(slower)
    with ExitStack() as stack:
        try:
            object = stack.enter_context(loaded(host, sensor.SPEC, before=before, stats=True))
        except Refused as refusal:
            yield _Landed(host, target, str(refusal.strerror))
            return
        yield _Session(host, target, object, slower)


QUESTION = Question(open=_open, events=(Operation,), answer=Answer)
