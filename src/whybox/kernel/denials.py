"""Calls of a container that were not permitted within a window, with the facts that tell the gate.

A sensor that all who watch share tells the calls; where they were about a file, the way to it is
walked at the end of the window: owners, modes, attributes and mounts as they are then.
"""

import errno as errnos
import os
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from msgspec import Struct, structs

from whybox.kernel import capability, uidmap
from whybox.kernel.access import Way, Who, mount_of, walk
from whybox.kernel.devicerules import allows
from whybox.kernel.host import Host, ParseError, printable
from whybox.kernel.intent import Intent, ids_of, intent
from whybox.kernel.mountinfo import Mount, mounts
from whybox.kernel.namespace import INITIAL
from whybox.kernel.symbols import KernelSymbols
from whybox.kernel.target import Target, processes

if TYPE_CHECKING:
    from whybox.kernel.sensors.denied import Event, Place
    from whybox.kernel.sensors.kept import Kept

#: The sensor's name in ``Host.sensor``.
SENSOR = "denied"
#: An observation holds so many, the most frequent.
MOST_TOLD = 64
#: Among so many processes the directory is looked for in which a relative path began.
MOST_ASKED = 64

_FSETID = 1 << capability.NAMES.index("FSETID")
_SYS_ADMIN = 1 << capability.NAMES.index("SYS_ADMIN")
_DAC = 0b110  # DAC_OVERRIDE, DAC_READ_SEARCH
_ACCESS = frozenset(("access", "faccessat", "faccessat2"))
#: Where an answer to a message is a refusal, and not merely less said (inet_diag asks too).
_ANSWERS = frozenset(("rtnetlink_rcv_msg", "nfnetlink_rcv", "nfnetlink_rcv_msg", "genl_rcv_msg"))
#: include/linux/mount.h
_MNT = {0x01: "nosuid", 0x02: "nodev", 0x04: "noexec", 0x40: "ro"}
#: Who is ended by these was ended by somebody, and not by what it was refused.
_ENDED_BY_OTHERS = frozenset((1, 2, 9, 13, 15))


class Where(Struct, frozen=True, kw_only=True):
    """The mount that a file is on."""

    mountpoint: str
    fstype: str
    options: tuple[str, ...]
    """Of this mount."""
    whole: tuple[str, ...]
    """Of the file system, wherever it is mounted."""


class Denied(Struct, frozen=True, kw_only=True):
    """Calls that were refused alike."""

    call: str
    errno: str
    """Empty where seccomp sent a signal instead."""
    how: str
    """``seccomp``, ``trapped``, ``killed``: by its filter; ``entered``: by the kernel;
    ``answered``: in the answer to a message."""
    comm: str
    pid: int
    uid: int
    """By which files were asked for, by the host's number."""
    gid: int
    held: int
    """Its effective capabilities."""
    own_user_ns: bool
    capabilities: int = 0
    """Asked for in vain, as far as the call failed for want of them."""
    elsewhere: int = 0
    """Of them those that it holds, but not over what was asked for."""
    site: str | None = None
    """The kernel's function that asked."""
    intent: Intent
    path: str | None = None
    """From the container's root; ``None``: none, or it is not known where it begins."""
    said: str = ""
    """The path as the program gave it, or the file's last name."""
    way: Way | None = None
    mount: Where | None = None
    port: int | None = None
    arguments: tuple[int, ...] = ()
    device_allowed: bool | None = None
    """Of a device node: what the devices controller says, where it can be read."""
    label: str | None = None
    """Of a security module: the program's profile."""
    times: int = 1
    made_good: int = 0
    """How often the same thread then got the same thing in another way."""
    failed: int = 0
    """How often its process then ended with a failure, and how far from the refusal."""
    calls_to_end: int | None = None
    status: int | None = None
    last: bool = False
    """Whether it was the last thing that its process was refused before that."""


class Window(Struct, frozen=True, kw_only=True):
    """The refusals of one window."""

    reason: str | None = None
    """Why they could not be watched; ``None``: they were."""
    seen: tuple[Denied, ...] = ()
    """The most frequent."""
    untold: int = 0
    """Of programs that are refused again and again, those beyond the first of each second."""
    lost: int = 0
    port_start: int | None = None
    """From which port on nobody is asked for a capability, in its network namespace."""


@contextmanager
def watch(host: Host, target: Target) -> Iterator[Callable[[], Window]]:
    """Watch a container; asked for what was refused so far."""
    if host.window_seconds <= 0 or not target.alive:
        yield lambda: Window(reason="nothing is refused in a window of no length")
        return
    with ExitStack() as stack:
        yield _sensed(host, target, stack)


def _sensed(host: Host, target: Target, stack: ExitStack) -> Callable[[], Window]:
    from whybox.kernel.sensors import denied as sensor  # loads libbpf: only for a window
    from whybox.kernel.sensors.checks import begin_epoch, told_apart

    try:
        attached = stack.enter_context(host.sensor(SENSOR, lambda: sensor.attached(host)))
        slot = attached.scope.add(host, target)
        told_apart(slot)
        begin_epoch(attached.object)
    except OSError as error:
        refused = Window(reason=str(error.strerror or error))
        return lambda: refused
    # While it lives: how its mounts and its root can be looked at when it is gone is: not at all.
    return lambda: _window(host, target, attached, slot, sensor.untold(attached, slot))


def _window(host: Host, target: Target, attached: "Kept[Event]", slot: int, untold: int) -> Window:
    events = [one for one in attached.all() if one.slot == slot]
    reader = _Reader(host, target, attached)
    seen = list(reader.told(events))
    return Window(
        seen=tuple(sorted(seen, key=lambda one: -one.times)[:MOST_TOLD]),
        untold=untold,
        lost=attached.lost,
        port_start=reader.port_start(),
    )


class _Reader:
    """What is looked at to tell the refusals of one container."""

    def __init__(self, host: Host, target: Target, attached: "Kept[Event]") -> None:
        self._host, self._target, self._attached = host, target, attached
        self._pid = 0 if target.init is None else target.init.pid
        # Of a hundred thousand lines: read once for all containers, and where they are needed.
        self._symbols = host.remembered("kernel symbols", lambda: KernelSymbols(host))
        self._directories: dict[tuple[str, int], str] | None = None
        try:
            self._mounts: tuple[Mount, ...] = mounts(host, self._pid)
        except (OSError, ParseError):
            self._mounts = ()

    def told(self, events: Sequence["Event"]) -> Iterator[Denied]:
        """Those that were refused alike as one."""
        from whybox.kernel.sensors.denied import Kind

        good = {one.seq for one in events if one.kind is Kind.MADE_GOOD}
        ends = {one.pid: one for one in events if one.kind is Kind.ENDED}
        last = {one.pid: one.seq for one in sorted(events, key=lambda one: one.at_ns) if one.call}
        groups: dict[tuple[object, ...], list[Event]] = {}
        for one in events:
            if one.kind in (Kind.MADE_GOOD, Kind.ENDED):
                continue
            groups.setdefault(_alike(one), []).append(one)
        for alike in groups.values():
            if (denied := self._denied(alike, good, ends)) is not None:
                decides = any(last[one.pid] == one.seq for one in alike)
                yield structs.replace(denied, last=decides and denied.failed > 0)

    def _denied(
        self, alike: Sequence["Event"], good: set[int], ends: dict[int, "Event"]
    ) -> Denied | None:
        first = alike[-1]
        wanted, site = self._wanted(first)
        if first.kind.name == "ANSWERED" and site is None:
            return None
        if first.kind.name == "SECCOMP" and len(alike) == 1 and self._attached.object.missed():
            return None  # it may have entered while no program was run
        if first.error == errnos.EINVAL and self._mapped(first):
            return None
        what = intent(first.call, first.arguments, first.path)
        path, said = self._path(first)
        mount = self._mount(path, first)
        failures = [
            (ends[one.pid].since, ends[one.pid].error)
            for one in alike
            if one.pid in ends and _failing(ends[one.pid].error)
        ]
        real = first.call in _ACCESS
        who = Who(uid=first.uid if real else first.fsuid, gid=first.fsgid, groups=first.groups)
        way = None
        if path is not None and first.error != errnos.EROFS and first.kind.name == "ENTERED":
            way = walk(self._host, self._pid, self._mounts, path, who, follow=what.follow)
        nearest = min(failures, default=None)
        return Denied(
            call=first.call,
            errno=errnos.errorcode.get(first.error, "") if first.error else "",
            how=first.kind.name.lower(),
            comm=printable(first.comm),
            pid=first.pid,
            uid=who.uid,
            gid=who.gid,
            held=first.held,
            own_user_ns=first.user_ns not in (0, INITIAL["user"]),
            capabilities=wanted,
            elsewhere=first.elsewhere & wanted,
            site=site,
            intent=what,
            path=path if way is None else way.path,
            said=said,
            way=way,
            mount=mount,
            port=_port(first.address),
            arguments=first.arguments,
            device_allowed=self._device(way),
            label=self._label(first.pid),
            times=len(alike),
            made_good=sum(one.seq in good for one in alike),
            failed=len(failures),
            calls_to_end=None if nearest is None else nearest[0],
            status=None if nearest is None else _status(nearest[1]),
        )

    def _wanted(self, one: "Event") -> tuple[int, str | None]:
        """The capabilities for want of which it failed, and who asked for the last of them."""
        from whybox.kernel.sensors import checks

        told = one.refused & ~_DAC or one.kind.name == "ANSWERED"
        raw = checks.stack(self._attached.object, one.stack) if told else ()
        path = checks.path(self._symbols, raw) if raw else ()
        if one.kind.name == "ANSWERED":
            asked = one.refused | one.overridden
            return asked, path[0] if not _ANSWERS.isdisjoint(path) else None
        wanted = one.refused & ~_FSETID & ~(_SYS_ADMIN if checks.is_memory(path) else 0)
        if one.call in _ACCESS:
            wanted |= one.overridden
        return wanted, path[0] if path and wanted else None

    def _mapped(self, one: "Event") -> bool:
        """Whether the ids that were given exist in the user namespace: then EINVAL is another's."""
        if one.user_ns in (0, INITIAL["user"]):
            return True
        ranges = uidmap.read(self._host, one.pid) or uidmap.read(self._host, self._pid)
        if ranges is None:
            return True
        return all(uidmap.outside(ranges, id) is not None for id in ids_of(one.call, one.arguments))

    def _path(self, one: "Event") -> tuple[str | None, str]:
        """The path from the container's root, and what the program said."""
        if one.address:
            said = _socket_path(one.address)
            return (self._absolute(said, one) if said else None), printable(said or "")
        # Of two paths it is the new one that is made; both are asked the same of.
        given = one.path2 if one.call in ("link", "linkat") else one.path
        if given:
            path = self._absolute(given, one)
            # Where it begins is known by its last name alone.
            begins = f"…/{one.cwd.name}/" if path is None and one.cwd is not None else ""
            return path, printable(begins + given)
        if one.file is None:
            return None, ""
        return self._opened(one, one.file), printable(one.file.name)

    def _absolute(self, path: str, one: "Event") -> str | None:
        if path.startswith("/"):
            return path
        base = None if one.cwd is None else self._directory(one.cwd)
        return None if base is None else f"{base.rstrip('/')}/{path}"

    def _directory(self, wanted: "Place") -> str | None:
        if self._directories is None:
            self._directories = dict(self._known_directories())
        return self._directories.get((wanted.device, wanted.inode))

    def _known_directories(self) -> Iterator[tuple[tuple[str, int], str]]:
        """Where the container's processes are, by device and inode."""
        for pid in dict.fromkeys((*processes(self._host, self._target)[:MOST_ASKED], self._pid)):
            for link, name in ((f"/proc/{pid}/cwd", None), (f"/proc/{pid}/root", "/")):
                try:
                    text = name or os.readlink(self._host.path(link))
                    there = mount_of(self._mounts, text)
                    if there is None or there.fstype.startswith("fuse") or "nfs" in there.fstype:
                        continue
                    seen = os.stat(self._host.path(link))
                except OSError:
                    continue
                device = f"{os.major(seen.st_dev)}:{os.minor(seen.st_dev)}"
                yield (device, seen.st_ino), text

    def _opened(self, one: "Event", file: "Place") -> str | None:
        """The path of a file that a call had by its descriptor, while it is open."""
        for nth in (0, 4):
            try:
                path = os.readlink(self._host.path(f"/proc/{one.pid}/fd/{one.arguments[nth]}"))
            except (OSError, IndexError, OverflowError):
                continue
            if path.startswith("/") and path.rsplit("/", 1)[1] == file.name:
                return path
        return None

    def _mount(self, path: str | None, one: "Event") -> Where | None:
        found = None if path is None else mount_of(self._mounts, path)
        if found is None and one.file is not None:
            found = next((m for m in self._mounts if m.device == one.file.device), None)
        if found is None:
            return None
        options = found.options
        if one.file is not None:
            options = tuple(name for bit, name in _MNT.items() if one.file.flags & bit)
        return Where(
            mountpoint=printable(found.mountpoint),
            fstype=printable(found.fstype),
            options=options,
            whole=found.super_options[:1],
        )

    def _device(self, way: Way | None) -> bool | None:
        if way is None or not way.steps or way.missing is not None:
            return None
        return allows(self._host, self._target, way.steps[-1].mode, way.steps[-1].device)

    def _label(self, pid: int) -> str | None:
        for one in (pid, self._pid):
            said = self._host.optional_text(f"/proc/{one}/attr/current")
            if said:
                return printable(said.rstrip("\0"))
        return None

    def port_start(self) -> int | None:
        """``net.ipv4.ip_unprivileged_port_start`` of its network namespace."""
        from whybox.kernel.netns import call_in

        file = "/proc/sys/net/ipv4/ip_unprivileged_port_start"
        if not self._host.live or not self._pid:
            return None
        try:
            return call_in(f"/proc/{self._pid}/ns/net", lambda: Host().number(file))
        except (OSError, ParseError):
            return None


def _alike(one: "Event") -> tuple[object, ...]:
    flags = one.arguments[1:3] if one.call in ("open", "openat") else ()
    wants = (one.refused, one.fsuid, one.file and one.file.name)
    where = (one.path, one.path2, one.address, one.cwd and one.cwd.inode)
    return (one.call, one.error, one.kind, one.comm, where, wants, flags and flags[-1])


def _failing(status: int) -> bool:
    return status != 0 and status & 0x7F not in _ENDED_BY_OTHERS


def _status(status: int) -> int:
    """As a shell says it."""
    return 128 + (status & 0x7F) if status & 0x7F else status >> 8


def _port(address: bytes) -> int | None:
    if len(address) < 4:
        return None
    (family,) = struct.unpack_from("=H", address)
    if family not in (socket.AF_INET, socket.AF_INET6):
        return None
    return int(struct.unpack_from("!H", address, 2)[0])


def _socket_path(address: bytes) -> str | None:
    if len(address) < 3 or struct.unpack_from("=H", address)[0] != socket.AF_UNIX:
        return None
    raw = address[2:]
    return None if raw[0] == 0 else os.fsdecode(raw.split(b"\0", 1)[0])
