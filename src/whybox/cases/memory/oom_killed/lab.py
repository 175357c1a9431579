"""A child that wants 96 MiB where 64 are allowed, again and again, under a PID 1 that lives on."""

import mmap
import os
import resource
import signal
import time
from collections.abc import Callable

from whybox.kernel import cgroup
from whybox.kernel.host import Host
from whybox.lab import workload
from whybox.lab.box import Box
from whybox.lab.lab import Lab
from whybox.lab.process import Program
from whybox.model import Finding

MIB = 1 << 20
LIMIT = 64 * MIB
WANTED = 96 * MIB
#: The kernel writes ten reports in five seconds in full: one in 0.7 s is never held back.
EVERY_SECONDS = 0.7


def hungry_children(bytes: int) -> Program:
    """One child after the other touches that much and ends; PID 1 only watches."""
    return again_and_again(lambda: _touch(bytes))


def again_and_again(body: Callable[[], None]) -> Program:
    """One child after the other runs ``body``, whatever becomes of it."""

    def program() -> None:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        while True:
            child = os.fork()
            if child == 0:
                try:
                    body()
                finally:
                    os._exit(0)
            os.waitpid(child, 0)
            time.sleep(EVERY_SECONDS)

    return program


def _touch(size: int, flags: int = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) -> None:
    with mmap.mmap(-1, size, flags=flags) as memory:
        for page in range(0, size, mmap.PAGESIZE):
            memory[page] = 1


def _refused() -> None:
    """malloc fails at RLIMIT_AS, and the program ends by itself: nobody is killed."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        used = int(statm.read().split()[0]) * mmap.PAGESIZE
    resource.setrlimit(resource.RLIMIT_AS, (used + 16 * MIB, used + 16 * MIB))
    try:
        _touch(WANTED)
    except (MemoryError, OSError):
        os._exit(3)


def _reading(bytes: int) -> Program:
    """Writes a file that is larger than the limit: page cache fills it up and gives way."""

    def program() -> None:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        with open("/tmp/file", "wb") as file:
            for _ in range(bytes // MIB):
                file.write(b"x" * MIB)
                # Dirty pages cannot give way at once.
                os.fdatasync(file.fileno())
        while True:
            signal.pause()

    return program


def _status_137() -> None:
    time.sleep(0.3)
    os._exit(137)


def healthy(box: Box) -> None:
    """The same children where they fit."""
    box.memory(limit_bytes=256 * MIB)
    box.start(hungry_children(WANTED))


def reproduce(box: Box) -> None:
    """Child after child is killed at the container's own limit."""
    box.memory(limit_bytes=LIMIT)
    box.start(hungry_children(WANTED))
    time.sleep(0.3)


def first_process(box: Box) -> None:
    """PID 1 itself wants too much: the container dies of it."""
    box.memory(limit_bytes=LIMIT)
    box.start(workload.allocate(WANTED))
    box.wait(60)


def under_parent(box: Box) -> None:
    """The limit is the parent's, as a pod's is."""
    box.memory(parent_limit_bytes=LIMIT)
    box.start(hungry_children(WANTED))


def killed_from_outside(box: Box) -> None:
    """Close to its limit, and killed by somebody: status 137 as well."""
    box.memory(limit_bytes=LIMIT)
    box.start(workload.allocate(40 * MIB))
    time.sleep(0.5)
    box.signal(signal.SIGKILL)
    box.wait(10)


def own_status_137(box: Box) -> None:
    """The program itself ends with 137."""
    box.memory(limit_bytes=LIMIT)
    box.start(_status_137)
    box.wait(10)


def page_cache(box: Box) -> None:
    """Full of page cache, which gives way."""
    box.memory(limit_bytes=LIMIT)
    box.start(_reading(2 * LIMIT))


def address_space(box: Box) -> None:
    """``ulimit -v``: malloc fails, and nobody is killed."""
    box.memory(limit_bytes=LIMIT)
    box.start(again_and_again(_refused))


def kill_disabled(box: Box) -> None:
    """v1: at its limit it waits for ever, and nobody is killed."""
    box.memory(limit_bytes=LIMIT, kill=False)
    box.start(hungry_children(WANTED))
    time.sleep(1)


def _v1_memory() -> bool:
    return any("memory" in tree.controllers for tree in cgroup.hierarchies(Host()))


def numbers(finding: Finding) -> str | None:
    """The limit is 64 MiB, and no more than that was held."""
    if "limit of 64 MiB" not in finding.summary:
        return f"the limit is 64 MiB, and it says: {finding.summary}"
    said = next((e.says for e in finding.evidence if e.says.startswith("memory: usage")), "")
    if "limit 65536kB" not in said:
        return f"the kernel says limit 65536kB, the evidence {said!r}"
    return None


LOOK_ALIKES = {
    "killed from outside near the limit": killed_from_outside,
    "exit status 137 by itself": own_status_137,
    "page cache at the limit": page_cache,
    "malloc refused by ulimit -v": address_space,
}

LAB = Lab(
    healthy=healthy,
    reproduce=reproduce,
    variants={"PID 1 is the victim": first_process, "the parent's limit": under_parent},
    # v2 cannot switch the killer off.
    look_alikes=LOOK_ALIKES | ({"killing switched off": kill_disabled} if _v1_memory() else {}),
    numbers=numbers,
    window_seconds=3.0,
)
