"""One forked process of a box: how it begins, as whom it goes on, and how it speaks to the lab.

These are forks of the lab's own process that never execute another program, so a start costs a
few milliseconds. What a fork inherits and must not keep is put away in ``settle``.
"""

import gc
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NoReturn, TypeAlias

from msgspec import Struct

from whybox.kernel.libc import (
    PR_CAPBSET_DROP,
    PR_SET_DUMPABLE,
    PR_SET_NO_NEW_PRIVS,
    PR_SET_PDEATHSIG,
    capset,
    prctl,
    set_name,
)

#: What a box runs, after the fork. What it returns is called in turn if it can be: so both a
#: function that makes a program (``workload.burn``) and the program (``workload.burn()``) will do.
Program: TypeAlias = Callable[[], object]

#: The capabilities that engines leave to root by default (CapBnd 00000000a80425fb, measured).
DEFAULT_CAPABILITIES = 0xA80425FB
#: Longer, and the set-up hangs.
PATIENCE_SECONDS = 20.0
FAILED = 70
_MESSAGE_BYTES = 1 << 15


class BoxError(RuntimeError):
    """A box could not be set up or taken down, in the words of the process that failed."""


class User(Struct, frozen=True, kw_only=True):
    """As whom a program runs, and with which rights."""

    uid: int = 1000
    gid: int = 1000
    capabilities: int = DEFAULT_CAPABILITIES
    no_new_privs: bool = False


class Line:
    """One end of a line between two of the processes, a message at a time."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    @staticmethod
    def pair() -> "tuple[Line, Line]":
        """Both ends."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return Line(ours), Line(theirs)

    def tell(self, words: str) -> None:
        """Send a message; one that is too long is cut."""
        self._end.send(
            words.encode("utf-8", "backslashreplace")[:_MESSAGE_BYTES], socket.MSG_NOSIGNAL
        )

    def hear(self, seconds: float) -> str | None:
        """The next message; "" when the other end is gone, ``None`` when there was none in time."""
        ready, _, _ = select.select([self._end], [], [], seconds)
        try:
            return self._end.recv(_MESSAGE_BYTES).decode() if ready else None
        except ConnectionResetError:
            return ""  # gone with words of ours unread

    def expect(self, word: str) -> str:
        """What comes after ``word``, which must be next."""
        said = self.hear(PATIENCE_SECONDS)
        first, _, rest = (said or "").partition(" ")
        if first == word:
            return rest
        if first == "failed":
            raise BoxError(rest)
        raise BoxError(f"no {word!r} in time" if said is None else f"{said!r} instead of {word!r}")

    def fileno(self) -> int:
        """Its descriptor."""
        return self._end.fileno()

    def close(self) -> None:
        """Hang up."""
        self._end.close()


def exit_status(status: int) -> int:
    """A wait status as a shell says it."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def fork(body: Callable[[], int], line: Line) -> int:
    """A child of ours that runs ``body``; what ``body`` raises goes down the line."""
    # A collection in the child would copy every page that holds an object (gc.freeze()).
    gc.freeze()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        run(body, line, parent)
    gc.unfreeze()
    return pid


def run(body: Callable[[], int], line: Line, parent: int | None = None) -> NoReturn:
    """Run ``body`` and end the process: a copy of the lab must never go on as the lab.

    ``parent`` is ``None`` where the parent cannot be seen, being outside the pid namespace.
    """
    status = FAILED
    try:
        die_with_parent()
        if parent in (None, os.getppid()):
            status = body()
    finally:
        error = sys.exc_info()[1]
        if isinstance(error, SystemExit):
            status = error.code if isinstance(error.code, int) else 1
        elif error is not None:
            words = str(error) if isinstance(error, OSError) else traceback.format_exc()
            with suppress(OSError):
                line.tell(f"failed {words}")
        os._exit(status)


def die_with_parent() -> None:
    """Have the kernel kill us when our parent dies; becoming another user forgets it (prctl(2))."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def settle(name: str, keep: Sequence[int], *, terminal: bool = False) -> None:
    """Put away what a fork has from the lab: its signals, its descriptors, its terminal."""
    for signum in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        # Python ignores SIGPIPE and catches SIGINT; the lab may have more.
        signal.signal(signum, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if not terminal:
        os.setsid()
    set_name(name)
    low = 3
    for descriptor in sorted({*keep, os.sysconf("SC_OPEN_MAX")}):
        os.closerange(low, descriptor)
        low = descriptor + 1


def silence() -> None:
    """Read and write nothing; with WHYBOX_LAB_DEBUG what it prints is seen."""
    null = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0,) if os.environ.get("WHYBOX_LAB_DEBUG") else (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)


def name_of(program: Program) -> str:
    """``burn`` of ``burn.<locals>.program``: what ``ps`` shows."""
    return str(getattr(program, "__qualname__", "program")).split(".")[0]


def called(program: Program) -> int:
    """Run a program to its end."""
    result: object = program
    while callable(result):
        result = result()
    return 0


def become(user: User) -> None:
    """Take on the ids and lose the rights, as an engine's runtime does."""
    os.umask(0o022)
    last = int(_first_line("/proc/sys/kernel/cap_last_cap"))
    for capability in range(last + 1):
        if not user.capabilities >> capability & 1:
            prctl(PR_CAPBSET_DROP, capability)
    os.setgroups([])
    os.setresgid(user.gid, user.gid, user.gid)
    os.setresuid(user.uid, user.uid, user.uid)
    if user.uid == 0:
        capset(user.capabilities & ((1 << last + 1) - 1))
    if user.no_new_privs:
        prctl(PR_SET_NO_NEW_PRIVS, 1)
    # execve(2) would do this: without it /proc/self belongs to root.
    prctl(PR_SET_DUMPABLE, 1)
    die_with_parent()


def _first_line(file: str) -> str:
    with open(file, encoding="ascii") as opened:
        return opened.readline()


def under_init(program: Program) -> int:
    """A PID 1 as small as they come: wait for signals, pass them on, reap, end as the child did."""
    signals = signal.valid_signals()
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        return called(program)
    set_name("init")
    while True:
        signum = signal.sigwait(signals)
        if signum != signal.SIGCHLD:
            os.kill(child, signum)
            continue
        status = _reaped(child)
        if status is not None:
            return status


def _reaped(child: int) -> int | None:
    """Reap all that have ended; how ``child`` did, if it was among them."""
    found = None
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == child:
                found = exit_status(ended[1])
    return found
