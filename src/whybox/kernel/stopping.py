"""What stopping a container does to each of its processes, told before anybody stops it.

An engine tells PID 1 alone, waits, and kills PID 1; when PID 1 of a pid namespace ends, however it
ends, the kernel kills whoever is left in there (``zap_pid_ns_processes``, kernel/pid_namespace.c).
So what becomes of the others is PID 1's affair. Whether it passes the signal on and waits is not
to be seen beforehand, save of a few programs that are known.
"""

import os
import re
from collections.abc import Iterable, Sequence
from enum import StrEnum

from msgspec import Struct

from whybox.kernel import signals, task
from whybox.kernel.disposition import Disposition, Hearing, best, disposition
from whybox.kernel.host import Host
from whybox.kernel.target import Target, processes
from whybox.kernel.task import TICKS_PER_SECOND, TaskId

#: How long an engine waits where nobody told it otherwise: docker stop(1), podman stop(1), the
#: kubelet's terminationGracePeriodSeconds, systemd.service(5) TimeoutStopSec.
GRACE_SECONDS = {"docker": 10, "podman": 10, "systemd": 90}
KUBERNETES_SECONDS = 30
USUAL_SECONDS = 10

#: More processes of a container than these are not looked at one by one.
MOST = 48

#: Inits that pass signals to their child and to no grandchild, and end when that child has ended.
PASSING_TO_CHILD = ("tini", "docker-init", "catatonit", "podman-init")

_SHELLS = ("sh", "bash", "dash", "ash", "ksh", "mksh", "zsh", "busybox")
_GROUP_KEY = b"TINI_KILL_PROCESS_GROUP="
#: ``wchan`` in wait(2); a shell's ``wait`` is in there too (bash) or in sigsuspend (dash, busybox).
_WAITING = "do_wait"
#: The states of a stopped or traced task.
_STOPPED = ("T", "t")


class Member(Struct, frozen=True, kw_only=True):
    """One living process of the container, as far as the stop signal is concerned."""

    id: TaskId
    nspid: int
    comm: str
    ppid: int
    """By the host's pids."""
    handles: bool
    """The stop signal has a handler, or is blocked as for sigwait and signalfd."""
    ignores: bool
    interruptible: bool
    """Neither SIGINT nor SIGQUIT is ignored, as a shell has it for what runs in the background
    (POSIX, Shell Command Language 2.9.3)."""
    entered: bool = False
    """Started from outside (``docker exec``, a probe): no child of anybody in the container."""

    @property
    def named(self) -> str:
        """It as a person would find it, inside and on the host."""
        on_host = "" if self.nspid == self.id.pid else f", pid {self.id.pid} on the host"
        return f"{self.comm} (PID {self.nspid}{on_host})"


class First(Struct, frozen=True, kw_only=True):
    """What the first process is known for."""

    comm: str
    shell: bool
    """Its program is a shell."""
    init: bool
    """It is an init that passes signals to its child alone."""
    passes_to_group: bool = False
    """… told to pass them to the child's whole process group (``tini -g``)."""


class Why(StrEnum):
    """Why a stop will end in SIGKILL."""

    DEAF = "deaf"
    """PID 1 never gets the signal."""
    STOPPED = "stopped"
    """PID 1 is stopped (State T): the signal waits, and the engine does not."""
    FOREGROUND = "foreground"
    """PID 1 is a shell whose trap runs only when the child in its foreground has ended."""
    CHILD_IGNORES = "child ignores"
    """PID 1 is an init, and the child that it tells ignores the signal."""
    ABANDONED = "abandoned"
    """PID 1 is an init whose child ends at once; others, who could handle the signal, are left."""


class Doom(Struct, frozen=True, kw_only=True):
    """Who will be killed by a stop, and why."""

    why: Why
    cause: Member | None
    """The child that it is about, where it is about one."""
    victims: tuple[Member, ...]
    """Those besides PID 1 who could have ended in order, and will not get to."""


class Prospect(Struct, frozen=True, kw_only=True):
    """A living container before a stop."""

    stop_signal: int
    grace_seconds: int
    """Negative: it is never killed."""
    grace_known: bool
    """Whether that was set for it, or is its engine's usual."""
    protected: bool
    """PID 1 of a pid namespace of its own: signals without a handler are dropped."""
    all_told: bool = False
    """Every process is told, not the first one alone: systemd's KillMode=control-group."""
    first: First
    looks: tuple[Disposition, ...]
    """At PID 1, the latest last."""
    init: TaskId
    nspid: int | None
    """What the first process is called in its own pid namespace."""
    members: tuple[Member, ...]
    """All but PID 1."""
    unlisted: int
    """Processes that were not looked at, since there are so many."""
    now_seconds: float | None

    @property
    def inside(self) -> tuple[int, ...]:
        """The pids of all that were looked at but the first, by the host."""
        return tuple(one.id.pid for one in self.members)

    @property
    def hearing(self) -> Hearing:
        """What becomes of the stop signal at PID 1; where it is not protected, of any process."""
        how = best(self.looks, self.stop_signal)
        return how if self.protected or how is not Hearing.DEFAULT else Hearing.CAUGHT

    @property
    def ends_by_default(self) -> bool:
        """No handler and no protection: the signal ends it, as any process."""
        return not self.protected and best(self.looks, self.stop_signal) is Hearing.DEFAULT


def stop_signal(target: Target) -> int:
    """What the container is stopped by: SIGTERM unless its image or its user says otherwise."""
    return signals.number(target.stop_signal or "TERM") or signals.TERM


def grace(target: Target) -> tuple[int, bool]:
    """How many seconds it is given, and whether that was set for it."""
    if target.stop_seconds is not None:
        return target.stop_seconds, True
    if any("/kubepods" in path for path in target.cgroups.values()):
        return KUBERNETES_SECONDS, False
    return GRACE_SECONDS.get(target.runtime, USUAL_SECONDS), False


def members(host: Host, target: Target, stop: int) -> tuple[tuple[Member, ...], int]:
    """The processes besides the first, and how many more there are that were not looked at."""
    init = target.init
    listed = processes(host, target)
    inside = frozenset(listed)
    others = [pid for pid in listed if init is None or pid != init.pid]
    found = [_member(host, pid, stop, inside) for pid in others[:MOST]]
    return tuple(one for one in found if one is not None), max(0, len(others) - MOST)


def _member(host: Host, pid: int, stop: int, inside: frozenset[int]) -> Member | None:
    try:
        stat, said = task.stat(host, pid), task.status(host, pid)
    except OSError:
        return None  # gone while we looked
    if stat.state in "ZX":
        return None
    ignored = said.sig_ign
    return Member(
        id=stat.id,
        nspid=said.nspid[-1],
        comm=stat.comm,
        ppid=stat.ppid,
        handles=signals.has(said.sig_cgt, stop) or signals.has(said.sig_blk, stop),
        ignores=signals.has(ignored, stop) and not signals.has(said.sig_blk, stop),
        interruptible=not (signals.has(ignored, signals.INT) or signals.has(ignored, _QUIT)),
        entered=stat.ppid not in inside,
    )


_QUIT = signals.number("QUIT") or 3


def first(host: Host, pid: int) -> First:
    """What PID 1 is known for. Raises OSError when it is gone."""
    comm, program = task.stat(host, pid).comm, _program(host, pid)
    init = comm in PASSING_TO_CHILD
    return First(
        comm=comm,
        shell=program in _SHELLS if program else comm in _SHELLS,
        init=init,
        passes_to_group=init and _passes_to_group(host, pid),
    )


def _program(host: Host, pid: int) -> str | None:
    try:
        return os.path.basename(host.link(f"/proc/{pid}/exe"))
    except OSError:
        return None


def _passes_to_group(host: Host, pid: int) -> bool:
    """By tini's own words: options before ``--`` or the program, or its environment."""
    words = (host.optional_text(f"/proc/{pid}/cmdline") or "").split("\0")[1:]
    for word in words:
        if word == "--" or not word.startswith("-"):
            break
        if re.fullmatch(r"-[svw]*g[a-z]*", word):
            return True
    try:
        variables = host.read(f"/proc/{pid}/environ").split(b"\0")
    except OSError:
        return False
    return any(one.startswith(_GROUP_KEY) and one != _GROUP_KEY for one in variables)


def prospect(
    host: Host,
    target: Target,
    init: TaskId,
    looks: Sequence[Disposition],
    found: tuple[tuple[Member, ...], int],
    known: First,
) -> Prospect:
    """Put together what was looked at."""
    seconds, is_set = grace(target)
    others, unlisted = found
    return Prospect(
        stop_signal=stop_signal(target),
        grace_seconds=seconds,
        grace_known=is_set,
        all_told=target.runtime == "systemd",
        protected=target.init_nspid == 1 and target.own("pid") is not False,
        first=known,
        looks=tuple(looks),
        init=init,
        nspid=target.init_nspid,
        members=others,
        unlisted=unlisted,
        now_seconds=uptime(host),
    )


def of(host: Host, target: Target) -> Prospect:
    """A living container as it is at this moment. Raises OSError when it has ended."""
    if target.init is None:
        raise ProcessLookupError(3, "it is not running")
    stop, init = stop_signal(target), target.init
    look = disposition(host, init.pid, stop)
    return prospect(host, target, init, [look], members(host, target, stop), first(host, init.pid))


def uptime(host: Host) -> float | None:
    """Seconds since boot, in which the start of a task is told too."""
    said = (host.optional_text("/proc/uptime") or "").split()
    return float(said[0]) if said else None


def doom(seen: Prospect) -> Doom | None:
    """Who will be killed by a stop for certain, as far as that can be told; ``None``: nobody."""
    if not seen.looks or seen.grace_seconds < 0 or seen.stop_signal == signals.KILL:
        return None
    able = () if seen.all_told else able_to_end(seen.members)
    if seen.looks[-1].state in _STOPPED:
        return Doom(why=Why.STOPPED, cause=None, victims=able)
    if seen.hearing.deaf:
        return Doom(why=Why.DEAF, cause=None, victims=able)
    if seen.all_told:
        return None
    if seen.first.shell and (child := foreground(seen, older_than=seen.grace_seconds)):
        return Doom(why=Why.FOREGROUND, cause=child, victims=able)
    return _below_init(seen, able) if seen.first.init else None


def able_to_end(members: Iterable[Member]) -> tuple[Member, ...]:
    """Those of the container's own who could handle the signal, if they only got it."""
    return tuple(one for one in members if one.handles and not one.entered)


def foreground(seen: Prospect, older_than: float = 0.0) -> Member | None:
    """The child that a shell with a trap waits for, so that the trap does not run meanwhile."""
    waiting = (seen.looks[-1].leader.wait_channel or "").startswith(_WAITING)
    if not waiting or seen.hearing is not Hearing.CAUGHT or seen.ends_by_default:
        return None
    for one in seen.members:
        if one.ppid == seen.init.pid and one.interruptible and _age(seen, one) >= older_than:
            return one
    return None


def _age(seen: Prospect, one: Member) -> float:
    return (seen.now_seconds or 0.0) - one.id.start_ticks / TICKS_PER_SECOND


def _below_init(seen: Prospect, able: tuple[Member, ...]) -> Doom | None:
    children = [one for one in seen.members if one.ppid == seen.init.pid and not one.entered]
    if len(children) != 1 or seen.first.passes_to_group:
        return None
    (child,) = children
    if child.ignores:
        return Doom(why=Why.CHILD_IGNORES, cause=child, victims=able)
    left = tuple(one for one in able if one is not child)
    if child.handles or not left:
        return None  # what its handler does about the others nobody knows
    return Doom(why=Why.ABANDONED, cause=child, victims=left)


# In words, a process each: for ``whybox inspect``.


def lines(seen: Prospect, most: int = 20) -> list[str]:
    """What a stop will do to each process."""
    fate = doom(seen)
    told = [_engine_line(seen), _first_line(seen, fate)]
    room = most - 1
    told += [_other_line(seen, one, fate) for one in seen.members[:room]]
    more = len(seen.members) - room + seen.unlisted
    return [*told, f"… and {more} more"] if more > 0 else told


def _engine_line(seen: Prospect) -> str:
    name = signals.name(seen.stop_signal)
    if seen.stop_signal == signals.KILL:
        return "SIGKILL at once: that is its stop signal"
    if seen.grace_seconds < 0:
        return f"{name} to its first process, and no SIGKILL however long that takes"
    usual = "" if seen.grace_known else " (its engine's usual, unless the stop says otherwise)"
    return f"{name} to its first process, SIGKILL after {seen.grace_seconds} s{usual}"


def _first_line(seen: Prospect, fate: Doom | None) -> str:
    says = _first_says(seen)
    if fate is not None and fate.why is Why.STOPPED:
        says = "is stopped (State T) and will get nothing before it is continued: killed"
    elif fate is not None and fate.why is Why.FOREGROUND and fate.cause is not None:
        says = f"its trap waits until {fate.cause.named} has ended: killed before"
    elif fate is not None and fate.why is Why.CHILD_IGNORES:
        says = "passes it to its child, which ignores it: killed"
    inside = "?" if seen.nspid is None else seen.nspid
    return f"{seen.init.pid} (inside {inside}) {seen.first.comm}: {says}"


def _first_says(seen: Prospect) -> str:
    name, how = signals.name(seen.stop_signal), seen.hearing
    if seen.ends_by_default:
        return f"ends by {name}, having no handler"
    after = f"killed after {seen.grace_seconds} s"
    return {
        Hearing.CAUGHT: f"has a handler for {name}",
        Hearing.SIGWAIT: f"waits for {name} (sigtimedwait)",
        Hearing.SIGNALFD: f"reads {name} from a signalfd",
        Hearing.IGNORED: f"ignores {name}: {after}",
        Hearing.DEFAULT: f"has no handler, and as PID 1 no default action: {after}",
        Hearing.BLOCKED: f"blocks {name} and nothing reads it: {after}",
        Hearing.UNSEEN: f"what it does with {name} could not be looked at",
    }[how]


def _other_line(seen: Prospect, one: Member, fate: Doom | None) -> str:
    head = f"{one.id.pid} (inside {one.nspid}) {one.comm}:"
    name = signals.name(seen.stop_signal)
    able = f"has a handler for {name}" if one.handles else f"has no handler for {name}"
    if one.ignores:
        able = f"ignores {name}"
    if seen.all_told:
        return f"{head} {able}, is told too, and killed after {seen.grace_seconds} s"
    if fate is not None and (fate.why is not Why.ABANDONED or one in fate.victims):
        return f"{head} {able}, is not told, and is killed when PID 1 has ended"
    if one.entered:
        return f"{head} {able}; started from outside, is killed when PID 1 has ended"
    return f"{head} {able}; is told if PID 1 passes it on, and killed if it is there when that ends"
