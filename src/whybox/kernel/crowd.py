"""What the tasks of a control group are: processes, threads of one, zombies, and who made them."""

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import TypeVar

from msgspec import Struct

from whybox.kernel import cgroup, task
from whybox.kernel.cgroup import Group
from whybox.kernel.host import Host, ParseError
from whybox.kernel.task import TICKS_PER_SECOND, Stat

#: No more processes of a group, and threads of one of them, than this are looked at one by one.
MOST = 256
MOST_THREADS = 32

#: A program that makes itself again has at least so many parents of its own name.
BOMB_PARENTS = 3
#: So many tasks that came one by one over so long, and are all still there, look like a leak.
LEAK_TASKS = 8
LEAK_SECONDS = 60.0

T = TypeVar("T")


class Process(Struct, frozen=True, kw_only=True):
    """One process, named as the host names it."""

    pid: int
    comm: str


class Crowd(Struct, frozen=True, kw_only=True):
    """The tasks of a group at one moment."""

    processes: int
    threads: int
    """All that are listed: living tasks."""
    zombies: int
    """Counted and not listed."""
    largest: Process | None
    """The process with the most threads."""
    largest_threads: int
    kind: str
    """The name that the most processes have."""
    of_kind: int
    parent: Process | None
    """Whose children most of those are, if it can be seen."""
    of_parent: int
    parents_of_kind: int
    """How many processes of that name have made others of that name."""
    births: tuple[float, ...]
    """How many seconds ago what there is most of began, oldest first; of many a sample."""

    @property
    def tasks(self) -> int:
        """All that count."""
        return self.threads + self.zombies

    @property
    def of_zombies(self) -> bool:
        """So much of it that without them there would be room again."""
        return 0 < self.tasks <= 3 * self.zombies

    @property
    def of_threads(self) -> bool:
        """Half of it or more are the threads of one process."""
        return self.largest_threads > 1 and self.tasks <= 2 * self.largest_threads

    @property
    def multiplies(self) -> bool:
        """A program that starts itself fills it: a master of workers has one parent of its name."""
        makers, kind = self.parents_of_kind, self.of_kind
        return makers >= BOMB_PARENTS and kind <= 10 * makers and self.tasks <= 2 * kind

    @property
    def accrued_seconds(self) -> float | None:
        """Over how long what there is most of came one by one; ``None``: at once, as a pool."""
        ages = self.births
        span = ages[0] - ages[-1] if len(ages) >= LEAK_TASKS else 0.0
        if span < LEAK_SECONDS:
            return None
        # One gap that takes up half of it, or most of them at one moment, is no steady coming.
        gaps = [older - younger for older, younger in pairwise(ages)]
        quarter = len(ages) // 4
        middle = ages[quarter] - ages[-quarter - 1]
        return span if max(gaps) < span / 2 and middle > span / 5 else None


def crowd(host: Host, group: Group, current: int) -> Crowd:
    """Look at them; ``current`` is the group's own count."""
    members = cgroup.members(host, group)
    listed = len(cgroup.threads(host, group))
    seen = _stats(host, members[-MOST:])
    largest = max(seen, key=lambda s: s.num_threads, default=None)
    kind, of_kind = _commonest(s.comm for s in seen)
    same = [s for s in seen if s.comm == kind]
    parent, of_parent = _commonest(s.ppid for s in same)
    threads = 0 if largest is None else largest.num_threads
    many = largest is not None and threads > of_kind
    return Crowd(
        processes=len(members),
        threads=listed,
        # A first thread that ended before the others counts and is not listed, too.
        zombies=max(0, current - listed - sum(s.state == "Z" for s in seen)),
        largest=None if largest is None else Process(pid=largest.pid, comm=largest.comm),
        largest_threads=threads,
        kind=kind or "",
        of_kind=of_kind,
        parent=_named(host, parent),
        of_parent=of_parent,
        parents_of_kind=len({s.ppid for s in same} & {s.pid for s in same}),
        births=_ages(host, _threads(host, largest.pid) if many and largest else same),
    )


def _stats(host: Host, pids: Iterable[int]) -> list[Stat]:
    found = []
    for pid in pids:
        try:
            found.append(task.stat(host, pid))
        except (OSError, ParseError):
            continue  # gone while we looked
    return found


def _threads(host: Host, pid: int) -> list[Stat]:
    found = []
    try:
        ids = task.thread_ids(host, pid)
        for tid in ids[:: len(ids) // MOST_THREADS + 1]:
            file = f"/proc/{pid}/task/{tid}/stat"
            found.append(task.parse_stat(host.read(file), file))
    except (OSError, ParseError):
        pass  # one that ended while we looked: the others say enough
    return found


def _ages(host: Host, stats: Iterable[Stat]) -> tuple[float, ...]:
    said = (host.optional_text("/proc/uptime") or "").split()
    now = float(said[0]) if said else 0.0
    ages = (round(now - s.start_ticks / TICKS_PER_SECOND, 2) for s in stats)
    return tuple(sorted(ages, reverse=True)) if said else ()


def _commonest(values: Iterable[T]) -> tuple[T | None, int]:
    first = Counter(values).most_common(1)
    return first[0] if first else (None, 0)


def _named(host: Host, pid: int | None) -> Process | None:
    if not pid:
        return None
    try:
        return Process(pid=pid, comm=task.stat(host, pid).comm)
    except (OSError, ParseError):
        return None
