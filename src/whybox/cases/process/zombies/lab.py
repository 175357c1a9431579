"""Seventeen orphans under a PID 1 that waits for its own children and for no other."""

import os
import signal
import threading
import time
from contextlib import suppress

from whybox.kernel import task
from whybox.kernel.host import Host
from whybox.kernel.namespace import namespace
from whybox.lab import workload
from whybox.lab.box import Box, Program
from whybox.lab.lab import Lab
from whybox.model import Finding

COUNT = 17


def in_a_child(program: Program) -> Program:
    """PID 1 runs ``program`` in a child, and reaps whatever is its own to reap."""

    def parent() -> None:
        child = os.fork()
        if child == 0:
            program()
            os._exit(0)
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        while True:
            os.waitpid(-1, 0)

    return parent


def spawning() -> Program:
    """A hundred children a second, each of which is waited for at once."""

    def program() -> None:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        while True:
            child = os.fork()
            if child == 0:
                os._exit(0)
            os.waitpid(child, 0)
            time.sleep(0.01)

    return program


def dead_leaders(n: int) -> Program:
    """``n`` children whose first thread has ended while another runs: Z, and no zombies."""

    def child() -> None:
        threading.Thread(target=time.sleep, args=(1000,)).start()
        _end_this_thread()

    def program() -> None:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        for _ in range(n):
            if os.fork() == 0:
                child()
        while True:
            time.sleep(100)

    return program


def _end_this_thread() -> None:
    """``exit(2)``, which ends one thread where Python's own exit ends the process."""
    import ctypes

    ctypes.CDLL(None).pthread_exit(None)


def until_ended(box: Box) -> None:
    """Come back when all have ended and stay; under an init none of them does."""
    deadline = time.monotonic() + 60
    while not _settled(box) and time.monotonic() < deadline:
        time.sleep(0.05)


def _settled(box: Box) -> bool:
    host = Host()
    return task.stat(host, box.pid).comm == "init" or _ended(host, box) == COUNT


def _ended(host: Host, box: Box) -> int:
    space = namespace(host, box.pid, "pid")
    found = 0
    for pid in task.pids(host):
        with suppress(OSError):
            inside = namespace(host, pid, "pid") == space
            found += inside and task.stat(host, pid).state == "Z"
    return found


def healthy(box: Box) -> None:
    """As many children, and it waits for them."""
    box.start(workload.reaping(COUNT))


def reproduce(box: Box) -> None:
    """Orphans that PID 1 inherits."""
    box.start(workload.orphans(COUNT))
    until_ended(box)


def own_children(box: Box) -> None:
    """PID 1's own children."""
    box.start(workload.zombies(COUNT))
    until_ended(box)


def below_an_init(box: Box) -> None:
    """The parent is not PID 1: an init does not help, since they are not its children."""
    box.start(in_a_child(workload.zombies(COUNT)))
    until_ended(box)


def at_the_limit(box: Box) -> None:
    """More than half of what it may have are zombies."""
    box.pids(limit=COUNT + 10)
    box.start(workload.zombies(COUNT))
    until_ended(box)


def threads(box: Box) -> None:
    """As many tasks, and all of them live."""
    box.pids(limit=COUNT + 5)
    box.start(workload.threads_idle(COUNT))


def busy(box: Box) -> None:
    """Zombies come and go, a hundred a second."""
    box.start(spawning())


def leaders(box: Box) -> None:
    """First threads that ended before the others."""
    box.start(dead_leaders(COUNT))
    until_ended(box)


def numbers(finding: Finding) -> str | None:
    """Every one of them, and no other."""
    if not finding.summary.startswith(f"{COUNT} zombies "):
        return f"expected {COUNT} zombies: {finding.summary}"
    return None


LAB = Lab(
    healthy=healthy,
    reproduce=reproduce,
    variants={
        "PID 1's own children": own_children,
        "a parent that is not PID 1": below_an_init,
        "half of the limit": at_the_limit,
    },
    look_alikes={
        "living threads": threads,
        "children that are waited for": busy,
        "dead first threads": leaders,
    },
    numbers=numbers,
)
