"""64 MiB that are touched again and again where 40 are allowed, and the rest may go to swap."""

import mmap
import os
import re
import signal
import time
from collections.abc import Callable

from whybox.change import MemoryLimit
from whybox.kernel import cgroup
from whybox.kernel.host import Host
from whybox.lab import swap
from whybox.lab.box import Box
from whybox.lab.lab import Breaks, Lab
from whybox.lab.process import BoxError, Program
from whybox.model import Finding

MIB = 1 << 20
LIMIT = 40 * MIB
WANTED = 64 * MIB
FILE = 72 * MIB
_READY = "/tmp/ready"
PATIENCE_SECONDS = 90.0


def touching(size: int, passes: int | None = None) -> Program:
    """Touches all of its memory so many times, or for ever."""

    def touching() -> None:
        _end_on_term()
        done = 0
        with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
            while passes is None or done < passes:
                for page in range(0, size, mmap.PAGESIZE):
                    memory[page] = 1
                done += 1
                _say_ready(done)
            while True:
                signal.pause()

    return touching


def killed_children(size: int) -> Program:
    """One child after the other wants more than there is, and is killed; PID 1 lives on."""

    def killed() -> None:
        _end_on_term()
        done = 0
        while True:
            child = os.fork()
            if child == 0:
                try:
                    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
                        for page in range(0, size, mmap.PAGESIZE):
                            memory[page] = 1
                finally:
                    os._exit(0)
            os.waitpid(child, 0)
            done += 1
            _say_ready(done)
            time.sleep(0.7)

    return killed


def reading(size: int) -> Program:
    """Reads a file that does not fit, beside memory of its own that nobody touches any more."""

    def reading() -> None:
        _end_on_term()
        with open("/tmp/file", "wb") as file:
            for _ in range(size // MIB):
                file.write(os.urandom(MIB))
                os.fdatasync(file.fileno())
        buffer, done = bytearray(MIB), 0
        with open("/tmp/file", "rb", buffering=0) as file:
            while True:
                os.lseek(file.fileno(), 0, os.SEEK_SET)
                while file.readinto(buffer):
                    pass
                done += 1
                _say_ready(done)

    return reading


def _end_on_term() -> None:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))


def _say_ready(done: int) -> None:
    if done == 1:
        with open(_READY, "wb"):
            pass


def _start(box: Box, program: Program) -> None:
    """Comes back when the program has gone round once."""
    box.start(program)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not os.path.exists(f"/proc/{box.pid}/root{_READY}"):
        if time.monotonic() > deadline or box.wait(0) is not None:
            raise BoxError(f"the program did not come so far: {box.error()}")
        time.sleep(0.05)


def healthy(box: Box) -> None:
    """All of it fits: there is swap, and nothing goes there."""
    swap.on_file(box)
    box.memory(limit_bytes=96 * MIB, swap=True)
    _start(box, touching(WANTED))


def reproduce(box: Box) -> None:
    """What is touched next was put away just before."""
    swap.on_file(box)
    box.memory(limit_bytes=LIMIT, swap=True)
    _start(box, touching(WANTED))


def on_zram(box: Box) -> None:
    """Swap that is memory: it costs CPU instead of a disk's time."""
    swap.on_zram(box)
    box.memory(limit_bytes=LIMIT, swap=True)
    _start(box, touching(WANTED))


def under_parent(box: Box) -> None:
    """The limit is the parent's, as a pod's is."""
    swap.on_file(box)
    box.memory(parent_limit_bytes=LIMIT, swap=True)
    _start(box, touching(WANTED))


def idle_in_swap(box: Box) -> None:
    """The same memory at the same limit, touched once: swap is used, and nothing comes back."""
    swap.on_file(box)
    box.memory(limit_bytes=LIMIT, swap=True)
    _start(box, touching(WANTED, passes=1))


def page_cache(box: Box) -> None:
    """A file that does not fit, with swap switched on."""
    swap.on_file(box)
    box.memory(limit_bytes=LIMIT, swap=True)
    _start(box, reading(FILE))


def not_allowed(box: Box) -> None:
    """It may not swap: what does not fit is killed, though swap is free."""
    swap.on_file(box)
    box.memory(limit_bytes=LIMIT)
    _start(box, killed_children(WANTED))


def used_up(box: Box) -> None:
    """It may swap a little, and is killed beyond that."""
    swap.on_file(box)
    box.memory(limit_bytes=LIMIT, swap=True)
    box.swap(bytes=8 * MIB)
    _start(box, killed_children(WANTED))


def swappiness_0(box: Box) -> None:
    """v1: nothing forbids swap, and yet it is killed."""
    swap.on_file(box)
    box.memory(limit_bytes=LIMIT, swap=True)
    box.swap(swappiness=0)
    _start(box, killed_children(WANTED))


def no_swap(box: Box) -> None:
    """It may swap, but there is no swap here."""
    box.memory(limit_bytes=LIMIT, swap=True)
    _start(box, killed_children(WANTED))


def _v1_memory() -> bool:
    return any("memory" in tree.controllers for tree in cgroup.hierarchies(Host()))


def numbers(finding: Finding) -> str | None:
    """The limit is 40 MiB, 64 are wanted, and the cure allows them with a margin."""
    if "limit of 40 MiB" not in finding.summary:
        return f"the limit is 40 MiB, and it says: {finding.summary}"
    change = finding.cures[0].change
    if not isinstance(change, MemoryLimit) or not WANTED < change.bytes <= 2 * WANTED:
        return f"enough is more than 64 and at most 128 MiB, the cure is {change}"
    moved = re.search(r"refault_anon \+(\d+)", finding.evidence[1].says)
    if moved is None or int(moved[1]) * mmap.PAGESIZE < MIB:
        return f"a MiB at least comes back, the evidence is {finding.evidence[1].says}"
    return None


_LOOK_ALIKES: dict[str, Callable[[Box], None]] = {
    "memory that lies in swap idle": idle_in_swap,
    "page cache that does not fit": page_cache,
    "killed, as it may not swap": not_allowed,
    "killed, as its swap is used up": used_up,
    "a host without swap": no_swap,
}
_VARIANTS: dict[str, Callable[[Box], None]] = {"the parent's limit": under_parent}

LAB = Lab(
    healthy=healthy,
    reproduce=reproduce,
    variants=_VARIANTS | ({"compressed memory": on_zram} if swap.zram_possible() else {}),
    look_alikes=_LOOK_ALIKES | ({"killed with swappiness 0": swappiness_0} if _v1_memory() else {}),
    numbers=numbers,
    breaks=Breaks.KERNEL,
    needs=(swap.impossible,),
    window_seconds=3.0,
)
