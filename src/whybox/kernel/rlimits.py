"""Limits of a process: ``/proc/PID/limits``, and what counts against the limit of a user's tasks.

>>> text = "Limit  Soft Limit  Hard Limit  Units\\nMax processes  40  unlimited  processes\\n"
>>> parse(text)["Max processes"]
Limit(soft=40, hard=None)
"""

import os
import re
from collections.abc import Iterable

from msgspec import Struct

from whybox.kernel import task
from whybox.kernel.host import Host, ParseError
from whybox.kernel.task import Status

OPEN_FILES = "Max open files"
PROCESSES = "Max processes"

#: A user's processes of which no more are counted.
MOST = 4096
#: They inherit their limits from each other: so many, first and last, tell of all.
SAMPLE = 8

#: With either of these no such limit holds (kernel/fork.c, copy_process()).
_EXEMPT = 1 << 21 | 1 << 24  # CAP_SYS_ADMIN, CAP_SYS_RESOURCE

_LINE = re.compile(r"(Max .*?) {2,}(\d+|unlimited) +(\d+|unlimited)")


class Limit(Struct, frozen=True):
    """One limit; ``None``: there is none."""

    soft: int | None
    hard: int | None


class UserTasks(Struct, frozen=True, kw_only=True):
    """How many tasks a user may have, and has, over all containers that share the uid."""

    pid: int
    """Whose limit it is."""
    uid: int
    limit: int
    tasks: int


class MachineTasks(Struct, frozen=True, kw_only=True):
    """How many tasks there are on the machine, and may be."""

    tasks: int
    pid_max: int | None
    threads_max: int | None

    @property
    def limit(self) -> int | None:
        """The nearer of the two."""
        known = [n for n in (self.pid_max, self.threads_max) if n is not None]
        return min(known, default=None)


def parse(text: str) -> dict[str, Limit]:
    """Parse ``limits``; a line that says something else is passed over."""
    found = {}
    for line in text.splitlines():
        said = _LINE.match(line)
        if said is not None:
            found[said[1]] = Limit(_number(said[2]), _number(said[3]))
    return found


def _number(text: str) -> int | None:
    return None if text == "unlimited" else int(text)


def limits(host: Host, pid: int) -> dict[str, Limit]:
    """The limits of a process."""
    return parse(host.text(f"/proc/{pid}/limits"))


def machine(host: Host) -> MachineTasks | None:
    """The whole machine: the fourth word of ``loadavg`` ends with the number of all tasks."""
    said = re.search(r" \d+/(\d+) ", host.optional_text("/proc/loadavg") or "")
    if said is None:
        return None
    return MachineTasks(
        tasks=int(said[1]),
        pid_max=host.optional_number("/proc/sys/kernel/pid_max"),
        threads_max=host.optional_number("/proc/sys/kernel/threads-max"),
    )


def users(host: Host, pids: Iterable[int]) -> tuple[UserTasks, ...]:
    """The users of some processes whose tasks are limited, each with its smallest limit.

    The kernel gives everybody half of ``threads-max`` (``fork_init``); only where somebody set
    less are the user's tasks counted, since that takes a walk through all processes.
    """
    ordinary = (host.optional_number("/proc/sys/kernel/threads-max") or 0) // 2
    found: dict[int, tuple[int, int]] = {}
    every = list(pids)
    for pid in dict.fromkeys((*every[: SAMPLE // 2], *every[-SAMPLE // 2 :])):
        limited = _limited(host, pid)
        if limited is not None and limited[1] < (ordinary or limited[1] + 1):
            uid, limit = limited
            found[uid] = min(found.get(uid, (limit, pid)), (limit, pid))
    return tuple(
        UserTasks(pid=pid, uid=uid, limit=limit, tasks=_tasks(host, uid))
        for uid, (limit, pid) in found.items()
    )


def _limited(host: Host, pid: int) -> tuple[int, int] | None:
    """The real uid and the soft limit of a process that such a limit holds for."""
    try:
        limit = limits(host, pid).get(PROCESSES)
        if limit is None or limit.soft is None:
            return None
        said = task.status(host, pid)
    except (OSError, ParseError):
        return None
    # Root of the host is never refused (INIT_USER).
    return None if said.uid[0] == 0 or said.cap_eff & _EXEMPT else (said.uid[0], limit.soft)


def _tasks(host: Host, uid: int) -> int:
    return host.remembered(f"rlimits.tasks {uid}", lambda: _count(host, uid))


def _count(host: Host, uid: int) -> int:
    """Threads and zombies of a user, as far as they can be seen."""
    # A process whose memory is closed to others shows root for its owner (proc(5)).
    able = [*owned(host, uid), *(owned(host, 0) if uid else ())]
    mine = (_status(host, pid) for pid in able[:MOST])
    return sum(max(1, s.threads) for s in mine if s is not None and s.uid[0] == uid)


def owned(host: Host, uid: int) -> list[int]:
    """The processes whose directory in ``/proc`` is a user's, by the effective uid."""
    owners = host.remembered("rlimits.owners", lambda: _owners(host))
    return [pid for pid, owner in owners.items() if owner == uid]


def _owners(host: Host) -> dict[int, int]:
    found = {}
    for pid in task.pids(host):
        try:
            found[pid] = os.stat(host.path(f"/proc/{pid}")).st_uid
        except OSError:
            continue  # gone while we looked
    return found


def _status(host: Host, pid: int) -> Status | None:
    try:
        return task.status(host, pid)
    except (OSError, ParseError):
        return None
