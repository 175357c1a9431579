"""What a container makes use of: system calls, mounts, devices, and sockets in its file system."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager

from msgspec import Struct

from whybox.kernel import syscalltable
from whybox.kernel.bpf.objects import Object, Spec, loaded
from whybox.kernel.bpf.scope import Scope
from whybox.kernel.host import Host, c_string
from whybox.kernel.sensors import capabilities, checks
from whybox.kernel.sensors.syscalls import EVERY_CALL

SPEC = Spec(
    name="exercised",
    programs=(("on_move",), ("on_exit",), ("on_enter",)),
    falls_back="nothing: what is held and not used looks like what is used",
)

_OPENS, _CONNECTS = 1, 2
_INDEX = struct.Struct("=I")
_OPENED, _CONNECTED = struct.Struct("=IiII"), struct.Struct("=I108s")
_CALLS = {
    **dict.fromkeys(("open", "openat", "openat2", "creat"), _OPENS),
    "connect": _CONNECTS,
}


class Opened(Struct, frozen=True, kw_only=True):
    """Files that were opened alike."""

    mount_id: int
    """As mountinfo numbers it."""
    device: str | None
    """``MAJOR:MINOR`` of a device node."""
    block: bool
    count: int


class Sensors(Struct, frozen=True):
    """Both that it takes, with the scope of each."""

    checks: Object
    calls: Object
    scopes: tuple[Scope, Scope]


@contextmanager
def attached(host: Host) -> Iterator[Sensors]:
    """The sensors. Nobody is in their scope yet. Raises ``Refused``."""
    numbers = {syscalltable.number(name): kind for name, kind in _CALLS.items()}
    table = [
        (_INDEX.pack(number), _INDEX.pack(kind))
        for number, kind in numbers.items()
        if number is not None
    ]
    with (
        loaded(host, capabilities.SPEC) as asked,
        loaded(host, SPEC, before={"calls": table}) as made,
    ):
        yield Sensors(asked, made, (Scope(asked), Scope(made)))


def begin_epoch(sensors: Sensors) -> None:
    """A container was added."""
    checks.begin_epoch(sensors.checks)
    checks.begin_epoch(sensors.calls)


def calls(sensors: Sensors, slot: int) -> tuple[str, ...]:
    """The names of the system calls that a container has made, sorted."""
    raw = sensors.calls.map("made").get(_INDEX.pack(slot))
    if raw is None:
        return ()
    numbers = (n for n, made in enumerate(raw) if made)
    names = (syscalltable.name(n % EVERY_CALL, compat=n >= EVERY_CALL) for n in numbers)
    return tuple(sorted(set(names)))


def opened(sensors: Sensors, slot: int) -> Iterator[Opened]:
    """The mounts and devices on which it has opened something."""
    for key, raw in sensors.calls.map("opened").items():
        whose, mount, device, kind = _OPENED.unpack(key)
        if whose == slot:
            yield Opened(
                mount_id=mount,
                # MKDEV() of include/linux/kdev_t.h.
                device=f"{device >> 20}:{device & 0xFFFFF}" if device else None,
                block=kind == 0o060000,
                count=int.from_bytes(raw, "little"),
            )


def connected(sensors: Sensors, slot: int) -> Iterator[str]:
    """The sockets that it has connected to, as it named them."""
    for key, _ in sensors.calls.map("connected").items():
        whose, name = _CONNECTED.unpack(key)
        if whose == slot:
            yield c_string(name)
