"""Small direct writes to a disk whose short queue a neighbour keeps full of large ones."""

import threading
import time

from whybox.change import IoLimit
from whybox.kernel import cgroup
from whybox.kernel.host import Host
from whybox.lab import disk, files, workload
from whybox.lab.box import Box
from whybox.lab.disk import Disk
from whybox.lab.lab import Lab
from whybox.lab.process import Program
from whybox.model import Finding

MIB = 1 << 20
WRITERS = 32
DEPTH = 4
SMALL = 4096
PAUSE = 0.002


def shared(box: Box) -> Disk:
    """A disk of its own with a short queue, so that one who fills it is felt."""
    mounted = disk.mounted(box, "/data", mib=96)
    mounted.shorten_queue(DEPTH)
    return mounted


def flooding(directory: str, writers: int = WRITERS) -> Program:
    """That many threads, each of which writes a MiB past the page cache again and again."""

    def flooding() -> None:
        for nth in range(1, writers):
            program = files.stream(f"{directory}/n{nth}", MIB, most=2)
            threading.Thread(target=program, daemon=True).start()
        workload.end_on_term()
        files.stream(f"{directory}/n0", MIB, most=2)()

    return flooding


def neighbour(box: Box, mounted: Disk, program: Program) -> Box:
    """Another box on the same disk, closed with the first."""
    other = Box("rival")
    box.closing.callback(other.close)
    other.volume("/data", source=mounted.mountpoint)
    other.start(program)
    return other


def until_waiting(box: Box, usec: int = 300_000) -> None:
    """Come back when the kernel has counted that it waits for IO."""
    host = Host()
    group = cgroup.unified(host, box.target().cgroups)
    deadline = time.monotonic() + 20
    while group is not None and time.monotonic() < deadline:
        host.next_moment()
        text = host.optional_text(group.file("io.pressure")) or ""
        if int(text.partition("\n")[0].rpartition("=")[2] or 0) > usec:
            return
        time.sleep(0.05)


def healthy(box: Box) -> None:
    """The same writes without a neighbour."""
    shared(box)
    box.start(files.writing("/data/own", SMALL, every_s=PAUSE))
    time.sleep(0.3)


def reproduce(box: Box) -> None:
    """A neighbour writes as much as the disk takes."""
    mounted = shared(box)
    neighbour(box, mounted, flooding("/data"))
    box.start(files.writing("/data/own", SMALL, every_s=PAUSE))
    until_waiting(box)


def idle_neighbour(box: Box) -> None:
    """A neighbour that does most of what the disk does, which keeps up: nobody waits."""
    mounted = shared(box)
    neighbour(box, mounted, files.writing("/data/n", MIB // 4, every_s=0.02))
    box.start(files.writing("/data/own", SMALL, every_s=PAUSE))
    time.sleep(0.5)


def itself(box: Box) -> None:
    """It fills the queue itself."""
    shared(box)
    box.start(flooding("/data", WRITERS // 2))
    until_waiting(box)


def limited(box: Box) -> None:
    """It waits for its own limit, beside a neighbour that does a little."""
    mounted = shared(box)
    box.io(IoLimit(mounted.device, "write bytes", MIB))
    neighbour(box, mounted, files.writing("/data/n", SMALL, every_s=0.05))
    box.start(files.writing("/data/own", 64 << 10))
    until_waiting(box)


def elsewhere(box: Box) -> None:
    """The neighbour fills another disk."""
    mounted = shared(box)
    other = Box("rival")
    box.closing.callback(other.close)
    disk.mounted(other, "/data", mib=96).shorten_queue(DEPTH)
    other.start(flooding("/data", 2))
    assert mounted
    box.start(files.writing("/data/own", SMALL, every_s=PAUSE))
    time.sleep(0.5)


def numbers(finding: Finding) -> str | None:
    """The neighbour by its name, with most of the disk."""
    if "rival" in finding.summary and "fills the queue of loop" in finding.summary:
        return None
    return f"expected the neighbour's name: {finding.summary}"


LAB = Lab(
    healthy=healthy,
    reproduce=reproduce,
    look_alikes={
        "a busy neighbour that harms nobody": idle_neighbour,
        "it fills the queue itself": itself,
        "its own limit": limited,
        "a neighbour on another disk": elsewhere,
    },
    numbers=numbers,
    also=("cpu/starved", "storage/write_stalled", "cpu/blocked_in_kernel"),
    needs=(disk.missing,),
    window_seconds=1.0,
)
