"""Six tasks whose vfork children sleep; and five that write to a file system that is frozen."""

import ctypes
import os
import signal
import time

from whybox.kernel import cgroup, task
from whybox.kernel.host import Host
from whybox.lab import disk, workload
from whybox.lab.box import Box
from whybox.lab.lab import Lab
from whybox.lab.process import Program
from whybox.model import Finding

COUNT = 6
WRITERS = 5
MIB = 1 << 20

#: include/uapi/linux/sched.h: as vfork(), but with a copy of the memory, which Python needs.
CLONE_VFORK = 0x4000


def vforking(n: int, child_seconds: float) -> Program:
    """``n`` tasks that call vfork again and again; each child lasts so long, executes nothing."""

    def parent() -> None:
        clone = getattr(ctypes.CDLL(None), "syscall")  # noqa: B009 -- no such name for mypy
        number = 56 if os.uname().machine == "x86_64" else 220
        while True:
            child = clone(number, CLONE_VFORK | signal.SIGCHLD, 0, 0, 0, 0)
            if child == 0:
                time.sleep(child_seconds)
                os._exit(0)
            os.waitpid(child, 0)
            time.sleep(0.2)

    return workers(n, parent)


def writing(n: int, directory: str) -> Program:
    """``n`` tasks that each make a file, again and again."""

    def write() -> None:
        path = f"{directory}/w{os.getpid()}"
        while True:
            with open(path, "wb") as file:
                file.write(b"x" * 4096)
            time.sleep(0.1)

    return workers(n, write)


def syncing(n: int, path: str) -> Program:
    """``n`` tasks that wait for the disk most of the time, a little each time."""

    def write() -> None:
        with open(f"{path}{os.getpid()}", "wb") as file:
            while True:
                file.seek(0)
                file.write(b"x" * 4096)
                os.fsync(file.fileno())

    return workers(n, write)


def workers(n: int, body: Program) -> Program:
    """``n`` children that run ``body``, under a PID 1 that ends them on SIGTERM."""

    def program() -> None:
        children = []
        for _ in range(n):
            child = os.fork()
            if child == 0:
                try:
                    body()
                finally:
                    os._exit(0)
            children.append(child)

        def stop(*_: object) -> None:
            for child in children:
                os.kill(child, signal.SIGKILL)
            os._exit(0)

        signal.signal(signal.SIGTERM, stop)
        while True:
            os.waitpid(-1, 0)

    return program


def _until_blocked(box: Box, count: int) -> None:
    """Come back when so many of its tasks are in D."""
    deadline = time.monotonic() + 60
    while _blocked(box) < count and time.monotonic() < deadline:
        time.sleep(0.05)


def _blocked(box: Box) -> int:
    host = Host()
    group = box.target().group(host, "memory")
    assert group is not None
    found = 0
    for tid in cgroup.threads(host, group):
        try:
            found += task.stat(host, tid).state == "D"
        except OSError:
            continue
    return found


def healthy(box: Box) -> None:
    """The same tasks whose children end at once."""
    box.start(vforking(COUNT, 0.0))


def reproduce(box: Box) -> None:
    """The children of vfork execute nothing for a thousand seconds."""
    box.start(vforking(COUNT, 1000))
    _until_blocked(box, COUNT)


def frozen(box: Box) -> None:
    """A volume is frozen, as by a backup that died."""
    mounted = disk.mounted(box, "/data")
    box.start(writing(WRITERS, "/data"))
    mounted.freeze()
    _until_blocked(box, WRITERS)


def thawed(box: Box) -> None:
    """The same, not frozen."""
    disk.mounted(box, "/data")
    box.start(writing(WRITERS, "/data"))


def throttled(box: Box) -> None:
    """Eight tasks share a fifth of a CPU: they wait in R."""
    box.cpu(cores=0.2)
    box.start(workload.burn(8))


def paused(box: Box) -> None:
    """Frozen by the freezer: on v1 that shows as D."""
    box.start(workload.burn(2))
    time.sleep(0.2)
    box.pause()


def busy_disk(box: Box) -> None:
    """Many short waits for the disk."""
    box.start(syncing(2, "/var/tmp/f"))


def numbers(finding: Finding) -> str | None:
    """Six tasks, at the place where vfork waits; or five at the frozen file system."""
    vfork = f"{COUNT} of its " in finding.summary and "vfork" in finding.summary
    frozen = f"{WRITERS} of its " in finding.summary and "whybox-disk" in finding.summary
    if not (vfork or frozen):
        return f"expected {COUNT} tasks in vfork or {WRITERS} at the volume: {finding.summary}"
    return None


DISK = disk.missing(Host()) is None

LAB = Lab(
    healthy=healthy,
    # The cure of the first is a change that can be applied, that of the other a new program.
    reproduce=frozen if DISK else reproduce,
    variants={"vfork children that execute nothing": reproduce} if DISK else {},
    look_alikes={
        "throttled tasks, which are in R": throttled,
        "a paused container": paused,
        "short waits for a disk": busy_disk,
        **({"a file system that is not frozen": thawed} if DISK else {}),
    },
    numbers=numbers,
    cured=healthy,
)
