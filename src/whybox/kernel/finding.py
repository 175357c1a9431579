"""Finding containers in what the kernel shows: by the name of a group, by a pid namespace.

>>> recognise("/kubepods.slice/kubepods-pod7.slice/cri-containerd-" + "ab" * 32 + ".scope")[0]
'containerd'
>>> recognise("/system.slice/ssh.service") is None
True
"""

import re
from collections.abc import Iterable, Iterator

from msgspec import structs

from whybox.kernel import cgroup
from whybox.kernel.cgroup import UNIFIED, Group, Hierarchy
from whybox.kernel.host import Host
from whybox.kernel.namespace import INITIAL, host_namespaces, namespace
from whybox.kernel.target import PLACES, Target, described, place
from whybox.kernel.task import pids, stat, status

_ID = r"(?P<id>[0-9a-f]{64})"
#: How engines name a container's group, with the cgroupfs and the systemd driver. First fit wins.
PATTERNS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("docker", re.compile(rf"/docker-{_ID}\.scope$|/docker/(?P<id2>[0-9a-f]{{64}})$")),
    ("podman", re.compile(rf"/libpod-{_ID}(\.scope)?(/container)?$")),
    ("cri-o", re.compile(rf"/crio-{_ID}(\.scope)?$")),
    ("containerd", re.compile(rf"[/:]cri-containerd[-:]{_ID}(\.scope)?$")),
    ("containerd", re.compile(rf"/kubepods[^/]*/(.*/)?{_ID}$")),
    ("containerd", re.compile(rf"/(default|k8s\.io|moby|buildkit)/{_ID}$")),
    ("lxc", re.compile(r"/lxc\.payload\.(?P<id>[^/]+)$|/lxc/(?P<id2>[^/]+)$")),
    ("nspawn", re.compile(r"/machine-(?P<id>[^/]+)\.scope(/payload)?$")),
    ("whybox", re.compile(r"/whybox-(?P<id>[^/]+)$")),
    ("docker", re.compile(rf"/{_ID}$")),  # --cgroup-parent of one's own
)


def recognise(path: str) -> tuple[str, str] | None:
    """The engine and the container's id in the path of a control group."""
    for runtime, pattern in PATTERNS:
        if match := pattern.search(path):
            named = match.groupdict()
            return runtime, named["id"] or named["id2"]
    return None


def containers(host: Host) -> tuple[Target, ...]:
    """Every container that the kernel shows, each once, ordered by id."""
    found: dict[str, Target] = {}
    for target in _by_group(host):
        found.setdefault(target.id, target)
    covered = {target.namespaces.get("pid") for target in found.values()}
    for target in _by_pid_namespace(host, covered):
        found.setdefault(target.id, target)
    return tuple(found[key] for key in sorted(found))


def _by_group(host: Host) -> Iterator[Target]:
    for tree in _trees(host):
        for directory in cgroup.below(host, tree.mountpoint):
            known = recognise(directory.removeprefix(tree.mountpoint))
            target = None if known is None else _in_group(host, directory, *known)
            if target is not None:
                yield target


def _trees(host: Host) -> tuple[Hierarchy, ...]:
    """A v1 tree in which every container has a group, and the unified one."""
    trees = {name: tree for tree in cgroup.hierarchies(host) for name in tree.controllers}
    chosen = [next((trees[name] for name in PLACES if name in trees), None), trees.get(UNIFIED)]
    return tuple(dict.fromkeys(tree for tree in chosen if tree is not None))


def _in_group(host: Host, directory: str, runtime: str, id: str) -> Target | None:
    group = Group(controller="", version=0, path="", directory=directory, top=directory)
    first = _first_process(host, cgroup.members(host, group))
    # An empty group is what somebody left behind: nothing lives there.
    return None if first is None else _or_gone(host, first, id=id, runtime=runtime)


def _or_gone(host: Host, pid: int, *, id: str, runtime: str) -> Target | None:
    try:
        return described(host, pid, id=id, runtime=runtime)
    except OSError:
        return None


def _first_process(host: Host, members: Iterable[int]) -> int | None:
    """PID 1 of a pid namespace among them, or else the one that began first."""
    oldest: tuple[int, int] | None = None
    for pid in members:
        try:
            nspid = status(host, pid).nspid
            age = (stat(host, pid).start_ticks, pid)
        except OSError:
            continue
        if nspid[-1] == 1:
            return pid
        oldest = age if oldest is None else min(oldest, age)
    return None if oldest is None else oldest[1]


def _by_pid_namespace(host: Host, covered: set[int | None]) -> Iterator[Target]:
    """Containers without a group of their own (``unshare``, ``lxc-execute``)."""
    # From inside a container the reader's own pid namespace is not another container.
    skip = covered | {None, host_namespaces(host).get("pid"), namespace(host, "self", "pid")}
    for pid in pids(host):
        inode = namespace(host, pid, "pid")
        if inode in skip:
            continue
        skip.add(inode)
        target = _or_gone(host, pid, id=str(pid), runtime="process")
        if target is not None:
            yield target


def from_pid(host: Host, pid: int) -> Target:
    """The container that a process lives in, or the process by itself.

    Raises OSError when there is no such process.
    """
    paths = cgroup.membership_of(host, pid)
    own = place(host, paths)
    known = None if own is None else recognise(own.path)
    if own is not None and known is not None:
        whole = _in_group(host, own.directory, *known)
        if whole is not None:
            return whole
    return described(host, pid, id=str(pid), runtime="process")


def from_group(host: Host, path: str, *, runtime: str = "cgroup") -> Target | None:
    """The processes of one control group, by its path in whichever tree has it and members."""
    path = "/" + path.strip("/")
    for tree in cgroup.hierarchies(host):
        directory = tree.mountpoint + path.rstrip("/")
        if not host.exists(f"{directory}/cgroup.procs"):
            continue
        known = recognise(path) or (runtime, path)
        found = _in_group(host, directory, *known)
        if found is not None:
            # A member's own group may lie deeper; the one asked about is the container.
            cut = {name: _cut(own, path) for name, own in found.cgroups.items()}
            return structs.replace(found, cgroups=cut)
    return None


def _cut(own: str, path: str) -> str:
    return path if own.startswith(path + "/") else own


def myself(host: Host) -> Target:
    """The container that whybox itself runs in, as far as it can be seen from there."""
    inside = namespace(host, "self", "pid") != INITIAL["pid"]
    pid = 1 if inside else int(host.link("/proc/self"))
    return described(host, pid, id="self", runtime="self")
