"""What a container's memory group holds, and what it has counted since a trace began."""

import time

from msgspec import Struct, structs

from whybox.kernel import cgroup, memory
from whybox.kernel.cgroup import Group
from whybox.kernel.host import Host
from whybox.kernel.pressure import pressure
from whybox.kernel.target import Target

#: How often the group's counters are looked at: it may be gone at the end.
LOOK_SECONDS = 0.5


class Budget(Struct, frozen=True, kw_only=True):
    """What the container's memory group holds, and what became of it during the trace."""

    path: str
    usage_bytes: int | None
    limit_bytes: int | None
    peak_bytes: int | None
    max_events: int | None
    """v2: how often it was at its limit (``memory.events``); v1: ``memory.failcnt``."""
    high_events: int | None
    """v2: how often it was slowed down above ``memory.high``, which no tracepoint tells."""
    major_faults: int | None
    refaults: int | None
    """Pages that were read again since they had been given up."""
    some_ns: int | None
    """Pressure stall information: at least one of its tasks waited for memory."""
    full_ns: int | None


class Watched:
    """The counters of the container's memory group since the trace began."""

    def __init__(self, host: Host, target: Target) -> None:
        self._host = host
        self._group = target.group(host, "memory")
        self._unified = cgroup.unified(host, target.cgroups)
        self._before = self._last = self._look()
        self._looked = time.monotonic()

    def look(self) -> None:
        """Every now and then: the group may be gone when it is asked for."""
        if time.monotonic() - self._looked > LOOK_SECONDS:
            self._again()

    def since(self) -> Budget | None:
        """What it is now, or was last, with the counts since the beginning."""
        self._again()
        if self._before is None or self._last is None:
            return None
        counts = ("max_events", "high_events", "major_faults", "refaults", "some_ns", "full_ns")
        grown = {n: _grown(getattr(self._before, n), getattr(self._last, n)) for n in counts}
        return structs.replace(self._last, **grown)

    def _again(self) -> None:
        self._host.next_moment()
        self._last = self._look() or self._last
        self._looked = time.monotonic()

    def _look(self) -> Budget | None:
        if self._group is None:
            return None
        now = memory.memory(self._host, self._group)
        if now.current_bytes is None:
            return None  # it is gone
        stat = _keyed(self._host, self._group, "memory.stat")
        events = _keyed(self._host, self._group, "memory.events")
        waited = pressure(self._host, self._unified, "memory")
        total = "total_" if self._group.version == 1 else ""
        refaults = [stat.get(f"{total}workingset_refault_{kind}") for kind in ("file", "anon")]
        return Budget(
            path=now.path,
            usage_bytes=now.current_bytes,
            limit_bytes=now.limit_bytes,
            peak_bytes=now.peak_bytes,
            max_events=now.max_events if now.version == 2 else now.failcnt,
            high_events=events.get("high"),
            major_faults=stat.get(f"{total}pgmajfault"),
            refaults=None if refaults == [None, None] else sum(n or 0 for n in refaults),
            some_ns=None if waited is None else waited.some_usec * 1000,
            full_ns=None if waited is None else (waited.full_usec or 0) * 1000,
        )


def _keyed(host: Host, group: Group, name: str) -> dict[str, int]:
    text = host.optional_text(group.file(name))
    return {} if text is None else cgroup.keyed(group.file(name), text)


def _grown(before: int | None, now: int | None) -> int | None:
    return None if before is None or now is None else max(now - before, 0)
