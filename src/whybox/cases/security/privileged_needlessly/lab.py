"""Root with every capability that there is, of which the program uses CHOWN alone."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress

from whybox.kernel import capability, task
from whybox.kernel.host import Host
from whybox.kernel.libc import mount, sethostname, umount2
from whybox.lab import workload
from whybox.lab.box import Box
from whybox.lab.lab import Lab, Scenario
from whybox.lab.process import DEFAULT_CAPABILITIES, Program
from whybox.model import Finding

EVERY_SECONDS = 0.1


def everything() -> int:
    """All that the lab itself has: an engine cannot give more either."""
    return task.status(Host(), "self").cap_eff


def _and(*names: str) -> int:
    return DEFAULT_CAPABILITIES | capability.mask(names)


def again(do: Callable[[], object]) -> Program:
    """Does it for ever, whatever comes of it."""

    def program() -> None:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        while True:
            with suppress(OSError):
                do()
            time.sleep(EVERY_SECONDS)

    return program


def _give_away() -> None:
    """CHOWN: to somebody else, and back."""
    path = "/tmp/file"
    os.close(os.open(path, os.O_CREAT | os.O_RDWR))
    os.chown(path, 1000, 1000)
    os.chown(path, 0, 0)


def _mount() -> None:
    """SYS_ADMIN: a tmpfs and away with it."""
    mount("none", "/tmp", "tmpfs")
    umount2("/tmp")


def _rename() -> None:
    sethostname("box")


def _touch_memory() -> None:
    """What asks for SYS_ADMIN and minds no refusal: mapping memory."""
    bytearray(1 << 20)


def _as_root(kept: Callable[[], int] | int, program: Program) -> Scenario:
    def scenario(box: Box) -> None:
        box.user(0, 0)
        box.keep_caps(kept if isinstance(kept, int) else kept())
        box.start(program)

    return scenario


def _unprivileged(box: Box) -> None:
    """uid 1000, with every capability in its bounding set, and none that is effective."""
    box.keep_caps(everything())
    box.start(workload.idle())


def _user_namespace(box: Box) -> None:
    box.user_namespace()
    box.keep_caps(everything())
    box.start(again(_give_away))


def numbers(finding: Finding) -> str | None:
    """What was used, exactly."""
    known = ("used 1 of all that it holds (CHOWN)", "used 1 of all that it holds (SYS_ADMIN)")
    if any(words in finding.summary for words in known) or "used none" in finding.summary:
        return None
    return f"not exactly what was used is in: {finding.summary}"


LAB = Lab(
    healthy=_as_root(DEFAULT_CAPABILITIES, again(_give_away)),
    reproduce=_as_root(everything, again(_give_away)),
    variants={
        "everything, and SYS_ADMIN is used": _as_root(everything, again(_rename)),
        "SYS_ADMIN, and only memory is mapped": _as_root(_and("SYS_ADMIN"), again(_touch_memory)),
        "SYS_PTRACE, and nothing is done": _as_root(_and("SYS_PTRACE"), workload.idle()),
    },
    look_alikes={
        "SYS_ADMIN, and it mounts": _as_root(_and("SYS_ADMIN"), again(_mount)),
        "NET_ADMIN, which it does not use": _as_root(_and("NET_ADMIN"), workload.idle()),
        "an ordinary container that is refused SYS_ADMIN": _as_root(
            DEFAULT_CAPABILITIES, again(_rename)
        ),
        "another user, and a wide bounding set": _unprivileged,
        "root of a user namespace": _user_namespace,
    },
    numbers=numbers,
    also=("security/root_is_host_root",),
    window_seconds=0.6,
)
