"""Who else used the CPUs that a container may run on: its neighbours by name.

A neighbour is a container, a service's group, or a process that is in no group of its own. A
container counts as one however many groups it makes inside.
"""

from collections.abc import Iterator, Mapping, Sequence

from msgspec import Struct

from whybox.kernel import cgroup, cpucensus, cpuset, cpuweight
from whybox.kernel.cgroup import Group
from whybox.kernel.cpucensus import Census, Process
from whybox.kernel.cpuweight import Contest, rest_below
from whybox.kernel.finding import recognise
from whybox.kernel.host import Host, ParseError, printable
from whybox.kernel.target import Target

#: Who used less than this share of the window is nobody's trouble; and no more than so many are
#: told, nor more processes asked where they belong.
LEAST_SHARE, MOST_RIVALS, MOST_ASKED = 0.01, 6, 24

#: A group whose groups below used this share of its time is told by them.
_MOSTLY = 0.8


class Rival(Struct, frozen=True, kw_only=True):
    """One neighbour over the window."""

    name: str
    """As people know it, harmless to print: ``docker 4f1c2a9b7d21``, ``make (pid 12)``."""
    source: str
    """The file that tells what it used."""
    used_ns: int
    cpus: tuple[int, ...] | None = None
    """Where it may run."""
    realtime: bool = False
    kernel: bool = False
    """A thread of the kernel, which works for whoever asked: also for the container."""
    processes: int = 1
    """How many of its processes were busy."""
    contest: Contest | None = None


class _Member(Struct, frozen=True, kw_only=True):
    """A busy process, and where it belongs."""

    process: Process
    used_ns: int
    cpu: str
    acct: str


def rivals(
    host: Host, target: Target, before: Census, after: Census, elapsed_ns: int
) -> tuple[Rival, ...]:
    """The neighbours that used most, the largest first."""
    own, acct = target.group(host, "cpu"), target.group(host, "cpuacct")
    tree = cpucensus.tree(host)
    if own is None or acct is None or tree is None:
        return ()
    if target.runtime == "self" and own.path == "/":
        return ()  # from inside of it all that can be seen is its own
    least = int(elapsed_ns * LEAST_SHARE)
    members = list(_members(host, own, before, after, least))
    used = cpucensus.groups_between(before, after)
    mine = acct.path if acct.path != "/" else None
    found = [_group(host, own, tree, path, ns, members) for path, ns in _shares(used, mine, least)]
    above = {group.path for group in acct.lineage()} | {"/"}
    found += [_process(host, own, m) for m in members if m.acct in above]
    return tuple(sorted(found, key=lambda one: -one.used_ns)[:MOST_RIVALS])


def _members(
    host: Host, own: Group, before: Census, after: Census, least: int
) -> Iterator[_Member]:
    """Busy processes outside of the container, the busiest of them."""
    mine = frozenset(cgroup.members(host, own))
    others = [one for one in cpucensus.processes_between(before, after) if one[0].pid not in mine]
    for process, used in others[:MOST_ASKED]:
        if used < least:
            return
        try:
            paths = cgroup.membership_of(host, process.pid)
        except (OSError, ParseError):
            continue  # it ended
        cpu, acct = (
            group.path if (group := cgroup.group(host, paths, name)) is not None else "/"
            for name in ("cpu", "cpuacct")
        )
        if rest_below(own.path, cpu) is None:  # else it joined just now
            yield _Member(process=process, used_ns=used, cpu=cpu, acct=acct)


def _shares(used: Mapping[str, int], mine: str | None, least: int) -> Iterator[tuple[str, int]]:
    """The groups that are told as neighbours, and what each used."""
    below: dict[str, list[str]] = {}
    for path in used:
        if path != "/":
            below.setdefault(path.rpartition("/")[0] or "/", []).append(path)
    waiting = below.get("/", [])[:]
    while waiting:
        path = waiting.pop()
        if used[path] < least or (mine is not None and path == mine):
            continue
        children = [] if recognise(path) else below.get(path, [])
        ours = mine is not None and rest_below(path, mine) is not None
        if ours or sum(used[child] for child in children) >= _MOSTLY * used[path]:
            waiting.extend(children)
        else:
            yield path, used[path]


def _group(
    host: Host,
    own: Group,
    tree: cgroup.Hierarchy,
    path: str,
    used: int,
    members: Sequence[_Member],
) -> Rival:
    group = cpucensus.group_at(tree, path)
    inside = [m for m in members if rest_below(path, m.acct) is not None]
    pids = [m.process.pid for m in inside] or _some(host, group)
    cpu = _cpu_path(host, pids[0]) if pids else None
    realtime = sum(m.used_ns for m in inside if m.process.realtime)
    return Rival(
        name=printable(_called(path, used, inside)),
        source=group.file("cpuacct.usage" if group.version == 1 else "cpu.stat"),
        used_ns=used,
        cpus=_union(host, pids[:4]),
        realtime=2 * realtime > used,
        processes=len(inside),
        contest=None if cpu is None else cpuweight.contest(host, own, cpu, 0),
    )


def _called(path: str, used: int, inside: Sequence[_Member]) -> str:
    """A group that is no container is known by its process, where one does most of it."""
    if recognise(path) is None and inside and inside[0].used_ns >= _MOSTLY * used:
        one = inside[0].process
        return f"{one.comm} (pid {one.pid}, {path})"
    return called(path)


def _some(host: Host, group: Group) -> list[int]:
    """A process of a group whose busy ones are gone by now."""
    try:
        return list(cgroup.members(host, group)[:1])
    except OSError:
        return []


def _cpu_path(host: Host, pid: int) -> str | None:
    try:
        group = cgroup.group(host, cgroup.membership_of(host, pid), "cpu")
    except (OSError, ParseError):
        return None
    return None if group is None else group.path


def _process(host: Host, own: Group, member: _Member) -> Rival:
    one = member.process
    kind = "kernel thread " if one.kernel else ""
    return Rival(
        name=printable(f"{kind}{one.comm} (pid {one.pid})"),
        source=f"/proc/{one.pid}/stat",
        used_ns=member.used_ns,
        cpus=cpuset.allowed(host, one.pid),
        realtime=one.realtime,
        kernel=one.kernel,
        contest=cpuweight.contest(host, own, member.cpu, one.nice),
    )


def _union(host: Host, pids: Sequence[int]) -> tuple[int, ...] | None:
    sets = [cpus for pid in pids if (cpus := cpuset.allowed(host, pid)) is not None]
    return tuple(sorted({cpu for cpus in sets for cpu in cpus})) if sets else None


def called(path: str) -> str:
    """A group as people know it.

    >>> called("/docker/" + "4f1c2a9b7d21" + "0" * 52), called("/system.slice/cron.service")
    ('docker 4f1c2a9b7d21', '/system.slice/cron.service')
    """
    known = recognise(path)
    if known is None:
        return path
    runtime, id = known
    return f"{runtime} {id[:12] if len(id) == 64 else id}"
