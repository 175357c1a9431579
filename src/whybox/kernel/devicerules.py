"""What a container may do with devices: ``devices.list`` (admin-guide/cgroup-v1/devices.rst).

On cgroup v2 the same is decided by a BPF program, which cannot be read as a list.

>>> found = parse("c 1:3 rwm\\nb *:* m")
>>> permitted(found, "c", 1, 3), permitted(found, "b", 8, 0), permitted(found, "c", 10, 200)
('rwm', 'm', '')
"""

import os
import stat

from msgspec import Struct

from whybox.kernel.host import Host, ParseError
from whybox.kernel.target import Target


class Rule(Struct, frozen=True, kw_only=True):
    """One line."""

    kind: str
    """``a`` all, ``b`` block, ``c`` character."""
    major: int | None
    """``None``: any."""
    minor: int | None
    access: str


def parse(text: str, file: str = "devices.list") -> tuple[Rule, ...]:
    """Every rule that allows."""
    return tuple(_rule(line, file) for line in text.splitlines())


def _rule(line: str, file: str) -> Rule:
    try:
        kind, numbers, access = line.split()
        major, minor = (None if part == "*" else int(part) for part in numbers.split(":"))
    except ValueError:
        raise ParseError(file, line) from None
    return Rule(kind=kind, major=major, minor=minor, access=access)


def rules(host: Host, target: Target) -> tuple[Rule, ...] | None:
    """Those of a container; ``None`` where there is no list."""
    group = target.group(host, "devices")
    if group is None or group.version != 1:
        return None
    text = host.optional_text(group.file("devices.list"))
    return None if text is None else parse(text)


def permitted(all: tuple[Rule, ...], kind: str, major: int, minor: int) -> str:
    """What may be done with a device: of ``r``, ``w`` and ``m``."""
    found = {
        sign
        for rule in all
        if rule.kind in ("a", kind) and rule.major in (None, major) and rule.minor in (None, minor)
        for sign in rule.access
    }
    return "".join(sign for sign in "rwm" if sign in found)


def allows(host: Host, target: Target, mode: int, device: int) -> bool | None:
    """Whether a device node may be read and written; ``None``: no device, or no list to ask."""
    if not stat.S_ISCHR(mode) and not stat.S_ISBLK(mode):
        return None
    known = rules(host, target)
    if known is None:
        return None
    kind = "c" if stat.S_ISCHR(mode) else "b"
    return set("rw") <= set(permitted(known, kind, os.major(device), os.minor(device)))
