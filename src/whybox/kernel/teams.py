"""Threads of one process, or children of one, that do the same at the same time.

Whoever runs as many of them as the machine has CPUs counted those, and not what it may use.
"""

from collections import defaultdict
from collections.abc import Callable, Container, Hashable, Iterable, Iterator, Sequence
from typing import TypeVar

from msgspec import Struct

from whybox.kernel import sizing
from whybox.kernel.cpuwait import Thread
from whybox.kernel.host import Host, ParseError
from whybox.kernel.sizing import Program
from whybox.kernel.task import status

#: No more busy threads than this are asked whose they are, and no more programs what they are.
MOST_ASKED, MOST_PROGRAMS, MOST_ANCESTORS = 128, 12, 4

#: Processes that are asked for those above them.
MOST_WORKERS = 32

#: Runtimes whose workers are processes.
MANAGERS = frozenset(("make", "ninja", "nginx", "gunicorn", "Python multiprocessing", "Node.js"))

#: Who wants less than this share of what the busiest of them wants does something else.
SAME = 0.5

K = TypeVar("K", bound=Hashable)


class Team(Struct, frozen=True, kw_only=True):
    """Some that want a CPU at once."""

    processes: bool
    """Whether they are processes; else they are threads of one."""
    size: int
    leader: Program
    """The process whose threads, or children, they are."""
    wanted_ns: int
    """What all of them ran and waited, together."""


class _Busy(Struct, frozen=True, kw_only=True):
    thread: Thread
    tgid: int
    ppid: int
    name: str


def teams(host: Host, threads: Sequence[Thread], inside: Container[int]) -> tuple[Team, ...]:
    """The teams among the busy threads, the largest first.

    ``inside`` are the processes of the container: what started those from outside, an engine or
    a build, did not size them for it.
    """
    busy = list(_asked(host, threads[:MOST_ASKED]))
    found = [*_of_threads(host, busy), *_of_processes(host, busy, inside)]
    return tuple(sorted(found, key=lambda team: (-team.size, -team.wanted_ns))[:MOST_PROGRAMS])


def _asked(host: Host, threads: Iterable[Thread]) -> Iterator[_Busy]:
    for thread in threads:
        try:
            one = status(host, thread.tid)
        except (OSError, ParseError):
            continue  # it ended
        yield _Busy(thread=thread, tgid=one.tgid, ppid=one.ppid, name=one.name)


def _of_threads(host: Host, busy: Iterable[_Busy]) -> Iterator[Team]:
    for pid, mine in _by(busy, lambda one: one.tgid)[:MOST_PROGRAMS]:
        leader = sizing.program(host, pid)
        if leader is not None:
            yield _team(mine, leader, processes=False)


def _of_processes(host: Host, busy: Sequence[_Busy], inside: Container[int]) -> Iterator[Team]:
    """One busy thread of each, since a team of threads is told by itself."""
    firsts = list({one.tgid: one for one in reversed(busy)}.values())[:MOST_WORKERS]
    employers = {one.tgid: _employer(host, one, inside) for one in firsts}

    def key(one: _Busy) -> Hashable:
        employer = employers[one.tgid]
        # What a known program starts may have shells between, and other names.
        if employer is not None and employer.runtime is not None and employer.pid != one.tgid:
            return employer.pid
        return one.ppid, one.name

    for _, mine in _by(firsts, key)[:MOST_PROGRAMS]:
        leader = employers[mine[0].tgid]
        if len(mine) > 1 and leader is not None:
            yield _team(mine, leader, processes=True)


def _by(busy: Iterable[_Busy], key: Callable[[_Busy], K]) -> list[tuple[K, list[_Busy]]]:
    found: dict[K, list[_Busy]] = defaultdict(list)
    for one in busy:
        found[key(one)].append(one)
    return sorted(found.items(), key=lambda item: -len(item[1]))


def _team(mine: Sequence[_Busy], leader: Program, *, processes: bool) -> Team:
    wanted = [one.thread.run_ns + one.thread.wait_ns for one in mine]
    alike = [one for one in wanted if one >= SAME * max(wanted)]
    return Team(processes=processes, size=len(alike), leader=leader, wanted_ns=sum(alike))


def _employer(host: Host, worker: _Busy, inside: Container[int]) -> Program | None:
    """Who decided how many there are: a known runtime among those above it, or its own."""
    own = sizing.program(host, worker.tgid)
    above = list(_above(host, worker, inside))
    manager = next((one for one in above if one.runtime is not None), None)
    if manager is not None and manager.runtime in MANAGERS:
        return manager
    if own is not None and own.runtime is not None:
        return own
    return above[0] if above else None


def _above(host: Host, worker: _Busy, inside: Container[int]) -> Iterator[Program]:
    """Its ancestors in the container, the parent first."""
    ppid = worker.ppid
    for _ in range(1 + MOST_ANCESTORS):
        found = sizing.program(host, ppid) if ppid in inside else None
        if found is None:
            return
        yield found
        ppid = found.ppid
