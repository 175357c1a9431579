"""What a process does with a signal: masks, waits and signalfds (signal(7), signalfd(2)).

The masks alone decide nothing. A program that waits by ``sigtimedwait`` shows SigBlk 0 and SigCgt
0 meanwhile (tini), one that reads a signalfd shows the masks of one that is deaf (measured):

    SigBlk: 0000000000004000    blocked for good, or read from a signalfd
    SigIgn: 0000000000000000
    SigCgt: 0000000000000000
"""

import os
import re
import sys
from collections.abc import Iterable
from enum import StrEnum

from msgspec import Struct

from whybox.kernel import signals, task
from whybox.kernel.host import Host
from whybox.kernel.namespace import INITIAL, namespace
from whybox.kernel.target import Target
from whybox.kernel.task import Status, TaskId

#: The number of ``rt_sigtimedwait``.
_SIGTIMEDWAIT = {"x86_64": 128, "aarch64": 137, "riscv64": 137}

#: More threads and descriptors than this are not looked through.
MOST_THREADS = 256
MOST_DESCRIPTORS = 4096

_SIGMASK = re.compile(r"^sigmask:\s*([0-9a-f]+)$", re.MULTILINE)


class Thread(Struct, frozen=True, kw_only=True):
    """One thread as far as signals are concerned."""

    tid: int
    sig_blk: int
    sigwaits: bool | None
    """Whether it is in ``sigtimedwait``; ``None``: that may not be looked at."""
    wait_channel: str | None
    waits_for: int | None = None
    """The set it gave to ``sigtimedwait``; ``None``: not in there, or not to be seen."""


class Disposition(Struct, frozen=True, kw_only=True):
    """What one process does with signals, at one moment."""

    state: str
    threads: int
    """How many it has."""
    sig_ign: int
    sig_cgt: int
    pending: int
    """SigPnd and ShdPnd."""
    leader: Thread
    others: tuple[Thread, ...] | None = ()
    """Its other threads, looked at only where the first one blocks the signal; ``None``: they
    could not be."""
    signalfd: int | None = 0
    """What its signalfds read, looked at likewise; ``None``: they could not be."""

    @property
    def ended(self) -> bool:
        """Whether it is a zombie: nothing reaches it."""
        return self.state in "ZX" and self.threads <= 1

    @property
    def killed(self) -> bool:
        """Whether it has been killed already and only waits for something to let it go."""
        zapping = self.leader.wait_channel == "zap_pid_ns_processes"
        return zapping or signals.has(self.pending, signals.KILL)


class Hearing(StrEnum):
    """What becomes of a signal that is sent to PID 1 of a pid namespace."""

    CAUGHT = "caught"
    """A handler runs."""
    SIGWAIT = "sigwait"
    """A thread waits for it."""
    SIGNALFD = "signalfd"
    """A signalfd reads it."""
    IGNORED = "ignored"
    """It asked for that: SIG_IGN."""
    DEFAULT = "default"
    """No handler: the kernel drops it, since PID 1 has no default action (SIGNAL_UNKILLABLE)."""
    BLOCKED = "blocked"
    """It stays pending, and nobody reads it."""
    UNSEEN = "unseen"
    """What decides could not be looked at."""

    @property
    def heard(self) -> bool:
        """Whether the program gets it."""
        return self in (Hearing.CAUGHT, Hearing.SIGWAIT, Hearing.SIGNALFD)

    @property
    def deaf(self) -> bool:
        """Whether the program never gets it."""
        return self in (Hearing.IGNORED, Hearing.DEFAULT, Hearing.BLOCKED)


def disposition(host: Host, pid: int, signal: int) -> Disposition:
    """What a process does with one signal now. Raises OSError when the process is gone."""
    said = task.status(host, pid)
    blocks = signals.has(said.sig_blk, signal)
    return Disposition(
        state=said.state,
        threads=said.threads,
        sig_ign=said.sig_ign,
        sig_cgt=said.sig_cgt,
        pending=said.sig_pnd | said.shd_pnd,
        leader=_thread(host, pid, pid, said),
        others=_others(host, pid, said) if blocks and said.threads > 1 else (),
        signalfd=_signalfd(host, pid) if blocks else 0,
    )


def disposition_of(host: Host, known: TaskId, signal: int) -> Disposition | None:
    """The same of a process that may be gone: then ``None``."""
    try:
        return disposition(host, known.pid, signal) if task.is_same(host, known) else None
    except OSError:
        return None


def own_pid_namespace(host: Host, target: Target) -> bool | None:
    """Whether the kernel protects its PID 1 from signals; ``None``: that cannot be told."""
    own = target.own("pid")
    if own is not None or target.init is None or target.init.pid != 1:
        return own
    # ``/proc/1/ns`` may be closed to us, but who is pid 1 to us lives in our own namespace.
    mine = namespace(host, "self", "pid")
    return None if mine is None else mine != INITIAL["pid"]


def hearing(seen: Disposition, signal: int) -> Hearing:
    """What becomes of the signal, by the kernel's rules (kernel/signal.c, ``sig_ignored``)."""
    leader = seen.leader
    blocked = signals.has(leader.sig_blk, signal)
    if signals.has(seen.sig_cgt, signal) and not blocked:
        return Hearing.CAUGHT
    if _waits_for(leader, signal):
        return Hearing.SIGWAIT
    if signals.has(seen.sig_cgt, signal):
        return Hearing.CAUGHT  # blocked only for a while, as around ``ppoll``
    # What the first thread blocks is kept for whoever may read it, SIG_IGN or not.
    if blocked:
        return _of_blocked(seen, signal)
    if signals.has(seen.sig_ign, signal):
        return Hearing.IGNORED
    return Hearing.UNSEEN if leader.sigwaits is None else Hearing.DEFAULT


def best(looks: Iterable[Disposition], signal: int) -> Hearing:
    """What several looks say together: an init is not in its wait at every moment."""
    found = [hearing(look, signal) for look in looks]
    return next((how for how in found if how.heard), found[-1])


def stays_pending(seen: Disposition, signal: int) -> bool:
    """Whether it was sent and is held back by the first thread's mask."""
    return signals.has(seen.pending, signal) and signals.has(seen.leader.sig_blk, signal)


def _of_blocked(seen: Disposition, signal: int) -> Hearing:
    if seen.signalfd is not None and signals.has(seen.signalfd, signal):
        return Hearing.SIGNALFD
    others = seen.others or ()
    if any(_waits_for(thread, signal) for thread in others):
        return Hearing.SIGWAIT
    unseen = any(t.sigwaits is None for t in (seen.leader, *others))
    if unseen or seen.signalfd is None or seen.others is None:
        return Hearing.UNSEEN
    if all(signals.has(thread.sig_blk, signal) for thread in others):
        return Hearing.BLOCKED
    # A thread that does not block it takes it, and the kernel drops it there.
    return Hearing.IGNORED if signals.has(seen.sig_ign, signal) else Hearing.DEFAULT


def _waits_for(thread: Thread, signal: int) -> bool:
    if thread.waits_for is not None:
        return signals.has(thread.waits_for, signal)
    # While a thread waits for a signal, the kernel takes it out of the thread's SigBlk
    # (``do_sigtimedwait``): what is still in there is not what it waits for.
    return thread.sigwaits is True and not signals.has(thread.sig_blk, signal)


def _thread(host: Host, pid: int, tid: int, said: Status) -> Thread:
    where = task.wait_channel(host, pid, tid)
    call = host.optional_text(f"/proc/{pid}/task/{tid}/syscall")
    waits = _sigwaits(where, call)
    return Thread(
        tid=tid,
        sig_blk=said.sig_blk,
        sigwaits=waits,
        wait_channel=where,
        # Only of a lone thread: others may hold the lock of a memory that we would wait for.
        waits_for=_set(host, pid, call) if waits and call and said.threads == 1 else None,
    )


def _sigwaits(where: str | None, call: str | None) -> bool | None:
    if where is not None:
        return "sigtimedwait" in where
    known = _SIGTIMEDWAIT.get(os.uname().machine)
    return None if call is None or known is None else call.split(" ")[0] == str(known)


def _set(host: Host, pid: int, call: str) -> int | None:
    """The first argument of ``rt_sigtimedwait``: a set of 64 signals, in the caller's memory."""
    number, *arguments = call.split(" ")
    if number != str(_SIGTIMEDWAIT.get(os.uname().machine)) or not arguments:
        return None
    try:
        descriptor = os.open(host.path(f"/proc/{pid}/mem"), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        raw = os.pread(descriptor, 8, int(arguments[0], 16))
    except (OSError, OverflowError):
        return None
    finally:
        os.close(descriptor)
    return int.from_bytes(raw, sys.byteorder) if len(raw) == 8 else None


def _others(host: Host, pid: int, leader: Status) -> tuple[Thread, ...] | None:
    if leader.threads > MOST_THREADS:
        return None
    found = []
    for tid in task.thread_ids(host, pid):
        if tid == pid:
            continue
        try:
            found.append(_thread(host, pid, tid, task.status(host, f"{pid}/task/{tid}")))
        except OSError:
            continue  # it ended while we looked
    return tuple(found)


def _signalfd(host: Host, pid: int) -> int | None:
    """Every signal that a signalfd of the process reads, as a mask."""
    try:
        names = host.names(f"/proc/{pid}/fd")
    except OSError:
        return None
    if len(names) > MOST_DESCRIPTORS:
        return None
    mask = 0
    for name in names:
        try:
            if host.link(f"/proc/{pid}/fd/{name}") != "anon_inode:[signalfd]":
                continue
            said = _SIGMASK.search(host.text(f"/proc/{pid}/fdinfo/{name}"))
        except OSError:
            continue  # closed while we looked
        mask |= 0 if said is None else int(said[1], 16)
    return mask
