"""Swap: what the machine has of it, what a group may have, and who lies in it.

``/proc/swaps`` (mm/swapfile.c, ``swap_show()``) in KiB:

>>> parse("Filename Type Size Used Priority\\n/dev/zram0 partition 131068 64 100")[0].kind
'zram, which is compressed memory'
"""

import re
from contextlib import suppress

from msgspec import Struct

from whybox.kernel import task
from whybox.kernel.cgroup import Group, keyed
from whybox.kernel.host import Host, ParseError
from whybox.kernel.target import Target, processes

FILE = "/proc/swaps"
MOST_PROCESSES = 64
MOST_HOLDERS = 3
_ESCAPE = re.compile(r"\\([0-7]{3})")


class Device(Struct, frozen=True, kw_only=True):
    """One place to swap to."""

    path: str
    type: str
    """``partition`` or ``file``."""
    size_bytes: int
    used_bytes: int

    @property
    def kind(self) -> str:
        """What it is, as far as its name tells."""
        if self.path.startswith("/dev/zram"):
            return "zram, which is compressed memory"
        return "a file" if self.type == "file" else "a disk"


class Holder(Struct, frozen=True, kw_only=True):
    """A process with memory in swap."""

    pid: int
    comm: str
    swap_bytes: int


class Rules(Struct, frozen=True, kw_only=True):
    """What a group's own files say of swapping."""

    swappiness: int | None
    """v1: the group's own; v2: the machine's."""
    swappiness_file: str
    refused: int | None = None
    """v2: how often swap was refused to it since it was made (``swap.events fail``)."""
    events_file: str | None = None


def parse(text: str) -> tuple[Device, ...]:
    """Parse ``/proc/swaps``."""
    return tuple(_device(line) for line in text.splitlines()[1:])


def _device(line: str) -> Device:
    fields = line.split()
    try:
        return Device(
            path=_ESCAPE.sub(lambda m: chr(int(m[1], 8)), fields[0]),
            type=fields[1],
            size_bytes=int(fields[2]) * 1024,
            used_bytes=int(fields[3]) * 1024,
        )
    except (IndexError, ValueError):
        raise ParseError(FILE, line) from None


def devices(host: Host) -> tuple[Device, ...] | None:
    """Where the machine swaps to; ``None``: its kernel was built without swap."""
    text = host.optional_text(FILE)
    return None if text is None else parse(text)


def rules(host: Host, group: Group) -> Rules:
    """What holds for one group."""
    if group.version == 1:
        file = group.file("memory.swappiness")
        return Rules(swappiness=host.optional_number(file), swappiness_file=file)
    machine, events = "/proc/sys/vm/swappiness", group.file("memory.swap.events")
    text = host.optional_text(events)
    return Rules(
        swappiness=host.optional_number(machine),
        swappiness_file=machine,
        refused=None if text is None else keyed(events, text).get("fail"),
        events_file=events,
    )


def zswap(host: Host) -> bool:
    """Whether pages are compressed in memory before they go to a device."""
    return host.optional_text("/sys/module/zswap/parameters/enabled") == "Y"


def holders(host: Host, target: Target) -> tuple[Holder, ...]:
    """The processes of a container that have most in swap."""
    found = []
    for pid in processes(host, target)[:MOST_PROCESSES]:
        with suppress(OSError, ParseError):
            said = task.status(host, pid)
            if said.vm_swap_bytes:
                found.append(Holder(pid=pid, comm=said.name, swap_bytes=said.vm_swap_bytes))
    return tuple(sorted(found, key=lambda one: -one.swap_bytes)[:MOST_HOLDERS])
