"""Which of the files that landed in an upper directory were copied, and not merely marked.

A file that is truncated on opening gets the mark of a copy too, although nothing was copied
(``ovl_copy_up_one`` leaves the contents out for O_TRUNC), and what a program writes into it then
looks like a copy of the same size. The accounts of the processes tell the two apart.

Where BPF is to be had, a sensor sees the very call that copied a file: who made it, and how long it
took. It only adds: a call that was under way when the sensor came is not seen to end.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from msgspec import Struct

from whybox.kernel.host import Host, printable
from whybox.kernel.surplus import Written
from whybox.kernel.target import Target
from whybox.kernel.upper import WORTH_BYTES, CopiedUp, Watched

#: Where nobody has a copy on his account, it must have lasted at least so long, and not have been
#: faster than this (measured: truncating 0 to 8 ms; copying up to 3 bytes a nanosecond).
CERTAIN_NS = 20_000_000
PLAUSIBLE_BYTES_A_NS = 4

#: The sensor's name in ``Host.sensor``: all targets share one.
SENSOR = "files"
#: So many calls are kept, the largest.
MOST_CALLS = 1000

if TYPE_CHECKING:
    from whybox.kernel.sensors.files import Copied


class Call(Struct, frozen=True, kw_only=True):
    """One system call that copied a file of the image."""

    pid: int
    comm: str
    """As the next two, harmless to print."""
    name: str
    """The system call."""
    path: str
    """As the process sees it."""
    took_ns: int
    written_bytes: int
    """Dirtied in its name within the call."""


class Calls(Struct, frozen=True, kw_only=True):
    """The calls of one window that copied."""

    reason: str | None = None
    """Why they could not be watched; ``None``: they were."""
    seen: tuple[Call, ...] = ()
    """The largest of them, the largest first."""
    lost: int = 0

    def of(self, watched: Watched, file: CopiedUp) -> Call | None:
        """The call that copied a file, if it was seen."""
        path = in_container(watched, file)
        return next((call for call in self.seen if call.path == path), None)


NOT_WATCHED = Calls(reason="they were not watched")


def in_container(watched: Watched, file: CopiedUp) -> str:
    """The path of a file as the container has it."""
    return os.path.join(watched.mount.mountpoint, file.path)


@contextmanager
def watch(host: Host, target: Target) -> Iterator[Callable[[], Calls]]:
    """Watch a container's calls by a sensor that all who watch share; asked for those so far."""
    if host.window_seconds <= 0:
        yield lambda: Calls(reason="nothing can be copied in a window of no length")
        return
    with ExitStack() as stack:
        yield _sensed(host, target, stack)


def _sensed(host: Host, target: Target, stack: ExitStack) -> Callable[[], Calls]:
    from whybox.kernel.sensors import files as sensor  # loads libbpf: only for a window

    try:
        attached = stack.enter_context(host.sensor(SENSOR, lambda: sensor.attached(host)))
        slot = attached.scope.add(host, target)
        layers, _ = sensor.layers(host, target)
    except OSError as error:
        refused = Calls(reason=str(error.strerror or error))
        return lambda: refused

    def calls() -> Calls:
        mine = (one for one in attached.all() if one.slot == slot)
        copied = [copy for one in mine if (copy := layers.copied(one)) is not None]
        return Calls(seen=told(copied), lost=attached.lost)

    return calls


def told(copied: "Sequence[Copied]") -> tuple[Call, ...]:
    """The calls as a case is told of them."""
    largest = sorted(copied, key=lambda copy: -copy.done.written_bytes)[:MOST_CALLS]
    return tuple(
        Call(
            pid=copy.done.pid,
            comm=printable(copy.done.comm),
            name=copy.done.call,
            path=printable(copy.done.path),
            took_ns=copy.done.took_ns,
            written_bytes=copy.done.written_bytes,
        )
        for copy in largest
    )


class Copies(Struct, frozen=True, kw_only=True):
    """The copies of one mount in this window that cost something, the largest first."""

    watched: Watched
    files: tuple[CopiedUp, ...]
    count: int
    accounted: bool
    """Whether the accounts of the processes, or their calls, show what was copied."""

    @property
    def copied_bytes(self) -> int:
        """In all."""
        return sum(f.contents_bytes for f in self.files)

    @property
    def took_ns(self) -> int:
        """In all; those whose birth is not known count nothing."""
        return sum(f.took_ns or 0 for f in self.files)

    @property
    def large(self) -> tuple[CopiedUp, ...]:
        """Files whose contents were felt, not only their number."""
        return tuple(f for f in self.files if f.contents_bytes >= WORTH_BYTES)


def copied(watched: Watched, written: Written, calls: Calls = NOT_WATCHED) -> Copies:
    """Its copies, without the files that were truncated on opening or written anew."""
    after = watched.after
    if after is None:
        return Copies(watched=watched, files=(), count=0, accounted=False)
    every = (*after.files, *after.unmarked)
    copying = {call.path for call in calls.seen}
    seen = {f.path for f in every if in_container(watched, f) in copying}
    accounted = 2 * written.surplus_bytes >= sum(f.contents_bytes for f in every)
    if not accounted:
        rest = [f for f in after.files if f.path not in seen and _plausible(f, written)]
        accounted = all(f.contents_bytes < WORTH_BYTES for f in rest)
        kept = seen.union(f.path for f in rest)
        every = tuple(f for f in every if f.path in kept)
    files = tuple(f for f in every if not f.metacopy)
    count = after.count - len(after.files) + len(files)
    return Copies(watched=watched, files=files, count=count, accounted=accounted)


def _plausible(file: CopiedUp, written: Written) -> bool:
    """Whether the contents were copied, and not replaced by a program."""
    contents, took = file.contents_bytes, file.took_ns
    if contents < WORTH_BYTES or took is None:
        return True
    possible = took >= CERTAIN_NS and contents <= took * PLAUSIBLE_BYTES_A_NS
    return possible and contents > written.wchar and contents <= file.size_bytes
