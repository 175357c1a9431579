"""How hard a group's memory was pressed over a window: which limit was met, what had to come back,
how long its tasks waited for it.

A page that comes back after it was pushed out is a refault (mm/workingset.c). It counts for the
group that holds the page, whoever pushed it out: its own limit, an ancestor's, or the host, which
tells by ``pgsteal_*`` of ``/proc/vmstat``: those count only what the host itself reclaimed
(mm/vmscan.c, ``!cgroup_reclaim(sc)``).
"""

import mmap
from collections.abc import Mapping

from msgspec import Struct

from whybox.kernel import memory, memorystat
from whybox.kernel.cgroup import UNIFIED, Group, keyed
from whybox.kernel.host import Host
from whybox.kernel.memorystat import MemoryStat
from whybox.kernel.pressure import Resource, pressure
from whybox.kernel.target import Target

PAGE_BYTES = mmap.PAGESIZE
#: Reclaim takes more than was asked for, so a group that is pressed is a little below its limit.
FULL = 0.95
#: With pages in large folios it takes much more at once (91 % of the limit for a moment, measured
#: on 6.18): then it counts that the group was full before and has not let go.
WAS_FULL, STILL_FULL = 0.99, 0.75
_STEAL = ("pgsteal_kswapd", "pgsteal_direct", "pgsteal_khugepaged")


class Level(Struct, frozen=True, kw_only=True):
    """One group on the way from the container up to the root, at the end of the window."""

    path: str
    file: str
    """The limit's."""
    limit_bytes: int | None
    """The lower of what it may hold and of ``memory.high``."""
    soft: bool = False
    """Whether that is ``memory.high``."""
    current_bytes: int | None
    peak_bytes: int | None = None
    met: int | None = None
    """How often the limit was met in the window, as far as it is counted."""
    swap_current_bytes: int | None = None
    swap_limit_bytes: int | None = None
    """Besides its memory; ``None``: no limit. v1 knows the sum of both alone."""
    swap_unknown: bool = False
    """Whether this kernel keeps no account of swap (``swapaccount=0``)."""

    @property
    def full(self) -> bool:
        """Whether something must go before something can come."""
        if self.limit_bytes is None or self.current_bytes is None:
            return False
        if self.met or self.current_bytes >= FULL * self.limit_bytes:
            return True
        was_full = (self.peak_bytes or 0) >= WAS_FULL * self.limit_bytes
        return was_full and self.current_bytes >= STILL_FULL * self.limit_bytes


class Waits(Struct, frozen=True, kw_only=True):
    """How long tasks waited within the window (PSI, accounting/psi.rst)."""

    file: str
    some_usec: int
    """At least one of them."""
    full_usec: int | None
    """All of them."""


class Squeeze(Struct, frozen=True, kw_only=True):
    """One window, seen from the container's group upwards."""

    elapsed_ns: int
    levels: tuple[Level, ...]
    """Its own group first."""
    now: MemoryStat | None
    refault_file: int | None = None
    """Pages in the window; ``None``: this kernel does not count them by group."""
    refault_anon: int | None = None
    majfault: int | None = None
    memory: Waits | None = None
    io: Waits | None = None
    host_reclaimed: int | None = None
    """Pages that the host reclaimed for itself, everywhere."""
    oom_kills: int | None = None
    """In the window."""
    oom_kills_ever: int | None = None
    total_bytes: int | None = None
    """The machine's memory."""

    @property
    def seconds(self) -> float:
        """How long the window was."""
        return max(self.elapsed_ns / 1e9, 1e-9)

    @property
    def pressed_by(self) -> Level | None:
        """The nearest group whose limit is met."""
        return next((level for level in self.levels if level.full), None)

    @property
    def pressed(self) -> bool:
        """Whether anything pushed memory out: a limit, or the host for itself.

        For each page that comes back another must go: a host that reclaims much less did not do it.
        """
        came = (self.refault_file or 0) + (self.refault_anon or 0)
        by_host = self.host_reclaimed or 0
        return self.pressed_by is not None or (by_host > 0 and 4 * by_host >= came)

    def waited(self, what: Waits | None) -> float | None:
        """The share of the window in which at least one task waited."""
        return None if what is None else what.some_usec * 1000 / max(self.elapsed_ns, 1)


class Start(Struct, frozen=True, kw_only=True):
    """The counters before the window."""

    group: Group
    at_ns: int
    met: tuple[int | None, ...]
    stat: MemoryStat | None
    oom_kills: int | None
    waits: Mapping[Resource, Waits]
    reclaimed: int | None
    full: bool
    """Whether a limit is (almost) met before anything has happened."""


def begin(host: Host, target: Target) -> Start:
    """Read the counters before the window; raises OSError where the group cannot be seen."""
    group = target.group(host, "memory")
    if group is None:
        raise OSError("the memory control group of it cannot be seen from here")
    groups = tuple(group.lineage())
    levels = [_level(host, one, None) for one in groups]
    return Start(
        group=group,
        at_ns=host.monotonic_ns(),
        met=tuple(_met(host, one) for one in groups),
        stat=memorystat.stat(host, group),
        oom_kills=memory.memory(host, group).oom_kill,
        waits=_waits(host, target),
        reclaimed=_reclaimed(host),
        full=any(level.full for level in levels),
    )


def end(host: Host, target: Target, start: Start) -> Squeeze:
    """Read them again."""
    elapsed_ns = host.monotonic_ns() - start.at_ns
    was, now = start.stat, memorystat.stat(host, start.group)
    levels = zip(start.group.lineage(), start.met, strict=True)
    kills, waits = memory.memory(host, start.group).oom_kill, _waits(host, target)
    return Squeeze(
        elapsed_ns=elapsed_ns,
        levels=tuple(_level(host, group, met) for group, met in levels),
        now=now,
        refault_file=_moved(was, now, "refault_file"),
        refault_anon=_moved(was, now, "refault_anon"),
        majfault=_moved(was, now, "majfault"),
        memory=_waited(start.waits.get("memory"), waits.get("memory")),
        io=_waited(start.waits.get("io"), waits.get("io")),
        host_reclaimed=_more(start.reclaimed, _reclaimed(host)),
        oom_kills=_more(start.oom_kills, kills),
        oom_kills_ever=kills,
        total_bytes=_total_bytes(host),
    )


def _moved(was: MemoryStat | None, now: MemoryStat | None, counter: str) -> int | None:
    return _more(getattr(was, counter, None), getattr(now, counter, None))


def _more(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else max(after - before, 0)


def _level(host: Host, group: Group, met_before: int | None) -> Level:
    now = memory.memory(host, group)
    hard, soft = now.limit_bytes, None
    if group.version == 2:
        soft = host.optional_number(group.file("memory.high"))
    by_high = soft is not None and (hard is None or soft < hard)
    names = ("memory.limit_in_bytes", "memory.max")
    swap, swap_limit, unknown = _swap(host, group, now)
    return Level(
        path=group.path,
        file=group.file("memory.high" if by_high else names[group.version - 1]),
        limit_bytes=soft if by_high else hard,
        soft=by_high,
        current_bytes=now.current_bytes,
        peak_bytes=now.peak_bytes,
        met=_more(met_before, _met(host, group)),
        swap_current_bytes=swap,
        swap_limit_bytes=swap_limit,
        swap_unknown=unknown,
    )


def _met(host: Host, group: Group) -> int | None:
    """How often a limit was met; v1's failcnt is 0 where the limit with swap is the same."""
    if group.version == 1:
        return host.optional_number(group.file("memory.failcnt"))
    file = group.file("memory.events.local")
    text = host.optional_text(file)
    if text is None:
        return None
    events = keyed(file, text)
    return events.get("max", 0) + events.get("high", 0)


def _swap(host: Host, group: Group, now: memory.Memory) -> tuple[int | None, int | None, bool]:
    """How much is in swap, how much may be, and whether that is not known."""
    if group.version == 2:
        current = host.optional_number(group.file("memory.swap.current"))
        return current, host.optional_number(group.file("memory.swap.max")), current is None
    both = host.optional_number(group.file("memory.memsw.usage_in_bytes"))
    limit = host.optional_number(group.file("memory.memsw.limit_in_bytes"))
    current = None if both is None else max(both - (now.current_bytes or 0), 0)
    if limit is None or limit >= memory.UNLIMITED_V1 or now.limit_bytes is None:
        return current, None, limit is None
    return current, max(limit - now.limit_bytes, 0), False


def _waits(host: Host, target: Target) -> Mapping[Resource, Waits]:
    """What its group in the unified tree says: hybrid machines have one too, for pressure alone."""
    group = target.group(host, UNIFIED)
    if group is None or (group.path == "/" and target.runtime != "self"):
        return {}
    found: dict[Resource, Waits] = {}
    for resource in ("memory", "io"):
        said = pressure(host, group, resource)
        if said is not None:
            found[resource] = Waits(
                file=said.file, some_usec=said.some_usec, full_usec=said.full_usec
            )
    return found


def _waited(before: Waits | None, after: Waits | None) -> Waits | None:
    if before is None or after is None:
        return None
    return Waits(
        file=after.file,
        some_usec=max(after.some_usec - before.some_usec, 0),
        full_usec=_more(before.full_usec, after.full_usec),
    )


def vmstat(host: Host) -> Mapping[str, int]:
    """``/proc/vmstat``, parsed once a moment."""
    file = "/proc/vmstat"
    return host.remembered(f"parsed {file}", lambda: keyed(file, host.text(file)))


def _reclaimed(host: Host) -> int | None:
    try:
        said = vmstat(host)
    except OSError:
        return None
    known = [said[name] for name in _STEAL if name in said]
    return sum(known) if known else None


def _total_bytes(host: Host) -> int | None:
    for line in (host.optional_text("/proc/meminfo") or "").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return None
