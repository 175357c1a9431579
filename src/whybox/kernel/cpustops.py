"""How often a quota stopped a container within a window, at its group and at those above."""

from collections.abc import Sequence
from itertools import islice

from msgspec import Struct

from whybox.kernel import cgroup, cpu
from whybox.kernel.cgroup import Group
from whybox.kernel.cpu import Stat
from whybox.kernel.host import Host

#: Stopped in fewer of its periods than this, or for less of the time, nobody notices.
LEAST_SHARE_OF_PERIODS = 0.05
LEAST_SHARE_OF_TIME = 0.02

#: Of groups within a container no more than this are looked at.
MOST_INSIDE = 32

#: The kernel's default period (scheduler/sched-bwc.rst).
_PERIOD_USEC = 100_000


class Stops(Struct, frozen=True, kw_only=True):
    """One group with a quota, over the window."""

    path: str
    file: str
    periods: int
    throttled: int
    stopped_usec: int
    """Summed over run queues."""
    quota_usec: int | None
    """``None``: lifted meanwhile."""
    period_usec: int

    @property
    def cores(self) -> float | None:
        """The quota as a number of CPUs."""
        return None if self.quota_usec is None else self.quota_usec / self.period_usec

    def matters(self, elapsed_ns: int) -> bool:
        """Whether anybody notices."""
        often = self.throttled >= max(LEAST_SHARE_OF_PERIODS * self.periods, 1)
        return often and self.stopped_usec * 1000 >= LEAST_SHARE_OF_TIME * elapsed_ns


def around(host: Host, group: Group) -> tuple[Group, ...]:
    """The group, those above it, and the first of those within it, which may have quotas too."""
    inside = islice(cgroup.below(host, group.directory), 1, 1 + MOST_INSIDE)
    own = tuple(
        Group(
            controller=group.controller,
            version=group.version,
            path=group.path.rstrip("/") + directory[len(group.directory) :],
            directory=directory,
            top=group.top,
        )
        for directory in inside
    )
    return (*group.lineage(), *own)


def between(
    host: Host, groups: Sequence[Group], before: Sequence[Stat | None]
) -> tuple[Stops, ...]:
    """The groups that have a quota, or were stopped by one that they had."""
    pairs = zip(groups, before, strict=True)
    return tuple(one for group, then in pairs if (one := _stops(host, group, then)) is not None)


def _stops(host: Host, group: Group, before: Stat | None) -> Stops | None:
    limit, after = cpu.max_(host, group), cpu.stat(host, group)
    if before is None or after is None:
        return None
    throttled = after.nr_throttled - before.nr_throttled
    if throttled <= 0 and (limit is None or limit.quota_usec is None):
        return None
    return Stops(
        path=group.path,
        file=after.file,
        periods=after.nr_periods - before.nr_periods,
        throttled=throttled,
        stopped_usec=after.throttled_usec - before.throttled_usec,
        quota_usec=None if limit is None else limit.quota_usec,
        period_usec=_PERIOD_USEC if limit is None else limit.period_usec,
    )
