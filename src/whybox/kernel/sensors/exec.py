"""Every command that is executed in a container, who started it, failed ones too, and how it ended.

Successes are told by ``sched:sched_process_exec``, in whatever way the command came in; failures by
what ``execve(2)`` and ``execveat(2)`` return; ends by ``sched:sched_process_exit``.
"""

import struct
from collections.abc import Iterable, Iterator

from msgspec import Struct

from whybox.kernel import task
from whybox.kernel.bpf.objects import Spec
from whybox.kernel.cgroup import membership_of
from whybox.kernel.host import Host, c_string, decode
from whybox.kernel.namespace import namespace
from whybox.kernel.target import Target, place
from whybox.kernel.tracefs import Recorder
from whybox.kernel.tracetext import Event

SPEC = Spec(
    name="exec",
    programs=(("on_exec",),),
    optional=(
        *("on_execve", "after_execve", "on_execveat", "after_execveat"),
        "on_exit",
    ),
    falls_back=(
        "the tracepoint sched_process_exec as text: without arguments of what has ended since, "
        "without failures"
    ),
)

#: Without these, failures are not seen; without that one, ends are not.
FAILURES = ("on_execve", "after_execve")
ENDS = "on_exit"

#: What stands in for the sensor where there is no BPF.
POINT = "sched/sched_process_exec"

PATH_BYTES, ARGS_BYTES = 160, 512
_EXECUTED, _FAILED, _ENDED = range(3)
_HEAD = struct.Struct("=QIIIIiI")
_COMMAND = struct.Struct(f"=IIIIII16s16s{PATH_BYTES}s{ARGS_BYTES}s")
_BEGAN = struct.Struct("=Q")


class Executed(Struct, frozen=True, kw_only=True):
    """One command that began, or that could not."""

    at_ns: int
    """Of the monotonic clock."""
    slot: int
    pid: int
    """As the host counts."""
    nspid: int
    """As its own pid namespace does."""
    error: int | None
    """The errno; ``None``: it was executed."""
    uid: int
    euid: int
    """Both by the host's numbers, after the command has begun."""
    parent_pid: int
    parent_comm: str
    parent_inside: bool
    """Whether the parent is in the same container."""
    comm: str
    """What the task is called: once it was executed, after the command."""
    path: str
    """As it was asked for; the first 159 bytes of it."""
    arguments: tuple[str, ...]
    """From the program's own name on; of the first 512 bytes."""
    cut: bool
    """Whether there are more arguments than these."""


class Ended(Struct, frozen=True, kw_only=True):
    """A command that was seen to begin has ended."""

    at_ns: int
    slot: int
    pid: int
    nspid: int
    status: int
    """As a shell says it: 128 and the signal's number, if it was one."""
    lasted_ns: int


def decoded(records: Iterable[bytes]) -> Iterator[Executed | Ended]:
    """What the ring told."""
    for raw in records:
        at, kind, slot, pid, nspid, code, _ = _HEAD.unpack_from(raw)
        if kind == _ENDED:
            lasted = at - _BEGAN.unpack_from(raw, _HEAD.size)[0]
            status = status_of(code)
            yield Ended(at_ns=at, slot=slot, pid=pid, nspid=nspid, status=status, lasted_ns=lasted)
            continue
        error = code if kind == _FAILED else None
        yield _executed(raw, at, slot, pid, nspid, error)


def _executed(raw: bytes, at: int, slot: int, pid: int, nspid: int, error: int | None) -> Executed:
    fields = _COMMAND.unpack_from(raw, _HEAD.size)
    uid, euid, parent, parent_slot, wanted, got, comm, parent_comm, path, said = fields
    return Executed(
        at_ns=at,
        slot=slot,
        pid=pid,
        nspid=nspid,
        error=error,
        uid=uid,
        euid=euid,
        parent_pid=parent,
        parent_comm=c_string(parent_comm),
        parent_inside=parent_slot == slot,
        comm=c_string(comm),
        path=c_string(path),
        arguments=arguments(said[:got]),
        cut=wanted > got,
    )


def arguments(raw: bytes) -> tuple[str, ...]:
    r"""The arguments as they lie in memory; the last may be cut off.

    >>> arguments(b"sh\0-c\0echo\0")
    ('sh', '-c', 'echo')
    """
    return tuple(decode(part) for part in raw.removesuffix(b"\0").split(b"\0")) if raw else ()


def status_of(code: int) -> int:
    """``task_struct.exit_code``, which is what wait(2) gives, as a shell says it.

    >>> status_of(0x300), status_of(9), status_of(0x8b)
    (3, 137, 139)
    """
    return 128 + (code & 0x7F) if code & 0x7F else code >> 8 & 0xFF


class Printed:
    """The commands of one container by the tracepoint's text, which is of the whole host.

    Whose a command was is asked of ``/proc``, so what has ended before that stays unknown.
    """

    def __init__(self, host: Host, target: Target, recorder: Recorder) -> None:
        self.target = target
        self.gone = 0
        """Commands of which it cannot be told whose they were."""
        self._host, self._recorder = host, recorder
        self._told = 0

    @property
    def lost(self) -> int:
        """How many are missing, as far as that is known."""
        return self._recorder.lost + self.gone

    def read(self) -> Iterator[Executed]:
        """Those since the last call."""
        new = self._recorder.read()[self._told :]
        self._told += len(new)
        self._host.next_moment()
        for event in new:
            try:
                if is_inside(self._host, self.target, event.pid):
                    yield _as_it_is_now(self._host, self.target, event)
            except OSError:
                self.gone += 1


def is_inside(host: Host, target: Target, pid: int) -> bool:
    """Whether a living process is in the container; raises OSError when it is gone."""
    group = place(host, membership_of(host, pid))
    mine = None if target.runtime == "process" else place(host, target.cgroups)
    if mine is not None:
        return group is not None and f"{group.directory}/".startswith(f"{mine.directory}/")
    if target.own("pid"):
        return namespace(host, pid, "pid") == target.namespaces.get("pid")
    return target.init is not None and target.init.pid == pid


def _as_it_is_now(host: Host, target: Target, event: Event) -> Executed:
    """The command, with what ``/proc`` still tells of it."""
    status = task.status(host, event.pid)
    said = host.read(f"/proc/{event.pid}/cmdline")
    try:
        parent = task.stat(host, status.ppid).comm
        inside = is_inside(host, target, status.ppid)
    except OSError:
        parent, inside = "", False
    return Executed(
        at_ns=int(event.seconds * 1e9),
        slot=1,
        pid=event.pid,
        nspid=status.nspid[-1],
        error=None,
        uid=status.uid[0],
        euid=status.uid[1],
        parent_pid=status.ppid,
        parent_comm=parent,
        parent_inside=inside,
        comm=status.name,
        path=event.fields.get("filename", ""),
        arguments=arguments(said[:ARGS_BYTES]),
        cut=len(said) > ARGS_BYTES,
    )
