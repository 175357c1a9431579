"""Which functions burn the CPU, in user space and in the kernel."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from msgspec import Struct

from whybox.kernel.bpf.objects import Object, loaded
from whybox.kernel.host import Host
from whybox.kernel.sensors.hot import DEEPEST, SPEC, Sample, Samples
from whybox.kernel.sensors.image import Images
from whybox.kernel.symbols import Frame, KernelSymbols, hidden
from whybox.kernel.target import Target
from whybox.kernel.usersymbols import ImageKey, UserSymbols
from whybox.trace.question import Options, Question
from whybox.trace.session import ObjectSession

#: With fewer samples no function is named: the shares are chance (27 samples have pointed at the
#: wrong one, measured).
ENOUGH = 200

#: So often the maps of the samples are emptied.
_TURN_SECONDS = 0.3

NOTE = "it samples by time (a clock on each CPU), not by cycles"

MOST_FUNCTIONS = 40
MOST_PROCESSES = 200
MOST_STACKS = 5000

#: How a frame of the kernel, and one of a JIT compiler, is marked in a stack (as perf's stacks
#: are, when they are collapsed for a flame graph).
KERNEL_MARK, JIT_MARK = "_[k]", "_[j]"

#: Where a whole stack of a thread begins, in the C library and in Go.
_BEGINNINGS = frozenset(
    [
        "_start",
        "__libc_start_main",
        "__libc_start_call_main",
        "main",
        "start_thread",
        "thread_start",
        "clone",
        "clone3",
        "__clone",
        "__clone3",
        "runtime.goexit",
        "runtime.goexit.abi0",
        "runtime.rt0_go",
        "runtime.mstart",
        "runtime.rt0_go.abi0",
        "runtime.mstart.abi0",
        "ret_from_fork_asm",
    ]
)


class Function(Struct, frozen=True, kw_only=True):
    """One function, with all its samples."""

    name: str
    """``[FILE+0x1a2b]``: the file does not tell the function's name, but where it begins."""
    file: str
    kernel: bool
    own: int
    """Samples in which it was running itself."""
    total: int
    """Samples in which it was running, or something that it called."""
    own_share: float
    """Of all samples, 0 to 1."""
    total_share: float


class Process(Struct, frozen=True, kw_only=True):
    """One process."""

    pid: int
    """The host's."""
    comm: str
    samples: int
    share: float


class Stack(Struct, frozen=True, kw_only=True):
    """What called what, of all processes of one name."""

    process: str
    frames: tuple[str, ...]
    """The outermost first. Functions of the kernel end in ``_[k]``, those of a JIT compiler in
    ``_[j]``."""
    weight: int
    """Samples."""


class Nameless(Struct, frozen=True, kw_only=True):
    """A file that does not tell the names of functions that ran (it was stripped)."""

    file: str
    build_id: str | None
    samples: int
    """In which a function of it without a name was running itself."""


class Answer(Struct, frozen=True, kw_only=True):
    """Where its CPU time went, by samples in time."""

    frequency_hz: int
    samples: int
    cpu_ns: int
    """The CPU time that the samples stand for."""
    kernel_samples: int
    """Of them in the kernel."""
    enough: bool
    """Whether there are enough samples to name functions."""
    functions: tuple[Function, ...]
    """The one that runs most itself first; empty where there are not enough samples."""
    processes: tuple[Process, ...]
    stacks: tuple[Stack, ...]
    """The most frequent first."""
    other_samples: int
    """In stacks too many to be told."""
    nameless: tuple[Nameless, ...]
    cut: bool
    """Whether most stacks in user space end before they begin: the programs were compiled without
    frame pointers, so who called a function is not known."""
    unread_samples: int
    """Of processes that ended before they could be looked at, or could not be: no names."""
    unplaced_samples: int
    """With a part of the stack missing, since there was no place for it."""
    late: bool = False
    """Whether reading the files took too long, so that names are missing."""


class Seen(Struct, frozen=True, kw_only=True):
    """Samples that are alike, with names. The outermost function first."""

    pid: int
    comm: str
    user: tuple[Frame, ...]
    kernel: tuple[Frame, ...]
    count: int
    cut: bool = False
    unread: bool = False
    unplaced: bool = False

    @property
    def frames(self) -> tuple[Frame, ...]:
        """The whole stack."""
        return self.user + self.kernel


def summed(
    seen: Sequence[Seen],
    frequency_hz: int,
    build_ids: Mapping[str, str | None],
    late: bool = False,
) -> Answer:
    """The answer."""
    samples = sum(one.count for one in seen)
    stacks = _stacks(seen)
    with_user = [one for one in seen if one.user]
    return Answer(
        frequency_hz=frequency_hz,
        samples=samples,
        cpu_ns=samples * 1_000_000_000 // frequency_hz,
        kernel_samples=sum(one.count for one in seen if one.kernel),
        enough=samples >= ENOUGH,
        functions=tuple(_functions(seen, samples)) if samples >= ENOUGH else (),
        processes=tuple(_processes(seen, samples)),
        stacks=stacks,
        other_samples=samples - sum(stack.weight for stack in stacks),
        nameless=tuple(_nameless(seen, build_ids)),
        cut=_count(with_user, lambda one: one.cut) * 2 > _count(with_user, lambda one: True),
        unread_samples=_count(seen, lambda one: one.unread),
        unplaced_samples=_count(seen, lambda one: one.unplaced),
        late=late,
    )


def _count(seen: Iterable[Seen], which: Callable[[Seen], bool]) -> int:
    return sum(one.count for one in seen if which(one))


def _functions(seen: Iterable[Seen], samples: int) -> Iterator[Function]:
    own: Counter[Frame] = Counter()
    total: Counter[Frame] = Counter()
    for one in seen:
        if one.frames:
            own[one.frames[-1]] += one.count
        for frame in dict.fromkeys(one.frames):  # once, however deep it calls itself
            total[frame] += one.count
    ranked = sorted(total, key=lambda frame: (-own[frame], -total[frame], frame.name))
    for frame in ranked[:MOST_FUNCTIONS]:
        yield Function(
            name=frame.name,
            file=frame.file,
            kernel=frame.kernel,
            own=own[frame],
            total=total[frame],
            own_share=round(own[frame] / samples, 4),
            total_share=round(total[frame] / samples, 4),
        )


def _processes(seen: Iterable[Seen], samples: int) -> Iterator[Process]:
    counts: Counter[tuple[int, str]] = Counter()
    for one in seen:
        counts[one.pid, one.comm] += one.count
    for (pid, comm), count in counts.most_common(MOST_PROCESSES):
        yield Process(pid=pid, comm=comm, samples=count, share=round(count / samples, 4))


def _stacks(seen: Iterable[Seen]) -> tuple[Stack, ...]:
    counts: Counter[tuple[str, tuple[str, ...]]] = Counter()
    for one in seen:
        counts[one.comm, tuple(map(marked, one.frames))] += one.count
    return tuple(
        Stack(process=process, frames=frames, weight=count)
        for (process, frames), count in counts.most_common(MOST_STACKS)
    )


def marked(frame: Frame) -> str:
    """A frame as it stands in a stack."""
    if frame.kernel:
        return frame.name + KERNEL_MARK
    return frame.name + JIT_MARK if frame.file == "jit" else frame.name


def _nameless(seen: Iterable[Seen], build_ids: Mapping[str, str | None]) -> Iterator[Nameless]:
    counts: Counter[str] = Counter()
    for one in seen:
        inner = one.frames[-1] if one.frames else None
        if inner is not None and not inner.named and not inner.kernel and inner.file in build_ids:
            counts[inner.file] += one.count
    for file, count in counts.most_common(MOST_PROCESSES):
        yield Nameless(file=file, build_id=build_ids[file], samples=count)


def looks_cut(user: Sequence[Frame]) -> bool:
    """Whether a stack, the outermost function first, seems not to begin where threads begin.

    Where no function has a name, only its length can tell.
    """
    if not user or any(frame.name in _BEGINNINGS for frame in user[:3]):
        return False
    if len(user) >= DEEPEST:
        return True
    return len(user) < 3 or not user[0].file or user[0].named


def whole(frames: list[Frame]) -> list[Frame]:
    """A stack, the innermost function first, without what is no function of it.

    Where frame pointers end, the walk takes a few words for addresses that are none: they point
    nowhere, or are behind the function in which every thread begins.
    """
    end = len(frames)
    while end > 1 and not frames[end - 1].file:
        end -= 1
    begins = [depth for depth in range(end) if frames[depth].name in _BEGINNINGS - {"main"}]
    return frames[: begins[-1] + 1] if begins else frames[:end]


class Naming:
    """Stacks with names, of processes as they come."""

    def __init__(self, host: Host, object: Object) -> None:
        self.user = UserSymbols(Images(object))
        self.kernel = KernelSymbols(host)

    def user_frames(self, key: ImageKey, stack: Sequence[int]) -> tuple[Frame, ...]:
        """The outermost first."""
        frames = [
            self.user.frame(key, address - (depth > 0)) for depth, address in enumerate(stack)
        ]
        return tuple(reversed(whole(frames)))

    def kernel_frames(self, stack: Sequence[int]) -> tuple[Frame, ...]:
        """The outermost first."""
        # A return address is behind the call, which may be the last of its function.
        frames = [self.kernel.frame(address - (depth > 0)) for depth, address in enumerate(stack)]
        return tuple(reversed(frames))


class _Session(ObjectSession):
    """Sums only: nothing is told one by one."""

    def __init__(self, host: Host, target: Target, object: Object, options: Options) -> None:
        super().__init__(host, target, object, [NOTE, *filter(None, [hidden(host)])])
        self.naming = Naming(host, object)
        self._hz = options.frequency_hz
        self._samples = Samples(object)
        self._turned = time.monotonic()

    def events(self) -> Sequence[Struct]:
        if time.monotonic() - self._turned > _TURN_SECONDS:
            self._samples.turn()
            self._turned = time.monotonic()
        return ()

    def lost(self) -> int:
        return self.object.lost() + self._samples.dropped

    def answer(self) -> Answer:
        self.naming.user.settle()
        seen = [self._seen(*item) for item in self._samples.all().items()]
        return summed(seen, self._hz, self.naming.user.build_ids(), self.naming.user.late)

    def _seen(self, sample: Sample, count: int) -> Seen:
        user = self.naming.user_frames(sample.key, sample.user)
        return Seen(
            pid=sample.key.tgid,
            comm=self.naming.user.comm(sample.key),
            user=user,
            kernel=self.naming.kernel_frames(sample.kernel),
            count=count,
            cut=looks_cut(user),
            unread=bool(sample.user) and not self.naming.user.known(sample.key),
            unplaced=sample.unplaced,
        )


@contextmanager
def _open(host: Host, target: Target, options: Options) -> Iterator[_Session]:
    with loaded(host, SPEC, perf_hz=options.frequency_hz, stats=True) as object:
        session = _Session(host, target, object, options)
        try:
            yield session
        finally:
            session.naming.user.close()


def _check(options: Options) -> str | None:
    if not 1 <= options.frequency_hz <= 10_000:
        return "a CPU can be sampled 1 to 10,000 times a second"
    return None


QUESTION = Question(open=_open, answer=Answer, check=_check)
