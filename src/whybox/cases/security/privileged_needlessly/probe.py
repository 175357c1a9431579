"""Privileged without need: what it holds beyond an ordinary container, and what of it it used."""

from collections.abc import Iterator

from whybox.change import OnlyCapabilities, SeccompProfile
from whybox.kernel import capability, rights
from whybox.kernel.host import Host
from whybox.kernel.rights import Given, Rights
from whybox.kernel.target import Target
from whybox.model import (
    Case,
    Certainty,
    Cure,
    Evidence,
    Finding,
    RuledOut,
    Safety,
    Severity,
    Verdict,
    Watch,
    clear,
    unknown,
)
from whybox.needs import living

Observation = Rights

MOST_SHOWN = 6
#: Beyond what engines leave to root, each of these alone leads out of a container.
STRONG = capability.mask(
    ("SYS_ADMIN", "SYS_PTRACE", "SYS_MODULE", "SYS_RAWIO", "DAC_READ_SEARCH", "BPF")
)
#: So many beyond the ordinary were not given one by one, for a reason each.
MANY = 5
#: From so many on it is privileged in all but name (--privileged itself: all).
WHOLESALE = 20

_CHECKS = "capability:cap_capable"

#: Calls that no program starts without, whenever it is looked at.
_START = """
    access arch_prctl brk clone clone3 close dup2 execve exit exit_group faccessat2 fcntl fstat
    futex getcwd getdents64 getegid geteuid getgid getpid getppid getrandom gettid getuid ioctl
    lseek mmap mprotect munmap newfstatat openat pipe2 prctl pread64 prlimit64 read readlink rseq
    rt_sigaction rt_sigprocmask rt_sigreturn sched_getaffinity set_robust_list set_tid_address
    sigaltstack statx tgkill wait4 write writev
"""


def observe(host: Host, target: Target) -> Watch[Observation]:
    """Read what it holds; where that is beyond the ordinary, watch what of it is used."""
    with rights.watch(host, target) as seen:
        yield
        return seen()


def judge(seen: Observation) -> Finding:
    """Found where much that leads out of a container is held, and was not used."""
    if not seen.contained:
        return clear("It is a process of the host's, with the host's own mounts: no container.")
    if seen.user_namespace:
        return clear(
            "What it holds ends at its user namespace: over the host it has none of it.",
            evidence=_held(seen),
        )
    beyond = seen.held & ~capability.DEFAULT
    if not beyond:
        return clear(_ordinary(seen), evidence=_held(seen))
    if seen.reason is not None:
        return unknown(f"what of it is used is not seen: {seen.reason}", evidence=_held(seen))
    used = capability.mask(one.name for one in seen.used)
    needless = beyond & ~used
    if not needless & STRONG and needless.bit_count() < MANY:
        return clear(_modest(beyond, needless), evidence=_held(seen))
    return _found(seen, beyond, needless)


def _ordinary(seen: Observation) -> str:
    if not seen.held:
        return "None of its processes holds a capability."
    count = seen.held.bit_count()
    return f"It holds {count} capabilities, none of them beyond what engines leave to root."


def _modest(beyond: int, needless: int) -> str:
    says = f"It holds {_names(beyond)} beyond the ordinary"
    if needless:
        return f"{says}; {_names(needless)} was not used in this window, and leads nowhere alone."
    return f"{says}, and used all of it in this window."


def _names(mask: int) -> str:
    names = (*capability.names(mask & STRONG), *capability.names(mask & ~STRONG))
    more = f" and {len(names) - MOST_SHOWN} more" if len(names) > MOST_SHOWN else ""
    return ", ".join(names[:MOST_SHOWN]) + more


def _held(seen: Observation) -> tuple[Evidence, ...]:
    file = f"/proc/{seen.init_pid}/status"
    filtered = "filtered" if seen.filtered else "not filtered (Seccomp 0)"
    held = f"CapEff {seen.held:016x} of {seen.holder}" if seen.holder else "CapEff 0 of all"
    return (Evidence(file, f"{held}; its calls are {filtered}"),)


def _found(seen: Observation, beyond: int, needless: int) -> Finding:
    return Finding(
        verdict=Verdict.FOUND,
        # What was not done in a window may be done at the next start.
        certainty=Certainty.LIKELY,
        severity=Severity.WARNING,
        summary=_summary(seen, beyond, needless),
        evidence=(*_held(seen), *_evidence(seen)),
        ruled_out=_ruled_out(),
        cures=_cures(seen),
    )


def _summary(seen: Observation, beyond: int, needless: int) -> str:
    count = beyond.bit_count()
    if count >= WHOLESALE:
        kind = "is privileged in all but name" if seen.filtered else "is as good as privileged"
        what = f"It {kind}: it holds {count} capabilities beyond the ordinary"
    else:
        what = f"It holds {_names(beyond)} beyond the ordinary"
    names = [one.name for one in seen.used]
    used = f"used {len(names)} of all that it holds ({', '.join(names)})" if names else "used none"
    idle = [one.what for one in _idle(seen)]
    also = f", nor opened anything of {', '.join(idle[:MOST_SHOWN])}" if idle else ""
    return (
        f"{what} and in this window {used}: {_names(needless)} was not needed{also}. What its "
        "start or a rare task needs was not exercised."
    )


def _idle(seen: Observation) -> Iterator[Given]:
    yield from (one for one in seen.devices or () if not one.used)
    yield from (one for one in seen.mounts if one.rules and not one.used)


def _evidence(seen: Observation) -> Iterator[Evidence]:
    for one in seen.used:
        where = f"in {one.call}" if one.call else "in no call"
        site = f", asked by {one.site}" if one.site else ""
        yield Evidence(
            _CHECKS, f"{one.name} granted {one.count} times, {where} of {one.comm}{site}"
        )
    if seen.wanted:
        yield Evidence(_CHECKS, f"refused: {', '.join(seen.wanted)}")
    for given in seen.mounts[:MOST_SHOWN]:
        said = f"the host's {given.of_host}, {_times(given)}"
        yield Evidence(f"/proc/{seen.init_pid}/mountinfo {given.what}", said)
    for given in (seen.devices or ())[:MOST_SHOWN]:
        yield Evidence(given.what, f"device {given.of_host}, {_times(given)}")
    if seen.proc_sys_writable:
        yield Evidence(f"/proc/{seen.init_pid}/mountinfo /proc/sys", "writable")
    if seen.shared:
        said = f"the host's {', '.join(seen.shared)} namespace"
        yield Evidence(f"/proc/{seen.init_pid}/ns", said)
    made = f"{len(seen.calls)} different calls were made"
    yield Evidence("raw_syscalls:sys_enter", made)
    if seen.lost:
        yield Evidence(_CHECKS, f"{seen.lost} checks were not seen")


def _times(given: Given) -> str:
    return f"used {given.used} times" if given.used else "not used"


def _ruled_out() -> tuple[RuledOut, ...]:
    asked = "no check for them was granted to it, but for those that every mapping of memory makes"
    return (
        RuledOut("a need for what it holds", asked),
        RuledOut(
            "a user namespace, beyond which it means nothing",
            "its user namespace is the host's",
        ),
        RuledOut(
            "overlayfs, which checks with the rights of whoever mounted it",
            "only checks of its tasks' own credentials count",
        ),
    )


def _cures(seen: Observation) -> tuple[Cure, ...]:
    names = tuple(one.name for one in seen.used)
    devices = tuple(one.what for one in seen.devices or () if one.used)
    mounts = ", ".join(one.what for one in seen.mounts if one.used) or "none"
    default = "" if seen.filtered else " and the engine's default seccomp profile"
    only = Cure(
        advice=(
            f"Run it without --privileged, with what it used and nothing else{default}; of the "
            f"host's directories it used: {mounts}. What only its start needs is not in this: "
            "trace it across a restart first (whybox trace capabilities)."
        ),
        change=OnlyCapabilities(names, devices),
        safety=Safety.MUTATING,
    )
    calls = tuple(sorted({*_START.split(), *(c for c in seen.calls if " " not in c)}))
    profile = Cure(
        advice=(
            f"Or let pass only the {len(seen.calls)} calls that were seen, and those of any "
            "start. A call that was not exercised will fail: watch a whole day's work first."
        ),
        change=SeccompProfile(calls),
        safety=Safety.MUTATING,
    )
    gain = Cure(
        advice=(
            "And let no program gain rights (--security-opt no-new-privileges, "
            "allowPrivilegeEscalation: false), unless it uses sudo or the like."
        ),
        safety=Safety.MUTATING,
    )
    return (only, profile, gain) if seen.calls else (only, gain)


CASE = Case(
    title="Privileged without need",
    question="Does my container really need privileged?",
    question_zh="我的容器真的需要 privileged 权限吗?",
    lesson="19",
    needs=(living,),
    observation=Observation,
    observe=observe,
    judge=judge,
)
