"""What a check for a capability means: whether a right was used, wanted in vain, or neither."""

from collections.abc import Sequence
from contextlib import suppress
from enum import StrEnum

from whybox.kernel import capability, syscalltable, task
from whybox.kernel.host import Host
from whybox.kernel.sensors import checks
from whybox.kernel.sensors.capabilities import Check, Flag
from whybox.kernel.target import Target, processes

#: So many processes are looked at for what they hold.
MOST_PROCESSES = 2000

#: These check a file as the real user would, on credentials made for it (fs/open.c).
_ACCESS = frozenset(("access", "faccessat", "faccessat2"))

_SYS_ADMIN = capability.NAMES.index("SYS_ADMIN")


class Meaning(StrEnum):
    """What a check was."""

    USED = "used"
    REFUSED = "refused"
    MEMORY = "for a reserve of memory, which every mapping asks for"
    OVERRIDDEN = "on credentials that the kernel took on, as overlayfs does"
    OVERLAY = "by overlayfs, for the attributes that it keeps"
    MADE_UP_FOR = "refused, and made up for by another capability that was granted"
    QUIET = "refused where the kernel only wanted to know"
    ENGINE = "by the engine, which sets the container up from within"
    OWNER = "granted to the owner of a user namespace, who needs no capability"


Weighed = tuple[Check, Sequence[str], Meaning]


def meaning(check: Check, path: Sequence[str]) -> Meaning:
    """What a check means; ``path`` is the kernel's functions from the one that asked outwards."""
    flags = check.flags
    if Flag.ENGINE in flags:
        return Meaning.ENGINE
    if Flag.OWN not in flags and called(check) not in _ACCESS:
        return Meaning.OVERRIDDEN
    if checks.is_memory(path):
        return Meaning.MEMORY
    if check.capability == _SYS_ADMIN and checks.is_overlay(path):
        return Meaning.OVERLAY
    if Flag.REFUSED not in flags:
        return Meaning.USED if Flag.HELD in flags else Meaning.OWNER
    return _refused(flags)


def _refused(flags: Flag) -> Meaning:
    if Flag.MADE_UP_FOR in flags:
        return Meaning.MADE_UP_FOR
    return Meaning.QUIET if Flag.NOAUDIT in flags else Meaning.REFUSED


def called(check: Check) -> str | None:
    """The name of the call that it was in."""
    if check.number is None:
        return None
    return syscalltable.name(check.number, compat=check.compat)


def held(host: Host, target: Target) -> int:
    """The mask of what any process of the container holds effectively."""
    mask = 0
    for pid in processes(host, target)[:MOST_PROCESSES]:
        with suppress(OSError, ValueError):  # it has ended meanwhile
            mask |= task.status(host, pid).cap_eff
    return mask
