"""A child that touches 16 MiB of huge pages where 8 are allowed, again and again.

The machine's pool is given a few pages for as long as a box lives; a machine that has a pool of its
own is left alone.
"""

import mmap
import os
import resource
import signal
import time
from collections.abc import Callable

from whybox.change import HostSysctl, HugepageLimit
from whybox.kernel import cgroup, hugetlb
from whybox.kernel.host import Host
from whybox.lab import machine
from whybox.lab.box import Box, BoxError
from whybox.lab.lab import Lab
from whybox.lab.process import Program
from whybox.model import Finding

PAGE = 2 << 20
#: Small pools and small limits: what counts is the number of pages.
POOL_PAGES = 24
LIMIT = HugepageLimit(4 * PAGE, PAGE)
WANTED_PAGES = 8
EVERY_SECONDS = 0.2

MAP_HUGETLB, MAP_NORESERVE = 0x40000, 0x4000


def again_and_again(body: Callable[[], None]) -> Program:
    """One child after the other runs ``body``, whatever becomes of it."""

    def program() -> None:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        while True:
            child = os.fork()
            if child == 0:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                try:
                    body()
                finally:
                    os._exit(0)
            os.waitpid(child, 0)
            time.sleep(EVERY_SECONDS)

    return program


def touching(pages: int, flags: int = 0) -> Program:
    """Children that map so many huge pages and touch them all."""
    return again_and_again(lambda: _touch(pages, flags))


def _touch(pages: int, flags: int = 0) -> None:
    kind = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_HUGETLB | flags
    with mmap.mmap(-1, pages * PAGE, flags=kind) as memory:
        for page in range(pages):
            memory[page * PAGE] = 1


def holding(pages: int) -> Program:
    """Maps and touches that many, and keeps them."""

    def program() -> None:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        kind = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_HUGETLB
        memory = mmap.mmap(-1, pages * PAGE, flags=kind)
        for page in range(pages):
            memory[page * PAGE] = 1
        while memory:
            signal.pause()

    return program


def _with_pool(box: Box, pages: int = POOL_PAGES) -> None:
    machine.set_sysctl(HostSysctl("vm.nr_hugepages", str(pages)), box.closing)
    pool = next(pool for pool in hugetlb.pools(Host()) if pool.default)
    if pool.available < pages:
        raise BoxError(f"the pool has {pool.available} huge pages instead of {pages}")


def healthy(box: Box) -> None:
    """Three pages where four are allowed."""
    _with_pool(box)
    box.huge_pages(LIMIT)
    box.start(touching(3))


def reproduce(box: Box) -> None:
    """Eight pages where four are allowed: mmap succeeds, and the fifth page is SIGBUS."""
    _with_pool(box)
    box.huge_pages(LIMIT)
    box.start(touching(WANTED_PAGES))


def under_parent(box: Box) -> None:
    """The limit is the parent's, as a pod's is; v2 counts at the child all the same."""
    _with_pool(box)
    box.huge_pages(parent=LIMIT)
    box.start(touching(WANTED_PAGES))


def reservations(box: Box) -> None:
    """Not even to be reserved: mmap itself fails."""
    _with_pool(box)
    box.huge_pages(HugepageLimit(LIMIT.bytes, PAGE, reserved=True))
    box.start(touching(WANTED_PAGES))


def empty_pool(box: Box) -> None:
    """The machine has no huge page."""
    _with_pool(box, 0)
    box.start(touching(WANTED_PAGES))


def small_pool(box: Box) -> None:
    """The machine has six of eight pages."""
    _with_pool(box, 6)
    box.start(touching(WANTED_PAGES))


def overdrawn_pool(box: Box) -> None:
    """Nothing was reserved (MAP_NORESERVE), so that it is the seventh page that is SIGBUS."""
    _with_pool(box, 6)
    box.start(touching(WANTED_PAGES, MAP_NORESERVE))


def truncated_file(box: Box) -> None:
    """A page of a file that was cut off meanwhile: SIGBUS as well."""
    _with_pool(box)
    box.huge_pages(LIMIT)
    box.start(again_and_again(_touch_cut_off))


def _touch_cut_off() -> None:
    with open("/tmp/file", "w+b") as file:
        file.truncate(2 * mmap.PAGESIZE)
        with mmap.mmap(file.fileno(), 2 * mmap.PAGESIZE) as memory:
            file.truncate(0)
            memory[mmap.PAGESIZE] = 1


def full_tmpfs(box: Box) -> None:
    """A page of a file for which its tmpfs has no room: SIGBUS as well."""
    _with_pool(box)
    box.huge_pages(LIMIT)
    box.shm(1 << 20)
    box.start(again_and_again(_touch_too_much_of_tmpfs))


def _touch_too_much_of_tmpfs() -> None:
    with open("/dev/shm/file", "w+b") as file:
        file.truncate(2 << 20)
        with mmap.mmap(file.fileno(), 2 << 20) as memory:
            for page in range(0, 2 << 20, mmap.PAGESIZE):
                memory[page] = 1


def signal_by_hand(box: Box) -> None:
    """SIGBUS by kill(2), beside huge pages that fit."""
    _with_pool(box)
    box.huge_pages(LIMIT)
    box.start(again_and_again(lambda: os.kill(os.getpid(), signal.SIGBUS)))


def all_in_use(box: Box) -> None:
    """It holds every page of the pool and wants no more, as a database does."""
    _with_pool(box)
    box.start(holding(POOL_PAGES))
    time.sleep(0.3)


def small_memory_limit(box: Box) -> None:
    """40 MiB of huge pages under a memory limit of 32: they are not charged to it."""
    _with_pool(box)
    box.memory(limit_bytes=32 << 20)
    box.start(touching(20))


def address_space(box: Box) -> None:
    """``ulimit -v`` refuses with ENOMEM what the pool could give."""
    _with_pool(box)
    box.start(again_and_again(_touch_under_ulimit))


def _touch_under_ulimit() -> None:
    with open("/proc/self/statm", encoding="ascii") as statm:
        used = int(statm.read().split()[0]) * mmap.PAGESIZE
    resource.setrlimit(resource.RLIMIT_AS, (used + PAGE, used + PAGE))
    _touch(WANTED_PAGES)


def in_the_past(box: Box) -> None:
    """Refused once, and content with less since."""

    def program() -> None:
        child = os.fork()
        if child == 0:
            _touch(WANTED_PAGES)
            os._exit(0)
        os.waitpid(child, 0)
        holding(3)()

    _with_pool(box)
    box.huge_pages(LIMIT)
    box.start(program)
    time.sleep(1)


def numbers(finding: Finding) -> str | None:
    """Four pages are allowed and eight wanted."""
    words = "limit of 8 MiB", "wanted 8 huge pages", "wanted 16 MiB"
    if not any(word in finding.summary for word in words):
        return f"8 of 16 MiB were allowed, and it says: {finding.summary}"
    return None


def _pool_is_free(host: Host) -> str | None:
    pools = [pool for pool in hugetlb.pools(host) if pool.default]
    if not pools or pools[0].page_bytes != PAGE:
        return "this kernel has no huge pages of 2 MiB"
    if any(pool.pages for pool in pools):
        return "the machine has a pool of huge pages that others use: it is left alone"
    return None


def _controller(host: Host) -> str | None:
    for tree in cgroup.hierarchies(host):
        there = host.optional_text(f"{tree.mountpoint}/cgroup.controllers") or ""
        if "hugetlb" in (*tree.controllers, *there.split()):
            return None
    return "no tree of control groups has the hugetlb controller"


LAB = Lab(
    healthy=healthy,
    reproduce=reproduce,
    variants={
        "the parent's limit": under_parent,
        "a limit of reservations": reservations,
        "no pool": empty_pool,
        "a pool that is too small": small_pool,
        "a pool without reservations": overdrawn_pool,
    },
    look_alikes={
        "a truncated file": truncated_file,
        "a full tmpfs": full_tmpfs,
        "SIGBUS by kill": signal_by_hand,
        "a pool that is all in use": all_in_use,
        "a smaller memory limit": small_memory_limit,
        "ulimit -v": address_space,
        "refused in the past": in_the_past,
    },
    numbers=numbers,
    needs=(_pool_is_free, _controller),
)
