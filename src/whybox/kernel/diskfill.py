"""What is observed of the disks that a container writes to: how much room there is before and after
a window, who was refused room within it, and, only where room is short, who holds it.
"""

from collections.abc import Iterable, Iterator

from msgspec import Struct, structs

from whybox.kernel import diskplaces, diskuse, finding, heldfiles, refusals
from whybox.kernel.diskplaces import Kind, Place, Places
from whybox.kernel.diskroom import Project, Room
from whybox.kernel.diskuse import Heavy, Use
from whybox.kernel.heldfiles import Held, Looked
from whybox.kernel.host import Host, ParseError, printable
from whybox.kernel.mountinfo import mounts
from whybox.kernel.refusals import Refused, What
from whybox.kernel.target import Target, processes, still_there
from whybox.kernel.task import pids

#: So many other containers, and processes of the machine, are looked at.
MOST_NEIGHBOURS = 32
MOST_PROCESSES = 2000
#: Where less of what is taken is explained, the whole file system is looked through.
EXPLAINED = 0.5
#: What is taken beside what programs write: blocks for tables of files, delayed allocation.
NOISE_BYTES, NOISE_FILES = 64 << 10, 16


class Holder(Struct, frozen=True, kw_only=True):
    """Somebody's share of a file system: a place, or a file that is held open."""

    owner: str
    """Another container; empty: it is the target's own."""
    kind: Kind | None
    """``None``: a file that is held open, or mapped."""
    name: str
    mountpoint: str
    use: Use
    held: Held | None = None

    @property
    def bytes(self) -> int:
        """What it takes, as far as it was seen."""
        return self.use.bytes


class FileSystem(Struct, frozen=True, kw_only=True):
    """One file system, or one project of it, that the container writes to."""

    device: str
    fstype: str
    options: tuple[str, ...]
    mountpoint: str
    """The first place where the container has it."""
    layer: bool
    """Whether its writable layer lies on it."""
    on_host: str | None
    """Where the host has the file system; ``None``: it is not seen there."""
    project: Project | None
    before: Room | None
    room: Room
    refused: tuple[Refused, ...] = ()
    """Who was refused room on it in this window."""
    holders: tuple[Holder, ...] = ()
    """The target's own, the largest first; looked for only where room is short."""
    others: tuple[Holder, ...] = ()
    """Those of other containers and of the machine."""
    incomplete: tuple[str, ...] = ()
    """What was not looked at, and why."""

    @property
    def taken_bytes(self) -> int:
        """By how much it got fuller in this window."""
        return 0 if self.before is None else self.before.available_bytes - self.room.available_bytes

    @property
    def taken_files(self) -> int:
        """How many inodes it has less than before."""
        return 0 if self.before is None else self.before.free_files - self.room.free_files

    @property
    def short(self) -> bool:
        """Whether it is worth looking who holds its room."""
        full = self.room.full or self.room.out_of_files or bool(self.refused)
        return full or (self.room.nearly_full and self.filling)

    @property
    def filling(self) -> bool:
        """Whether more than noise was taken in this window."""
        return self.taken_bytes >= NOISE_BYTES or self.taken_files >= NOISE_FILES


class DiskUse(Struct, frozen=True, kw_only=True):
    """All of them, at the end of the window."""

    disks: tuple[FileSystem, ...]
    unseen: tuple[str, ...]
    """Mounts that were not looked at: asking them may take for ever."""
    elsewhere: tuple[Refused, ...]
    """Calls that said "no space" or "quota" and were not about a disk."""
    watched: str | None
    """Why nobody could be seen to be refused; ``None``: that was watched."""
    seconds: float
    inside: bool = False
    """Whether whybox itself is in the container, and so does not see the host."""
    root: tuple[str, bool] | None = None
    """Its root file system, and whether it can be written."""
    shared: bool = False
    """Whether it has the host's mounts, not some of its own."""


def looked_at(
    host: Host,
    target: Target,
    before: Places,
    window: refusals.Window,
    *,
    since_ns: int,
    seconds: float,
) -> DiskUse:
    """What is there at the end of the window; of one that has ended, what was before."""
    there = still_there(host, target)
    places = diskplaces.of(host, target) if there else before
    disks = _file_systems(host, before, places, window)
    shared = target.own("mnt") is False and target.runtime != "self"
    if shared and any(disk.short for disk in disks):
        disks = _written_to(host, target, places, disks)
    found = tuple(
        _looked_into(host, target, places, disk, since_ns) if disk.short else disk for disk in disks
    )
    return DiskUse(
        disks=found,
        unseen=places.unseen,
        elsewhere=_elsewhere(found, window),
        watched=window.reason,
        seconds=seconds,
        inside=target.runtime == "self",
        root=places.root,
        shared=shared,
    )


def _members(host: Host, target: Target) -> tuple[int, ...]:
    try:
        return processes(host, target)
    except (OSError, ParseError):
        return ()  # it is gone


def _key(place: Place) -> tuple[str, int]:
    return place.device, 0 if place.project is None else place.project.id


def _file_systems(
    host: Host, before: Places, after: Places, window: refusals.Window
) -> list[FileSystem]:
    ours = mounts(host, "self")
    was = {_key(place): place.room for place in before.places}
    found: dict[tuple[str, int], FileSystem] = {}
    for place in after.places:
        known = found.get(_key(place))
        layer = place.kind is Kind.LAYER
        if known is not None:
            found[_key(place)] = structs.replace(known, layer=known.layer or layer)
            continue
        top = diskplaces.on_device(ours, place.device)
        found[_key(place)] = FileSystem(
            device=place.device,
            fstype=place.fstype,
            options=place.options,
            mountpoint=place.mountpoint,
            layer=layer,
            on_host=None if top is None else printable(top.mountpoint),
            project=place.project,
            before=was.get(_key(place)),
            room=place.room,
            refused=_refused(after, _key(place), window),
        )
    return list(_with_names(list(found.values()), window))


def _refused(places: Places, key: tuple[str, int], window: refusals.Window) -> tuple[Refused, ...]:
    mine = {p.mounted for p in places.places if _key(p) == key} | {key[0]}
    seen = window.of(What.DISK, What.OTHER)
    return tuple(one for one in seen if one.device in mine)


def _with_names(disks: list[FileSystem], window: refusals.Window) -> Iterator[FileSystem]:
    """A call with a path tells no device: it is about the one that is full, if one is.

    And one about a device is about that of its projects that is full.
    """
    full = [one for one in disks if one.room.full or one.room.out_of_files]
    devices, names = {one.device for one in full}, window.of(What.NAME)
    for disk in disks:
        if full and disk is full[0]:
            yield structs.replace(disk, refused=disk.refused + names)
        elif disk.device in devices and disk not in full:
            yield structs.replace(disk, refused=())
        else:
            yield disk


def _elsewhere(disks: Iterable[FileSystem], window: refusals.Window) -> tuple[Refused, ...]:
    told = {one for disk in disks for one in disk.refused}
    kinds = (What.NAME, What.ELSEWHERE, What.TMPFS, What.SEGMENT, What.SEMAPHORES, What.QUEUE)
    return tuple(one for one in window.of(*kinds, What.DISK) if one not in told)


def _written_to(
    host: Host, target: Target, places: Places, disks: list[FileSystem]
) -> list[FileSystem]:
    """Of the host's file systems, which it shares, those that it has files open on to write."""
    looked = heldfiles.held(
        host, _members(host, target), _beneath(places.places), named=True, maps=False, least=0
    )
    devices = {one.device for one in looked.files if one.writing}
    return [disk for disk in disks if disk.device in devices or disk.refused]


def _beneath(places: Iterable[Place]) -> dict[str, str]:
    return heldfiles.beneath((one.mount_id, one.mounted, one.device) for one in places)


def _looked_into(
    host: Host, target: Target, places: Places, disk: FileSystem, since_ns: int
) -> FileSystem:
    mine = [place for place in places.places if _key(place) == _disk_key(disk)]
    looked = heldfiles.held(
        host,
        _members(host, target),
        _beneath(mine),
        named=True,
        since_ns=since_ns,
    )
    shared = target.own("mnt") is False
    holders = [
        *_of_places(host, mine, looked, since_ns),
        *_of_files(looked, named=shared),
    ]
    others: list[Holder] = []
    left_out = [looked.incomplete] if looked.incomplete else []
    if disk.project is None and target.runtime != "self" and disk.room.nearly_full:
        known = {(one.device, one.inode) for one in mine if one.kind is not Kind.HOST}
        others = _others(host, target, disk, known, since_ns)
        many = len(_containers(host))
        if many > MOST_NEIGHBOURS:
            left_out.append(f"only {MOST_NEIGHBOURS} of {many} containers were looked at")
        if _explained(disk, holders, others) < EXPLAINED:
            others += _whole(host, disk, known, since_ns)
    left_out += [_left_out(one) for one in (*holders, *others) if one.use.incomplete]
    return structs.replace(
        disk,
        holders=tuple(sorted(holders, key=lambda one: -one.bytes)),
        others=tuple(sorted(others, key=lambda one: -one.bytes)),
        incomplete=tuple(left_out),
    )


def _disk_key(disk: FileSystem) -> tuple[str, int]:
    return disk.device, 0 if disk.project is None else disk.project.id


def _left_out(holder: Holder) -> str:
    owner = f"{holder.owner}: " if holder.owner else ""
    return f"{owner}{holder.mountpoint}: {holder.use.incomplete}"


def _explained(disk: FileSystem, *holders: list[Holder]) -> float:
    known = sum(one.bytes for some in holders for one in some)
    files = sum(one.use.files for some in holders for one in some)
    if disk.room.out_of_files:
        return files / max(1, disk.room.used_files)
    return known / max(1, disk.room.used_bytes)


def _of_places(
    host: Host, places: Iterable[Place], looked: Looked, since_ns: int, owner: str = ""
) -> Iterator[Holder]:
    for place in places:
        if place.kind is not Kind.HOST:
            yield Holder(
                owner=owner,
                kind=place.kind,
                name=place.name,
                mountpoint=place.mountpoint,
                use=_used(place, diskuse.use(host, place, since_ns), looked),
            )


def _used(place: Place, use: Use, looked: Looked) -> Use:
    """With the total that is known without looking, and the files that are being written.

    Where time was over, a file that somebody has open is not left out for that.
    """
    if use.incomplete is None:
        return use
    known = {file.path for file in use.largest}
    mine = [
        Heavy(path=one.path, bytes=one.bytes, growing=one.growing)
        for one in looked.files
        if one.named and one.mount_id == place.mount_id and one.path not in known
    ]
    largest = sorted((*use.largest, *mine), key=lambda one: -one.bytes)
    total, names = use.bytes + sum(one.bytes for one in mine), use.files
    if place.whole:
        nameless = [one for one in looked.files if not one.named]
        total = max(total, place.room.used_bytes - sum(one.bytes for one in nameless))
        names = max(names, place.room.used_files - len(nameless))
    return structs.replace(
        use,
        bytes=total,
        files=names,
        largest=tuple(largest[: diskuse.MOST_TOLD]),
        written=use.written or any(one.growing for one in mine),
    )


def _of_files(looked: Looked, owner: str = "", *, named: bool = False) -> Iterator[Holder]:
    """Those without a name; those with one lie in a place, where there is one."""
    for one in looked.files:
        if one.named and not named:
            continue
        yield Holder(
            owner=owner,
            kind=None,
            name=one.comm,
            mountpoint=one.path,
            use=Use(bytes=one.bytes, files=1, written=one.growing),
            held=one,
        )


def _others(
    host: Host, target: Target, disk: FileSystem, known: set[tuple[str, int]], since_ns: int
) -> list[Holder]:
    """Other containers' places on the same file system, and what the machine holds open there.

    What is found is added to the ``known`` directories.
    """
    found: list[Holder] = []
    seen = set(_members(host, target))
    for other in _containers(host)[:MOST_NEIGHBOURS]:
        if other.id == target.id or other.init == target.init:
            continue
        name = f"{other.runtime} {printable(other.short_id)}"
        theirs = [place for place in _places(host, other) if place.device == disk.device]
        new = [
            place
            for place in theirs
            if (place.device, place.inode) not in known and place.kind is not Kind.HOST
        ]
        known |= {(place.device, place.inode) for place in new}
        members = _members(host, other)
        seen.update(members)
        looked = heldfiles.held(host, members, _beneath(theirs), named=True, since_ns=since_ns)
        found += _of_places(host, new, looked, since_ns, name)
        found += _of_files(looked, name)
    rest = [pid for pid in pids(host) if pid not in seen][:MOST_PROCESSES]
    hosts = _hosts(host, disk.device)
    looked = heldfiles.held(host, rest, hosts, since_ns=since_ns, maps=False)
    return [*found, *_of_files(looked, "the host")]


def _containers(host: Host) -> tuple[Target, ...]:
    return host.remembered("diskfill.containers", lambda: finding.containers(host))


def _places(host: Host, other: Target) -> tuple[Place, ...]:
    try:
        return diskplaces.of(host, other).places
    except (OSError, ParseError):
        return ()  # it is gone


def _hosts(host: Host, device: str) -> dict[str, str]:
    ours = [mount for mount in mounts(host, "self") if mount.device == device]
    return heldfiles.beneath((mount.mount_id, mount.device, device) for mount in ours)


def _whole(
    host: Host, disk: FileSystem, known: set[tuple[str, int]], since_ns: int
) -> Iterator[Holder]:
    """The rest of the file system, if it can be seen from here."""
    top = diskplaces.on_device(mounts(host, "self"), disk.device)
    place = None if top is None else diskplaces.directory(host, top, disk.room)
    without = frozenset(inode for device, inode in known if device == disk.device)
    if place is not None and place.inode not in without:
        yield Holder(
            owner="the host",
            kind=Kind.HOST,
            name="",
            mountpoint=place.mountpoint,
            use=diskuse.use(host, place, since_ns, without=without),
        )
