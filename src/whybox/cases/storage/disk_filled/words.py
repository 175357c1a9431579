"""Who holds how much of a disk, said in words."""

from collections.abc import Iterator

from whybox.kernel import diskplaces
from whybox.kernel.diskfill import DiskUse, FileSystem, Holder
from whybox.kernel.diskroom import Room
from whybox.kernel.refusals import Refused, times
from whybox.kernel.shmshortage import size
from whybox.model import Evidence

from .shortage import Kind, Shortage

MOST_TOLD = 5


def summary(short: Shortage, seen: DiskUse) -> str:
    """The sentence of a finding."""
    return f"{_state(short)}{_refusals(short.disk.refused)}. {_who(short, seen)}"


def _state(short: Shortage) -> str:
    disk, room = short.disk, short.disk.room
    where = f"the disk beneath {disk.mountpoint} ({_disk(disk)})"
    match short.kind:
        case Kind.BLOCKS:
            root = f", but for {size(room.reserved_bytes)} that root may take"
            return f"No room is left on {where}{root if short.for_root else ''}"
        case Kind.INODES:
            return (
                f"All {room.files} inodes of {where} are in use, with "
                f"{size(room.available_bytes)} still free: no more file can be made"
            )
        case Kind.QUOTA:
            return f"Its project quota is used up, {size(room.size_bytes)} on {where}"
        case Kind.QUOTA_FILES:
            return f"Its project quota is used up, {room.files} files on {where}"
        case Kind.USER_QUOTA:
            return f"A quota is used up on {where}, which itself has {size(room.available_bytes)}"
        case Kind.MOMENT:
            return (
                f"There was not room enough on {where} for what was wanted; now "
                f"{size(room.available_bytes)} are free"
            )
        case _:
            return f"{_left(short)} on {where}, and at this rate nothing in {_soon(short)}"


def _left(short: Shortage) -> str:
    room = short.disk.room
    if short.of_files:
        return f"Only {room.free_files} of {room.files} inodes are left"
    return f"Only {size(room.available_bytes)} are left"


def _soon(short: Shortage) -> str:
    return f"{max(1, round(short.seconds_left or 0))} s"


def _disk(disk: FileSystem) -> str:
    kind = disk.fstype or "its file system"
    if disk.project is not None:
        whole = disk.project.disk_bytes
        of = "" if whole is None else f", a part of {size(whole)}"
        return f"{kind}, project {disk.project.id}{of}"
    return f"{kind}, {size(disk.room.size_bytes)}"


def _refusals(refused: tuple[Refused, ...]) -> str:
    if not refused:
        return ""
    last = refused[-1]
    return f": {last.comm} (pid {last.pid}) was refused ({last.how}) {times(refused)}"


def _who(short: Shortage, seen: DiskUse) -> str:
    own, other = short.largest, short.largest_other
    if short.kind is Kind.MOMENT:
        return f"{size(short.used)} are taken{_wanted(short)}."
    if short.kind is Kind.USER_QUOTA:
        return (
            f"It holds {size(short.own)} there itself{'' if own is None else _inside(short, own)}."
        )
    if seen.inside and (own is None or short.takes(own) < short.used / 2):
        return "Who holds it is not all seen from inside: ask on the host."
    if own is None:
        return f"It holds nothing there itself. {_rest(short, other)}"
    if short.by_others:
        told = f"Not by this container: it holds {amount(short, short.own)}"
        return f"{told} of {amount(short, short.used)}. {_rest(short, other)}"
    mostly = 2 * short.takes(own) >= short.used
    what = "Most of it is" if mostly else "Its own largest share is"
    least = "at least " if own.use.incomplete and not mostly else ""
    share = f"{least}{amount(short, short.takes(own))} of {amount(short, short.used)}"
    rest = "" if mostly or other is None else f" {_rest(short, other)}"
    if short.doubtful:
        rest += " Not all of it was looked at in the time there was."
    return f"{what} {holder(own)}: {share}{_inside(short, own)}.{rest}"


def _wanted(short: Shortage) -> str:
    most = max((one.size_bytes or 0 for one in short.disk.refused), default=0)
    return f", and one file was to be {size(most)} long" if most else ""


def _rest(short: Shortage, other: Holder | None) -> str:
    if other is None or short.takes(other) == 0:
        where = f" (du -x {short.disk.on_host})" if short.disk.on_host else ""
        return f"Who holds the rest is not seen from here{where}."
    owner = f"{other.owner[0].upper()}{other.owner[1:]}"
    share = f"{amount(short, short.takes(other))}: {holder(other)}"
    return f"{owner} holds {share}{_inside(short, other)}."


def _inside(short: Shortage, one: Holder) -> str:
    """What is largest within a share."""
    if one.held is not None:
        return ""
    if short.of_files:
        crowded = one.use.crowded
        return "" if crowded is None else f", {crowded[1]} names in {crowded[0]} alone"
    told = [f"{file.path} ({size(file.bytes)})" for file in one.use.largest]
    return f", above all {', '.join(told)}" if told else ""


def amount(short: Shortage, number: int) -> str:
    """Bytes or inodes."""
    return f"{number} inodes" if short.of_files else size(number)


def holder(one: Holder) -> str:
    """What it is."""
    held = one.held
    if held is not None:
        whose = f"{held.comm} (pid {held.pid}{_beside(held.holders)})"
        state = "" if held.named else "that has no name any more, "
        how = "has mapped" if held.descriptor is None else "holds open"
        return f"a file {state}{held.path}, which {whose} {how}"
    match one.kind:
        case diskplaces.Kind.LAYER:
            return "the writable layer"
        case diskplaces.Kind.LOG:
            return f"the log in {one.mountpoint}"
        case diskplaces.Kind.HOST:
            return f"what else lies below {one.mountpoint}"
        case diskplaces.Kind.DIRECTORY:
            return f"the host's directory {one.name}, at {one.mountpoint}"
        case _:
            return f"the {one.kind} {one.name}, at {one.mountpoint}"


def _beside(holders: int) -> str:
    return "" if holders == 1 else f" and {holders - 1} more"


def evidence(short: Shortage, seen: DiskUse) -> tuple[Evidence, ...]:
    """The room, who was refused, and the ranked list of who holds it."""
    disk = short.disk
    return (
        Evidence(f"df {disk.mountpoint}; df -i {disk.mountpoint}", room(disk.room)),
        *_sensed(disk.refused),
        *_ranked(short),
        *(Evidence("not looked at", said) for said in disk.incomplete[:MOST_TOLD]),
        *(Evidence("not looked at", said) for said in seen.unseen[:MOST_TOLD]),
    )


def room(said: Room) -> str:
    """What one ``statfs`` says."""
    inodes = f"{said.free_files} of {said.files} inodes free" if said.files else "inodes as needed"
    return (
        f"f_bavail {size(said.available_bytes)} and f_bfree {size(said.free_bytes)} of "
        f"{size(said.size_bytes)}; {inodes}"
    )


def _sensed(refused: tuple[Refused, ...]) -> Iterator[Evidence]:
    said = dict.fromkeys(f"{one.comm} (pid {one.pid}): {one.how}" for one in refused)
    if said:
        yield Evidence("raw_syscalls:sys_exit", "; ".join(list(said)[:3]))


def _ranked(short: Shortage) -> Iterator[Evidence]:
    every = (*short.disk.holders, *short.disk.others)
    for one in sorted(every, key=lambda one: -short.takes(one))[:MOST_TOLD]:
        if short.takes(one) > 0:
            yield Evidence(_source(one), _share(short, one))


def _source(one: Holder) -> str:
    if one.held is not None:
        held = one.held
        return f"stat -L {held.link}" if held.link else f"/proc/{held.pid}/map_files"
    return f"du -x {one.mountpoint}"


def _share(short: Shortage, one: Holder) -> str:
    use = one.use
    at_least = "at least " if use.incomplete else ""
    whose = f"{one.owner}: " if one.owner else ""
    growing = ", written to in this window" if use.written else ""
    if one.held is not None:
        links = "" if one.held.named else " with no link"
        return f"{whose}{size(one.bytes)}{links}: {holder(one)}{growing}"
    names = f"{size(use.bytes)} in {use.files} names"
    return f"{whose}{holder(one)}: {at_least}{names}{_inside(short, one)}{growing}"
