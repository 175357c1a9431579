"""security/permission_denied by every gate, and by what is no trouble, each in a box of its own.

The lab has one of each kind; these are the others, judged by this case alone.
"""

import mmap
import os
import resource
import socket
from collections.abc import Callable
from contextlib import suppress

import pytest

from whybox import cases
from whybox.cases.security.permission_denied.lab import (
    DATA,
    WITH_SYS_ADMIN,
    again,
    child,
    mounted,
    raise_limit,
    write,
    writer,
)
from whybox.diagnose import diagnose
from whybox.kernel.host import ROOT_HOME, Host
from whybox.kernel.libc import MS_NOEXEC
from whybox.lab.box import Box
from whybox.lab.lab import Scenario
from whybox.model import Finding, Verdict

CASE = "security/permission_denied"


def judged(scenario: Scenario) -> Finding:
    with Box("permission-denied") as box:
        scenario(box)
        host = Host(window_seconds=1.0)
        (target,) = diagnose(host, [box.target()], {CASE: cases.load(CASE)}).targets
        assert box.error() is None
    return target.findings[0]


def trying(do: Callable[[], object]) -> Scenario:
    return lambda box: box.start(again(do))


def above(box: Box) -> None:
    """It owns the file, and a directory above lets nobody pass."""
    box.lower_file("/shut/in/file", bytes=1)
    box.start(again(write("/shut/in/file")))
    os.chown(f"/proc/{box.pid}/root/shut", 0, 0)
    os.chmod(f"/proc/{box.pid}/root/shut", 0o700)


def without_override(box: Box) -> None:
    """Root that has lost DAC_OVERRIDE, in a directory of uid 1000."""
    box.user(0, 0)
    box.keep_caps(0)
    writer(box, again(write(f"{DATA}/file")), owner=(1000, 1000))


def not_executable(box: Box) -> None:
    """Its volume is mounted noexec: executing is EACCES, mapping code is EPERM."""
    box.user(0, 0)
    box.keep_caps(WITH_SYS_ADMIN)

    def first() -> None:
        with open(f"{DATA}/program", "wb") as file:
            file.write(b"x" * mmap.PAGESIZE)
        os.chmod(f"{DATA}/program", 0o755)
        mounted(MS_NOEXEC)()

    def execute() -> None:
        with open(f"{DATA}/program", "rb") as file, suppress(OSError):
            mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC)
        child(lambda: os.execv(f"{DATA}/program", ["program"]))()

    writer(box, again(execute, first=first), owner=(0, 0), mode=0o777)


def low_port(box: Box) -> None:
    """Port 80 as uid 1000, where ports below 1024 are root's."""
    box.sysctl("net.ipv4.ip_unprivileged_port_start", "1024")

    def listen() -> None:
        with socket.socket() as server:
            server.bind(("0.0.0.0", 80))

    box.start(again(listen))


def foreign_id(box: Box) -> None:
    """A user namespace of 65536 ids, and uid 70000 (EINVAL)."""
    box.user_namespace()
    box.start(again(lambda: os.chown("/tmp", 70000, 70000)))


def raised(box: Box) -> None:
    """More open files than the hard limit, and it ends for that."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    limit = most + 1
    do = child(lambda: raise_limit(limit))
    box.start(again(do))


def foreign_sticky(box: Box) -> None:
    """Another's file in a sticky directory is not removed."""
    writer(box, again(lambda: os.unlink(f"{DATA}/file")), owner=(0, 0), mode=0o1777)
    inside = f"/proc/{box.pid}/root{DATA}/file"
    with open(inside, "w", encoding="ascii") as file:
        file.write("x")
    os.chown(inside, 0, 0)


@pytest.mark.parametrize(
    ("scenario", "expected"),
    [
        (above, "/shut belongs to 0:0 with mode drwx------"),
        (without_override, "since it is root without DAC_OVERRIDE"),
        (not_executable, "is mounted noexec"),
        (low_port, "port 80 is below 1024"),
        (foreign_id, "a user namespace that has no such id"),
        (raised, "a hard limit (rlimit) is raised by nobody without SYS_RESOURCE"),
        (foreign_sticky, "/data is sticky (drwxrwxrwt): only who owns /data/file (uid 0)"),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_the_gate_is_named(scenario: Scenario, expected: str) -> None:
    finding = judged(scenario)
    assert finding.verdict is Verdict.FOUND
    assert expected in finding.summary


def tried(do: Callable[[], object]) -> None:
    with suppress(OSError):
        do()


@pytest.mark.parametrize(
    ("do", "reason"),
    [
        (lambda: tried(lambda: os.listdir(ROOT_HOME)), "it looked around and went on"),
        (lambda: tried(lambda: os.stat(f"{ROOT_HOME}/x")), "it only asked"),
        (lambda: os.setpriority(os.PRIO_PROCESS, 0, -5), "it is as well off without"),
        (lambda: os.open(f"{ROOT_HOME}/.config/rc", os.O_RDONLY), "it looks there for settings"),
        (lambda: os.mkdir("/usr/__pycache__"), "it keeps there what it can do without"),
    ],
    ids=["list", "stat", "setpriority", "settings", "cache"],
)
def test_what_does_no_harm_is_said_to(do: Callable[[], object], reason: str) -> None:
    finding = judged(trying(do))
    assert finding.verdict is Verdict.CLEAR
    assert reason in finding.summary


def test_a_wish_that_it_ends_for_is_trouble() -> None:
    finding = judged(trying(child(lambda: os.setpriority(os.PRIO_PROCESS, 0, -5))))
    assert finding.verdict is Verdict.FOUND
    assert "SYS_NICE" in finding.summary
    assert "ended with status 1" in finding.summary


def test_a_raw_socket_and_one_that_will_do() -> None:
    """As ping: a raw socket, and where that is refused one for datagrams."""

    def ping() -> None:
        try:
            socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()
        except OSError:
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()

    assert judged(trying(ping)).verdict is Verdict.CLEAR
    alone = trying(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).close())
    assert "NET_RAW" in judged(alone).summary
