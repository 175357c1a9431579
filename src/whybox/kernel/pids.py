"""The pids controller: ``pids.current``, ``pids.max``, ``pids.events`` (cgroup-v1/pids.rst).

Zombies are counted in ``pids.current`` and are in none of the lists of tasks (measured on v1 and
v2), so the difference of the two is the number of zombies, without walking ``/proc``.
"""

from msgspec import Struct

from whybox.kernel.cgroup import Group, threads
from whybox.kernel.host import Host


class Pids(Struct, frozen=True, kw_only=True):
    """One group's tasks."""

    directory: str
    current: int
    listed: int
    """Threads that the group and those below it list: all but the zombies."""
    limit: int | None
    max_events: int | None
    """How often a fork was refused, counted at this group or for it (versions differ)."""


def pids(host: Host, group: Group) -> Pids | None:
    """The counters of one group; ``None`` at the root, which has none."""
    current = host.optional_number(group.file("pids.current"))
    if current is None:
        return None
    return Pids(
        directory=group.directory,
        current=current,
        listed=len(threads(host, group)),
        limit=host.optional_number(group.file("pids.max")),
        max_events=_max_events(host, group),
    )


def _max_events(host: Host, group: Group) -> int | None:
    said = (host.optional_text(group.file("pids.events")) or "").split()
    return int(said[1]) if len(said) > 1 and said[0] == "max" else None
