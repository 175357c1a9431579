"""uid 1000 writes to a directory that belongs to root, again and again."""

import ctypes
import os
import resource
import signal
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress

from whybox.kernel.host import ROOT_HOME
from whybox.kernel.libc import (
    CLONE_NEWNS,
    MS_BIND,
    MS_RDONLY,
    MS_REMOUNT,
    mount,
    prctl,
    sethostname,
    unshare,
)
from whybox.kernel.syscalltable import number
from whybox.lab.box import Box
from whybox.lab.lab import Lab
from whybox.lab.process import Program
from whybox.model import Finding

EVERY_SECONDS = 0.15
DATA = "/data"
#: There once the volume is as it shall be.
GIVEN = "/tmp/given"
#: CAP_SYS_ADMIN beside what engines leave to root.
WITH_SYS_ADMIN = 0xA80425FB | 1 << 21

#: include/uapi/linux/seccomp.h, filter.h and prctl.h
_PR_SET_SECCOMP, _MODE_FILTER = 22, 2
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_libc = ctypes.CDLL(None, use_errno=True)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def refuse(call: str) -> None:
    """From now on seccomp refuses this process one call with EPERM."""
    prctl(38, 1)  # PR_SET_NO_NEW_PRIVS
    code = [
        (_LOAD, 0, 0, 0),
        (_EQUAL, 0, 1, number(call) or 0),
        (_RETURN, 0, 0, _ERRNO | 1),
        (_RETURN, 0, 0, _ALLOW),
    ]
    raw = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *one) for one in code))
    program = _Program(len(code), ctypes.cast(raw, ctypes.c_void_p).value)
    if _libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "seccomp")


def again(do: Callable[[], object], first: Callable[[], object] = lambda: None) -> Program:
    """Tries it for ever, whatever comes of it."""

    def program() -> None:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        first()
        while True:
            with suppress(OSError):
                do()
            time.sleep(EVERY_SECONDS)

    return program


def child(do: Callable[[], object]) -> Callable[[], None]:
    """In a process of its own, which ends as a program does: 1 where it was refused."""

    def run() -> None:
        pid = os.fork()
        if pid == 0:
            status = 0
            try:
                do()
            except OSError:
                status = 1
            finally:
                os._exit(status)
        os.waitpid(pid, 0)

    return run


def write(path: str) -> Callable[[], None]:
    """Make or change a file."""

    def do() -> None:
        with open(path, "w", encoding="ascii") as file:
            file.write("x")

    return do


def writer(box: Box, program: Program, *, owner: tuple[int, int], mode: int = 0o755) -> None:
    """With a volume at /data that belongs to ``owner`` before the program begins."""

    def waiting() -> Program:
        while not os.path.exists(GIVEN):
            time.sleep(0.01)
        return program

    box.volume(DATA)
    box.start(waiting)
    root = f"/proc/{box.pid}/root"
    os.chown(root + DATA, *owner)
    os.chmod(root + DATA, mode)
    with open(root + GIVEN, "wb"):
        pass


def healthy(box: Box) -> None:
    """It writes where it may."""
    writer(box, again(write(f"{DATA}/file")), owner=(1000, 1000))


def reproduce(box: Box) -> None:
    """The directory belongs to root with mode 755."""
    writer(box, again(write(f"{DATA}/file")), owner=(0, 0))


def relative(box: Box) -> None:
    """A path that begins where the program is."""
    writer(box, again(write("file"), first=lambda: os.chdir(DATA)), owner=(0, 0))


def by_seccomp(box: Box) -> None:
    """Root with SYS_ADMIN, and a filter that refuses ``sethostname``."""
    box.user(0, 0)
    box.keep_caps(WITH_SYS_ADMIN)
    do = lambda: sethostname("other")  # noqa: E731
    box.start(again(do, first=lambda: refuse("sethostname")))


def by_capability(box: Box) -> None:
    """Root without SYS_ADMIN: the same call enters and is refused."""
    box.user(0, 0)
    box.start(again(lambda: sethostname("other")))


def mounted(option: int, path: str = DATA) -> Callable[[], None]:
    """In a mount namespace of its own it mounts its volume anew."""

    def first() -> None:
        unshare(CLONE_NEWNS)
        mount(path, path, None, MS_BIND)
        mount(None, path, None, MS_REMOUNT | MS_BIND | option)

    return first


def read_only(box: Box) -> None:
    """Its volume is mounted read-only (EROFS)."""
    box.user(0, 0)
    box.keep_caps(WITH_SYS_ADMIN)
    do = write(f"{DATA}/file")
    writer(box, again(do, first=mounted(MS_RDONLY)), owner=(0, 0))


def unmapped_owner(box: Box) -> None:
    """Root of a user namespace, in a directory of the host's root (EACCES)."""
    box.user_namespace()
    writer(box, again(write(f"{DATA}/file")), owner=(0, 0))


def raise_limit(limit: int) -> None:
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    except ValueError as error:  # Python's word for EPERM
        raise OSError(1, str(error)) from None


def _tried(do: Callable[[str], object], path: str) -> None:
    with suppress(OSError):
        do(path)


def _write_then_read() -> None:
    """It opens a file of root's for writing, and when that is refused for reading."""
    try:
        os.close(os.open("/etc/passwd", os.O_RDWR))
    except OSError:
        os.close(os.open("/etc/passwd", os.O_RDONLY))


def _listen() -> None:
    """Port 80, and as that is refused port 8080 on the same socket."""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(("127.0.0.1", 80))
        except OSError:
            server.bind(("127.0.0.1", 8080))


def another_way(box: Box) -> None:
    """What it is refused it gets in another way, or does without: caches, settings, lists."""
    box.sysctl("net.ipv4.ip_unprivileged_port_start", "1024")

    def do() -> None:
        _write_then_read()
        _listen()
        _tried(os.mkdir, f"{DATA}/__pycache__")
        _tried(lambda path: os.open(path, os.O_RDONLY), f"{ROOT_HOME}/.config/rc")
        _tried(os.listdir, ROOT_HOME)

    writer(box, again(do), owner=(0, 0))


def asks_and_wishes(box: Box) -> None:
    """Whether it might, what is there, a better priority, more files than anybody has."""

    def do() -> None:
        os.access("/etc/passwd", os.W_OK)
        _tried(os.stat, f"{ROOT_HOME}/x")
        with suppress(OSError):
            os.kill(1, 0)
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, -5)
        with suppress(OSError):
            raise_limit(1 << 30)

    box.start(again(do))


def not_there(box: Box) -> None:
    """ENOENT, ENOTDIR, EISDIR, ECONNREFUSED and EINVAL: errors, and no refusals."""

    def do() -> None:
        for path in ("/nowhere", "/etc/passwd/x", "/etc"):
            _tried(lambda path: os.open(path, os.O_RDWR), path)
        with socket.socket() as client, suppress(OSError):
            client.connect(("127.0.0.1", 9))
        with suppress(OSError):
            os.setpriority(99, 0, 0)

    box.start(again(do))


def numbers(finding: Finding) -> str | None:
    """Each with the gate and the object that are known."""
    known = (
        "/data belongs to 0:0 with mode drwxr-xr-x",
        "the seccomp profile refuses sethostname",
        "takes the capability SYS_ADMIN",
        "is mounted read-only here (ro)",
    )
    if any(words in finding.summary for words in known):
        return None
    return f"none of the known gates is in: {finding.summary}"


LAB = Lab(
    healthy=healthy,
    reproduce=reproduce,
    variants={
        "a relative path": relative,
        "seccomp": by_seccomp,
        "a capability": by_capability,
        "a read-only mount": read_only,
        "an owner that the user namespace has not": unmapped_owner,
    },
    look_alikes={
        "it finds another way, or does without": another_way,
        "questions and wishes": asks_and_wishes,
        "errors that are no refusals": not_there,
    },
    numbers=numbers,
    also=("security/root_is_host_root", "security/privileged_needlessly"),
    window_seconds=0.6,
)
