"""A PID 1 without handlers, and SIGTERM again and again from inside."""

import os
import re
import signal
import threading
import time

from whybox.kernel.host import Host
from whybox.kernel.signals import has
from whybox.kernel.task import status
from whybox.lab import workload
from whybox.lab.box import Box, Program
from whybox.lab.lab import Lab
from whybox.model import Finding

EVERY_SECONDS = 0.2


def pestering() -> Program:
    """Sends PID 1 a SIGTERM five times a second, as long as it is the program and no init.

    An init passes the first one on and the program ends: then there is nothing left to look at.
    """

    def program() -> None:
        while _name_of(1) != "init":
            os.kill(1, signal.SIGTERM)
            time.sleep(EVERY_SECONDS)

    return program


def sigwaiting_for_children() -> Program:
    """Waits for signals as an init does, but for SIGCHLD alone: nothing is done about SIGTERM."""

    def program() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        while True:
            signal.sigwait({signal.SIGCHLD})

    return program


def catching_everything() -> Program:
    """A handler for each signal, as the Go runtime has; SIGTERM does not make it end."""

    def program() -> None:
        for signum in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(signum, lambda *_: None)
        while True:
            time.sleep(0.5)

    return program


def sigwaiting_thread() -> Program:
    """SIGTERM is blocked in all threads, and one of them waits for it."""

    def wait() -> None:
        signal.sigwait({signal.SIGTERM})
        os._exit(0)

    def program() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=wait, daemon=True).start()
        while True:
            time.sleep(100)

    return program


def _name_of(pid: int) -> str:
    with open(f"/proc/{pid}/comm", encoding="utf-8") as file:
        return file.read().strip()


def healthy(box: Box) -> None:
    """It handles SIGTERM."""
    box.start(workload.handling())


def reproduce(box: Box) -> None:
    """It has no handlers, and somebody tries."""
    box.start(workload.deaf())
    box.run(pestering())


def never_asked(box: Box) -> None:
    """The same, and nobody has tried yet."""
    box.start(workload.deaf())


def ignoring(box: Box) -> None:
    """SIG_IGN."""
    box.start(workload.ignoring())
    box.run(pestering())


def blocking(box: Box) -> None:
    """Blocked and read by nobody: delivered, and never seen."""
    box.start(workload.blocking_term())
    box.run(pestering())


def waiting_for_children(box: Box) -> None:
    """In ``sigtimedwait``, but not for SIGTERM."""
    box.start(sigwaiting_for_children())


def like_tini(box: Box) -> None:
    """SigBlk 0 and SigCgt 0, as if deaf, while it waits."""
    box.start(workload.sigwaiting())


def signalfd_loop(box: Box) -> None:
    """The masks of one that blocks SIGTERM."""
    box.start(workload.signalfd_loop())


def waiting_in_a_thread(box: Box) -> None:
    """The masks of one that blocks SIGTERM, in every thread."""
    box.start(sigwaiting_thread())


def slow(box: Box) -> None:
    """It gets every SIGTERM and goes on: not deaf."""
    box.start(catching_everything())
    box.run(pestering())


def stopped(box: Box) -> None:
    """Stopped, it answers nothing until it is continued."""
    box.start(workload.handling())
    deadline = time.monotonic() + 60
    host = Host()
    while not has(status(host, box.pid).sig_cgt, signal.SIGTERM) and time.monotonic() < deadline:
        time.sleep(0.05)
        host.next_moment()
    box.signal(signal.SIGSTOP)


def in_hosts_pid_namespace(box: Box) -> None:
    """No handler, and no protection either: it is not PID 1."""
    box.start(workload.deaf(), clone_pid_namespace=False)


def numbers(finding: Finding) -> str | None:
    """Where signals were watched, some of the five a second were, and none was heard."""
    told = re.search(r"ignored (\d+) of (\d+) SIGTERM", finding.summary)
    if told is None:
        return None  # blocked ones are not ignored, and nobody asked the one that is never asked
    ignored, sent = int(told[1]), int(told[2])
    if ignored != sent or ignored < 3:
        return f"ignored {ignored} of {sent}, expected all of at least 3"
    return None


LAB = Lab(
    healthy=healthy,
    reproduce=reproduce,
    variants={
        "nobody has tried yet": never_asked,
        "SIG_IGN": ignoring,
        "blocked": blocking,
        "sigtimedwait for another signal": waiting_for_children,
    },
    look_alikes={
        "an init in sigtimedwait": like_tini,
        "a signalfd": signalfd_loop,
        "a thread in sigtimedwait": waiting_in_a_thread,
        "a handler that does not end it": slow,
        "stopped": stopped,
        "the host's pid namespace": in_hosts_pid_namespace,
    },
    numbers=numbers,
    also=("process/killed_on_stop",),
)
