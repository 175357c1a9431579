"""A program that does nothing, as root: that alone is the state."""

import os
from collections.abc import Callable

from whybox.kernel.libc import CLONE_NEWUSER, unshare
from whybox.lab import workload
from whybox.lab.box import Box, Program
from whybox.lab.lab import Lab
from whybox.model import Finding

#: CAP_SYS_ADMIN beside what engines leave to root (CapEff 00000000a80425fb).
WITH_SYS_ADMIN = 0xA80425FB | 1 << 21


def dropping() -> Program:
    """A launcher that stays root, while the child that does the work becomes uid 1000."""

    def program() -> Program:
        if os.fork() == 0:
            os.setgid(1000)
            os.setuid(1000)
        return workload.idle()

    return program


def _as(uid: int, gid: int) -> Callable[[Box], None]:
    def scenario(box: Box) -> None:
        box.user(uid, gid)
        box.start(workload.idle())

    return scenario


def _user_namespace(box: Box) -> None:
    box.user_namespace()
    box.start(workload.idle())


def _launcher(box: Box) -> None:
    box.user(0, 0)
    box.start(dropping())


def _capabilities(kept: int) -> Callable[[Box], None]:
    def scenario(box: Box) -> None:
        box.user(0, 0)
        box.keep_caps(kept)
        box.start(workload.idle())

    return scenario


def _ids(real: int, effective: int, saved: int) -> Callable[[Box], None]:
    """As a setuid program leaves them, or a daemon that will become root again."""

    def program() -> Program:
        os.setresgid(1000, 1000, 1000)
        os.setresuid(real, effective, saved)
        return workload.idle()

    def scenario(box: Box) -> None:
        box.user(0, 0)
        box.start(program)

    return scenario


def _no_new_privs(box: Box) -> None:
    box.no_new_privs()
    box.start(workload.idle())


def _namespace_within(box: Box) -> None:
    """It makes a user namespace itself (unshare -Ur): root there, and uid 1000 outside."""

    def program() -> Program:
        unshare(CLONE_NEWUSER)
        for file, line in (("setgroups", "deny"), ("uid_map", "0 1000 1"), ("gid_map", "0 1000 1")):
            with open(f"/proc/self/{file}", "w", encoding="ascii") as opened:
                opened.write(line)
        return workload.idle()

    box.start(program)


def _among_roots_files(box: Box) -> None:
    """Its volume and what is in it are root's, and its program is not."""
    box.volume("/data")
    box.start(workload.idle())
    os.chown(f"/proc/{box.pid}/root/data", 0, 0)


def _numbers(finding: Finding) -> str | None:
    """The uid that it was started as."""
    if "uid 0 inside is uid 0 outside" not in finding.summary:
        return f"does not say which uid: {finding.summary}"
    words = ("effective uid 0", "uid 0 kept to come back to")
    read = [e for e in finding.evidence if e.says.endswith(words)]
    return None if len(read) == 1 else f"not one process with effective uid 0: {read}"


LAB = Lab(
    healthy=_as(1000, 1000),
    reproduce=_as(0, 0),
    look_alikes={
        "root of a user namespace, who is uid 100000 outside": _user_namespace,
        "uid 1000 in the group 0": _as(1000, 0),
        "uid 1000 without new privileges": _no_new_privs,
        "root of a user namespace that it made itself": _namespace_within,
        "uid 1000 among files of root's": _among_roots_files,
    },
    variants={
        "a launcher that stays root": _launcher,
        "root without any capability": _capabilities(0),
        "root with SYS_ADMIN": _capabilities(WITH_SYS_ADMIN),
        "real uid 1000, effective uid 0, as of a setuid program": _ids(1000, 0, 0),
        "effective uid 1000, and 0 kept as the saved one": _ids(1000, 1000, 0),
    },
    numbers=_numbers,
    also=("security/privileged_needlessly",),
    window_seconds=0.5,
)
