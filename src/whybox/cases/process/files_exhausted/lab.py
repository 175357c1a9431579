"""Eighty-seven descriptors are wanted where sixty-four are allowed: refused 23 times."""

import ctypes
import os
import resource
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress

from whybox.kernel import task
from whybox.kernel.host import Host
from whybox.kernel.libc import set_name
from whybox.lab import workload
from whybox.lab.box import Box, Program
from whybox.lab.lab import Lab
from whybox.model import Finding

LIMIT = 64
REFUSED = 23
WANTED = LIMIT + REFUSED

#: Users of the host whom nobody else here is, for what is counted for a user.
UID, OTHER_UID = 61_041, 61_042
#: More instances than a user may have by default, 128 (fs/notify/inotify/inotify_user.c).
INSTANCES = 1024

#: How a program says that it has all it wanted, or all it gets.
DONE = "done"


def opening(n: int, open_one: Callable[[], object]) -> Program:
    """Wants ``n`` descriptors in all, and keeps those it gets."""

    def program() -> None:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        kept = []
        for _ in range(n - len(os.listdir("/proc/self/fd")) + 1):
            with suppress(OSError):
                kept.append(open_one())
        set_name(DONE)
        while kept:
            time.sleep(100)

    return program


def unconnected() -> object:
    """A socket, as a server has one for each client."""
    return socket.socket(socket.AF_UNIX)


def the_same_file() -> object:
    """One file again and again, never closed."""
    return os.open("/etc", os.O_RDONLY)


def watching() -> object:
    """An inotify instance."""
    descriptor = ctypes.CDLL(None).inotify_init1(0)
    if descriptor < 0:
        raise OSError("refused")
    return descriptor


def shut_in(limit: int) -> Program:
    """Forbids itself to open anything more, as sandboxes do."""

    def program() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        workload.idle()()

    return program


def until_done(box: Box, pid: int | None = None) -> None:
    """Come back when the program has what it gets."""
    deadline = time.monotonic() + 60
    while task.stat(Host(), pid or box.pid).comm != DONE and time.monotonic() < deadline:
        time.sleep(0.02)


def healthy(box: Box) -> None:
    """As many, and they are allowed."""
    box.open_files(2 * WANTED)
    box.start(opening(WANTED, unconnected))
    until_done(box)


def reproduce(box: Box) -> None:
    """Sockets, more than it may have."""
    box.open_files(LIMIT)
    box.start(opening(WANTED, unconnected))
    until_done(box)


def leaking(box: Box) -> None:
    """The same file, never closed."""
    box.open_files(LIMIT)
    box.start(opening(WANTED, the_same_file))
    until_done(box)


def beside(box: Box) -> None:
    """PID 1 is well; another process of the container is not."""
    box.open_files(LIMIT)
    box.start(workload.idle())
    until_done(box, box.run(opening(WANTED, unconnected)))


def no_inotify(box: Box) -> None:
    """Refused with the same error, and far from the limit of its descriptors."""
    box.user(UID, UID)
    box.start(opening(INSTANCES, watching))
    until_done(box)


def few_of_few(box: Box) -> None:
    """A low limit, and little open."""
    box.open_files(LIMIT)
    box.start(workload.idle())


def many_of_many(box: Box) -> None:
    """A thousand open, and many more allowed."""
    box.open_files(4096)
    box.start(opening(1000, unconnected))
    until_done(box)


def sandboxed(box: Box) -> None:
    """It has as many as it may have, because it wants no more."""
    box.start(shut_in(3))


def another_user(box: Box) -> None:
    """Instances for another uid are plenty, whatever one has used up."""
    box.user(OTHER_UID, OTHER_UID)
    box.start(opening(40, watching))
    until_done(box)


def numbers(finding: Finding) -> str | None:
    """All 64, or all the instances that a user may have."""
    limit = Host().optional_number("/proc/sys/fs/inotify/max_user_instances")
    for says in (f"{LIMIT} of {LIMIT} descriptors", f"of {limit} for all", f"{limit} are held"):
        if says in finding.summary:
            return None
    return f"expected {LIMIT} descriptors or {limit} instances: {finding.summary}"


LAB = Lab(
    healthy=healthy,
    reproduce=reproduce,
    variants={
        "the same file again and again": leaking,
        "not PID 1 but another": beside,
        "inotify instances": no_inotify,
    },
    look_alikes={
        "a low limit and little open": few_of_few,
        "much open and more allowed": many_of_many,
        "a sandbox that opens nothing": sandboxed,
        "inotify, and enough of it": another_user,
    },
    numbers=numbers,
)
