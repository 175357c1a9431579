"""An init that ends on SIGTERM and leaves two children who could have ended in order."""

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from whybox.kernel.host import Host
from whybox.kernel.signals import TERM, has
from whybox.kernel.target import processes
from whybox.kernel.task import stat, status
from whybox.lab import workload
from whybox.lab.box import Box, Program
from whybox.lab.lab import Lab
from whybox.model import Finding

CHILDREN = 2
GRACE_SECONDS = 1
MEMORY_BYTES = 64 << 20


def child(seconds: float = 0.1) -> int:
    """A child that needs a moment to end in order when it is told to."""
    pid = os.fork()
    if pid:
        return pid

    def stop(*_: object) -> None:
        time.sleep(seconds)
        os._exit(0)

    signal.signal(signal.SIGTERM, stop)
    while True:
        time.sleep(100)


def tell(children: list[int]) -> None:
    """SIGTERM to each."""
    for pid in children:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


def wait() -> None:
    """Until there is no child left."""
    with suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)


def family(on_term: Callable[[list[int]], None]) -> Program:
    """PID 1 and its children, who all handle SIGTERM; what PID 1 does then is the question."""

    def program() -> None:
        children = [child(0.4) for _ in range(CHILDREN)]

        def stop(*_: object) -> None:
            on_term(children)
            os._exit(0)

        signal.signal(signal.SIGTERM, stop)
        while True:
            time.sleep(100)

    return program


def leaving() -> Program:
    """It ends at once."""
    return family(lambda children: None)


def forwarding() -> Program:
    """It tells them and does not wait."""
    return family(tell)


def waiting() -> Program:
    """It tells them and waits."""

    def told(children: list[int]) -> None:
        tell(children)
        wait()

    return family(told)


def impatient() -> Program:
    """It tells them, waits a moment, and kills who is left: as some supervisors."""

    def told(children: list[int]) -> None:
        tell(children)
        time.sleep(0.1)
        for pid in children:
            os.kill(pid, signal.SIGKILL)
        wait()

    return family(told)


def lingering(seconds: float) -> Program:
    """One process whose handler takes that long."""

    def program() -> None:
        def stop(*_: object) -> None:
            time.sleep(seconds)
            os._exit(0)

        signal.signal(signal.SIGTERM, stop)
        while True:
            time.sleep(100)

    return program


def abandoning() -> Program:
    """A program without a handler, whose children have one: for an init above it."""

    def program() -> None:
        for _ in range(CHILDREN):
            child()
        while True:
            time.sleep(100)

    return program


def shell(script: str) -> Program:
    """A real shell as PID 1."""

    def program() -> None:
        os.execv("/bin/sh", ["sh", "-c", script])

    return program


def with_zombies() -> Program:
    """Its children had ended long before, and it never waited for them."""

    def program() -> None:
        for _ in range(CHILDREN):
            if os.fork() == 0:
                os._exit(0)
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        while True:
            time.sleep(100)

    return program


def replacing() -> Program:
    """It kills a worker of its own now and then, and nobody stops it."""

    def program() -> None:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        while True:
            pid = child()
            time.sleep(0.3)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    return program


def eating_when_told() -> Program:
    """On SIGUSR1 it asks for more memory than it may have; its child could end in order."""

    def program() -> None:
        child()

        def eat(*_: object) -> None:
            held = bytearray(4 * MEMORY_BYTES)
            time.sleep(100 + len(held))

        signal.signal(signal.SIGUSR1, eat)
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        while True:
            time.sleep(100)

    return program


def ready(box: Box, count: int, able: int) -> None:
    """Come back when so many processes are there, and so many of them handle SIGTERM."""
    deadline = time.monotonic() + 60
    while (there := _there(box)) != (count, able):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{there} processes and handlers instead of {(count, able)}")
        time.sleep(0.02)


def _there(box: Box) -> tuple[int, int]:
    host = Host()
    found = []
    for pid in processes(host, box.target()):
        with suppress(OSError):
            said = status(host, pid)
            found.append(has(said.sig_cgt, TERM) or has(said.sig_blk, TERM))
    return len(found), sum(found)


def meanwhile(act: Callable[[], None]) -> None:
    """Do it once the thread that makes the trouble has begun to watch, or half a minute later."""
    watcher = threading.get_ident()

    def wait_and_act() -> None:
        deadline = time.monotonic() + 30
        at = None
        while time.monotonic() < deadline:
            last, at = at, _waits_in(watcher)
            if at is not None and at == last:
                break
            time.sleep(0.05)
        with suppress(ProcessLookupError):
            act()

    threading.Thread(target=wait_and_act, daemon=True).start()


def _waits_in(thread: int) -> int | None:
    """Where in the window's own function a thread is: two looks at the same place are its wait."""
    frame = sys._current_frames().get(thread)
    if frame is None or frame.f_globals.get("__name__") != "whybox.diagnose":
        return None
    return frame.f_lasti if frame.f_code.co_name == "observe" else None


def stopped(box: Box, program: Program, *, count: int = 1 + CHILDREN, able: int = -1) -> None:
    """Start it and have it stopped while it is watched; ``count`` knows of no init."""
    box.stop_timeout(GRACE_SECONDS)
    box.start(program)
    ready(box, count + box.has_init, count if able < 0 else able)
    meanwhile(box.stop)


def healthy(box: Box) -> None:
    """It is stopped; it tells its children and waits for them."""
    stopped(box, waiting())


def reproduce(box: Box) -> None:
    """It is stopped; it ends at once, and its children are killed."""
    stopped(box, leaving())


def told_in_vain(box: Box) -> None:
    """It passes the signal on, and does not wait."""
    stopped(box, forwarding())


def told_and_killed(box: Box) -> None:
    """PID 1 itself kills them."""
    stopped(box, impatient())


def below_an_init(box: Box) -> None:
    """An init tells its child alone, and ends with it."""
    box.init()
    # What the init waits for by sigtimedwait is in none of its masks meanwhile.
    stopped(box, abandoning(), able=CHILDREN)


def deaf(box: Box) -> None:
    """Its time runs out: it never heard."""
    stopped(box, workload.deaf(), count=1, able=0)


def slow(box: Box) -> None:
    """Its time runs out: it was not done."""
    stopped(box, lingering(3 * GRACE_SECONDS), count=1)


def in_the_foreground(box: Box) -> None:
    """Its time runs out: a shell's trap waits for the command in its foreground."""
    stopped(box, shell("trap 'exit 0' TERM; sleep 1000; :"), count=2, able=1)


def halted(box: Box) -> None:
    """Its time runs out: it was stopped by SIGSTOP."""
    stopped(box, workload.handling(), count=1)
    box.signal(signal.SIGSTOP)
    while stat(Host(), box.pid).state != "T":
        time.sleep(0.01)


def deaf_and_not_stopped(box: Box) -> None:
    """Nobody has stopped it yet."""
    box.start(workload.deaf())


def foreground_and_not_stopped(box: Box) -> None:
    """Nobody has stopped it yet, and the command has run for longer than it would be given."""
    box.stop_timeout(GRACE_SECONDS)
    box.start(shell("trap 'exit 0' TERM; sleep 1000; :"))
    ready(box, 2, 1)
    time.sleep(GRACE_SECONDS + 0.2)


def alone(box: Box) -> None:
    """One process with a handler."""
    stopped(box, workload.handling(), count=1)


def killed_by_hand(box: Box) -> None:
    """docker kill, rm -f, kill -9: SIGKILL at once."""
    box.start(leaving())
    ready(box, 1 + CHILDREN, 1 + CHILDREN)
    meanwhile(lambda: box.signal(signal.SIGKILL))


def out_of_memory(box: Box) -> None:
    """SIGKILL from the kernel, and its child goes with it."""
    box.memory(limit_bytes=MEMORY_BYTES)
    box.start(eating_when_told())
    ready(box, 2, 2)
    meanwhile(lambda: box.signal(signal.SIGUSR1))


def visited(box: Box) -> None:
    """Who is killed was started from outside: nobody in there could wait for it."""
    stopped(box, workload.handling(), count=1)
    box.run(workload.handling())


def long_dead(box: Box) -> None:
    """What is killed are zombies."""
    stopped(box, with_zombies(), count=1)


def replaced(box: Box) -> None:
    """Workers that PID 1 kills while it goes on."""
    box.start(replacing())


def untold(box: Box) -> None:
    """Nobody stops it: whether it would pass the signal on is not to be seen."""
    box.start(waiting())
    ready(box, 1 + CHILDREN, 1 + CHILDREN)


def in_the_background(box: Box) -> None:
    """A shell that waits for a command in the background: its trap interrupts that."""
    script = "sleep 1000 & pid=$!; trap 'kill $pid; wait $pid; exit 0' TERM; wait"
    stopped(box, shell(script), count=2, able=1)


def numbers(finding: Finding) -> str | None:
    """Where children are left behind it is both of them; where time ran out it was a second."""
    left = re.search(r"killed (\d+) process", finding.summary)
    if left is not None and left[1] != str(CHILDREN):
        return f"expected {CHILDREN} killed: {finding.summary}"
    late = re.match(r"(\d+\.\d) s after SIGTERM", finding.summary)
    if late is not None and not GRACE_SECONDS <= float(late[1]) < GRACE_SECONDS + 1:
        return f"expected {GRACE_SECONDS} s: {finding.summary}"
    return None


LAB = Lab(
    healthy=healthy,
    reproduce=reproduce,
    cured=healthy,
    variants={
        "passes the signal on and does not wait": told_in_vain,
        "PID 1 kills them itself": told_and_killed,
        "an init that tells its child alone": below_an_init,
        "time runs out: no handler": deaf,
        "time runs out: a slow handler": slow,
        "time runs out: a shell's foreground": in_the_foreground,
        "time runs out: stopped": halted,
        "not stopped yet: no handler": deaf_and_not_stopped,
        "not stopped yet: a shell's foreground": foreground_and_not_stopped,
    },
    look_alikes={
        "one process with a handler": alone,
        "docker kill": killed_by_hand,
        "out of memory": out_of_memory,
        "a process from outside": visited,
        "zombies": long_dead,
        "workers that are replaced": replaced,
        "not stopped yet: an init that would tell": untold,
        "a shell's background": in_the_background,
    },
    numbers=numbers,
    also=("process/pid1_ignores_signals",),
    window_seconds=3.0,
)
