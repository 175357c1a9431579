"""Where tasks wait: off-CPU time by kernel site, D state apart from sleep."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from msgspec import Struct

from whybox.kernel import task
from whybox.kernel.bpf.objects import Object, loaded
from whybox.kernel.host import Host
from whybox.kernel.sensors import blocked as sensor
from whybox.kernel.sensors.blocked import Place, Present, Slow, Sum
from whybox.kernel.symbols import Frame, KernelSymbols, hidden
from whybox.kernel.target import Target, processes
from whybox.trace.hot import KERNEL_MARK, MOST_STACKS, Naming, Stack, marked
from whybox.trace.question import Options, Question
from whybox.trace.session import ObjectSession

_K = TypeVar("_K")

#: Waits from this length on are worth a stack; shorter ones are summed without a place.
WORTH_NS = 10_000

#: Waits in D from this length on are told one by one.
SLOW_NS = 100_000_000

MOST_SITES = 60
MOST_NOW = 200
_SITE_FRAMES = 8

#: How every system call begins: it says nothing about a place.
_ENTRY = frozenset(
    [
        "entry_SYSCALL_64_after_hwframe",
        "do_syscall_64",
        "x64_sys_call",
        "entry_SYSCALL_64",
        "el0t_64_sync",
        "el0t_64_sync_handler",
        "el0_svc",
        "do_el0_svc",
        "invoke_syscall",
    ]
)

HOWS = {"S": "sleeping", "D": "stuck in D", "T": "stopped"}


class Wait(Struct, frozen=True, kw_only=True):
    """One wait in D that was long, and is over."""

    at_ns: int
    """When it was over, of the monotonic clock."""
    pid: int
    tid: int
    comm: str
    site: str
    frames: tuple[str, ...]
    """Functions of the kernel from the site on, outwards."""
    waited_ns: int
    at_least: bool
    """It had begun before the trace: it was longer."""


class Site(Struct, frozen=True, kw_only=True):
    """All waits in one place."""

    how: str
    """``S``: sleeping, as it should be; ``D``: uninterruptible; ``T``: stopped."""
    site: str
    """The function of the kernel that waits, as ``/proc/PID/wchan`` names it."""
    frames: tuple[str, ...]
    """From the site on, outwards, on the way on which most time was spent."""
    wait_ns: int
    """Of all tasks, within the time of the trace; waits that are not over are in it."""
    waits: int
    unfinished: int
    """Of them not over."""
    longest_ns: int
    tasks: int
    processes: tuple[str, ...]
    """By their names, those who waited longest first, a few."""


class Now(Struct, frozen=True, kw_only=True):
    """One task that waits when the trace ends."""

    how: str
    pid: int
    tid: int
    comm: str
    site: str
    frames: tuple[str, ...]
    waited_ns: int | None
    """So long, as far as it was watched; ``None``: it was not."""
    at_least: bool
    """It has waited longer: since before the trace."""
    not_on_cpu_ns: int | None
    """How long ago it was given a CPU for the last time: it waits no longer than that."""


class Answer(Struct, frozen=True, kw_only=True):
    """Where its tasks waited."""

    window_ns: int
    """How long it was watched."""
    sites: tuple[Site, ...]
    """Those with most time first, D before the others."""
    now: tuple[Now, ...]
    """What waits at the end, D first, the longest first."""
    now_more: int
    """How many more wait."""
    brief_waits: int
    """Waits shorter than 10 µs, whose place was not looked at."""
    brief_ns: int
    crowded_waits: int
    """Waits for whose place there was no room."""
    crowded_ns: int
    stacks: tuple[Stack, ...]
    """Weights are microseconds."""


class Held(Struct, frozen=True, kw_only=True):
    """Waits that are alike, with names. Kernel frames: the innermost first, from the site on."""

    how: str
    tid: int
    process: str
    site: str
    kernel: tuple[str, ...]
    user: tuple[str, ...]
    """The outermost first."""
    wait_ns: int
    waits: int
    longest_ns: int
    unfinished: int = 0


def sites(held: Iterable[Held]) -> tuple[Site, ...]:
    """All waits by their places."""
    groups: dict[tuple[str, str], list[Held]] = {}
    for one in held:
        groups.setdefault((one.how, one.site), []).append(one)
    found = [_site(how, site, group) for (how, site), group in groups.items()]
    return tuple(sorted(found, key=lambda one: (one.how != "D", -one.wait_ns))[:MOST_SITES])


def _site(how: str, site: str, group: list[Held]) -> Site:
    paths = _sums(group, lambda one: one.kernel[:_SITE_FRAMES])
    names = _sums(group, lambda one: one.process)
    return Site(
        how=how,
        site=site,
        frames=max(paths, key=lambda path: paths[path]),
        wait_ns=sum(one.wait_ns for one in group),
        waits=sum(one.waits for one in group),
        unfinished=sum(one.unfinished for one in group),
        longest_ns=max(one.longest_ns for one in group),
        tasks=len({one.tid for one in group}),
        processes=tuple(sorted(names, key=lambda name: -names[name])[:5]),
    )


def _sums(held: Iterable[Held], key: Callable[[Held], _K]) -> dict[_K, int]:
    sums: dict[_K, int] = {}
    for one in held:
        sums[key(one)] = sums.get(key(one), 0) + one.wait_ns
    return sums


def stacks(held: Iterable[Held]) -> tuple[Stack, ...]:
    """For a flame graph: the process, how it waits, and where."""
    sums: dict[tuple[str, tuple[str, ...]], int] = {}
    for one in held:
        kernel = tuple(name + KERNEL_MARK for name in reversed(one.kernel))
        key = (one.process, (HOWS[one.how], *one.user, *kernel))
        sums[key] = sums.get(key, 0) + one.wait_ns
    ranked = sorted(sums.items(), key=lambda item: (-item[1], item[0]))
    return tuple(
        Stack(process=process, frames=frames, weight=wait_ns // 1000)
        for (process, frames), wait_ns in ranked[:MOST_STACKS]
        if wait_ns >= 1000
    )


def from_site(frames: Sequence[tuple[Frame, bool]]) -> tuple[str, ...]:
    """The names in a stack from the place where it waits on, outwards; the innermost first.

    With each frame comes whether it is a part of the scheduler, or of a lock.
    """
    kept = list(frames)
    while len(kept) > 1 and kept[0][1]:
        kept.pop(0)
    while len(kept) > 1 and kept[-1][0].name in _ENTRY:
        kept.pop()
    return tuple(frame.name for frame, _ in kept)


def ordered(present: Iterable[Now]) -> tuple[Now, ...]:
    """D first, the longest first."""
    rank = {"D": 0, "T": 1, "S": 2}

    def key(one: Now) -> tuple[int, int, int]:
        return (rank[one.how], -(one.waited_ns or 0), -(one.not_on_cpu_ns or 0))

    return tuple(sorted(present, key=key))


class _Session(ObjectSession):
    """Waits that were long, one by one, and sums."""

    def __init__(self, host: Host, target: Target, object: Object) -> None:
        super().__init__(host, target, object, tuple(_notes(host, object)))
        self.naming = Naming(host, object)
        self._ring = object.ring()
        self._began = time.monotonic_ns()
        self._iterates = "on_task" in object.choice.taken
        self._present()

    def adopt(self, target: Target) -> None:
        super().adopt(target)
        self._first = target
        self._present()

    def events(self) -> Sequence[Wait]:
        return [self._wait(sensor.slow(raw)) for raw in self._ring.read()]

    def answer(self) -> Answer:
        present = self._present()
        window_ns = time.monotonic_ns() - self._began
        self.naming.user.settle()
        held = [*self._over(), *(self._unfinished(one) for one in present if one.waited_ns)]
        now = ordered(self._now(one) for one in present)
        if not self._iterates:
            now = tuple(waiting_by_wchan(self.host, self._first))
        brief, crowded = sensor.elsewhere(self.object)
        return Answer(
            window_ns=window_ns,
            sites=sites(held),
            now=now[:MOST_NOW],
            now_more=max(0, len(now) - MOST_NOW),
            brief_waits=brief.count,
            brief_ns=brief.sum_ns,
            crowded_waits=crowded.count,
            crowded_ns=crowded.sum_ns,
            stacks=stacks(held),
        )

    def _present(self) -> tuple[Present, ...]:
        return sensor.presents(self.object) if self._iterates else ()

    def _over(self) -> Iterator[Held]:
        taken = sensor.stacks(self.object)
        for place, waited in sensor.waits(self.object):
            yield self._held(place, waited, taken.get(place.user))

    def _unfinished(self, one: Present) -> Held:
        waited = one.waited_ns or 0
        sum = Sum(count=1, sum_ns=waited, longest_ns=waited)
        user = sensor.stacks(self.object).get(one.place.user)
        return self._held(one.place, sum, user, unfinished=1)

    def _held(self, place: Place, waited: Sum, user: Sequence[int], *, unfinished: int = 0) -> Held:
        kernel = self._path(place)
        return Held(
            how=place.how,
            tid=place.tid,
            process=self.naming.user.comm(place.key),
            site=kernel[0],
            kernel=kernel,
            user=tuple(map(marked, self.naming.user_frames(place.key, user))),
            wait_ns=waited.sum_ns,
            waits=waited.count,
            longest_ns=waited.longest_ns,
            unfinished=unfinished,
        )

    def _path(self, place: Place) -> tuple[str, ...]:
        return path(self.naming.kernel, place.kernel)

    def _wait(self, slow: Slow) -> Wait:
        kernel = self._path(slow.place)
        return Wait(
            at_ns=slow.at_ns,
            pid=slow.place.key.tgid,
            tid=slow.place.tid,
            comm=slow.comm,
            site=kernel[0],
            frames=kernel[:_SITE_FRAMES],
            waited_ns=slow.waited_ns,
            at_least=slow.before,
        )

    def _now(self, one: Present) -> Now:
        kernel = self._path(one.place)
        return Now(
            how=one.place.how,
            pid=one.place.key.tgid,
            tid=one.place.tid,
            comm=one.comm,
            site=kernel[0],
            frames=kernel[:_SITE_FRAMES],
            waited_ns=one.waited_ns,
            at_least=one.before,
            not_on_cpu_ns=one.not_on_cpu_ns,
        )


def path(symbols: KernelSymbols, stack: Sequence[int]) -> tuple[str, ...]:
    """The functions of a kernel stack from the place where it waits on."""
    frames = [(symbols.frame(address - 1), symbols.waits(address - 1)) for address in stack]
    return from_site(frames) or ("[unknown]",)


def waiting_by_wchan(host: Host, target: Target, most: int = 2000) -> Iterator[Now]:
    """What waits at this moment by what /proc says, where no iterator can be had."""
    host.next_moment()
    threads = ((pid, tid) for pid in processes(host, target) for tid in _threads(host, pid))
    for (pid, tid), _ in zip(threads, range(most), strict=False):
        try:
            said = task.parse_stat(host.read(f"/proc/{pid}/task/{tid}/stat"))
        except (OSError, ValueError):
            continue  # it has ended
        site = task.wait_channel(host, pid, tid) or "[unknown]"
        if said.state in HOWS:
            yield Now(
                how=said.state,
                pid=pid,
                tid=tid,
                comm=said.comm,
                site=site,
                frames=(site,),
                waited_ns=None,
                at_least=True,
                not_on_cpu_ns=None,
            )


def _threads(host: Host, pid: int) -> tuple[int, ...]:
    try:
        return task.thread_ids(host, pid)
    except OSError:
        return ()


def _notes(host: Host, object: Object) -> Iterator[str]:
    lack = object.choice.left.get("on_task")
    if lack is not None:
        yield f"waits that began before the trace are told by name alone: {lack}"
    if (reason := hidden(host)) is not None:
        yield reason


@contextmanager
def _open(host: Host, target: Target, options: Options) -> Iterator[_Session]:
    before = sensor.settings(WORTH_NS, options.slower_ns or SLOW_NS)
    with loaded(host, sensor.SPEC, before=before, stats=True) as object:
        session = _Session(host, target, object)
        try:
            yield session
        finally:
            session.naming.user.close()


def _check(options: Options) -> str | None:
    if options.slower_ns is not None and options.slower_ns < WORTH_NS:
        return "waits shorter than 10 microseconds are not told one by one"
    return None


QUESTION = Question(open=_open, events=(Wait,), answer=Answer, check=_check)
