"""Programs of a box that do a known thing when they are told to, and what they do it with."""

import ctypes
import os
import signal
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tests.live.tracing import PATIENCE_SECONDS
from whybox.kernel.libc import PR_SET_NO_NEW_PRIVS, prctl
from whybox.kernel.syscalltable import number
from whybox.lab import workload
from whybox.lab.box import Box, Program

libc = ctypes.CDLL(None, use_errno=True)

PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
ERRNO, TRAP, KILL_THREAD, KILL_PROCESS = 0x00050000, 0x00030000, 0, 0x80000000
EPERM = 1


def gated(body: Callable[[], object]) -> Program:
    """A program that does nothing until it is told to, and then sleeps until its end."""

    def program() -> None:
        while not os.path.exists("/tmp/go"):
            time.sleep(0.01)
        body()
        Path("/tmp/done").touch()
        workload.idle()()

    return program


def go(box: Box) -> None:
    """Tell it, and wait until it has done all."""
    inside = Path(f"/proc/{box.pid}/root/tmp")
    (inside / "go").touch()
    until(inside / "done")
    assert box.error() is None


def until(file: Path) -> None:
    """Wait for a file."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def raw(name: str, *arguments: object) -> int:
    """A system call without what a library does around it."""
    return int(libc.syscall(number(name), *arguments))


def refuse(name: str, action: int) -> None:
    """Have seccomp do that with a call from now on (seccomp(2))."""
    load, equal, back = 0x20, 0x15, 0x06
    steps = (
        (load, 0, 0, 0),
        (equal, 0, 1, number(name)),
        (back, 0, 0, action),
        (back, 0, 0, 0x7FFF0000),
    )
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("=H6xQ", len(steps), ctypes.addressof(code)))
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    assert libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0) == 0


def in_child(body: Callable[[], object]) -> int:
    """Do it in a process of its own; how that ended."""
    pid = os.fork()
    if pid == 0:
        with suppress(BaseException):
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            body()
        os._exit(0)
    return os.waitpid(pid, 0)[1]
