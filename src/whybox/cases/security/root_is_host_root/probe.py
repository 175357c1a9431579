"""uid 0 inside is uid 0 outside: the tasks' ids as the host sees them, and what they can reach."""

from collections.abc import Iterable, Iterator

from msgspec import Struct

from whybox.change import RunAsUser, WithUserNamespace
from whybox.kernel import capability, exposure, task, uidmap
from whybox.kernel.exposure import Shown
from whybox.kernel.host import Host, ParseError, printable
from whybox.kernel.mountinfo import mounts
from whybox.kernel.namespace import INITIAL, namespace
from whybox.kernel.target import Target, processes
from whybox.kernel.task import TaskId
from whybox.kernel.uidmap import Range
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

MOST_TASKS = 512
MOST_SHOWN = 4

#: Beyond what engines leave to root, these alone lead out of a container.
STRONG = frozenset({"SYS_ADMIN", "SYS_PTRACE", "SYS_MODULE", "SYS_RAWIO", "DAC_READ_SEARCH", "BPF"})
#: Engines mount these read-only, or not at all.
KERNEL_TREES = ("sysfs", "cgroup", "debugfs", "tracefs", "securityfs", "efivarfs")


class Root(Struct, frozen=True, kw_only=True):
    """A task whose effective uid is 0 as the reader sees it, or that may make it so at any time."""

    id: TaskId
    nspid: int
    comm: str
    user_namespace: int | None
    cap_eff: int
    seccomp: int | None
    no_new_privs: bool
    kept: bool = False
    """Its effective uid is another, and 0 is kept as the real or the saved one."""


class Observation(Struct, frozen=True, kw_only=True):
    """Who its tasks are, seen from the reader's user namespace, and what is within their reach."""

    reader_namespace: int | None
    reader_map: tuple[Range, ...] | None
    """From inside, it shows the parent namespace's ids."""
    init_pid: int
    init_uid: int
    init_map: tuple[Range, ...] | None
    init_no_new_privs: bool
    init_gid: int | None = None
    tasks: int
    """How many could be looked at."""
    roots: tuple[Root, ...]
    """The first of them is PID 1, where that is one."""
    mounts: tuple[Shown, ...]
    devices: tuple[str, ...] | None
    shared: tuple[str, ...]
    """Namespaces that are the host's."""


def observe(host: Host, target: Target) -> Watch[Observation]:
    """Read who its tasks are, before and after: an engine is root while it starts one for it."""
    init = target.init
    if init is None:
        raise OSError("it is not running")
    first = task.status(host, init.pid)
    before = {root.id for root in _roots(host, _pids(host, target))}
    yield
    pids = _pids(host, target)
    roots = [root for root in _roots(host, pids) if root.id in before]
    seen = mounts(host, init.pid)
    # From inside, the reader's mounts are the container's own and say nothing of the host's.
    outside = target.runtime != "self"
    return Observation(
        reader_namespace=namespace(host, "self", "user"),
        reader_map=uidmap.read(host, "self"),
        init_pid=init.pid,
        init_uid=first.uid[1],
        init_map=uidmap.read(host, init.pid),
        init_no_new_privs=first.no_new_privs,
        init_gid=first.gid[1],
        tasks=len(pids),
        roots=tuple(sorted(roots, key=lambda r: (r.id.pid != init.pid, r.id.pid))),
        mounts=()
        if target.own("mnt") is False
        else exposure.shown(host, seen, from_outside=outside),
        devices=exposure.devices(host, init.pid, seen),
        shared=tuple(kind for kind in ("pid", "net", "mnt") if target.own(kind) is False),
    )


def _pids(host: Host, target: Target) -> tuple[int, ...]:
    first = () if target.init is None else (target.init.pid,)
    # In its own pid namespace a container sees its own processes and no others.
    inside = target.runtime == "self" and first == (1,)
    every = task.pids(host) if inside else processes(host, target)
    return tuple(dict.fromkeys(first + every))[:MOST_TASKS]


def _roots(host: Host, pids: Iterable[int]) -> Iterator[Root]:
    for pid in pids:
        try:
            status = task.status(host, pid)
            # Real, effective or saved: setresuid(2) makes any of them the effective one.
            if 0 not in status.uid[:3] or status.state in "ZX":
                continue
            yield Root(
                id=task.stat(host, pid).id,
                nspid=status.nspid[-1],
                comm=status.name,
                user_namespace=namespace(host, pid, "user"),
                cap_eff=status.cap_eff,
                seccomp=status.seccomp,
                no_new_privs=status.no_new_privs,
                kept=status.uid[1] != 0,
            )
        except (OSError, ParseError):
            continue  # it ended


def judge(seen: Observation) -> Finding:
    """Found where uid 0 of a task is uid 0 of the host."""
    if not seen.roots:
        return clear(_other_user(seen), evidence=_who(seen))
    if _is_initial(seen):
        return _found(seen)
    parent = None if seen.reader_map is None else uidmap.outside(seen.reader_map, 0)
    if parent == 0 or seen.reader_map is None:
        return unknown(
            "it runs as root in a user namespace within another one, where uid 0 is uid 0 too: "
            "whether that one is the host's does not show from here, so ask on the host",
            evidence=_who(seen),
        )
    return clear(_mapped(parent), evidence=_who(seen))


def _is_initial(seen: Observation) -> bool:
    """Whether ids read here are the host's own."""
    if seen.reader_namespace is not None:
        return seen.reader_namespace == INITIAL["user"]
    return seen.reader_map == (Range(inside=0, outside=0, count=2**32 - 1),)


def _mapped(uid: int | None) -> str:
    return f"It has a user namespace: uid 0 inside is uid {_named(uid)} outside."


def _named(uid: int | None) -> str:
    return "of nobody" if uid is None else str(uid)


def _other_user(seen: Observation) -> str:
    mapped = None if seen.init_map is None else uidmap.outside(seen.init_map, 0)
    if mapped is not None and mapped != 0:
        return _mapped(mapped)
    regain = "" if seen.init_no_new_privs else ", though a setuid program could still become root"
    group = " in root's group 0" if seen.init_gid == 0 else ""
    return f"No task of it is root: it runs as uid {seen.init_uid}{group}{regain}."


def _who(seen: Observation) -> tuple[Evidence, ...]:
    status = Evidence(f"/proc/{seen.init_pid}/status", f"effective uid {seen.init_uid}")
    ranges = seen.init_map or ()
    said = ", ".join(f"{r.inside} {r.outside} {r.count}" for r in ranges[:MOST_SHOWN])
    return (status, Evidence(f"/proc/{seen.init_pid}/uid_map", said)) if said else (status,)


def _found(seen: Observation) -> Finding:
    reach = tuple(_reach(seen))
    return Finding(
        verdict=Verdict.FOUND,
        certainty=Certainty.LIKELY if seen.reader_namespace is None else Certainty.CONFIRMED,
        severity=Severity.WARNING if reach else Severity.INFO,
        summary=_summary(seen, reach),
        evidence=(*_tasks(seen), *_who(seen)[1:], *reach),
        ruled_out=_ruled_out(seen),
        cures=_cures(reach),
    )


def _summary(seen: Observation, reach: tuple[Evidence, ...]) -> str:
    names = ", ".join(f"{printable(r.comm)} ({r.nspid})" for r in seen.roots[:MOST_SHOWN])
    more = ", …" if len(seen.roots) > MOST_SHOWN else ""
    if len(seen.roots) == seen.tasks:
        who = "It runs as root"
    else:
        who = f"{len(seen.roots)} of its {seen.tasks} processes run as root, {names}{more}"
    matters = f", which matters here since {reach[0].says}" if reach else ""
    others = f" (and {len(reach) - 1} more)" if len(reach) > 1 else ""
    return f"{who}: uid 0 inside is uid 0 outside{matters}{others}."


def _tasks(seen: Observation) -> tuple[Evidence, ...]:
    return tuple(
        Evidence(f"/proc/{r.id.pid}/status", f"{printable(r.comm)}: {_as_root(r)}")
        for r in seen.roots[:MOST_SHOWN]
    )


def _as_root(root: Root) -> str:
    return "uid 0 kept to come back to" if root.kept else "effective uid 0"


def _reach(seen: Observation) -> Iterator[Evidence]:
    """What makes it matter, the worst first."""
    yield from _sockets(seen)
    yield from _capabilities(seen)
    yield from _directories(seen)
    if seen.devices:
        nodes = ", ".join(seen.devices[:MOST_SHOWN])
        yield Evidence(f"/proc/{seen.init_pid}/root/dev", f"it has the host's devices {nodes}")
    # A process with the host's own mounts is no container: all namespaces are the host's.
    if seen.shared and "mnt" not in seen.shared:
        kinds = " and ".join(seen.shared)
        file = f"/proc/{seen.init_pid}/ns/{seen.shared[0]}"
        yield Evidence(file, f"it shares the host's {kinds} namespace")


def _sockets(seen: Observation) -> Iterator[Evidence]:
    for path in sorted({m.socket for m in seen.mounts if m.socket is not None}):
        file = f"/proc/{seen.init_pid}/mountinfo"
        yield Evidence(file, f"the engine's socket {path} is mounted into it")


def _capabilities(seen: Observation) -> Iterator[Evidence]:
    # In a user namespace of its own they hold for what belongs to that, not for the host.
    real = [r for r in seen.roots if r.user_namespace in (None, INITIAL["user"])]
    for root in real:
        beyond = capability.names(root.cap_eff & ~capability.DEFAULT)
        strong = [name for name in beyond if name in STRONG]
        if strong:
            said = f"{printable(root.comm)} has {', '.join(strong)}"
            yield Evidence(f"/proc/{root.id.pid}/status", f"{said} (CapEff {root.cap_eff:016x})")
            break
    open_ = next((r for r in real if r.seccomp == 0 and r.cap_eff), None)
    if open_ is not None:
        said = f"no system call is filtered for {printable(open_.comm)} (Seccomp 0)"
        yield Evidence(f"/proc/{open_.id.pid}/status", said)


def _directories(seen: Observation) -> Iterator[Evidence]:
    file = f"/proc/{seen.init_pid}/mountinfo"
    for mount in seen.mounts:
        if not mount.writable:
            continue
        at = mount.mountpoint
        if mount.host_path is not None and exposure.is_the_host(mount.host_path):
            yield Evidence(file, f"the host's {mount.host_path} is mounted at {at}, writable")
        elif mount.fstype in KERNEL_TREES:
            yield Evidence(file, f"{mount.fstype} is mounted at {at}, writable")
    over = [m for m in seen.mounts if m.mountpoint in ("/proc", "/proc/sys")]
    if over and over[-1].mountpoint == "/proc" and over[-1].writable:
        yield Evidence(file, "/proc/sys is writable")


def _ruled_out(seen: Observation) -> tuple[RuledOut, ...]:
    said = "effective uid 0 was read from the host's own user namespace"
    return (
        RuledOut("a user namespace that makes uid 0 somebody else", said),
        RuledOut(
            "an engine's own process, which is root while it starts one",
            f"the same {len(seen.roots)} were root before and after the window",
        ),
    )


def _cures(reach: tuple[Evidence, ...]) -> tuple[Cure, ...]:
    user = Cure(
        advice=(
            "Run it as a user of its own (USER 1000:1000 in the image, docker run -u 1000:1000, "
            "runAsUser and runAsGroup), and give that user the directories it writes to."
        ),
        change=RunAsUser(1000, 1000),
        safety=Safety.MUTATING,
    )
    mapped = Cure(
        advice="Or, where it needs root inside, map that to nobody outside (--userns-remap).",
        change=WithUserNamespace(),
        safety=Safety.MUTATING,
    )
    less = (
        "Take away what it can reach: no engine socket, no directories of the host or read-only "
        "ones, --cap-drop ALL and back what it needs, the default seccomp profile."
    )
    gain = "And let no program gain rights: --security-opt no-new-privileges."
    return (user, mapped, Cure(advice=less if reach else gain, safety=Safety.MUTATING))


CASE = Case(
    title="Root inside is root outside",
    question="What if it runs as root?",
    question_zh="在容器中,我不以 root 用户来运行程序可以吗?",
    lesson="20",
    needs=(living,),
    observation=Observation,
    observe=observe,
    judge=judge,
)
