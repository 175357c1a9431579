"""Where a group is made to wait for memory: above ``memory.high`` (v2), at its limit, or stopped.

``memory.events`` counts what happened at a group and below it, ``memory.events.local`` at the group
alone (since Linux v5.3). v1 has no ``memory.high``; there a group whose OOM killer is switched off
stops at its limit, and says so in ``memory.oom_control``.
"""

import math
from typing import Literal

from msgspec import Struct

from whybox.kernel import blocked, memory, squeeze
from whybox.kernel.blocked import Blocked, Sampled, Watch
from whybox.kernel.cgroup import Group, keyed
from whybox.kernel.host import Host
from whybox.kernel.squeeze import PAGE_BYTES, Squeeze, Start
from whybox.kernel.target import Target

#: Tasks that wait for memory for less of the time are slowed down by what everybody pays.
LEAST_WAIT = 0.1
#: Above memory.high by this much the kernel lets tasks sleep for what a person feels.
OVER = 1.01
#: So much comes back in a second, and it is that which is waited for.
MUCH_AGAIN_BYTES = 1 << 20
#: Of what is held so much is dirty, or the kernel's own: then that is what reclaim waits for.
MUCH_DIRTY = 0.1
MUCH_KERNEL = 0.5

Where = Literal["high", "oom", "reclaim"]

#: Functions of the kernel that say where a task waits; on the stack where ``wchan`` says it not.
_SITES: tuple[tuple[Where, tuple[str, ...]], ...] = (
    ("high", ("mem_cgroup_handle_over_high", "__mem_cgroup_handle_over_high")),
    ("oom", ("mem_cgroup_oom_synchronize",)),
    (
        "reclaim",
        ("try_to_free_mem_cgroup_pages", "try_to_free_pages", "reclaim_throttle", "shrink_"),
    ),
)


class Counts(Struct, frozen=True, kw_only=True):
    """One group's counters at one moment."""

    current_bytes: int | None
    high: int | None
    """How often it was above ``memory.high`` and had to give up memory for that."""
    max: int | None
    """How often the limit was met."""
    scanned: int | None
    """Pages that its own tasks looked at to free some (``pgscan_direct``)."""
    under_oom: bool | None
    """v1: it is at its limit, and waits."""


class Level(Struct, frozen=True, kw_only=True):
    """One group on the way from the container up to the root."""

    path: str
    events_file: str
    high_file: str
    limit_file: str
    high_bytes: int | None
    """``None``: no such limit; v1 has none."""
    limit_bytes: int | None
    kill_disabled: bool | None
    before: Counts
    after: Counts

    def moved(self, counter: Literal["high", "max", "scanned"]) -> int | None:
        """The difference over the window."""
        before, after = getattr(self.before, counter), getattr(self.after, counter)
        return None if before is None or after is None else max(after - before, 0)

    @property
    def over(self) -> bool:
        """Whether it holds more than its ``memory.high``, for all that was given up."""
        high, held = self.high_bytes, self.after.current_bytes
        return high is not None and held is not None and held > OVER * high

    @property
    def stopped(self) -> bool:
        """v1: whether everything waits at its limit, since nobody may be killed."""
        held, limit = self.after.current_bytes, self.limit_bytes
        full = limit is not None and held is not None and held >= 0.95 * limit
        return full and bool(self.kill_disabled)


class Sleeper(Struct, frozen=True, kw_only=True):
    """One task that waits for memory at the end of the window."""

    tid: int
    comm: str
    where: Where
    site: str
    sampled: Sampled | None
    """How often it was in D within the window."""


class Stall(Struct, frozen=True, kw_only=True):
    """One window: how the memory was pressed, at which groups, and who sleeps for it."""

    squeeze: Squeeze
    levels: tuple[Level, ...]
    """Its own group first."""
    sleepers: tuple[Sleeper, ...]
    threads: int

    @property
    def own(self) -> Level:
        """The container's group."""
        return self.levels[0]

    @property
    def waited(self) -> float | None:
        """The share of the window in which a task waited for memory."""
        return self.squeeze.waited(self.squeeze.memory)

    @property
    def again_bytes(self) -> int:
        """What had been pushed out, and came back from files or from swap."""
        pages = (self.squeeze.refault_file or 0) + (self.squeeze.refault_anon or 0)
        return pages * PAGE_BYTES

    @property
    def much_again(self) -> bool:
        """Whether that is what is waited for."""
        return self.again_bytes >= MUCH_AGAIN_BYTES * self.squeeze.seconds

    @property
    def over(self) -> Level | None:
        """The nearest group that holds more than its ``memory.high``."""
        return next((level for level in self.levels if level.over), None)

    @property
    def pressing(self) -> Level | None:
        """The nearest group whose limit is met."""
        pressed = self.squeeze.pressed_by
        return next((one for one in self.levels if pressed and one.path == pressed.path), None)

    def asleep(self, where: Where) -> tuple[Sleeper, ...]:
        """Who waits there."""
        return tuple(one for one in self.sleepers if one.where == where)

    def stopped(self) -> Level | None:
        """v1: the group at whose limit everything waits. ``under_oom`` shows below it as well."""
        if not self.own.after.under_oom:
            return None
        return next((level for level in self.levels if level.stopped), None)

    def slowed(self) -> Level | None:
        """The group whose ``memory.high`` makes tasks sleep, if one does."""
        asleep, waited = self.asleep("high"), self.waited
        if waited is not None and waited < LEAST_WAIT / (2 if asleep else 1):
            return None  # at most it was caught in one of its few short sleeps
        if waited is None and not asleep:
            return None
        met = [one for one in self.levels if one.high_bytes is not None and one.moved("high")]
        over = self.over
        if over is not None and (over in met or asleep):
            return over
        return met[0] if met and asleep else None

    def dirty(self, level: Level) -> bool:
        """Whether much of what is held must be written to a disk first."""
        now, held = self.squeeze.now, level.after.current_bytes or math.inf
        return now is not None and now.dirty_bytes >= MUCH_DIRTY * held

    def of_the_kernel(self, level: Level) -> bool:
        """Whether much of what is held is the kernel's: names and inodes of files, as a rule."""
        now, held = self.squeeze.now, level.after.current_bytes or math.inf
        return now is not None and (now.kernel_bytes or 0) >= MUCH_KERNEL * held


class Began(Struct, frozen=True, kw_only=True):
    """The counters before the window."""

    squeeze: Start
    counts: tuple[Counts, ...]


def begin(host: Host, target: Target) -> Began:
    """Read the counters of every group on the way up; raises OSError where none can be seen."""
    start = squeeze.begin(host, target)
    return Began(
        squeeze=start, counts=tuple(counts(host, group) for group in start.group.lineage())
    )


def end(host: Host, target: Target, began: Began, watch: Watch) -> Stall:
    """Read them again, and see who sleeps where."""
    look = blocked.look(host, target)
    pairs = zip(began.squeeze.group.lineage(), began.counts, strict=True)
    return Stall(
        squeeze=squeeze.end(host, target, began.squeeze),
        levels=tuple(level(host, group, was) for group, was in pairs),
        sleepers=sleepers(host, watch, look.blocked),
        threads=look.threads,
    )


def counts(host: Host, group: Group) -> Counts:
    """The counters of one group now."""
    known = memory.memory(host, group)
    if group.version == 1:
        return Counts(
            current_bytes=known.current_bytes,
            high=None,
            max=known.failcnt,
            scanned=None,
            under_oom=known.under_oom,
        )
    local = _keyed(host, group.file("memory.events.local"))
    events = local or _keyed(host, group.file("memory.events"))
    return Counts(
        current_bytes=known.current_bytes,
        high=events.get("high"),
        max=events.get("max"),
        scanned=_keyed(host, group.file("memory.stat")).get("pgscan_direct"),
        under_oom=None,
    )


def _keyed(host: Host, file: str) -> dict[str, int]:
    text = host.optional_text(file)
    return {} if text is None else keyed(file, text)


def level(host: Host, group: Group, before: Counts) -> Level:
    """A group at the end of the window."""
    known = memory.memory(host, group)
    v1 = group.version == 1
    local = group.file("memory.events.local")
    return Level(
        path=group.path,
        events_file=local if not v1 and host.exists(local) else known.events_file,
        high_file=group.file("memory.high"),
        limit_file=group.file("memory.limit_in_bytes" if v1 else "memory.max"),
        high_bytes=None if v1 else host.optional_number(group.file("memory.high")),
        limit_bytes=known.limit_bytes,
        kill_disabled=known.kill_disabled,
        before=before,
        after=counts(host, group),
    )


def sleepers(host: Host, watch: Watch, now: tuple[Blocked, ...]) -> tuple[Sleeper, ...]:
    """Of those in D the ones that wait for memory."""
    found = []
    for one in now[: blocked.MOST_DETAILED]:
        said = _where(host, one)
        if said is not None:
            where, site = said
            found.append(
                Sleeper(
                    tid=one.tid,
                    comm=one.comm,
                    where=where,
                    site=site,
                    sampled=watch.sampler.sampled(one.tid),
                )
            )
    return tuple(found)


def _where(host: Host, one: Blocked) -> tuple[Where, str] | None:
    known = where(() if one.site is None else (one.site,))
    return known or where(blocked.detail(host, one.tid).stack)


def where(stack: tuple[str, ...]) -> tuple[Where, str] | None:
    """What a stack says of memory, and by which function.

    >>> where(("folio_wait_bit_common", "shrink_folio_list", "try_to_free_mem_cgroup_pages"))
    ('reclaim', 'shrink_folio_list')
    >>> where(("kernel_clone",))
    """
    for found, beginnings in _SITES:
        for name in stack:
            if name.startswith(beginnings):
                return found, name
    return None
