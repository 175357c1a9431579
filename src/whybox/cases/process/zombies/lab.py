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


def told_that_nobody_waits(n: int) -> Program:
    """``n`` children end; with SIGCHLD ignored the kernel reaps them."""

    def program() -> None:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        for _ in range(n):
            if os.fork() == 0:
                os._exit(0)
        while True:
            time.sleep(100)

    return program


def one_a_signal(n: int) -> Program:
    """``n`` and one children end while SIGCHLD is held back; its handler reaps one a signal.

    Signals of one kind that are pending are one, so ``n`` stay.
    """

    def program() -> None:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        signal.signal(signal.SIGCHLD, lambda *_: os.waitpid(-1, os.WNOHANG))
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        children = []
        for _ in range(n + 1):
            children.append(os.fork())
            if children[-1] == 0:
                os._exit(0)
        for child in children:
            os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        while True:
            time.sleep(100)

    return program


def until_refused() -> Program:
    """Forks children that it does not wait for until there is no room, and then tries on."""

    def program() -> None:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        while True:
            try:
                child = os.fork()
            except BlockingIOError:
                time.sleep(0.2)
                continue
            if child == 0:
                os._exit(0)

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


def full(box: Box) -> None:
    """All that it may have besides PID 1 are zombies: nothing can be started any more."""
    box.pids(limit=COUNT + 1)
    box.start(until_refused())
    until_ended(box)


def under_an_init(box: Box) -> None:
    """The parent is not PID 1, which is an init: that does not help."""
    box.init()
    box.start(workload.zombies(COUNT))
    deadline = time.monotonic() + 60
    while _ended(Host(), box) != COUNT and time.monotonic() < deadline:
        time.sleep(0.05)


def merged(box: Box) -> None:
    """It waits, once for each SIGCHLD, and signals merge."""
    box.start(one_a_signal(COUNT))
    until_ended(box)
    time.sleep(0.3)


def inherited_by_an_init(box: Box) -> None:
    """As many orphans, and PID 1 is an init."""
    box.init()
    box.start(workload.orphans(COUNT))
    time.sleep(0.5)


def unwanted(box: Box) -> None:
    """As many children of its own, with SIGCHLD ignored."""
    box.start(told_that_nobody_waits(COUNT))


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
        "a parent that is not PID 1, under an init": under_an_init,
        "half of the limit": at_the_limit,
        "the limit is full": full,
        "signals that merge": merged,
    },
    look_alikes={
        "living threads": threads,
        "children that are waited for": busy,
        "dead first threads": leaders,
        "orphans under an init": inherited_by_an_init,
        "SIGCHLD ignored": unwanted,
    },
    numbers=numbers,
    also=("process/pids_exhausted",),
)
