"""Shared memory refused: a limit of its IPC namespace is reached, or a tmpfs is full.

Told by the state, which is exhausted only where the next one is refused; who ran into it in this
window, and a segment that was too large, a sensor tells.
"""

from whybox.change import HostSysctl, InProgram, ShmSize, Sysctl
from whybox.kernel import refusals
from whybox.kernel.host import Host
from whybox.kernel.refusals import Refused, What
from whybox.kernel.sharedmemory import SharedMemory, Use, looked_at, mounts_of
from whybox.kernel.shmshortage import Shortage, shortages, size
from whybox.kernel.sysvipc import PAGE_BYTES, Segment
from whybox.kernel.target import Target
from whybox.model import (
    Case,
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

Observation = SharedMemory

SHM = "/dev/shm"
#: Where so little is taken nobody was refused a moment ago either.
LITTLE = 0.1

_SENSOR = "raw_syscalls:sys_exit and signal:signal_generate"


def observe(host: Host, target: Target) -> Watch[Observation]:
    """Watch who is refused; look at the namespace and the mounts at the end."""
    before, _ = mounts_of(host, target)
    with refusals.watch(host, target) as refused:
        yield
        seen = refused()
    return looked_at(host, target, before, seen)


def judge(seen: Observation) -> Finding:
    """Found where the next one is refused, or somebody was within this window."""
    found = shortages(seen)
    if found:
        return _found(found[0], found[1:], seen)
    if seen.ended:
        return _ended(seen)
    if seen.ipc is None or seen.mounts_reason is not None:
        return unknown(f"{seen.ipc_reason or seen.mounts_reason}: ask as root on the host")
    if seen.refused.reason is not None and _taken(seen, seen.ipc) > LITTLE:
        return unknown(
            f"{_room(seen, seen.ipc)} Whether anybody was refused meanwhile is not seen: "
            f"{seen.refused.reason}."
        )
    return clear(_room(seen, seen.ipc), evidence=(*_lists(seen), *_watched(seen)))


def _taken(seen: Observation, use: Use) -> float:
    """The largest share that is taken of what it may have."""
    mounts = (one.used_bytes / one.size_bytes for one in seen.mounts if one.size_bytes)
    return max((use.segments / max(use.limits.shmmni, 1), *mounts), default=0.0)


def _ended(seen: Observation) -> Finding:
    gone = "it ended within the window, and its IPC namespace and its tmpfs mounts with it"
    if seen.refused.reason is not None:
        return unknown(f"{gone} ({seen.refused.reason})")
    return clear(f"Nobody was refused shared memory before {gone}.", evidence=_watched(seen))


def _found(worst: Shortage, others: tuple[Shortage, ...], seen: Observation) -> Finding:
    also = "".join(f"; the same goes for {one.what} ({one.says})" for one in others[:2])
    return Finding(
        verdict=Verdict.FOUND,
        severity=Severity.CRITICAL if worst.refused else Severity.WARNING,
        summary=f"{_refusal(worst)}: {worst.says}{_holders(worst, seen)}{also}.",
        evidence=_evidence(worst, seen),
        ruled_out=_ruled_out(worst, seen),
        cures=_cures(worst, seen),
    )


def _refusal(worst: Shortage) -> str:
    if not worst.refused:
        return f"The next who wants {worst.what} is refused"
    last, many = worst.refused[-1], refusals.times(worst.refused)
    return (
        f"{last.comm} (pid {last.pid}) was refused {worst.what} ({last.how}) {many} in this window"
    )


def _holders(worst: Shortage, seen: Observation) -> str:
    """Who has it all."""
    if worst.mount is not None:
        files = ", ".join(f"{name} ({size(bytes)})" for name, bytes in worst.mount.largest)
        return f", most of it by {files}" if files else ""
    use = seen.ipc
    if use is None or "segment" not in worst.what or not use.detached:
        return ""
    return f"; {use.detached} of {use.segments} segments ({size(use.detached_bytes)}) nobody holds"


def _evidence(worst: Shortage, seen: Observation) -> tuple[Evidence, ...]:
    where = f"df {worst.file}" if worst.mount is not None else worst.file
    said = list(dict.fromkeys(f"{one.comm} (pid {one.pid}): {one.how}" for one in worst.refused))
    sensed = (Evidence(_SENSOR, "; ".join(said[:3])),) if said else ()
    return (Evidence(where, worst.says), *sensed, *(() if worst.mount else _lists(seen)))


def _lists(seen: Observation) -> tuple[Evidence, ...]:
    use = seen.ipc
    if use is None:
        return ()
    largest = "; ".join(_segment(one, use) for one in use.largest[:3])
    said = f"{use.segments} segments, {use.pages} pages{': ' if largest else ''}{largest}"
    return (Evidence("/proc/sysvipc/shm", said),)


def _segment(one: Segment, use: Use) -> str:
    holders = f"{one.attached} attached" if one.attached else "held by nobody"
    said = f"shmid {one.id}, {size(one.bytes)}, uid {one.uid}, {holders}"
    if not one.creator_pid:
        return said  # made in a pid namespace that is not seen from here
    ended = "" if one.creator_pid in use.living else ", which has ended"
    return f"{said}, made by pid {one.creator_pid}{ended}"


def _watched(seen: Observation) -> tuple[Evidence, ...]:
    said = seen.refused.reason or "nobody was refused for want of room"
    return (Evidence(_SENSOR, said),)


def _ruled_out(worst: Shortage, seen: Observation) -> tuple[RuledOut, ...]:
    killed = "what is over the memory limit is killed by SIGKILL; here the call or the fault failed"
    if worst.mount is not None:
        return (
            RuledOut("the memory limit", killed),
            RuledOut("a full disk", f"{worst.file} is a tmpfs, with a size of its own"),
            RuledOut("a file that was cut off (SIGBUS too)", _not_cut_off(worst.refused)),
        )
    use = seen.ipc
    keys = "" if use is None else f", {len(use.known_keys)} of the keys asked for exist"
    return (
        RuledOut(
            "the memory limit", "a segment is charged when it is touched, not when it is made"
        ),
        RuledOut("rights or an existing key", f"those are EACCES and EEXIST{keys}"),
        RuledOut("/dev/shm", "System V segments are not in it, and have limits of their own"),
    )


def _not_cut_off(refused: tuple[Refused, ...]) -> str:
    if any(one.errno is None for one in refused):
        return "the page that was touched lies before the end of its file"
    return "the file system itself has no page left"


def _cures(worst: Shortage, seen: Observation) -> tuple[Cure, ...]:
    tidy = _remove(worst, seen)
    raised = _larger(worst, seen) if worst.mount is not None else _allow(worst, seen)
    return (*raised, *tidy)


def _larger(worst: Shortage, seen: Observation) -> tuple[Cure, ...]:
    mount, enough = worst.mount, worst.enough_bytes
    if mount is None:
        return ()
    limit = seen.memory_limit_bytes
    charged = (
        ""
        if limit is None or limit > enough
        else (f" It is charged to the memory limit, which is {size(limit)}: raise that too.")
    )
    if mount.mountpoint == SHM:
        advice = f"Make /dev/shm {size(enough)} large.{charged}"
        return (Cure(advice=advice, change=ShmSize(enough), safety=Safety.LOW_RISK),)
    advice = f"Mount {mount.mountpoint} with size={enough >> 20}m.{charged}"
    return (Cure(advice=advice, change=InProgram(advice), safety=Safety.LOW_RISK),)


def _allow(worst: Shortage, seen: Observation) -> tuple[Cure, ...]:
    if worst.parameter is None or not worst.enough:
        return ()
    if seen.own_ipc is False:
        change = HostSysctl(worst.parameter, worst.enough)
        advice = f"It uses the host's IPC namespace: allow more there, {worst.parameter}."
        return (Cure(advice=advice, change=change, safety=Safety.MUTATING),)
    advice = (
        f"Allow more in its IPC namespace, {worst.parameter}; a new container begins with the "
        "defaults again, unless it is made with --sysctl (Kubernetes: securityContext.sysctls)."
    )
    change_own = Sysctl(worst.parameter, worst.enough)
    return (Cure(advice=advice, change=change_own, safety=Safety.LOW_RISK),)


def _remove(worst: Shortage, seen: Observation) -> tuple[Cure, ...]:
    if worst.mount is not None:
        advice = f"Or remove what nobody needs from {worst.mount.mountpoint}."
        return (Cure(advice=advice, safety=Safety.DESTRUCTIVE),)
    use = seen.ipc
    left = [] if use is None else [s for s in use.largest if not s.attached]
    if "segment" not in worst.what or not left:
        return ()
    advice = (
        "Or remove segments that nobody holds, once it is sure that nobody comes back for them "
        f"(in its namespace: ipcrm {' '.join(f'-m {one.id}' for one in left)}), and have the "
        "program remove its own (shmctl IPC_RMID right after shmat)."
    )
    return (Cure(advice=advice, safety=Safety.DESTRUCTIVE),)


def _room(seen: Observation, use: Use) -> str:
    fullest = max(seen.mounts, key=lambda one: one.used_bytes / one.size_bytes, default=None)
    mount = (
        ""
        if fullest is None
        else (
            f", and the fullest tmpfs is {fullest.mountpoint} with {size(fullest.used_bytes)} of "
            f"{size(fullest.size_bytes)}"
        )
    )
    other = seen.refused.of(What.SEGMENT, What.SEMAPHORES, What.QUEUE)
    not_ours = f" ({other[0].how} was not for want of room)" if other else ""
    return (
        f"Nothing shared is used up: {use.segments} of {use.limits.shmmni} segments with "
        f"{size(use.pages * PAGE_BYTES)}{mount}{not_ours}."
    )


CASE = Case(
    title="Out of shared memory",
    question="Why does shmget, or /dev/shm, fail in my container?",
    question_zh="为什么 shmget 或 /dev/shm 在容器里失败?",
    lesson="Q",
    needs=(living,),
    observation=Observation,
    observe=observe,
    judge=judge,
    outlives=True,
)
