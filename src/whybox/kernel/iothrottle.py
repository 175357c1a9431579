"""Limits on block IO, here and above, and what each group that has one used of it in a window.

On v1 a limit holds for the tasks of its own group alone: blk-throttle makes a group's queue the
child of its parent's only on the unified tree (block/blk-throttle.c, ``throtl_pd_init``).
"""

from collections.abc import Mapping

from msgspec import Struct

from whybox.kernel import blockio, cgroup, surplus
from whybox.kernel.blockio import Done, Limit
from whybox.kernel.cgroup import Group
from whybox.kernel.diskwaits import NOT_WATCHED, Waits
from whybox.kernel.host import Host, ParseError
from whybox.kernel.pressure import Pressure, pressure
from whybox.kernel.surplus import Accounts
from whybox.kernel.target import Target

Device = tuple[int, int]


class Use(Struct, frozen=True, kw_only=True):
    """What a group and those below it did on one device in the window."""

    device: Device
    kind: str
    count: int
    bytes: int


class Level(Struct, frozen=True, kw_only=True):
    """One group on the way from the container up to the root."""

    path: str
    own: bool
    applies: bool
    """Whether its limits hold for the container: on v1 those of a group above do not."""
    limits: tuple[Limit, ...]
    uses: tuple[Use, ...]
    stat_file: str

    def used(self, device: Device, kind: str) -> Use:
        """What it did of one kind on one device."""
        nothing = Use(device=device, kind=kind, count=0, bytes=0)
        mine = (one for one in self.uses if (one.device, one.kind) == (device, kind))
        return next(mine, nothing)


class Throttle(Struct, frozen=True, kw_only=True):
    """One window: the limits, what was used of them, and what was held back."""

    elapsed_ns: int
    version: int
    inside: bool
    """Whether we look from inside the container, where groups above cannot be seen."""
    hidden: str | None
    """A file with limits that may not be read."""
    levels: tuple[Level, ...]
    """Its own group first."""
    names: Mapping[str, str]
    """``8:0`` to ``sda``."""
    waits: Waits = NOT_WATCHED
    pressure_file: str | None = None
    waited_usec: int | None = None
    """How long a task of it waited for IO (PSI); ``None``: not told here."""
    dirtied_bytes: int = 0
    """What its tasks wrote to files that lie on a disk, cached or not."""

    @property
    def seconds(self) -> float:
        """How long the window was."""
        return max(self.elapsed_ns / 1e9, 1e-9)

    @property
    def waited(self) -> float | None:
        """The share of the window in which a task of it waited for IO."""
        usec = self.waited_usec
        return None if usec is None else usec * 1000 / max(self.elapsed_ns, 1)

    def name(self, device: Device) -> str:
        """As people call it."""
        number = numbered(device)
        return self.names.get(number, number)


class Limited(Struct, frozen=True, kw_only=True):
    """Its groups on the way up, and the limits of each."""

    groups: tuple[Group, ...]
    limits: tuple[tuple[Limit, ...], ...]

    @property
    def any(self) -> bool:
        """Whether a limit holds for the container."""
        return any(mine for nth, mine in enumerate(self.limits) if applies(self.groups, nth))

    @property
    def known(self) -> tuple[int, ...]:
        """Which groups have limits."""
        return tuple(nth for nth, mine in enumerate(self.limits) if mine)


class Start(Struct, frozen=True, kw_only=True):
    """The counters before the window."""

    limited: Limited
    done: tuple[Mapping[tuple[Device, str], Done], ...]
    pressure: Pressure | None
    accounts: Accounts
    at_ns: int


def numbered(device: Device) -> str:
    """As the kernel's files name it.

    >>> numbered((8, 0))
    '8:0'
    """
    return f"{device[0]}:{device[1]}"


def applies(groups: tuple[Group, ...], nth: int) -> bool:
    """Whether what the nth group on the way up may have holds for the first."""
    return nth == 0 or groups[nth].version == 2


def limited(host: Host, target: Target) -> Limited:
    """Read the limits; raises OSError where its group cannot be seen."""
    group = blockio.io_group(host, target)
    if group is None:
        raise OSError("the block-IO control group of it cannot be seen from here")
    groups = tuple(group.lineage())
    limits = tuple(tuple(blockio.limits_of(host, one)) for one in groups)
    return Limited(groups=groups, limits=limits)


def begin(host: Host, target: Target, limited: Limited) -> Start:
    """Read the counters of the groups that have limits."""
    known = limited.known
    return Start(
        limited=limited,
        done=tuple(_done(host, one) if n in known else {} for n, one in enumerate(limited.groups)),
        pressure=_pressure(host, target),
        accounts=surplus.accounts(host, target) if known else Accounts(),
        at_ns=host.monotonic_ns(),
    )


def end(host: Host, target: Target, start: Start, waits: Waits) -> Throttle:
    """Read them again."""
    now = host.monotonic_ns()
    groups, known = start.limited.groups, start.limited.known
    levels = tuple(_level(host, start, n) for n in range(len(groups)) if n == 0 or n in known)
    after = _pressure(host, target) if known else None
    before = start.pressure
    both = before is not None and after is not None
    accounts = surplus.accounts(host, target) if known else Accounts()
    devices = {limit.device for level in levels for limit in level.limits}
    return Throttle(
        elapsed_ns=now - start.at_ns,
        version=groups[0].version,
        inside=target.runtime == "self",
        hidden=blockio.hidden(host, groups[0]),
        levels=levels,
        names={
            numbered(one): name
            for one in sorted(devices)
            if (name := blockio.device_name(host, one)) is not None
        },
        waits=waits,
        pressure_file=None if after is None else after.file,
        waited_usec=after.some_usec - before.some_usec if both and after and before else None,
        dirtied_bytes=dirtied(start.accounts, accounts),
    )


def _pressure(host: Host, target: Target) -> Pressure | None:
    unified = cgroup.unified(host, target.cgroups)
    if unified is None or unified.path == "/":
        return None  # the whole machine's
    try:
        return pressure(host, unified, "io")
    except (OSError, ParseError):
        return None


def _done(host: Host, group: Group) -> Mapping[tuple[Device, str], Done]:
    return {(one.device, one.kind): one for one in blockio.done_in(host, group)}


def _level(host: Host, start: Start, nth: int) -> Level:
    group, before = start.limited.groups[nth], start.done[nth]
    after = _done(host, group) if start.limited.limits[nth] else {}
    return Level(
        path=group.path,
        own=nth == 0,
        applies=applies(start.limited.groups, nth),
        limits=start.limited.limits[nth],
        uses=tuple(_use(before.get(key), done) for key, done in sorted(after.items())),
        stat_file=group.file(blockio.STAT[group.version]),
    )


def _use(before: Done | None, after: Done) -> Use:
    count, size = (0, 0) if before is None else (before.count, before.bytes)
    return Use(
        device=after.device,
        kind=after.kind,
        count=max(after.count - count, 0),
        bytes=max(after.bytes - size, 0),
    )


def dirtied(before: Accounts, after: Accounts) -> int:
    """What processes that were there at both ends wrote to files (``write_bytes``)."""
    return sum(
        max(now.write_bytes - before.inside[id][1].write_bytes, 0)
        for id, (_, now) in after.inside.items()
        if id in before.inside
    )
