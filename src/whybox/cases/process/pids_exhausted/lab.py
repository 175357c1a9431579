"""Sixty-two children are asked for where there is room for thirty-nine: refused 23 times."""

import os
import re
import resource
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from whybox.change import PidsLimit
from whybox.kernel.host import Host
from whybox.lab import workload
from whybox.lab.box import Box, BoxError, Program
from whybox.lab.lab import Lab
from whybox.model import Finding

LIMIT = 40
#: PID 1 is one of the forty, and this many more children were wanted than there is room for.
REFUSED = 23
WANTED = LIMIT - 1 + REFUSED

#: A user of the host whom nobody else here is, for the limit that all of a user's tasks share.
UID = 61_040


def persisting(n: int, every_s: float = 0.1) -> Program:
    """Wants ``n`` children: asks for all at once, and then again and again for one of the rest."""

    def program() -> None:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        have = sum(_forked(_sleep) for _ in range(n))
        while True:
            time.sleep(every_s)
            have += have < n and _forked(_sleep)

    return program


def threads(n: int) -> Program:
    """Asks for ``n`` threads, refused or not, and keeps those it gets."""

    def program() -> None:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        for _ in range(n):
            with suppress(RuntimeError):
                threading.Thread(target=_sleep, daemon=True).start()
        _sleep()

    return program


def multiplying(every_s: float = 0.3, refused_s: float = 2.0) -> Program:
    """Every child makes children, as a fork bomb's do, but so slowly that nobody lacks CPU."""

    def child() -> None:
        pause = every_s
        while True:
            time.sleep(pause * (1 + os.getpid() % 7 / 7))  # not all at the same moment
            pause = every_s if _forked(child) else refused_s

    def program() -> None:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        child()

    return program


def asking_under_a_users_limit(limit: int) -> Program:
    """The same, where RLIMIT_NPROC is what refuses."""

    def program() -> None:
        resource.setrlimit(resource.RLIMIT_NPROC, (limit, limit))
        workload.forking(WANTED)()

    return program


def leaving_zombies(n: int) -> Program:
    """Its children end and it never waits for them: they take its pids one by one."""

    def program() -> None:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        for _ in range(n):
            _forked(lambda: None)
        _sleep()

    return program


def _forked(body: Callable[[], None]) -> bool:
    """Whether a child could be made."""
    try:
        if os.fork():
            return True
    except BlockingIOError:
        return False
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        body()
    finally:
        os._exit(0)


def _sleep() -> None:
    while True:
        time.sleep(100)


def until_refused(box: Box, times: int = REFUSED) -> None:
    """Come back when so many forks were refused, by whichever group counts them.

    In a box that was cured none is: then it is enough that all the tasks are there.
    """
    deadline = time.monotonic() + 60
    while _refusals(box) < times and _tasks(box) <= WANTED and time.monotonic() < deadline:
        time.sleep(0.05)


def until_tasks(box: Box, times: int) -> None:
    """Come back when it has so many tasks."""
    deadline = time.monotonic() + 60
    while _tasks(box) < times and time.monotonic() < deadline:
        time.sleep(0.05)


def _tasks(box: Box) -> int:
    group = box.target().group(Host(), "pids")
    if group is None:
        raise BoxError("there is no pids controller here")
    return Host().optional_number(group.file("pids.current")) or 0


def _refusals(box: Box) -> int:
    """As its own group counts them, or on later kernels the one whose limit it was."""
    group = box.target().group(Host(), "pids")
    lineage = () if group is None else group.lineage()
    counts = [Host().optional_text(one.file("pids.events")) or "max 0" for one in lineage]
    return max(int(said.split()[1]) for said in counts)


def healthy(box: Box) -> None:
    """Room for all."""
    box.pids(limit=WANTED + 20)
    box.start(workload.forking(WANTED))
    until_tasks(box, WANTED + 1)


def reproduce(box: Box) -> None:
    """Asks once for each, and is refused 23 times."""
    box.pids(limit=LIMIT)
    box.start(workload.forking(WANTED))
    until_refused(box)


def again_and_again(box: Box) -> None:
    """Goes on asking for those that it did not get."""
    box.pids(limit=LIMIT)
    box.start(persisting(WANTED))
    until_refused(box)


def under_parent(box: Box) -> None:
    """The limit is the parent's, as a pod's is: the box itself has none."""
    box.pids(parent_limit=LIMIT)
    box.start(workload.forking(WANTED))
    until_refused(box)


def of_threads(box: Box) -> None:
    """One process with many threads."""
    box.pids(limit=LIMIT)
    box.start(threads(WANTED))
    until_refused(box)


def of_zombies(box: Box) -> None:
    """Nobody waits for those that ended, so there is no room for more."""
    box.pids(limit=LIMIT)
    box.start(leaving_zombies(WANTED))
    until_refused(box)


def bomb(box: Box) -> None:
    """A program that starts itself."""
    box.pids(limit=LIMIT)
    box.start(multiplying())
    until_refused(box)


def a_users_limit(box: Box) -> None:
    """Refused as often, by the limit of its user."""
    box.user(UID, UID)
    box.start(asking_under_a_users_limit(LIMIT))
    until_tasks(box, LIMIT)


def just_enough(box: Box) -> None:
    """Every pid is taken, and nobody wants one more."""
    box.pids(limit=LIMIT)
    box.start(workload.forking(LIMIT - 1))
    until_tasks(box, LIMIT)


def refused_long_ago(box: Box) -> None:
    """It was refused, and has room again."""
    reproduce(box)
    box.apply(PidsLimit(2 * WANTED))


def zombies_with_room(box: Box) -> None:
    """Zombies, and yet no limit is near."""
    box.start(workload.zombies(17))
    until_tasks(box, 18)


def numbers(finding: Finding) -> str | None:
    """Refused 23 times, or more where it went on asking."""
    counted = [re.match(r"max (\d+) \(\+(\d+)", evidence.says) for evidence in finding.evidence]
    total, fresh = next((map(int, one.groups()) for one in counted if one), (0, 0))
    if total - fresh < REFUSED or (not fresh and total != REFUSED):
        return f"expected {REFUSED} refusals, counted {total} and {fresh} of them in the window"
    return None


LAB = Lab(
    healthy=healthy,
    reproduce=reproduce,
    variants={
        "it asks again and again": again_and_again,
        "the parent's limit": under_parent,
        "threads": of_threads,
        "zombies": of_zombies,
        "a program that starts itself": bomb,
    },
    look_alikes={
        "a limit of its user": a_users_limit,
        "all taken and none wanted": just_enough,
        "refused before there was room": refused_long_ago,
        "zombies far from any limit": zombies_with_room,
    },
    numbers=numbers,
    also=("process/zombies",),
)
