"""Who used the CPUs of the machine: every control group and every process, before and after.

Looked at once a moment for all cases and targets. A group's time holds that of short-lived
processes too; a process tells whether it is real-time and what it is called. Whybox itself is left
out: what it uses while it looks is nobody's trouble when it is gone.
"""

from collections import deque
from collections.abc import Iterator, Mapping

from msgspec import Struct

from whybox.kernel import cgroup
from whybox.kernel.cgroup import UNIFIED, Group, Hierarchy
from whybox.kernel.cpu import usage_usec
from whybox.kernel.cpuweight import rest_below
from whybox.kernel.finding import recognise
from whybox.kernel.host import Host, ParseError, decode
from whybox.kernel.target import Target
from whybox.kernel.task import PF_KTHREAD, TICKS_PER_SECOND, pids

#: A machine with more is looked at in part: the groups nearest to the root, the oldest processes.
MOST_GROUPS, MOST_PROCESSES = 2048, 4096

#: SCHED_FIFO, SCHED_RR, SCHED_DEADLINE (include/uapi/linux/sched.h): all others wait for them.
_REALTIME = (1, 2, 6)
_TICK_NS = 1_000_000_000 // TICKS_PER_SECOND


class Process(Struct, frozen=True, kw_only=True):
    """One process so far, with all its threads."""

    pid: int
    comm: str
    start_ticks: int
    used_ns: int
    nice: int
    realtime: bool
    """Whether its first thread is."""
    kernel: bool


class Census(Struct, frozen=True, kw_only=True):
    """The machine at one moment."""

    groups: Mapping[str, int]
    """By path, the time used in a group and below it, ns."""
    processes: Mapping[int, Process]
    observer: Process | None = None
    """Whybox, which is in neither of the two; ``None`` where that cannot be told."""


def census(host: Host) -> Census:
    """Everybody at this moment; nobody in a window of no length, in which nothing is used."""
    if host.window_seconds <= 0:
        return Census(groups={}, processes={})
    return host.remembered("cpucensus", lambda: _census(host))


def _census(host: Host) -> Census:
    me = _observer(host)
    mine, used, pid = ("", 0, 0) if me is None else (_acct_path(host), me.used_ns, me.pid)
    return Census(
        groups={
            path: ns - used if rest_below(path, mine) is not None else ns
            for path, ns in _groups(host)
        },
        processes={p.pid: p for p in _processes(host) if p.pid != pid},
        observer=me,
    )


def _observer(host: Host) -> Process | None:
    """As /proc tells it, which may be another PID namespace's than its own."""
    try:
        return process(host.read("/proc/self/stat"))
    except (OSError, ParseError):
        return None


def _acct_path(host: Host) -> str:
    """Where its own time is counted; empty: that is not told."""
    try:
        group = cgroup.group(host, cgroup.membership_of(host, "self"), "cpuacct")
    except (OSError, ParseError):
        return ""
    return "" if group is None else group.path


def tree(host: Host) -> Hierarchy | None:
    """The hierarchy that counts CPU time."""
    trees = {name: tree for tree in cgroup.hierarchies(host) for name in tree.controllers}
    return trees.get("cpuacct") or trees.get(UNIFIED)


def group_at(tree: Hierarchy, path: str) -> Group:
    """The group with that path below the top of a tree."""
    return Group(
        controller="cpuacct",
        version=tree.version,
        path=path,
        directory=tree.mountpoint + path.rstrip("/"),
        top=tree.mountpoint,
    )


def _groups(host: Host) -> Iterator[tuple[str, int]]:
    where = tree(host)
    waiting = deque(["/"] if where is not None else [])
    for _ in range(MOST_GROUPS):
        if where is None or not waiting:
            return
        group = group_at(where, waiting.popleft())
        used = _used(host, group)
        if used is not None:
            yield group.path, used
        # What a container makes of its own groups is its own affair, and may be endless.
        if recognise(group.path) is None:
            waiting.extend(f"{group.path.rstrip('/')}/{name}" for name in _below(host, group))


def _used(host: Host, group: Group) -> int | None:
    try:
        usec = usage_usec(host, group)
    except ParseError:
        return None
    return None if usec is None else usec * 1000


def _below(host: Host, group: Group) -> tuple[str, ...]:
    try:
        return host.directories(group.directory)
    except OSError:
        return ()


def _processes(host: Host) -> Iterator[Process]:
    for pid in pids(host)[:MOST_PROCESSES]:
        try:
            yield process(host.read(f"/proc/{pid}/stat"))
        except (OSError, ParseError):
            continue  # it ended while we looked


def process(raw: bytes) -> Process:
    """Parse ``/proc/PID/stat``, of which ``kernel/task.py`` leaves out how it is scheduled.

    >>> process(b"7 (a) b) R 1 7 7 0 -1 64 0 0 0 0 5 6 0 0 20 3 1 0 99 0 0"
    ...         b" 0 0 0 0 0 0 0 0 0 0 0 0 0 0 1 50 2 0").realtime
    True
    """
    try:
        opening, closing = raw.index(b"("), raw.rindex(b")")
        rest = raw[closing + 2 :].split()
        return Process(
            pid=int(raw[:opening]),
            comm=decode(raw[opening + 1 : closing]),
            start_ticks=int(rest[19]),
            used_ns=(int(rest[11]) + int(rest[12])) * _TICK_NS,
            nice=int(rest[16]),
            realtime=int(rest[38]) in _REALTIME,
            kernel=bool(int(rest[6]) & PF_KTHREAD),
        )
    except (ValueError, IndexError):
        raise ParseError("/proc/PID/stat", decode(raw)) from None


def observer_ns(host: Host, target: Target, before: Census, after: Census) -> int:
    """What whybox used meanwhile; 0 where it is a part of the container itself."""
    me, then, own = after.observer, before.observer, target.group(host, "cpu")
    if me is None or own is None or target.runtime == "self":
        return 0
    if me.pid in cgroup.members(host, own):
        return 0
    return me.used_ns - (0 if then is None else then.used_ns)


def groups_between(before: Census, after: Census) -> dict[str, int]:
    """What each group used, ns; one that was made within the window began at nothing."""
    return {
        path: max(used - before.groups.get(path, 0), 0)
        for path, used in after.groups.items()
        if path in before.groups or used
    }


def processes_between(before: Census, after: Census) -> list[tuple[Process, int]]:
    """Who used how much, ns, the most first."""
    found = []
    for pid, now in after.processes.items():
        then = before.processes.get(pid)
        same = then is not None and then.start_ticks == now.start_ticks
        used = now.used_ns - (then.used_ns if then is not None and same else 0)
        if used > 0:
            found.append((now, used))
    return sorted(found, key=lambda one: -one[1])
