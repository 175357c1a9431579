"""What is said of tasks that are blocked in the kernel: for what, by which evidence, what to do."""

from collections import Counter
from collections.abc import Sequence

from whybox.change import Change, InProgram, ThawFilesystem
from whybox.kernel import waitsite
from whybox.kernel.blocked import Child
from whybox.kernel.blockedfile import Place
from whybox.kernel.waitsite import Kind
from whybox.model import Cure, Evidence, RuledOut, Safety

from .seen import Observation, Stuck

_MEANS: dict[Kind, str] = {
    "network": "waiting for the answer of a network file system's server",
    "fuse": "waiting for the program that serves a FUSE file system",
    "lock": "waiting for a lock that somebody else does not give back",
    "journal": "waiting for the journal of a file system, which waits for its device",
    "swap": "waiting for memory to come back from swap",
    "device": "waiting for a device that does not answer",
    "other": "and what is waited for there is not known to whybox",
}

_ADVICE: dict[Kind, str] = {
    "memory": (
        "Give it more memory, or let it use less: memory/reclaim_stalled says which limit and how "
        "much. They go on as soon as the limit is raised."
    ),
    "network": (
        "Bring the server or the way to it back; umount -f ends waits for a server that is gone "
        "for good."
    ),
    "fuse": (
        "See to the program that serves it, or end the waits: write 1 to "
        "/sys/fs/fuse/connections/N/abort on the host."
    ),
    "lock": (
        "Find who holds the lock: on the host echo w > /proc/sysrq-trigger logs the stacks of all "
        "tasks in D; the holder is one of them, or runs."
    ),
    "journal": "See to the device under it: dmesg, smartctl, /proc/diskstats (I/Os in flight).",
    "device": "See to the device: dmesg, smartctl, multipath, /proc/diskstats (I/Os in flight).",
    "swap": "See to the device of the swap (/proc/swaps), or give the container more memory.",
    "other": (
        "The stack names the part of the kernel, often a driver: see dmesg and what is known of it."
    ),
}


def summary(seen: Observation, held: Sequence[Stuck], mine: Sequence[Stuck], kind: Kind) -> str:
    """How many, for how long, where, and for what."""
    least = min(one.share for one in mine)
    lasts = "all" if least >= 0.995 else f"at least {least:.0%}"
    are = "1 task of it is" if len(mine) == 1 else f"{len(mine)} of its {seen.threads} tasks are"
    site = Counter(one.where for one in mine).most_common(1)[0][0]
    more = len(held) - len(mine)
    others = f"; {more} more wait for something else, maybe for these" if more else ""
    return (
        f"{are} blocked in the kernel (state D) for {lasts} of these {seen.seconds:.1f} s at "
        f"{site}, {_means(mine, kind)}{others}."
    )


def _means(mine: Sequence[Stuck], kind: Kind) -> str:
    match kind:
        case "frozen":
            return f"waiting to write to {_named(mine) or 'a file system'}, which is frozen"
        case "vfork":
            return f"waiting until a vfork child executes a program or ends{_child(mine[0])}"
        case "memory":
            return _memory(mine)
        case _:
            named = _named(mine)
            return _MEANS[kind] + (f": {named}" if named else "")


def _places(mine: Sequence[Stuck]) -> list[Place]:
    return list({one.place.mountpoint: one.place for one in mine if one.place}.values())


def _named(mine: Sequence[Stuck]) -> str:
    named = [f"the {p.fstype} of {p.source} at {p.mountpoint}" for p in _places(mine)]
    return " and ".join(named[:3])


def _child(one: Stuck) -> str:
    child = None if one.detail is None else one.detail.child
    return "" if child is None else f": {one.named} for {_child_named(child)}"


def _child_named(child: Child) -> str:
    does = "" if child.site is None else f" at {child.site}"
    return f"{child.comm} (pid {child.pid}, state {child.state}{does})"


def _memory(mine: Sequence[Stuck]) -> str:
    sites = {name for one in mine for name in one.stack}
    if any("over_high" in name for name in sites):
        return "put to sleep because the container, or a parent of it, is above its memory.high"
    if any("oom_synchronize" in name for name in sites):
        return "waiting for memory: the limit is reached, and the OOM killer is switched off"
    return "waiting until memory is freed"


def evidence(seen: Observation, held: Sequence[Stuck], mine: Sequence[Stuck]) -> list[Evidence]:
    """Who, since when, and where, by the files that say so."""
    some = ", ".join(str(one.tid) for one in mine[:8]) + (" …" if len(mine) > 8 else "")
    says = f"state D with the same start at both looks, {seen.seconds:.1f} s apart: {some}"
    first = mine[0]
    found = [
        Evidence("/proc/TID/stat", says + _sampled(first)),
        Evidence(f"/proc/{first.tid}/wchan", first.site or "0 (it may not be read here)"),
    ]
    if first.detail is not None and first.detail.stack:
        stack = waitsite.shortened(first.detail.stack)
        found.append(Evidence(f"/proc/{first.tid}/stack", stack))
    if first.detail is not None and first.detail.call is not None:
        path = f" of {first.place.path}" if first.place is not None and first.place.path else ""
        found.append(Evidence(f"/proc/{first.tid}/syscall", f"{first.detail.call}{path}"))
    if first.switches is not None:
        says = f"given a CPU {first.switches} times between the two looks"
        found.append(Evidence(f"/proc/{first.tid}/schedstat", says))
    if killed := [one for one in held if one.detail is not None and one.detail.killed]:
        says = f"SIGKILL is pending (SigPnd or ShdPnd 100) at {len(killed)} of them: none can end"
        found.append(Evidence(f"/proc/{killed[0].tid}/status", says))
    return found


def _sampled(one: Stuck) -> str:
    if one.sampled is None:
        return ""
    return f"; {one.tid} at {one.sampled.blocked} of {one.sampled.samples} looks in between"


def load(seen: Observation) -> tuple[Evidence, ...]:
    """Its own part of the load average, which is the whole machine's."""
    if seen.loadavg is None:
        return ()
    says = (
        f"{' '.join(seen.loadavg.split()[:3])} on this machine; this container's part of it now: "
        f"{seen.blocked[1]} tasks in D, {seen.running[1]} in R; the rest is of others, or past"
    )
    return (Evidence("/proc/loadavg", says),)


def ruled_out(seen: Observation, mine: Sequence[Stuck]) -> tuple[RuledOut, ...]:
    """The look-alikes."""
    runs = f"those are in R, as {seen.running[1]} of its tasks are; these are in D"
    wait = min(one.wait_ns(seen.elapsed_ns) for one in mine) / 1e9
    return (
        RuledOut("cpu/throttled", runs),
        RuledOut("a paused container", "it is not frozen, and none waits in __refrigerator"),
        RuledOut(
            "a load average of the past, or of others",
            "states were looked at now, and of this container's tasks alone",
        ),
        RuledOut("ordinary waits for a disk or a lock", f"one wait lasts {wait:.1f} s here"),
    )


def cures(seen: Observation, mine: Sequence[Stuck], kind: Kind) -> tuple[Cure, ...]:
    """What ends the waits."""
    match kind:
        case "frozen":
            return _thaw(mine, inside=seen.inside)
        case "vfork":
            change: Change = InProgram("let the vfork child execute a program or end at once")
            return (Cure(advice=_end_child(mine), safety=Safety.LOW_RISK, change=change),)
        case _:
            return (Cure(advice=_ADVICE[kind], safety=Safety.INSPECT),)


def _thaw(mine: Sequence[Stuck], *, inside: bool) -> tuple[Cure, ...]:
    by = (
        "Somebody with CAP_SYS_ADMIN on the host froze it: fsfreeze, a snapshot of a volume, an "
        "agent of the virtual machine's backup. If that still runs let it end; if it died, thaw."
    )
    places = _places(mine)
    if inside or not places:
        find = "" if places else " Which one is not told here: see what the tasks write to."
        return (Cure(advice=by + find, safety=Safety.INSPECT),)
    return tuple(
        Cure(advice=by, safety=Safety.MUTATING, change=ThawFilesystem(mountpoint=place.mountpoint))
        for place in places
    )


def _end_child(mine: Sequence[Stuck]) -> str:
    child = mine[0].detail.child if mine[0].detail is not None else None
    who = "the child" if child is None else _child_named(child)
    return (
        f"See what {who} does instead of executing a program, and end it: its parent goes on at "
        "once. In the program use posix_spawn(), and nothing between vfork() and exec()."
    )
