"""No room on a disk that it writes to, and who holds it.

Judged by ``statfs`` of the places where it writes: blocks, inodes or a quota are used up. An error
alone proves nothing, since ENOSPC and EDQUOT are said of much that is no disk.
"""

from whybox.kernel import diskfill, diskplaces, diskuse, refusals
from whybox.kernel.diskfill import DiskUse, FileSystem
from whybox.kernel.host import Host
from whybox.kernel.refusals import What
from whybox.kernel.shmshortage import size
from whybox.kernel.target import Target
from whybox.model import (
    Case,
    Certainty,
    Evidence,
    Finding,
    RuledOut,
    Severity,
    Verdict,
    Watch,
    clear,
    unknown,
)
from whybox.needs import living

from . import words
from .remedies import cures
from .shortage import Kind, Shortage, shortages

Observation = DiskUse


def observe(host: Host, target: Target) -> Watch[Observation]:
    """Ask every file system twice, watch who is refused; who holds it only where it is short."""
    before, began, since = diskplaces.of(host, target), host.monotonic_ns(), diskuse.now_ns()
    with refusals.watch(host, target) as refused:
        yield
        seen = refused()
    seconds = (host.monotonic_ns() - began) / 1e9
    return diskfill.looked_at(host, target, before, seen, since_ns=since, seconds=seconds)


def judge(seen: Observation) -> Finding:
    """Found where a disk is full, or somebody was refused room on it in this window."""
    found = shortages(seen.disks, seen.seconds)
    if found:
        return _found(found[0], found[1:], seen)
    if not seen.disks:
        return _no_disk(seen)
    return clear(_room(seen), evidence=tuple(map(_asked, seen.disks)))


def _found(worst: Shortage, others: tuple[Shortage, ...], seen: Observation) -> Finding:
    also = "".join(f" The same goes for {one.disk.mountpoint} ({one.kind})." for one in others[:2])
    sure = worst.kind not in (Kind.SOON, Kind.SOON_FILES)
    return Finding(
        verdict=Verdict.FOUND,
        certainty=Certainty.CONFIRMED if sure else Certainty.LIKELY,
        severity=Severity.CRITICAL if worst.disk.refused else Severity.WARNING,
        summary=words.summary(worst, seen) + also,
        evidence=words.evidence(worst, seen),
        ruled_out=_ruled_out(worst, seen),
        cures=cures(worst, seen),
    )


def _ruled_out(worst: Shortage, seen: Observation) -> tuple[RuledOut, ...]:
    room, said = worst.disk.room, []
    if worst.kind is not Kind.INODES and worst.kind is not Kind.QUOTA_FILES:
        free = f"{room.free_files} of {room.files} are free" if room.files else "as many as needed"
        said.append(RuledOut("inodes", free))
    else:
        said.append(RuledOut("blocks", f"{size(room.available_bytes)} are free"))
    if worst.kind not in (Kind.QUOTA, Kind.QUOTA_FILES, Kind.USER_QUOTA):
        none = "its directory has no project with a quota, and nobody was told EDQUOT"
        said.append(RuledOut("a quota", none))
    if not any(one.held is not None and not one.held.named for one in worst.disk.holders):
        said.append(RuledOut("a removed file that it holds open", "it holds none there"))
    memory = f"{worst.disk.mountpoint} lies on {worst.disk.fstype or 'a disk'}, not in memory"
    said.append(RuledOut("memory/shm_exhausted", memory))
    return tuple(said)


def _no_disk(seen: Observation) -> Finding:
    if seen.unseen:
        return unknown(
            f"its files lie on {', '.join(seen.unseen[:3])}, which may never answer: ask df there"
        )
    if seen.shared:
        return clear(
            "It has the host's mounts, and no file open to write on a disk that is full."
            f"{_not_disks(seen)}"
        )
    if seen.root is None:
        return unknown("its mount table shows no root file system")
    kind, writable = seen.root
    how = "can be written, and lies in memory or on no disk" if writable else "is read-only"
    return clear(f"It writes to no disk: its root ({kind}) {how}.{_not_disks(seen)}")


def _room(seen: Observation) -> str:
    least = min(seen.disks, key=_share)
    room = least.room
    inodes = f" and {room.free_files} of {room.files} inodes" if room.files else ""
    steady = ", and it does not get fuller" if room.nearly_full and not least.filling else ""
    return (
        f"There is room where it writes: {size(room.available_bytes)} of {size(room.size_bytes)}"
        f"{inodes} beneath {least.mountpoint}{steady}.{_not_disks(seen)}{_not_watched(seen)}"
    )


def _share(disk: FileSystem) -> float:
    room = disk.room
    files = room.free_files / room.files if room.files else 1.0
    return min(files, room.available_bytes / max(1, room.size_bytes))


_MEANINGS = {
    What.ELSEWHERE: "a limit on watches, namespaces, mounts or keys",
    What.NAME: "a limit of another file system (cgroup.max.descendants), or one that is over",
    What.TMPFS: "a tmpfs, which is memory",
    What.SEGMENT: "a limit of its IPC namespace",
    What.SEMAPHORES: "a limit of its IPC namespace",
    What.QUEUE: "a limit of its IPC namespace",
    What.DISK: "a file system that it does not write to by a mount of its own",
}


def _not_disks(seen: Observation) -> str:
    """What said the same error for another reason."""
    if not seen.elsewhere:
        return ""
    one = seen.elsewhere[-1]
    return (
        f" What {one.comm} was refused ({one.how}) is not for want of disk: {_MEANINGS[one.what]}."
    )


def _not_watched(seen: Observation) -> str:
    return "" if seen.watched is None else f" (Who was refused was not watched: {seen.watched}.)"


def _asked(disk: FileSystem) -> Evidence:
    return Evidence(f"df {disk.mountpoint}; df -i {disk.mountpoint}", words.room(disk.room))


CASE = Case(
    title="The disk is full",
    question="Why did a container fill the host's disk?",
    question_zh="容器为什么把宿主机的磁盘写满了?",
    lesson="12",
    needs=(living,),
    observation=Observation,
    observe=observe,
    judge=judge,
    outlives=True,
)
