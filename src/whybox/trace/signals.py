"""Who sent which signal to whom, and what the kernel did with it."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from msgspec import Struct

from whybox.kernel import signals
from whybox.kernel.bpf.objects import Cost, Refused
from whybox.kernel.host import Host
from whybox.kernel.sensors import signals as sensor
from whybox.kernel.sensors.signals import Generated
from whybox.kernel.signals import Result
from whybox.kernel.target import Target
from whybox.kernel.tracefs import Recorder, attempt
from whybox.kernel.tracetext import Event
from whybox.trace.membership import Membership
from whybox.trace.question import Options, Question, Session
from whybox.trace.session import ObjectSession

#: Kinds of signals that are counted apart; a storm of ever new pids must not fill memory.
MOST_KINDS = 1000

_FATES = {
    Result.DELIVERED: "delivered",
    Result.IGNORED: "ignored",
    Result.ALREADY_PENDING: "pending already",
    Result.OVERFLOW: "refused, the queue is full",
    Result.LOST: "lost, the queue is full",
}


class Signal(Struct, frozen=True, kw_only=True):
    """One signal to a task of the container."""

    at_ns: int
    """Of the monotonic clock."""
    signal: str
    fate: str
    """``delivered``: queued for whoever handles it or waits; ``ignored``: dropped, for nobody
    handles it; ``pending already``: merged with one that waits."""
    to_pid: int
    to_comm: str
    to_tid: int | None
    """The thread, where it was for one alone."""
    from_pid: int
    """0 with ``the kernel``."""
    from_comm: str
    how: str
    """``kill``, ``tkill``, ``the kernel``, or the ``si_code``."""


class Kind(Struct, frozen=True, kw_only=True):
    """Signals that are alike."""

    signal: str
    fate: str
    to: str
    """The receiver's name."""
    sender: str
    count: int


class Answer(Struct, frozen=True, kw_only=True):
    """All signals of the trace."""

    signals: int
    ignored: int
    kinds: tuple[Kind, ...]
    """The most frequent first."""
    other_kinds: int
    """Signals of kinds beyond the first thousand, which are not counted apart."""


class _Session(ObjectSession):
    """Single events; the answer counts what was told."""

    def __init__(self, host: Host, target: Target, attached: sensor.Signals) -> None:
        super().__init__(host, target, attached.object)
        self._sensor = attached
        self._tally = _Tally()

    def events(self) -> Sequence[Signal]:
        return self._tally.counted([told_of(one) for one in self._sensor.read()])

    def answer(self) -> Answer:
        return self._tally.answer()


class _Tally:
    """Counts what was told."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str, str, str]] = Counter()
        self._other = 0

    def counted(self, told: list[Signal]) -> list[Signal]:
        """The same, once it is counted."""
        for one in told:
            kind = (one.signal, one.fate, one.to_comm, one.from_comm)
            if kind in self._counts or len(self._counts) < MOST_KINDS:
                self._counts[kind] += 1
            else:
                self._other += 1
        return told

    def answer(self) -> Answer:
        """So far."""
        return Answer(
            signals=self._counts.total() + self._other,
            ignored=sum(n for kind, n in self._counts.items() if kind[1] == "ignored"),
            kinds=tuple(_kinds(self._counts.most_common())),
            other_kinds=self._other,
        )


class _Text:
    """Without a program: the tracepoint's text, of which the container's is picked out here."""

    def __init__(self, host: Host, target: Target, recorder: Recorder, reason: str) -> None:
        self.attached = (f"tracefs {signals.POINT}",)
        self.notes = (f"{reason}; instead: {sensor.SPEC.falls_back}",)
        self._recorder = recorder
        self._members = Membership(host, target)
        self._tally = _Tally()
        self._read = 0

    def events(self) -> Sequence[Signal]:
        events = self._recorder.read()
        new, self._read = events[self._read :], len(events)
        mine = [e for e in new if "pid" in e.fields and int(e.fields["pid"]) in self._members]
        return self._tally.counted([_told_of_text(event) for event in mine])

    def answer(self) -> Answer:
        return self._tally.answer()

    def lost(self) -> int:
        return self._recorder.lost

    def cost(self) -> Cost | None:
        return None

    def adopt(self, target: Target) -> None:
        self._members.add(target)


def _told_of_text(event: Event) -> Signal:
    said = event.fields
    code, pid = int(said["code"]), int(said["pid"])
    by_kernel = code == signals.SI_KERNEL
    return Signal(
        at_ns=round(event.seconds * 1e9),
        signal=signals.name(int(said["sig"])),
        fate=_FATES[Result(int(said["res"]))],
        to_pid=pid,
        to_comm=said["comm"],
        to_tid=pid if said.get("grp") == "0" else None,
        from_pid=0 if by_kernel else event.pid,
        from_comm="the kernel" if by_kernel else event.comm,
        how=_how(code),
    )


def _kinds(counted: Iterable[tuple[tuple[str, str, str, str], int]]) -> Iterator[Kind]:
    for (signal, fate, to, sender), count in counted:
        yield Kind(signal=signal, fate=fate, to=to, sender=sender, count=count)


def told_of(one: Generated) -> Signal:
    """One signal in words."""
    by_kernel = one.code == signals.SI_KERNEL
    return Signal(
        at_ns=one.at_ns,
        signal=signals.name(one.signal),
        fate=_FATES[Result(one.result)],
        to_pid=one.to_pid,
        to_comm=one.to_comm,
        to_tid=None if one.group else one.to_tid,
        # The kernel sends in whatever task's context it is: that is not who sent it.
        from_pid=0 if by_kernel else one.from_pid,
        from_comm="the kernel" if by_kernel else one.from_comm,
        how=_how(one.code),
    )


def _how(code: int) -> str:
    known = {0: "kill", signals.SI_TKILL: "tkill", signals.SI_KERNEL: "the kernel"}
    return known.get(code, f"si_code {code}")


@contextmanager
def _open(host: Host, target: Target, options: Options) -> Iterator[Session]:
    with ExitStack() as stack:
        try:
            attached = stack.enter_context(sensor.attached(host, stats=True))
        except Refused as refusal:
            text = stack.enter_context(attempt(host, [signals.POINT]))
            if text.recorder is None:
                raise refusal from None
            yield _Text(host, target, text.recorder, str(refusal.strerror))
            return
        yield _Session(host, target, attached)


QUESTION = Question(open=_open, events=(Signal,), answer=Answer)
