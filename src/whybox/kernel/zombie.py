"""Zombies: processes that ended and that their parent has not waited for (``/proc/Z/stat``).

    4711 (worker) Z 4700 4700 4700 0 -1 4227084 …

A zombie is in no list of its control group, and on v1 its ``cgroup`` file says ``/`` (measured),
so a container's zombies are found by their pid namespace, which a zombie still shows, and by
their parent.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from msgspec import Struct

from whybox.kernel import signals, task
from whybox.kernel.cgroup import Group
from whybox.kernel.host import Host, ParseError
from whybox.kernel.namespace import INITIAL, namespace
from whybox.kernel.target import Target, processes
from whybox.kernel.task import TICKS_PER_SECOND, Stat, TaskId

if TYPE_CHECKING:
    from whybox.kernel.tracefs import Recorder

#: No more of a container's zombies than this are kept one by one.
MOST = 4096

POINT = "sched/sched_process_fork"


class Zombie(Struct, frozen=True, kw_only=True):
    """One process that ended."""

    id: TaskId
    comm: str
    ppid: int
    """Who should wait for it; 0: somebody outside of what can be seen."""
    session: int


class Parent(Struct, frozen=True, kw_only=True):
    """A process that has not waited for its children."""

    pid: int
    nspid: int
    """What it is called in its own pid namespace."""
    comm: str
    state: str
    session: int
    inside: bool
    """Whether it belongs to the container itself."""
    ignores_sigchld: bool
    """SigIgn has SIGCHLD: the kernel reaps children that end from then on."""
    wait_channel: str | None
    has_waited: bool
    """Whether it ever waited for a child: the page faults of those count in its ``cminflt``."""
    blocks_sigchld: bool = False
    handles_sigchld: bool = False
    system_call: str | None = None
    """What its first thread is in, such as ``wait4 for child 7 alone``; ``None``: in none, or that
    may not be looked at."""

    @property
    def waits_for_one(self) -> bool:
        """Whether it is waiting for one child of its own, and for no other."""
        return (self.system_call or "").endswith(" alone")

    @property
    def told(self) -> str:
        """What it does when it is told of a child's end, by its masks (SIGCHLD is bit 10000)."""
        if self.ignores_sigchld:
            return "ignored"
        if self.blocks_sigchld:
            return "blocked"
        return "handled" if self.handles_sigchld else "not handled"

    @property
    def named(self) -> str:
        """It as a person would find it, inside and on the host."""
        if not self.inside:
            return f"{self.comm} (pid {self.pid}, outside the container)"
        on_host = f", pid {self.pid} on the host" if self.nspid != self.pid else ""
        return f"{self.comm} (PID {self.nspid}{on_host})"


class Look(Struct, frozen=True, kw_only=True):
    """A container's zombies at one moment."""

    zombies: tuple[Zombie, ...]
    dead_leaders: int
    """Shown as Z, but other threads of them live: not zombies, nobody could wait for them yet."""
    parents: Mapping[TaskId, int]
    """The parent of each living process of the container."""


class Level(Struct, frozen=True, kw_only=True):
    """A limit of tasks, zombies among them, on the way up to the root."""

    path: str
    current: int
    limit: int
    file: str = ""
    """Where the limit stands."""


def look(host: Host, target: Target) -> Look:
    """Find them in the table of all processes, which is read once a moment."""
    table = host.remembered("zombie.table", lambda: _table(host))
    members = frozenset(processes(host, target))
    ended = [s for s in table.values() if s.state == "Z" and _belongs(host, target, s, members)]
    # A dead leader has threads that live; of a zombie nothing but itself is left (measured).
    zombies = [s for s in ended if s.num_threads <= 1]
    return Look(
        zombies=tuple(_zombie(s) for s in zombies[:MOST]),
        dead_leaders=len(ended) - len(zombies),
        parents={s.id: s.ppid for s in table.values() if s.pid in members and s.state != "Z"},
    )


def _table(host: Host) -> dict[int, Stat]:
    found = {}
    for pid in task.pids(host):
        try:
            found[pid] = task.stat(host, pid)
        except OSError:
            continue  # gone while we looked
    return found


def _belongs(host: Host, target: Target, stat: Stat, members: frozenset[int]) -> bool:
    if stat.ppid in members:
        return True
    if not _whole_namespace(host, target):
        return False
    inode = namespace(host, stat.pid, "pid")
    mine = target.namespaces.get("pid") or namespace(host, "self", "pid")
    # From inside, where a foreign zombie's namespace is closed to us, all that is seen is ours.
    return inode == mine or (inode is None and target.runtime == "self")


def _whole_namespace(host: Host, target: Target) -> bool:
    """Whether the container is all that lives in its pid namespace."""
    if target.runtime == "self":
        return namespace(host, "self", "pid") != INITIAL["pid"]
    return target.init_nspid == 1 and target.own("pid") is True


def _zombie(stat: Stat) -> Zombie:
    return Zombie(id=stat.id, comm=stat.comm, ppid=stat.ppid, session=stat.session)


def levels(host: Host, group: Group | None) -> tuple[Level, ...]:
    """Every limit that a group's tasks count against."""
    found = []
    for above in () if group is None else group.lineage():
        limit = host.optional_number(above.file("pids.max"))
        current = host.optional_number(above.file("pids.current"))
        if limit is not None and current is not None:
            file = above.file("pids.max")
            found.append(Level(path=above.path, current=current, limit=limit, file=file))
    return tuple(found)


def uptime(host: Host) -> float | None:
    """Seconds since boot, in which the start of a task is told too."""
    said = (host.optional_text("/proc/uptime") or "").split()
    return float(said[0]) if said else None


def age(zombie: Zombie, now_seconds: float) -> float:
    """How long ago it *began*, in seconds; when it ended the kernel does not tell."""
    return now_seconds - zombie.id.start_ticks / TICKS_PER_SECOND


def youngest(host: Host, zombies: Iterable[Zombie]) -> float:
    """The age of the youngest; infinite where there is none."""
    now = uptime(host)
    return math.inf if now is None else min((age(z, now) for z in zombies), default=math.inf)


def forkers(host: Host, zombies: Iterable[Zombie], before: Look, forks: "Forks") -> dict[int, int]:
    """By which process each zombie was forked, as far as that was seen.

    Who was alive and somebody else's child at the earlier look has been orphaned since; who was
    PID 1's own may have been an orphan by then.
    """
    seen, found = forks.forkers(), {}
    for one in zombies:
        if (thread := seen.get(one.id.pid)) is not None:
            # The tracepoint names a thread: of the parent, or of somebody else.
            found[one.id.pid] = one.ppid if thread in _threads(host, one.ppid) else thread
        elif before.parents.get(one.id, one.ppid) != one.ppid:
            found[one.id.pid] = before.parents[one.id]
    return found


def _threads(host: Host, pid: int) -> tuple[int, ...]:
    try:
        return task.thread_ids(host, pid)
    except OSError:
        return ()


def parents(host: Host, target: Target, zombies: Iterable[Zombie]) -> tuple[Parent, ...]:
    """Everybody who has zombies, as far as they can be seen."""
    found = [parent(host, target, pid) for pid in sorted({z.ppid for z in zombies})]
    return tuple(one for one in found if one is not None)


def origins(
    zombies: Iterable[Zombie], parent: Parent | None, forkers: Mapping[int, int]
) -> tuple[int, int]:
    """How many of the parent's are known to be its own children, and how many orphans."""
    own = orphans = 0
    for one in zombies:
        if parent is None or one.ppid != parent.pid:
            continue
        forker = forkers.get(one.id.pid)
        # A session is inherited: one that is neither the parent's nor its own was a third's.
        elsewhere = one.session not in (parent.session, one.id.pid)
        own += forker == parent.pid
        orphans += elsewhere if forker is None else forker != parent.pid
    return own, orphans


def parent(host: Host, target: Target, pid: int) -> Parent | None:
    """Who does not wait; ``None`` when it is gone or cannot be seen."""
    file = f"/proc/{pid}/stat"
    try:
        stat, status, raw = task.stat(host, pid), task.status(host, pid), host.read(file)
    except OSError:
        return None
    return Parent(
        pid=pid,
        nspid=status.nspid[-1],
        comm=stat.comm,
        state=stat.state,
        session=stat.session,
        inside=_inside(host, target, pid),
        ignores_sigchld=signals.has(status.sig_ign, signals.CHLD),
        wait_channel=task.wait_channel(host, pid),
        has_waited=_children_faults(raw, file) > 0,
        blocks_sigchld=signals.has(status.sig_blk, signals.CHLD),
        handles_sigchld=signals.has(status.sig_cgt, signals.CHLD),
        system_call=system_call(host.optional_text(f"/proc/{pid}/syscall")),
    )


def system_call(text: str | None, machine: str | None = None) -> str | None:
    """What ``/proc/PID/syscall`` tells, and for whom it waits if it is a wait.

    The number of the call and its arguments; ``running``; or -1 outside of any call.

    >>> system_call("61 0x7 0x0 0x0 0x0 0x0 0x0 0x7ffd 0x7f01", "x86_64")
    'wait4 for child 7 alone'
    >>> system_call("61 0xffffffff 0x7ffd 0x0 0x0 0x0 0x0 0x7ffd 0x7f01", "x86_64")
    'wait4 for any child'
    >>> system_call("35 0x7ffd 0x0 0x0 0x0 0x0 0x0 0x7ffd 0x7f01", "x86_64"), system_call("running")
    ('nanosleep', None)
    """
    words = (text or "").split()
    if not words or not words[0].isdigit():
        return None
    from whybox.kernel import syscalltable  # only where there are zombies

    name = syscalltable.name(int(words[0]), machine=machine)
    if len(words) < 3 or name not in ("wait4", "waitid"):
        return name
    first, second = (int(word, 16) & 0xFFFFFFFF for word in words[1:3])
    # waitid(P_PID = 1, …); a wait4 for 0 or less is for a group, or for any (wait(2)).
    child = first if name == "wait4" else second if first == 1 else None
    if child is not None and 0 < child < 1 << 31:
        return f"{name} for child {child} alone"
    return f"{name} for any child" if first in (0, 0xFFFFFFFF) else name


def _inside(host: Host, target: Target, pid: int) -> bool:
    if pid in processes(host, target):
        return True
    if not _whole_namespace(host, target):
        return False
    return target.runtime == "self" or namespace(host, pid, "pid") == target.namespaces.get("pid")


def _children_faults(raw: bytes, file: str) -> int:
    """``cminflt`` of ``stat``, the 11th field: a child that ran at all had page faults."""
    try:
        return int(raw[raw.rindex(b")") + 2 :].split()[8])
    except (ValueError, IndexError):
        raise ParseError(file, raw.decode("utf-8", "backslashreplace")) from None


@contextmanager
def forks(host: Host) -> Iterator["Forks"]:
    """Who forks whom in this window, shared by everybody who wants to know."""
    from whybox.kernel.tracefs import attempt  # only for a window

    with host.sensor("forks", lambda: attempt(host, [POINT])) as recording:
        yield Forks(recorder=recording.recorder)


class Forks(Struct, frozen=True, kw_only=True):
    """The forks of one window; none where they could not be watched."""

    recorder: "Recorder | None" = None

    def forkers(self) -> dict[int, int]:
        """The thread that forked each task of this window."""
        if self.recorder is None:
            return {}
        read = [event.fields for event in self.recorder.read()]
        return {int(f["child_pid"]): int(f["pid"]) for f in read if "child_pid" in f}
