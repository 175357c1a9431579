"""Writes that are synced to a disk of which it may have 2 MiB a second; and memory full of them."""

import os
import time
from collections.abc import Callable

from whybox.change import IoLimit
from whybox.kernel import cgroup
from whybox.kernel.host import Host
from whybox.lab import disk, files, workload
from whybox.lab.box import Box
from whybox.lab.disk import Disk
from whybox.lab.lab import Lab
from whybox.model import Finding

MIB = 1 << 20
LIMIT = 2 * MIB
STEP = 128 << 10
MEMORY = 32 * MIB


def v2() -> bool:
    """Whether memory and block IO are controlled in the unified tree."""
    trees = cgroup.hierarchies(Host())
    return not any("blkio" in tree.controllers for tree in trees)


def limited(box: Box, *, mib: int = 32) -> Disk:
    """A disk of its own with a limit on writing."""
    mounted = disk.mounted(box, "/data", mib=mib)
    box.io(IoLimit(mounted.device, "write bytes", LIMIT))
    return mounted


def until_waiting(box: Box, *resources: str) -> None:
    """Come back when the kernel has counted that it waits for one of these."""
    host = Host()
    group = cgroup.unified(host, box.target().cgroups)
    deadline = time.monotonic() + 20
    while group is not None and time.monotonic() < deadline:
        host.next_moment()
        texts = [host.optional_text(group.file(f"{what}.pressure")) for what in resources]
        totals = [int(text.partition("\n")[0].rpartition("=")[2]) for text in texts if text]
        if max(totals, default=1 << 40) > 300_000:
            return
        time.sleep(0.05)


def healthy(box: Box) -> None:
    """The same writes to a disk without a limit."""
    disk.mounted(box, "/data")
    box.start(files.writing("/data/f", STEP, direct=False, sync=True, every_s=0.05))


def reproduce(box: Box) -> None:
    """Each sync waits for what its limit holds back."""
    limited(box, mib=128)
    box.start(files.writing("/data/f", MIB, direct=False, sync=True))
    until_waiting(box, "io")


def full_of_dirty(box: Box) -> None:
    """Its memory is full of what must be written first, and the disk takes 2 MiB a second."""
    mounted = disk.mounted(box, "/data", mib=128)
    # It is written over: to find a place for new blocks, a write would wait for the journal.
    mounted.fill("a", 3 * MEMORY)
    box.io(IoLimit(mounted.device, "write bytes", LIMIT))
    box.memory(limit_bytes=MEMORY)
    box.start(files.sending("/data/a", STEP, most=3 * MEMORY, every_s=0.005))
    until_waiting(box, "memory")


def steady(box: Box) -> None:
    """Every write waits for the disk a little, as it asks for: O_DIRECT."""
    disk.mounted(box, "/data")
    box.start(files.writing("/data/f", STEP))


def pipe(box: Box) -> None:
    """Its writes take long because nobody reads: that is no file."""

    def piping() -> None:
        out, into = os.pipe()
        if os.fork() == 0:
            while True:
                os.read(out, 65536)
                time.sleep(0.3)
        while True:
            os.write(into, b"x" * 65536)

    box.start(workload.together(piping))


def throttled(box: Box) -> None:
    """It writes to files, and is slow for want of CPU."""
    disk.mounted(box, "/data")
    box.cpu(cores=0.1)
    box.start(files.writing("/data/f", STEP, direct=False))


def full_cache(box: Box) -> None:
    """At its memory limit by files that were read: reclaim takes them without a wait."""
    box.memory(limit_bytes=MEMORY)
    box.start(files.reading_through("/tmp/f", 64 * MIB))


def numbers(finding: Finding) -> str | None:
    """Most of the time is the limit's, or reclaim's; and the parts add up."""
    shares = [int(word[:-1].lstrip("(")) for word in finding.summary.split() if word[-1] == "%"]
    known = (f"limit of {LIMIT} write bytes" in finding.summary, "MiB" in finding.summary)
    if not 97 <= sum(shares) <= 103 or not any(known):
        return f"expected parts that add up, and the limit: {finding.summary}"
    return None


VARIANTS: dict[str, Callable[[Box], None]] = {"memory full of what is dirty": full_of_dirty}

LAB = Lab(
    healthy=healthy,
    reproduce=reproduce,
    variants=VARIANTS,
    look_alikes={
        "each write waits for the disk as it asks for": steady,
        "a pipe that nobody reads": pipe,
        "slow for want of CPU": throttled,
        "a full page cache that gives way": full_cache,
    },
    numbers=numbers,
    also=("storage/io_throttled", "memory/reclaim_stalled", "cpu/blocked_in_kernel"),
    needs=(disk.missing,),
    window_seconds=1.5,
)
