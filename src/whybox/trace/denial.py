"""What denied a system call: seccomp, the want of a capability, or something else."""

import errno as errnos
from collections.abc import Iterable, Iterator
from typing import Literal

from msgspec import Struct, structs

from whybox.kernel import capability, syscalltable
from whybox.kernel.sensors import syscalls as sensor
from whybox.kernel.sensors.syscalls import Kind, Refusal

By = Literal["seccomp", "capability", "tracer", "other", "unknown"]

#: These check a file as the real user would, on credentials made for it (fs/open.c).
_ACCESS = frozenset(("access", "faccessat", "faccessat2"))

#: Whether a changed file keeps its setgid bit: nothing fails for want of it (fs/attr.c).
_FSETID = 1 << capability.NAMES.index("FSETID")
_SYS_ADMIN = 1 << capability.NAMES.index("SYS_ADMIN")


#: Why calls are denied to everybody, where one reason is by far the most frequent.
_OTHERS = {
    "setrlimit": "more than the kernel allows anybody (fs.nr_open)",
    "prlimit64": "more than the kernel allows anybody (fs.nr_open)",
    "epoll_ctl": "it cannot be waited for, as a file on disk; event loops try, and mind it not",
}
_NO_CAPABILITY = (
    "no capability was asked for: an immutable file, a limit, a device rule, a security module,"
    " or the argument itself"
)


class Denial(Struct, frozen=True, kw_only=True):
    """Calls that were denied alike."""

    syscall: str
    outcome: str
    """The errno; ``SIGSYS`` or ``killed`` where seccomp was set to that."""
    by: By
    """``other``: a mode, a limit, a namespace, a security module or the argument itself;
    ``unknown``: seccomp, or it was under way when the trace began."""
    capabilities: tuple[str, ...] = ()
    """Of which each was asked for and refused; mostly any of them would have done."""
    count: int
    comm: str
    """Of the first of them."""
    pid: int
    site: str | None = None
    """The kernel's function that asked for the capability."""
    hint: str


def called(number: int, compat: bool) -> str:
    """The name of a call.

    >>> called(511, False)
    'another syscall'
    """
    if number == sensor.OTHER_CALL:
        name = "another syscall"
    else:
        name = syscalltable.name(number, compat=compat)
    return f"{name} (32-bit)" if compat else name


def judged(how: Refusal, *, memory: bool, sure: bool) -> tuple[By, int]:
    """What denied a call, and the mask of the capabilities for want of which.

    ``memory``: the last capability refused in it was for a reserve of memory; ``sure``: that it
    was not seen to enter means that it did not.
    """
    if how.kind in (Kind.TRAPPED, Kind.KILLED):
        return "seccomp", 0
    if how.kind in (Kind.SECCOMP, Kind.DOUBTED):
        return ("seccomp" if sure else "unknown"), 0
    if how.kind is Kind.SKIPPED:
        return "tracer", 0
    wanted = how.refused & ~_FSETID & ~(_SYS_ADMIN if memory else 0)
    if called(how.number, how.compat).split(" ", 1)[0] in _ACCESS:
        wanted |= how.overridden
    return ("capability", wanted) if wanted else ("other", 0)


def outcome(how: Refusal) -> str:
    """What came of it."""
    if how.kind is Kind.TRAPPED:
        return "SIGSYS"
    return "killed" if how.kind is Kind.KILLED else syscalltable.error_name(how.errno)


def hint(how: Refusal, by: By, wanted: int) -> str:
    """What to do about it, or where to look."""
    if by == "seccomp":
        return _seccomp_hint(how)
    if by == "tracer":
        return "a debugger or the like skipped the call"
    if by == "unknown":
        return "the first event of its task: seccomp, or a call that began before the trace"
    return _capability_hint(how, wanted) if wanted else _other_hint(how)


def _seccomp_hint(how: Refusal) -> str:
    if how.errno == errnos.ENOSYS:
        return "the seccomp profile says that there is no such call; programs often try another"
    return "the seccomp profile refuses it: no capability helps, the profile must allow it"


def _capability_hint(how: Refusal, wanted: int) -> str:
    names = " or ".join(capability.names(wanted))
    if wanted & ~how.elsewhere == 0:
        return f"it has {names}, but not over the user namespace that this belongs to"
    if wanted & 0b110:  # DAC_OVERRIDE, DAC_READ_SEARCH
        return f"the file's owner and mode do not let it, and it has not {names}"
    return f"it takes {names}"


def _other_hint(how: Refusal) -> str:
    name = called(how.number, how.compat).split(" ", 1)[0]
    access = "owner, mode, a mount option such as noexec, or a security module"
    return _OTHERS.get(name, access if how.errno == errnos.EACCES else _NO_CAPABILITY)


def certain(
    found: Iterable[sensor.Refused],
    missed: bool,
    failures: Iterable[tuple[int, bool, int, int]],
) -> Iterator[tuple[sensor.Refused, bool]]:
    """Each with whether its not having been seen to enter means that seccomp refused it.

    A doubtful one is like those that are sure of the same call and error. Where the kernel left
    out runs of the programs, one that entered may not have been seen to: so calls that also fail
    like that when they do enter are not put down to seccomp.
    """
    found = tuple(found)
    entered = {failure[:3] for failure in failures} if missed else set()
    sure = {_alike(one.how) for one in found if one.how.kind is Kind.SECCOMP} - entered
    for one in found:
        yield one, _alike(one.how) in sure


def _alike(how: Refusal) -> tuple[int, bool, int]:
    return how.number, how.compat, how.errno


def merged(denials: Iterable[Denial]) -> list[Denial]:
    """Those that are told alike as one, the most frequent first."""
    found: dict[tuple[object, ...], Denial] = {}
    for one in denials:
        alike = (one.syscall, one.outcome, one.by, one.capabilities, one.site, one.hint)
        before = found.get(alike)
        count = one.count + (before.count if before else 0)
        found[alike] = structs.replace(before or one, count=count)
    return sorted(found.values(), key=lambda one: (-one.count, one.syscall))
