"""Which kind of room is short, as data: blocks, inodes and quotas are told apart."""

import errno
from enum import StrEnum

from msgspec import Struct

from whybox.kernel.diskfill import FileSystem, Holder
from whybox.kernel.diskroom import NEARLY, SLACK_BYTES
from whybox.kernel.refusals import What

#: A file system that is nearly full and would be full so soon is worth a warning.
SOON_SECONDS = 600.0


class Kind(StrEnum):
    """What is used up."""

    BLOCKS = "blocks"
    INODES = "inodes"
    QUOTA = "blocks of a project quota"
    QUOTA_FILES = "files of a project quota"
    USER_QUOTA = "a quota"
    MOMENT = "room for one large piece"
    SOON = "blocks, soon"
    SOON_FILES = "inodes, soon"


class Shortage(Struct, frozen=True, kw_only=True):
    """One file system that has too little room."""

    disk: FileSystem
    kind: Kind
    seconds_left: float | None = None
    """Where it is not full yet: when it would be, at the rate of this window."""

    @property
    def of_files(self) -> bool:
        """Whether inodes are counted, not blocks."""
        return self.kind in (Kind.INODES, Kind.QUOTA_FILES, Kind.SOON_FILES)

    @property
    def used(self) -> int:
        """Bytes or inodes that are taken."""
        room = self.disk.room
        return room.used_files if self.of_files else room.used_bytes

    @property
    def whole(self) -> int:
        """Bytes or inodes that there can be."""
        room = self.disk.room
        return room.files if self.of_files else room.size_bytes

    @property
    def for_root(self) -> bool:
        """Whether root still gets some of it."""
        blocks = self.kind is Kind.BLOCKS
        return blocks and self.disk.room.reserved_bytes > SLACK_BYTES

    def takes(self, holder: Holder) -> int:
        """The share of one who holds it."""
        return holder.use.files if self.of_files else holder.bytes

    @property
    def own(self) -> int:
        """What the container itself holds, as far as it was seen."""
        return sum(map(self.takes, self.disk.holders))

    @property
    def largest(self) -> Holder | None:
        """Its own largest share."""
        return max(self.disk.holders, key=self.takes, default=None)

    @property
    def largest_other(self) -> Holder | None:
        """The largest share of somebody else."""
        return max(self.disk.others, key=self.takes, default=None)

    @property
    def doubtful(self) -> bool:
        """Whether more of it may be its own than was seen."""
        known = self.own + sum(map(self.takes, self.disk.others))
        unseen = any(one.use.incomplete for one in self.disk.holders)
        return unseen and known < 0.75 * self.used

    @property
    def by_others(self) -> bool:
        """Whether it is somebody else who fills it: little is its own, or much less than theirs."""
        other = self.largest_other
        beside = 0 if other is None else self.takes(other)
        return self.own < max(beside / 2, 0.25 * self.used) and not self.doubtful


def shortages(disks: tuple[FileSystem, ...], seconds: float) -> tuple[Shortage, ...]:
    """All of them, those that somebody ran into first."""
    found = [short for disk in disks if (short := shortage(disk, seconds)) is not None]
    return tuple(sorted(found, key=lambda one: (not one.disk.refused, one.seconds_left or 0)))


def shortage(disk: FileSystem, seconds: float) -> Shortage | None:
    """What one of them lacks, or ``None``."""
    room, quota = disk.room, disk.project is not None
    if room.full:
        return Shortage(disk=disk, kind=Kind.QUOTA if quota else Kind.BLOCKS)
    if room.out_of_files:
        return Shortage(disk=disk, kind=Kind.QUOTA_FILES if quota else Kind.INODES)
    # Without room left the errors speak for themselves; with room, only those about a file.
    told = [one for one in disk.refused if one.what is What.DISK]
    if any(one.errno == errno.EDQUOT for one in told):
        return Shortage(disk=disk, kind=Kind.USER_QUOTA)
    if told:
        # What some file systems keep for themselves shows as free: xfs, btrfs.
        left = room.available_bytes >= NEARLY * room.size_bytes
        return Shortage(disk=disk, kind=Kind.MOMENT if left else Kind.BLOCKS)
    return _soon(disk, seconds) if room.nearly_full and disk.filling else None


def _soon(disk: FileSystem, seconds: float) -> Shortage | None:
    """Only if it fills by what its own holders write: of steady ones nothing needs be done."""
    if seconds <= 0 or not any(one.use.written for one in (*disk.holders, *disk.others)):
        return None
    blocks = _lasts(disk.room.available_bytes, disk.taken_bytes, seconds)
    files = _lasts(disk.room.free_files, disk.taken_files, seconds)
    left, kind = min((blocks, Kind.SOON), (files, Kind.SOON_FILES))
    return Shortage(disk=disk, kind=kind, seconds_left=left) if left <= SOON_SECONDS else None


def _lasts(left: int, taken: int, seconds: float) -> float:
    return left / taken * seconds if taken > 0 else float("inf")
