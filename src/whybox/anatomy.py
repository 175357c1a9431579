"""What a container is made of: namespaces, control groups, a root file system, rights, a network.

Lesson one: nothing of it is a "container" to the kernel; each part is its own or the host's.
"""

from collections.abc import Iterable

from msgspec import Struct

from whybox.ingress import Entrance, entrances
from whybox.kernel import capability, cpu, memory, pids, stopping, task
from whybox.kernel.cgroup import Group
from whybox.kernel.host import Host
from whybox.kernel.mountinfo import Mount, mounts, root_mount
from whybox.kernel.namespace import KINDS
from whybox.kernel.netpath import Path
from whybox.kernel.netview import Near, Way, with_length
from whybox.kernel.rtnetlink import Link
from whybox.kernel.target import Target, processes


class Namespace(Struct, frozen=True, kw_only=True):
    """One namespace of the container."""

    kind: str
    inode: int | None
    of: str
    """``own``, ``host``, ``shared``, or ``unknown``."""
    shared_with: tuple[str, ...] = ()


class Limit(Struct, frozen=True, kw_only=True):
    """A resource's limit as it really holds: the smallest on the way to the root."""

    resource: str
    """``cpu`` in cores, ``memory`` in bytes, ``pids`` in tasks."""
    used: float | None
    effective: float | None
    """``None``: unlimited."""
    set_by: str | None
    """The group that sets it, as ``/proc/PID/cgroup`` names it."""
    ancestor: bool = False


class Place(Struct, frozen=True, kw_only=True):
    """Its group in one tree."""

    controller: str
    version: int
    path: str
    directory: str


class Root(Struct, frozen=True, kw_only=True):
    """Its root file system."""

    fstype: str
    source: str
    read_only: bool
    lower: tuple[str, ...]
    upper: str | None
    work: str | None


class Rights(Struct, frozen=True, kw_only=True):
    """What its first process may do."""

    uid: int
    gid: int
    uid_map: str | None
    gid_map: str | None
    effective: tuple[str, ...]
    bounding: tuple[str, ...]
    beyond_default: tuple[str, ...]
    """Effective capabilities that engines do not give by default."""
    seccomp: str
    no_new_privs: bool
    security_label: str | None
    oom_score_adj: int | None
    open_files: str | None


class Interface(Struct, frozen=True, kw_only=True):
    """One interface, and the way from it to the host's side as far as it can be followed."""

    name: str
    kind: str | None
    """``veth``, ``macvlan``, …; ``None`` for a real device and for ``lo``."""
    up: bool
    carrier: bool | None
    mtu: int
    addresses: tuple[str, ...]
    gateway: str | None = None
    """Of the default route that leaves by it."""
    host_end: str | None = None
    bridge: str | None = None
    gateway_at: str | None = None
    """The interface at the host's side that owns the gateway's address."""
    forwards: bool | None = None
    """Whether packets for others go on from there."""
    unseen: str | None = None
    """Why the other side could not be looked at."""


class Anatomy(Struct, frozen=True, kw_only=True):
    """All of it."""

    target: Target
    processes: tuple[str, ...]
    stop: tuple[str, ...]
    """What stopping it will do to each process."""
    namespaces: tuple[Namespace, ...]
    groups: tuple[Place, ...]
    limits: tuple[Limit, ...]
    root: Root | None
    mounts: tuple[Mount, ...]
    rights: Rights | None
    network: tuple[Interface, ...] | None
    """``None``: it is the host's network, or could not be looked at (then ``gaps`` says so)."""
    entrances: tuple[Entrance, ...] | None = None
    """How published ports get in; looked for where that was asked."""
    gaps: tuple[str, ...]
    """What could not be looked at, and why."""


#: A container of ten thousand tasks is described by the first of them.
MOST_PROCESSES = 32


def anatomy(
    host: Host, target: Target, others: Iterable[Target] = (), *, net: bool = False
) -> Anatomy:
    """Look at a living container; ``others`` are whom it may share namespaces with.

    ``net``: also how its published ports get in, for which the host's filters are read.
    """
    if target.init is None:
        raise ProcessLookupError(3, "it is not running, so there is nothing to look at")
    gaps: list[str] = []
    pid = target.init.pid
    seen = _mounts(host, pid, gaps)
    return Anatomy(
        target=target,
        processes=_processes(host, target),
        stop=_stop(host, target, gaps),
        namespaces=tuple(_namespace(target, kind, others) for kind in KINDS),
        groups=_groups(host, target),
        limits=(_cpu(host, target), _memory(host, target), _pids(host, target)),
        root=_root(seen),
        mounts=seen,
        rights=_rights(host, pid, gaps),
        network=_network(host, target, gaps),
        entrances=_entrances(host, target, gaps) if net else None,
        gaps=tuple(gaps),
    )


def _processes(host: Host, target: Target) -> tuple[str, ...]:
    lines = []
    for pid in processes(host, target)[:MOST_PROCESSES]:
        try:
            stat = task.stat(host, pid)
            inside = task.status(host, pid).nspid[-1]
        except OSError:
            continue
        threads = f", {stat.num_threads} threads" if stat.num_threads > 1 else ""
        lines.append(f"{pid} (inside {inside}) {stat.comm}, state {stat.state}{threads}")
    return tuple(lines)


def _stop(host: Host, target: Target, gaps: list[str]) -> tuple[str, ...]:
    try:
        return tuple(stopping.lines(stopping.of(host, target)))
    except OSError as error:
        gaps.append(f"what a stop will do: {error.strerror}")
        return ()


def _namespace(target: Target, kind: str, others: Iterable[Target]) -> Namespace:
    inode, own = target.namespaces.get(kind), target.own(kind)
    if inode is None or own is None:
        return Namespace(kind=kind, inode=inode, of="unknown")
    if not own:
        return Namespace(kind=kind, inode=inode, of="host")
    names = tuple(o.name for o in others if o.id != target.id and o.namespaces.get(kind) == inode)
    return Namespace(kind=kind, inode=inode, of="shared" if names else "own", shared_with=names)


def _groups(host: Host, target: Target) -> tuple[Place, ...]:
    found = []
    for controller in target.cgroups:
        group = target.group(host, controller)
        if group is not None:
            found.append(
                Place(
                    controller=controller or "unified",
                    version=group.version,
                    path=group.path,
                    directory=group.directory,
                )
            )
    return tuple(found)


def _smallest(
    resource: str, used: float | None, levels: Iterable[tuple[Group, float | None]]
) -> Limit:
    limited = [(value, depth, group) for depth, (group, value) in enumerate(levels) if value]
    if not limited:
        return Limit(resource=resource, used=used, effective=None, set_by=None)
    value, depth, group = min(limited, key=lambda one: (one[0], one[1]))
    return Limit(
        resource=resource,
        used=used,
        effective=value,
        set_by=group.path,
        ancestor=depth > 0,
    )


def _lineage(host: Host, target: Target, controller: str) -> tuple[Group, ...]:
    group = target.group(host, controller)
    return () if group is None else tuple(group.lineage())


def _cpu(host: Host, target: Target) -> Limit:
    quotas = ((g, cpu.max_(host, g)) for g in _lineage(host, target, "cpu"))
    return _smallest("cpu", None, [(g, None if q is None else q.cores) for g, q in quotas])


def _memory(host: Host, target: Target) -> Limit:
    said = [(g, memory.memory(host, g)) for g in _lineage(host, target, "memory")]
    used = said[0][1].current_bytes if said else None
    return _smallest("memory", used, [(g, m.limit_bytes) for g, m in said])


def _pids(host: Host, target: Target) -> Limit:
    said = [(g, pids.pids(host, g)) for g in _lineage(host, target, "pids")]
    own = said[0][1] if said else None
    levels = [(g, None if p is None else p.limit) for g, p in said]
    return _smallest("pids", None if own is None else own.current, levels)


def _mounts(host: Host, pid: int, gaps: list[str]) -> tuple[Mount, ...]:
    try:
        return mounts(host, pid)
    except OSError as error:
        gaps.append(f"mounts: {error.strerror}")
        return ()


def _root(seen: tuple[Mount, ...]) -> Root | None:
    mount = root_mount(seen)
    if mount is None:
        return None
    return Root(
        fstype=mount.fstype,
        source=mount.source,
        read_only="ro" in mount.options,
        lower=tuple((mount.option("lowerdir") or "").split(":"))
        if mount.option("lowerdir")
        else (),
        upper=mount.option("upperdir"),
        work=mount.option("workdir"),
    )


def _rights(host: Host, pid: int, gaps: list[str]) -> Rights | None:
    try:
        said = task.status(host, pid)
    except OSError as error:
        gaps.append(f"rights: {error.strerror}")
        return None
    label = (host.optional_text(f"/proc/{pid}/attr/current") or "").rstrip("\0\n")
    return Rights(
        uid=said.uid[1],
        gid=said.gid[1],
        uid_map=_map(host, pid, "uid_map"),
        gid_map=_map(host, pid, "gid_map"),
        effective=capability.names(said.cap_eff),
        bounding=capability.names(said.cap_bnd),
        beyond_default=capability.names(said.cap_eff & ~capability.DEFAULT),
        seccomp={0: "off", 1: "strict", 2: "filter"}.get(said.seccomp or 0, "unknown"),
        no_new_privs=said.no_new_privs,
        security_label=label or None,
        oom_score_adj=host.optional_number(f"/proc/{pid}/oom_score_adj"),
        open_files=_open_files(host, pid),
    )


def _map(host: Host, pid: int, file: str) -> str | None:
    text = host.optional_text(f"/proc/{pid}/{file}")
    return None if text is None else "; ".join(" ".join(line.split()) for line in text.splitlines())


def _open_files(host: Host, pid: int) -> str | None:
    for line in (host.optional_text(f"/proc/{pid}/limits") or "").splitlines():
        if line.startswith("Max open files"):
            return line.split()[3]
    return None


def _network(host: Host, target: Target, gaps: list[str]) -> tuple[Interface, ...] | None:
    if target.own("net") is False:
        return None
    try:
        view = Path(host, target, ()).view()
    except OSError as error:
        gaps.append(f"network: {error.strerror or error}")
        return None
    ways = {way.ifindex: way for way in reversed(view.ways)}
    return tuple(_interface(view.near, link, ways.get(link.ifindex)) for link in view.near.links)


def _entrances(host: Host, target: Target, gaps: list[str]) -> tuple[Entrance, ...] | None:
    try:
        return entrances(host, target)
    except OSError as error:
        gaps.append(f"published ports: {error.strerror or error}")
        return None


def _interface(near: Near, link: Link, way: Way | None) -> Interface:
    far = None if way is None else way.far
    return Interface(
        name=link.name,
        kind=link.kind,
        up=link.up,
        carrier=link.carrier,
        mtu=link.mtu_bytes,
        addresses=tuple(with_length(a) for a in near.addresses if a.ifindex == link.ifindex),
        gateway=None if way is None else way.gateway,
        host_end=_name(None if far is None else far.peer),
        bridge=_name(None if far is None else far.bridge),
        gateway_at=_name(None if far is None else far.owner),
        forwards=None if far is None else far.forwarding,
        unseen=None if way is None else way.unseen,
    )


def _name(link: Link | None) -> str | None:
    return None if link is None else link.name
