"""Who had the kernel write what it did not give it: ``/proc/PID/io`` over a window.

``wchar`` counts the bytes that a task handed to write(2), ``write_bytes`` the pages of files that
were dirtied in its name (filesystems/proc.rst, 3.3). A copy-up is charged to the task whose open(2)
or chmod(2) began it: write_bytes +67 121 152, wchar +1 (measured). Writing to a mapping looks the
same, so this alone proves nothing.
"""

import time
from collections.abc import Iterable, Mapping

from msgspec import Struct, structs

from whybox.kernel import task
from whybox.kernel.host import Host, ParseError
from whybox.kernel.target import Target, processes
from whybox.kernel.task import Io, TaskId

MOST_PROCESSES = 512
#: Of a process with more threads than these the others are not asked.
MOST_THREADS = 64
#: Less is noise: blocks of directories, of the journal.
LEAST_BYTES = 1 << 20
#: So many processes are described, those with the largest surplus.
MOST_WRITERS = 8
_MORE_LOOKS = 2
_BETWEEN_LOOKS_S = 0.002

_NOTHING = Io(rchar=0, wchar=0, read_bytes=0, write_bytes=0)


class Writer(Struct, frozen=True, kw_only=True):
    """A process that dirtied more than it wrote, over a window."""

    pid: int
    comm: str
    write_bytes: int
    wchar: int
    copying: bool | None = None
    """Whether it is inside a copy-up now; ``None`` where its stacks are closed to us."""

    @property
    def surplus_bytes(self) -> int:
        """What the kernel wrote in its name without being given the bytes."""
        return self.write_bytes - self.wchar


class Accounts(Struct, frozen=True, kw_only=True):
    """What each process had read and written at one moment."""

    inside: Mapping[TaskId, tuple[str, Io]] = {}
    parent: Mapping[TaskId, tuple[str, Io]] = {}
    """Of the one outside which started the container: with an engine that is its shim, which also
    starts what is executed in it later, and inherits the account of whom it reaps
    (``wait_task_zombie``)."""


def accounts(host: Host, target: Target) -> Accounts:
    """Of those that may be asked."""
    inside = _accounts(host, processes(host, target)[:MOST_PROCESSES])
    return Accounts(inside=inside, parent=_accounts(host, _parent(host, target)))


def _parent(host: Host, target: Target) -> tuple[int, ...]:
    try:
        parent = 0 if target.init is None else task.stat(host, target.init.pid).ppid
    except (OSError, ParseError):
        return ()
    return (parent,) if parent > 1 else ()  # process 1 reaps everybody's


def _accounts(host: Host, pids: Iterable[int]) -> dict[TaskId, tuple[str, Io]]:
    found: dict[TaskId, tuple[str, Io]] = {}
    for pid in pids:
        try:
            stat = task.stat(host, pid)
            found[stat.id] = (stat.comm, task.io(host, pid))
        except (OSError, ParseError):
            continue  # it ended, or belongs to another user
    return found


class Written(Struct, frozen=True, kw_only=True):
    """What was written over a window, as far as somebody living has it on his account."""

    wchar: int
    """By themselves: all processes inside, and the children that they reaped."""
    surplus_bytes: int
    """In their name, of those where it is more than noise."""
    writers: tuple[Writer, ...]
    """Those, the largest first."""


def written(host: Host, before: Accounts, after: Accounts) -> Written:
    """The difference of two accounts; a process that began in between began with nothing."""
    inside = _deltas(before.inside, after.inside)
    every = [*inside, *_deltas(before.parent, after.parent)]
    large = [w for w in every if w.surplus_bytes >= LEAST_BYTES]
    large.sort(key=lambda w: -w.surplus_bytes)
    return Written(
        wchar=sum(w.wchar for w in inside),
        surplus_bytes=sum(w.surplus_bytes for w in large),
        writers=tuple(
            structs.replace(w, copying=is_copying(host, w.pid)) for w in large[:MOST_WRITERS]
        ),
    )


def _deltas(
    before: Mapping[TaskId, tuple[str, Io]], after: Mapping[TaskId, tuple[str, Io]]
) -> list[Writer]:
    return [
        Writer(
            pid=id.pid,
            comm=comm,
            write_bytes=io.write_bytes - before.get(id, (comm, _NOTHING))[1].write_bytes,
            wchar=io.wchar - before.get(id, (comm, _NOTHING))[1].wchar,
        )
        for id, (comm, io) in after.items()
    ]


def is_copying(host: Host, pid: int) -> bool | None:
    """Whether a thread of the process is in ``ovl_copy_up_flags`` or below it."""
    answer = _in_copy_up(host, pid)
    for _ in range(_MORE_LOOKS):
        if answer is not False:
            break
        # The stack of a task that runs is at times empty (1 look of 9, measured). Another host,
        # since this one remembers what it saw.
        time.sleep(_BETWEEN_LOOKS_S)
        answer = _in_copy_up(Host(host.root), pid)
    return answer


def _in_copy_up(host: Host, pid: int) -> bool | None:
    try:
        threads = task.thread_ids(host, pid)[:MOST_THREADS]
    except OSError:
        return None
    # For root on the host only (measured).
    stacks = [host.optional_text(f"/proc/{pid}/task/{tid}/stack") for tid in threads]
    known = [stack for stack in stacks if stack is not None]
    return any("ovl_copy_up" in stack for stack in known) if known else None
