"""Which capabilities a container's tasks are asked for, where, and whether they had them.

Every check of the kernel ends in ``cap_capable()`` (security/commoncap.c). Newer kernels have a
tracepoint there (measured: 6.18 has, 6.12 has not); on older ones it takes a kprobe.
"""

import struct
from collections.abc import Iterator
from enum import IntFlag

from msgspec import Struct

from whybox.kernel.bpf.objects import Object, Spec
from whybox.kernel.host import c_string
from whybox.kernel.sensors.syscalls import EVERY_CALL

SPEC = Spec(
    name="capabilities",
    programs=(("on_move",), ("on_check", "on_check_end"), ("on_check", "on_check_begin")),
    falls_back="nothing: the kernel tells of its checks in no other way",
)

_CHECK, _CHECKS = struct.Struct("=IiII"), struct.Struct("=QII16s")
_NO_CALL = 2 * EVERY_CALL
_SLOT_SHIFT = 16


class Flag(IntFlag):
    """What a check was like."""

    REFUSED = 1
    OWN = 2
    """Of the task's own credentials, not of others that the kernel took on for it."""
    HELD = 4
    """The capability is in their effective set."""
    ELSEWHERE = 8
    """Asked for over a user namespace that is not theirs."""
    NOAUDIT = 16
    """A refusal is not meant to be noticed. Known where the check is seen by a kprobe."""
    ENGINE = 32
    """By the engine, which sets the container up from within."""
    MADE_UP_FOR = 64
    """Refused, but another one that does as well was granted at once."""


class Check(Struct, frozen=True, kw_only=True):
    """Checks that are alike."""

    capability: int
    flags: Flag
    slot: int = 0
    """Whose they are."""
    number: int | None
    """Of the system call it was made in; ``None``: in none."""
    compat: bool
    stack: int | None
    """Where it was made, of ``stacks``."""
    count: int
    pid: int
    """Of the first."""
    comm: str


def checks(object: Object) -> Iterator[Check]:
    """All checks so far, in no order."""
    for key, raw in object.map("checks").items():
        found = check(key, raw)
        if found.count:
            yield found


def check(key: bytes, value: bytes) -> Check:
    """Decode ``struct check`` and ``struct checks``."""
    index, stack, capability, flags = _CHECK.unpack(key)
    count, pid, _, comm = _CHECKS.unpack(value)
    return Check(
        capability=capability,
        flags=Flag(flags & (1 << _SLOT_SHIFT) - 1),
        slot=flags >> _SLOT_SHIFT,
        number=None if index >= _NO_CALL else index % EVERY_CALL,
        compat=EVERY_CALL <= index < _NO_CALL,
        stack=None if stack < 0 else stack,
        count=count,
        pid=pid,
        comm=c_string(comm),
    )
