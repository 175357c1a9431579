"""Who else used the disks that a container uses: its neighbours by name.

By the counters of every block-IO group. On v1 what is written back belongs to the root group; who
wrote it to the page cache is told by the accounts of the processes (``/proc/PID/io``).
"""

from collections.abc import Iterator, Mapping

from msgspec import Struct

from whybox.kernel import blockio, cgroup, task
from whybox.kernel.blockio import Done
from whybox.kernel.cgroup import Group, Hierarchy
from whybox.kernel.cpurivals import called
from whybox.kernel.finding import recognise
from whybox.kernel.host import Host, ParseError, printable
from whybox.kernel.task import TaskId

#: So many groups and processes are read, and so many neighbours told.
MOST_GROUPS, MOST_PROCESSES, MOST_RIVALS = 1000, 1500, 6

#: A group is told by the one below it that did this share.
_MOSTLY = 0.8

Device = tuple[int, int]
_Key = tuple[Device, str]


class Rival(Struct, frozen=True, kw_only=True):
    """What one neighbour did on one device in the window."""

    name: str
    """As people know it, harmless to print."""
    path: str | None
    """Its group, where a limit can be set; ``None``: it has none."""
    source: str
    """The file that tells what it did."""
    read_bytes: int
    write_bytes: int
    count: int
    cached: bool = False
    """Through the page cache on v1: no limit would see that."""

    @property
    def bytes(self) -> int:
        """Both ways."""
        return self.read_bytes + self.write_bytes


class Moment(Struct, frozen=True, kw_only=True):
    """The counters of all groups, and of the processes, at one moment."""

    groups: Mapping[str, Mapping[_Key, Done]]
    """By their paths."""
    dirtied: Mapping[TaskId, tuple[str, int]]
    """v1: what each process has written to files so far, with its name."""


def tree(host: Host) -> Hierarchy | None:
    """Where block IO is controlled."""
    trees = {name: one for one in cgroup.hierarchies(host) for name in one.controllers}
    return trees.get("blkio") or trees.get(cgroup.UNIFIED)


def moment(host: Host, tree: Hierarchy) -> Moment:
    """Read every group's counters, once for all containers that ask."""
    return host.remembered("block IO of all groups", lambda: _moment(host, tree))


def _moment(host: Host, tree: Hierarchy) -> Moment:
    groups = {}
    for nth, directory in enumerate(cgroup.below(host, tree.mountpoint)):
        if nth == MOST_GROUPS:
            break
        path = directory.removeprefix(tree.mountpoint) or "/"
        groups[path] = {(one.device, one.kind): one for one in _own(host, tree, path, directory)}
    return Moment(groups=groups, dirtied=_dirtied(host) if tree.version == 1 else {})


def _own(host: Host, tree: Hierarchy, path: str, directory: str) -> tuple[Done, ...]:
    """What a group itself did; on v2 its file has those below it in the sum."""
    group = Group(
        controller="blkio",
        version=tree.version,
        path=path,
        directory=directory,
        top=tree.mountpoint,
    )
    if tree.version == 2:
        return blockio.done_in(host, group)
    size = host.optional_text(group.file("blkio.throttle.io_service_bytes")) or ""
    count = host.optional_text(group.file("blkio.throttle.io_serviced")) or ""
    return tuple(blockio.service(size, count))


def _dirtied(host: Host) -> dict[TaskId, tuple[str, int]]:
    found = {}
    for pid in task.pids(host)[:MOST_PROCESSES]:
        try:
            wrote = task.io(host, pid).write_bytes
            stat = task.stat(host, pid) if wrote else None
        except (OSError, ParseError):
            continue
        if stat is not None:
            found[stat.id] = (stat.comm, wrote)
    return found


def rivals(
    host: Host, tree: Hierarchy, own: str, device: Device, before: Moment, after: Moment
) -> tuple[Rival, ...]:
    """The neighbours of the group ``own`` on one device, those that did most first."""
    mine: dict[str, list[tuple[str, Done]]] = {}
    for path, done in _done(before, after, device):
        if path == "/" or _within(path, own) or _within(own, path):
            continue
        mine.setdefault(_named(path), []).append((path, done))
    found = [_rival(tree, name, parts) for name, parts in mine.items()]
    found = [one for one in found if not any(_mostly(one, other) for other in found)]
    found += _from_the_cache(host, tree, own, device, before, after)
    return tuple(sorted(found, key=lambda one: -one.bytes)[:MOST_RIVALS])


def _mostly(one: Rival, other: Rival) -> bool:
    """Whether another group, below this one, did most of what this one did."""
    if one.path is None or other.path is None or not other.path.startswith(one.path + "/"):
        return False
    return other.bytes >= _MOSTLY * one.bytes


def _done(before: Moment, after: Moment, device: Device) -> Iterator[tuple[str, Done]]:
    for path, now in after.groups.items():
        then = before.groups.get(path, {})
        for key, one in now.items():
            was = then.get(key)
            size = one.bytes - (0 if was is None else was.bytes)
            count = one.count - (0 if was is None else was.count)
            if one.device == device and (size > 0 or count > 0):
                yield path, Done(device=device, kind=one.kind, count=count, bytes=size)


def _within(path: str, other: str) -> bool:
    return path == other or path.startswith(other.rstrip("/") + "/")


def _named(path: str) -> str:
    """The container that a group belongs to; one that is no container's stands for itself."""
    parts = path.split("/")
    for end in range(2, len(parts) + 1):
        here = "/".join(parts[:end])
        if recognise(here) is not None:
            return here
    return path


def _rival(tree: Hierarchy, path: str, parts: list[tuple[str, Done]]) -> Rival:
    file = blockio.STAT[2] if tree.version == 2 else "blkio.throttle.io_service_bytes"
    # On v2 the sum is in the group's own file: those below it are not added again.
    kept = [one for at, one in parts if tree.version == 1 or at == path] or [d for _, d in parts]
    return Rival(
        name=printable(called(path)),
        path=path,
        source=f"{tree.mountpoint}{path}/{file}",
        read_bytes=sum(one.bytes for one in kept if one.kind == "read"),
        write_bytes=sum(one.bytes for one in kept if one.kind == "write"),
        count=sum(one.count for one in kept),
    )


def _from_the_cache(
    host: Host, tree: Hierarchy, own: str, device: Device, before: Moment, after: Moment
) -> Iterator[Rival]:
    """v1: the root group's IO, by the name of the process that wrote most to files meanwhile."""
    root = [one for path, one in _done(before, after, device) if path == "/"]
    if tree.version == 2 or not root:
        return
    gains = [
        (now - before.dirtied.get(id, ("", 0))[1], id, comm)
        for id, (comm, now) in after.dirtied.items()
        if _group_of(host, id) is None or not _within(_group_of(host, id) or "/", own)
    ]
    gain, id, comm = max(gains, key=lambda one: one[0], default=(0, None, ""))
    named = id is not None and gain > 0
    path = None if id is None else _group_of(host, id)
    where = "" if path in (None, "/") else f" of {called(path or '/')}"
    name = f"{comm} (pid {id.pid}){where}" if named and id is not None else "the host itself"
    yield Rival(
        name=printable(name),
        path=None,
        source=f"{tree.mountpoint}/blkio.throttle.io_service_bytes",
        read_bytes=sum(one.bytes for one in root if one.kind == "read"),
        write_bytes=sum(one.bytes for one in root if one.kind == "write"),
        count=sum(one.count for one in root),
        cached=True,
    )


def _group_of(host: Host, id: TaskId) -> str | None:
    try:
        group = cgroup.group(host, cgroup.membership_of(host, id.pid), "blkio")
    except (OSError, ParseError):
        return None
    return None if group is None else group.path
