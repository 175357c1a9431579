"""How room is made, by who holds it."""

import math
import os

from whybox.change import (
    Change,
    EmptyFile,
    InProgram,
    LayerLimit,
    LogLimit,
    ProjectQuota,
    VolumeLimit,
)
from whybox.kernel import diskplaces
from whybox.kernel.diskfill import DiskUse, Holder
from whybox.kernel.shmshortage import size
from whybox.model import Cure, Safety

from .shortage import Kind, Shortage

MIB = 1 << 20
#: What is kept of a log: three files of ten megabytes.
LOG_BYTES, LOG_FILES = 10 * MIB, 3


def cures(short: Shortage, seen: DiskUse) -> tuple[Cure, ...]:
    """The first is sufficient."""
    own = short.largest
    if short.kind in (Kind.QUOTA, Kind.QUOTA_FILES):
        return (_quota(short), *_of_own(short, own))
    if short.kind is Kind.USER_QUOTA:
        return (_program("Have the quota raised (setquota, btrfs qgroup limit), or write less."),)
    if short.kind is Kind.MOMENT:
        advice = "Ask for less at once, or give it a larger disk."
        return (_program(advice),)
    if own is None or short.by_others:
        return _of_others(short)
    return _of_own(short, own)


def _program(advice: str, safety: Safety = Safety.MUTATING) -> Cure:
    return Cure(advice=advice, change=InProgram(advice), safety=safety)


def _quota(short: Shortage) -> Cure:
    disk, project = short.disk, short.disk.project
    advice = "Raise the quota of its project, or have it keep less."
    if project is None or disk.on_host is None:
        return _program(advice)
    room, files = disk.room, short.kind is Kind.QUOTA_FILES
    change = ProjectQuota(
        id=project.id,
        mountpoint=disk.on_host,
        fstype=disk.fstype,
        bytes=room.size_bytes if files else _doubled(room.size_bytes),
        files=None if not room.files else 2 * room.files if files else room.files,
    )
    return Cure(advice=advice, change=change, safety=Safety.LOW_RISK)


def _doubled(bytes: int) -> int:
    return math.ceil(2 * bytes / MIB) * MIB


def _of_own(short: Shortage, own: Holder | None) -> tuple[Cure, ...]:
    if own is None:
        return ()
    if short.of_files:
        return (_fewer_files(own),)
    if own.held is not None:
        return _of_held(own)
    match own.kind:
        case diskplaces.Kind.LOG:
            return _of_log(own)
        case diskplaces.Kind.LAYER:
            return (_layer(short, own), _remove(own))
        case diskplaces.Kind.EMPTY_DIR:
            limit = _doubled(own.bytes // 4)
            advice = (
                f"Bound the emptyDir {own.name}: the kubelet evicts a pod that keeps more than "
                f"sizeLimit, here {size(limit)}."
            )
            change = VolumeLimit(own.name, limit)
            return (Cure(advice=advice, change=change, safety=Safety.MUTATING), _remove(own))
        case _:
            return (_remove(own),)


def _fewer_files(own: Holder) -> Cure:
    where = own.mountpoint if own.use.crowded is None else own.use.crowded[0]
    return _program(
        f"Have it keep fewer files: most are in {where}. Inodes are made with the file system "
        "(mke2fs -N): the number cannot be raised later on ext4.",
        Safety.DESTRUCTIVE,
    )


def _of_held(own: Holder) -> tuple[Cure, ...]:
    held = own.held
    reopen = (
        "Have the program open its files anew when they are rotated (a signal, or copytruncate of "
        "logrotate), or restart it: then the kernel frees the blocks."
    )
    if held is None or held.named or held.link is None:
        return (_program(reopen),)
    advice = (
        f"Cut off what {held.comm} holds open and nobody else can reach: its blocks are free at "
        "once. What the program keeps there itself, as a temporary file, is lost to it."
    )
    emptied = Cure(advice=advice, change=EmptyFile(held.link), safety=Safety.MUTATING)
    return emptied, Cure(advice=reopen, safety=Safety.MUTATING)


def _of_log(own: Holder) -> tuple[Cure, ...]:
    bounded = Cure(
        advice=(
            f"Have its engine keep {LOG_FILES} files of {size(LOG_BYTES)} of what it says. Docker: "
            "when the container is made, or for all in daemon.json (log-opts); Kubernetes: "
            "containerLogMaxSize of the kubelet. And have the program say less."
        ),
        change=LogLimit(LOG_BYTES, LOG_FILES),
        safety=Safety.MUTATING,
    )
    file = next(iter(own.use.largest), None)
    if file is None:
        return (bounded,)
    now = "Until then cut the log off: engines append, so that it begins anew at nothing."
    return bounded, Cure(advice=now, change=EmptyFile(file.path), safety=Safety.DESTRUCTIVE)


def _layer(short: Shortage, own: Holder) -> Cure:
    directory = _directory(own)
    quota = short.disk.fstype == "xfs" and bool(
        {"prjquota", "pquota"}.intersection(short.disk.options)
    )
    limit = max(64 * MIB, _doubled(own.bytes // 4))
    how = (
        "Bound what it may write outside of its volumes"
        if quota
        else f"Bound {directory}: its disk cannot bound a layer (only xfs with pquota can), but a "
        "tmpfs has a size. It is charged to the memory limit, and empty after a restart"
    )
    change: Change = LayerLimit(bytes=limit, directory=directory, quota=quota)
    if directory == "/" and not quota:
        change = InProgram("write below one directory, and not into the root")
    advice = (
        f"{how}. Kubernetes: a limit of ephemeral-storage. What is to be kept goes on a volume."
    )
    return Cure(advice=advice, change=change, safety=Safety.MUTATING)


def _directory(own: Holder) -> str:
    return os.path.dirname(own.use.largest[0].path) if own.use.largest else own.mountpoint


def _remove(own: Holder) -> Cure:
    files = ", ".join(file.path for file in own.use.largest)
    named = f" ({files})" if files else ""
    return _program(
        f"Remove what nobody needs from {own.mountpoint}{named}, and have the program rotate or "
        "expire what it writes; or give it a larger disk of its own.",
        Safety.DESTRUCTIVE,
    )


def _of_others(short: Shortage) -> tuple[Cure, ...]:
    other = short.largest_other
    whose = "" if other is None or other.kind is diskplaces.Kind.HOST else f" of {other.owner}"
    look = f"du -x {short.disk.on_host}" if short.disk.on_host else "du -x"
    advice = (
        f"Make room where it is taken{whose}: whybox diagnose --all --case storage/disk_filled, "
        f"{look}. Giving this container a disk of its own keeps it apart."
    )
    return (_program(advice, Safety.INSPECT),)
