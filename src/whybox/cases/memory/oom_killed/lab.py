"""A child that wants 96 MiB where 64 are allowed, again and again, under a PID 1 that lives on."""

import mmap
import os
import resource
import signal
import time
from collections.abc import Callable
from contextlib import suppress

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
SHM_FILE = "/dev/shm/file"


def hungry_children(bytes: int) -> Program:
    """One child after the other touches that much and ends; PID 1 only watches."""
    return again_and_again(lambda: _touch(bytes))


def _nothing() -> None:
    pass


def _reap() -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def again_and_again(body: Callable[[], None], afterwards: Callable[[], None] = _nothing) -> Program:
    """One child after the other runs ``body``, whatever becomes of it; then ``afterwards``."""

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
            _reap()  # what it left behind when it was killed
            afterwards()
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


def joined(box: Box) -> None:
    """What came in with ``exec`` wants too much; the container's own program lives on."""
    box.memory(limit_bytes=LIMIT)
    box.start(workload.idle())
    box.run(workload.allocate(WANTED))
    time.sleep(1.5)


def shared_memory(box: Box) -> None:
    """What fills the limit is a file in /dev/shm; the victim itself holds almost nothing."""
    box.memory(limit_bytes=LIMIT)
    box.shm(2 * LIMIT)
    box.start(again_and_again(_write_to_shm, afterwards=_remove))
    time.sleep(0.5)


def _write_to_shm() -> None:
    _choose_me()
    with open(SHM_FILE, "wb") as file:
        for _ in range(WANTED // MIB):
            file.write(b"x" * MIB)


def _remove() -> None:
    """tmpfs outlives who wrote it, and then the next one dies of it."""
    with suppress(FileNotFoundError):
        os.unlink(SHM_FILE)


def _choose_me() -> None:
    """Not PID 1, whose memory is about the same."""
    with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("1000")


def innocent(box: Box) -> None:
    """A task of 40 MiB that asks for nothing dies when another one asks for 40 more."""

    def body() -> None:
        greedy = os.fork()
        if greedy == 0:
            time.sleep(0.3)
            _touch(40 * MIB)
            os._exit(0)
        _choose_me()
        with mmap.mmap(-1, 40 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
            for page in range(0, 40 * MIB, mmap.PAGESIZE):
                memory[page] = 1
            os.waitpid(greedy, 0)

    box.memory(limit_bytes=LIMIT)
    box.start(again_and_again(body))
    time.sleep(1)


def as_one(box: Box) -> None:
    """``memory.oom.group``: all of it is killed, PID 1 too."""
    box.memory(limit_bytes=LIMIT)
    box.start(_after(0.5, workload.allocate(WANTED)))
    assert box.groups is not None
    for directory in box.groups.directories.values():
        with open(f"{directory}/memory.oom.group", "w", encoding="ascii") as file:
            file.write("1")
    box.wait(60)


def _after(seconds: float, program: Program) -> Program:
    def later() -> None:
        time.sleep(seconds)
        program()

    return later


def killed_from_outside(box: Box) -> None:
    """Close to its limit, and killed by somebody: status 137 as well."""
    box.memory(limit_bytes=LIMIT)
    box.start(workload.allocate(40 * MIB))
    time.sleep(0.5)
    box.signal(signal.SIGKILL)
    box.wait(10)


def killed_by_its_parent(box: Box) -> None:
    """A child close to the limit gets SIGKILL from its own parent."""

    def body() -> None:
        child = os.fork()
        if child == 0:
            _touch(40 * MIB)
            time.sleep(60)
        time.sleep(0.3)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)

    box.memory(limit_bytes=LIMIT)
    box.start(again_and_again(body))
    time.sleep(0.5)


def killed_next_door(box: Box) -> None:
    """Another container was killed just now."""
    with Box("oom-neighbour") as other:
        other.memory(limit_bytes=LIMIT)
        other.start(workload.allocate(WANTED))
        other.wait(60)
    healthy(box)


def full_tmpfs(box: Box) -> None:
    """A tmpfs that is smaller than the limit is full: ENOSPC, and nobody is killed."""

    def body() -> None:
        with suppress(OSError), open(SHM_FILE, "wb") as file:
            for _ in range(WANTED // MIB):
                file.write(b"x" * MIB)

    box.memory(limit_bytes=LIMIT)
    box.shm(8 * MIB)
    box.start(again_and_again(body))


def slowed_down(box: Box) -> None:
    """``memory.high``: it is slowed down, and not killed."""
    box.memory(limit_bytes=4 * LIMIT)
    box.memory_high(LIMIT // 2)
    box.start(workload.allocate(LIMIT))


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


VARIANTS = {
    "PID 1 is the victim": first_process,
    "the parent's limit": under_parent,
    "a process that joined": joined,
    "shared memory": shared_memory,
    "an innocent victim": innocent,
}
LOOK_ALIKES = {
    "killed from outside near the limit": killed_from_outside,
    "killed by its own parent": killed_by_its_parent,
    "another container is killed": killed_next_door,
    "a full tmpfs": full_tmpfs,
    "exit status 137 by itself": own_status_137,
    "page cache at the limit": page_cache,
    "malloc refused by ulimit -v": address_space,
}

LAB = Lab(
    healthy=healthy,
    reproduce=reproduce,
    # v2 alone kills a group as one and slows down; it cannot switch the killer off.
    variants=VARIANTS | ({} if _v1_memory() else {"killed as one": as_one}),
    look_alikes=LOOK_ALIKES
    | ({"killing switched off": kill_disabled} if _v1_memory() else {"memory.high": slowed_down}),
    numbers=numbers,
    window_seconds=3.0,
)
