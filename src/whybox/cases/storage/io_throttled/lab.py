"""Writes of 64 KiB to a disk of its own, of which it may have 1 MiB a second."""

import time

from whybox.change import IoLimit
from whybox.kernel import cgroup
from whybox.kernel.host import Host
from whybox.lab import disk, files
from whybox.lab.box import Box
from whybox.lab.disk import Disk
from whybox.lab.lab import Lab
from whybox.model import Finding

MIB = 1 << 20
LIMIT = MIB
STEP = 64 << 10
IOS = 20


def v2() -> bool:
    """Whether block IO is controlled in the unified tree."""
    trees = cgroup.hierarchies(Host())
    return not any("blkio" in tree.controllers for tree in trees)


def limited(box: Box, value: int = LIMIT) -> Disk:
    """A disk of its own with a limit on writing."""
    mounted = disk.mounted(box, "/data")
    box.io(IoLimit(mounted.device, "write bytes", value))
    return mounted


def healthy(box: Box) -> None:
    """The same writes, a tenth as many as it may."""
    limited(box)
    box.start(files.writing("/data/f", STEP, every_s=0.6))


def reproduce(box: Box) -> None:
    """As many as it can."""
    limited(box)
    box.start(files.writing("/data/f", STEP))
    time.sleep(0.3)


def many_small(box: Box) -> None:
    """It is the number of writes that is limited."""
    mounted = disk.mounted(box, "/data")
    box.io(IoLimit(mounted.device, "write IOs", IOS))
    box.start(files.writing("/data/f", 4096))


def reads(box: Box) -> None:
    """It is reading that is limited."""
    mounted = disk.mounted(box, "/data")
    box.io(IoLimit(mounted.device, "read bytes", LIMIT))
    box.start(files.reading("/data/f", STEP))
    time.sleep(0.5)


def synced(box: Box) -> None:
    """Through the page cache, with an fsync after each MiB: that waits for the disk."""
    limited(box)
    box.start(files.writing("/data/f", MIB // 4, direct=False, sync=True))


def parent(box: Box) -> None:
    """The limit is set on a group around it: on v2 it holds, on v1 it does not."""
    mounted = disk.mounted(box, "/data")
    box.io(parent=IoLimit(mounted.device, "write bytes", LIMIT))
    box.start(files.writing("/data/f", STEP, every_s=0.0 if v2() else 0.005))


def near(box: Box) -> None:
    """Three quarters of what it may, evenly."""
    limited(box, 8 * MIB)
    box.start(files.writing("/data/f", 16 << 10, every_s=0.0026))


def waiting(box: Box) -> None:
    """It waits for its disk all the time, far from its limit: each write is synced."""
    limited(box, 1024 * MIB)
    box.start(files.writing("/data/f", 4096, direct=False, sync=True))


def buffered(box: Box) -> None:
    """Buffered writes: on v1 no limit sees them, on v2 nobody waits for them."""
    limited(box)
    box.start(files.writing("/data/f", STEP, direct=False, every_s=0.005))


def numbers(finding: Finding) -> str | None:
    """1 MiB a second, or 20 writes."""
    summary = finding.summary
    if f"of {IOS} IOs/s" in summary or f"of {LIMIT / MIB:.1f} MiB/s" in summary:
        return None
    return f"expected a limit of {LIMIT / MIB:.1f} MiB/s: {summary}"


LAB = Lab(
    healthy=healthy,
    reproduce=reproduce,
    variants={
        "a limit on how many writes": many_small,
        "a limit on reading": reads,
        "buffered writes with fsync": synced,
        **({"the parent's limit": parent} if v2() else {}),
    },
    look_alikes={
        "close to its limit": near,
        "waiting for its disk, far from its limit": waiting,
        "buffered writes that nobody waits for": buffered,
        **({} if v2() else {"a parent's limit, which v1 does not hand down": parent}),
    },
    numbers=numbers,
    needs=(disk.missing,),
    window_seconds=1.5,
)
