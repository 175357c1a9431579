"""What a container may do beyond an ordinary one, and what of it it did within a window.

Held: read from its processes, mounts and devices. Used: by a sensor that all who watch share, which
tells the capabilities that were asked for and granted, the calls, mounts, devices and sockets.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from msgspec import Struct, structs

from whybox.kernel import capability, exposure, task
from whybox.kernel.host import Host, ParseError, printable
from whybox.kernel.mountinfo import Mount, mounts
from whybox.kernel.namespace import INITIAL, namespace
from whybox.kernel.symbols import KernelSymbols
from whybox.kernel.target import Target, processes

if TYPE_CHECKING:
    from whybox.kernel.capabilityuse import Weighed
    from whybox.kernel.sensors.exercised import Opened, Sensors

#: The sensor's name in ``Host.sensor``.
SENSOR = "exercised"
MOST_PROCESSES = 512
#: Engines mount these single files into every container.
_ENGINES = ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/termination-log")

#: Views of the kernel, which engines mount too.
_KERNELS = frozenset({"cgroup", "cgroup2", "proc", "sysfs", "devpts", "mqueue"})


class Used(Struct, frozen=True, kw_only=True):
    """A capability that was asked for and granted."""

    name: str
    count: int
    comm: str
    """Harmless to print."""
    call: str | None
    """``None``: in no system call."""
    site: str | None
    """The kernel's function that asked."""


class Given(Struct, frozen=True, kw_only=True):
    """A directory, socket or device of the host's that it has."""

    what: str
    """Its path in the container, harmless to print."""
    of_host: str
    """The host's path, or the number of the device."""
    used: int = 0
    """How often something was opened there, or connected to."""
    mount_id: int = 0
    """As mountinfo numbers it; 0: it is no mount."""
    rules: bool = False
    """Whether who writes there, or connects, rules the host."""


class Rights(Struct, frozen=True, kw_only=True):
    """What it holds, and what of it was used."""

    reason: str | None = None
    """Why the use could not be watched; ``None``: it was."""
    init_pid: int
    contained: bool
    """Whether it has a root of its own: who has not is a process of the host's."""
    user_namespace: bool | None
    """Whether it has its own: then what it holds ends there."""
    held: int = 0
    """The effective capabilities of any of its processes."""
    bounding: int = 0
    holder: str = ""
    """The process that holds the most, and its pid."""
    filtered: bool = True
    """Whether seccomp is in force for all of them that hold something."""
    proc_sys_writable: bool = False
    used: tuple[Used, ...] = ()
    wanted: tuple[str, ...] = ()
    """Capabilities that were asked for and not had."""
    calls: tuple[str, ...] = ()
    """The system calls that were made."""
    mounts: tuple[Given, ...] = ()
    devices: tuple[Given, ...] | None = ()
    shared: tuple[str, ...] = ()
    """Namespaces that are the host's."""
    lost: int = 0


@contextmanager
def watch(host: Host, target: Target) -> Iterator[Callable[[], Rights]]:
    """Watch a container; asked for what it holds and has used so far."""
    if target.init is None:
        raise OSError("it is not running")
    with ExitStack() as stack:
        yield _sensed(host, target, target.init.pid, stack)


def _sensed(host: Host, target: Target, pid: int, stack: ExitStack) -> Callable[[], Rights]:
    before = _held(host, target, pid)
    if host.window_seconds <= 0:
        return lambda: _unwatched(before, "nothing is used in a window of no length")
    if not worth_watching(before):
        return lambda: _held(host, target, pid)
    from whybox.kernel.sensors import exercised as sensor  # loads libbpf: only for a window
    from whybox.kernel.sensors.checks import told_apart

    try:
        attached = stack.enter_context(host.sensor(SENSOR, lambda: sensor.attached(host)))
        slots = [scope.add(host, target) for scope in attached.scopes]
        told_apart(slots[0])
        sensor.begin_epoch(attached)
    except OSError as error:
        reason = str(error.strerror or error)
        return lambda: _unwatched(before, reason)
    return lambda: _used(host, _held(host, target, pid), attached, slots[0])


def worth_watching(seen: Rights) -> bool:
    """Whether it holds anything beyond an ordinary container: else no sensor is attached."""
    return seen.contained and bool(seen.held & ~capability.DEFAULT)


def _unwatched(seen: Rights, reason: str) -> Rights:
    return structs.replace(seen, reason=reason)


def _held(host: Host, target: Target, pid: int) -> Rights:
    held = bounding = most = 0
    holder, filtered = "", True
    for one in dict.fromkeys((pid, *processes(host, target)[:MOST_PROCESSES])):
        with suppress(OSError, ParseError):
            status = task.status(host, one)
            bounding |= status.cap_bnd
            held |= status.cap_eff
            if status.cap_eff:
                filtered = filtered and status.seccomp != 0
            if status.cap_eff.bit_count() > most:
                most = status.cap_eff.bit_count()
                holder = f"{printable(status.name)} (pid {one})"
    try:
        seen = mounts(host, pid)
    except (OSError, ParseError):
        seen = ()
    own = namespace(host, pid, "user")
    return Rights(
        init_pid=pid,
        contained=target.own("mnt") is not False,
        user_namespace=None if own is None else own != INITIAL["user"],
        held=held,
        bounding=bounding,
        holder=holder,
        filtered=filtered,
        proc_sys_writable=_is_writable(seen, "/proc/sys"),
        mounts=tuple(_given(host, target, seen)),
        devices=_devices(host, pid, seen),
        shared=tuple(kind for kind in ("pid", "net", "ipc") if target.own(kind) is False),
    )


def _is_writable(seen: Iterable[Mount], path: str) -> bool:
    """By the innermost mount there."""
    over = [m for m in seen if path == m.mountpoint or path.startswith(f"{m.mountpoint}/")]
    return bool(over) and "rw" in max(over, key=lambda m: len(m.mountpoint)).options


def _given(host: Host, target: Target, seen: tuple[Mount, ...]) -> Iterator[Given]:
    """What is mounted into it from the host's own tree."""
    outside = target.runtime != "self"
    for mount, shown in zip(seen, exposure.shown(host, seen, from_outside=outside), strict=False):
        path = shown.socket or shown.host_path
        if path is None or mount.mountpoint in ("/", *_ENGINES) or mount.fstype in _KERNELS:
            continue
        at, rules = printable(mount.mountpoint), shown.socket is not None
        rules = rules or (shown.writable and exposure.is_the_host(path))
        yield Given(what=at, of_host=printable(path), mount_id=mount.mount_id, rules=rules)


def _devices(host: Host, pid: int, seen: tuple[Mount, ...]) -> tuple[Given, ...] | None:
    found = exposure.nodes(host, pid, seen)
    if found is None:
        return None
    return tuple(Given(what=f"/dev/{one.name}", of_host=one.device) for one in found)


def _used(host: Host, seen: Rights, attached: "Sensors", slot: int) -> Rights:
    from whybox.kernel.sensors import exercised as sensor

    opened = tuple(sensor.opened(attached, slot))
    sockets = tuple(sensor.connected(attached, slot))
    used, wanted = _capabilities(host, attached, slot)
    return structs.replace(
        seen,
        used=used,
        wanted=wanted,
        calls=sensor.calls(attached, slot),
        mounts=tuple(_counted(one, opened, sockets) for one in seen.mounts),
        devices=None
        if seen.devices is None
        else tuple(
            structs.replace(one, used=sum(o.count for o in opened if o.device == one.of_host))
            for one in seen.devices
        ),
        lost=attached.checks.lost(),
    )


def _counted(one: Given, opened: Iterable["Opened"], sockets: Iterable[str]) -> Given:
    files = sum(o.count for o in opened if o.mount_id == one.mount_id and o.device is None)
    names = sum(name == one.what or name.startswith(f"{one.what}/") for name in sockets)
    return structs.replace(one, used=files + names)


def _capabilities(
    host: Host, attached: "Sensors", slot: int
) -> tuple[tuple[Used, ...], tuple[str, ...]]:
    from whybox.kernel.capabilityuse import Meaning, called, meaning
    from whybox.kernel.sensors import capabilities, checks

    symbols = host.remembered("kernel symbols", lambda: KernelSymbols(host))
    weighed: list[Weighed] = []
    for one in capabilities.checks(attached.checks):
        if one.slot == slot:
            path = checks.path(symbols, checks.stack(attached.checks, one.stack))
            weighed.append((one, path, meaning(one, path)))
    numbers = sorted({c.capability for c, _, what in weighed if what is Meaning.USED})
    used = []
    for number in numbers:
        mine = [(c, p) for c, p, what in weighed if c.capability == number and what is Meaning.USED]
        most, asking = max(mine, key=lambda both: both[0].count)
        used.append(
            Used(
                name=capability.names(1 << number)[0],
                count=sum(c.count for c, _ in mine),
                comm=printable(most.comm),
                call=called(most),
                site=asking[0] if asking else None,
            )
        )
    refused = {c.capability for c, _, what in weighed if what is Meaning.REFUSED}
    return tuple(used), tuple(capability.names(1 << one)[0] for one in sorted(refused))
