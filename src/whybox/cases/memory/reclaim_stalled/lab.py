"""A program that grows past memory.high (v2), or that stands still without an OOM killer (v1)."""

import mmap
import os
import signal
import time
from collections.abc import Callable

from whybox.kernel import cgroup, task
from whybox.kernel.host import Host
from whybox.lab import workload
from whybox.lab.box import Box
from whybox.lab.lab import Lab, Scenario
from whybox.lab.process import Program
from whybox.model import Finding

MIB = 1 << 20
HIGH = 48 * MIB
WANTED = 80 * MIB
LIMIT = 64 * MIB
FILE = 160 * MIB


def v2() -> bool:
    """Whether this kernel has memory.high: the memory controller in the unified tree."""
    trees = cgroup.hierarchies(Host())
    return not any("memory" in tree.controllers for tree in trees)


def growing(bytes: int) -> Program:
    """Touches that much, then holds it and does nothing."""
    return workload.allocate(bytes)


def filling_cache(bytes: int) -> Program:
    """Writes a file once, which fills the page cache with what nobody needs again."""

    def filling() -> None:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        with open("/tmp/file", "wb") as file:
            for _ in range(bytes // MIB):
                file.write(b"x" * MIB)
                # Dirty pages cannot give way at once.
                os.fdatasync(file.fileno())
        while True:
            time.sleep(0.5)

    return filling


def without_killer(box: Box, bytes: int) -> None:
    """v1: the OOM killer is switched off, so at the limit everything waits."""
    box.memory(limit_bytes=LIMIT, kill=False)
    box.start(growing(bytes))


def healthy(box: Box) -> None:
    """The same program with room for what it wants."""
    if v2():
        box.memory_high(2 * WANTED)
    else:
        box.memory(limit_bytes=2 * WANTED, kill=False)
    box.start(growing(WANTED))
    time.sleep(0.5)


def above_high(box: Box) -> None:
    """It grows past memory.high, and nothing of what it holds can be given up."""
    box.memory_high(HIGH)
    box.start(growing(WANTED))
    _until(box, lambda box: _held(box) > HIGH)


def stopped(box: Box) -> None:
    """v1: it stands still at its limit."""
    without_killer(box, WANTED)
    _until(box, lambda box: _held(box) > 0.99 * LIMIT)
    time.sleep(0.3)


def under_parent(box: Box) -> None:
    """The memory.high is the parent's, as a pod's is."""
    box.memory_high(4 * WANTED, parent_bytes=HIGH)
    box.start(growing(WANTED))
    _until(box, lambda box: _held(box) > HIGH)


def page_cache(box: Box) -> None:
    """A file larger than what is allowed, written through once: the cache gives way at once."""
    if v2():
        box.memory_high(LIMIT)
    else:
        box.memory(limit_bytes=LIMIT)
    box.start(filling_cache(FILE))
    _until(box, _is_asleep)


def throttled(box: Box) -> None:
    """Slow for want of CPU."""
    box.cpu(cores=0.2)
    box.start(workload.burn(2))


def near_high(box: Box) -> None:
    """Just below what it may hold."""
    if v2():
        box.memory_high(LIMIT)
    else:
        box.memory(limit_bytes=LIMIT)
    box.start(growing(40 * MIB))
    time.sleep(0.5)


def killed_children(box: Box) -> None:
    """The limit kills child after child: nobody waits."""

    def touch() -> None:
        with mmap.mmap(-1, 2 * LIMIT) as memory:
            for page in range(0, 2 * LIMIT, mmap.PAGESIZE):
                memory[page] = 1

    def program() -> None:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        while True:
            child = os.fork()
            if child == 0:
                try:
                    touch()
                finally:
                    os._exit(0)
            os.waitpid(child, 0)
            time.sleep(0.7)

    box.memory(limit_bytes=LIMIT)
    box.start(program)


def _until(box: Box, reached: Callable[[Box], bool]) -> None:
    deadline = time.monotonic() + 60
    while not reached(box) and time.monotonic() < deadline:
        time.sleep(0.05)


def _held(box: Box) -> int:
    host = Host()
    group = box.target().group(host, "memory")
    assert group is not None
    name = "memory.usage_in_bytes" if group.version == 1 else "memory.current"
    return host.optional_number(group.file(name)) or 0


def _is_asleep(box: Box) -> bool:
    """Whether the program has written its file, and sleeps."""
    return task.wait_channel(Host(), box.pid) in ("hrtimer_nanosleep", "do_nanosleep")


def numbers(finding: Finding) -> str | None:
    """48 MiB of memory.high, or a limit of 64 MiB."""
    size = f"{(HIGH if v2() else LIMIT) // MIB} MiB"
    return None if size in finding.summary else f"expected {size}: {finding.summary}"


REPRODUCE: Scenario = above_high if v2() else stopped

LAB = Lab(
    healthy=healthy,
    reproduce=REPRODUCE,
    variants={"the parent's memory.high": under_parent} if v2() else {},
    look_alikes={
        "page cache that gives way": page_cache,
        "close to what it may hold": near_high,
        "slow for want of CPU": throttled,
        "killed at the limit": killed_children,
    },
    numbers=numbers,
    also=("cpu/blocked_in_kernel",),
    window_seconds=3.0,
    # A task that is slowed down sleeps out its penalty (MEMCG_MAX_HIGH_DELAY_JIFFIES).
    settle_seconds=2.0,
)
