"""Limits of tasks, here and above: ``pids.{max,current,peak,events,events.local}``.

Who is refused a fork and whose limit it was need not be the same group, and which of the two counts
differs (kernel/cgroup/pids.c, ``pids_event``): without ``pids.events.local`` the group that forked
does; where that file is, it counts at the group whose limit was met, and ``pids.events`` there and
above.
"""

from collections.abc import Iterable, Iterator, Mapping

from msgspec import Struct

from whybox.kernel import cgroup
from whybox.kernel.cgroup import Group
from whybox.kernel.host import Host

OWN, INNER, ABOVE = "own", "inner", "above"

#: No more groups inside of a container, or beside it, than this are looked at.
MOST_GROUPS = 128


class Count(Struct, frozen=True, kw_only=True):
    """One group at one moment."""

    path: str
    directory: str
    current: int
    limit: int | None
    peak: int | None
    """The most it ever had, where the kernel keeps that."""
    refused: int | None
    """``max`` of ``pids.events.local``, or of ``pids.events`` where there is no such file."""
    at_the_limit: bool
    """Whether ``refused`` is counted by whose limit it was, not by who forked."""

    @property
    def full(self) -> bool:
        """No room for one more; by joining there can be more than the limit (measured)."""
        return self.limit is not None and self.current >= self.limit

    @property
    def events_file(self) -> str:
        """Where the refusals are counted."""
        return f"{self.directory}/pids.events{'.local' if self.at_the_limit else ''}"


class Level(Struct, frozen=True, kw_only=True):
    """One group at both looks."""

    place: str
    """``own``, ``inner``: a group made inside the container, or ``above``."""
    before: Count | None
    after: Count

    @property
    def fresh(self) -> int:
        """Refusals that were counted here in this window; a new group begins at 0."""
        old = 0 if self.before is None else self.before.refused or 0
        return max(0, (self.after.refused or 0) - old)

    @property
    def room(self) -> int:
        """How many more it could have had, at the worse of both looks."""
        highest = max(self.after.current, 0 if self.before is None else self.before.current)
        return (self.after.limit or 0) - highest


class Share(Struct, frozen=True, kw_only=True):
    """A group below another, and how many of that one's tasks are in it."""

    path: str
    current: int


def count(host: Host, group: Group) -> Count | None:
    """The counters of a group; ``None`` at the root, which has none, or where it is gone."""
    current = host.optional_number(group.file("pids.current"))
    if current is None:
        return None
    local = _refused(host, group.file("pids.events.local"))
    return Count(
        path=group.path,
        directory=group.directory,
        current=current,
        limit=host.optional_number(group.file("pids.max")),
        peak=host.optional_number(group.file("pids.peak")),
        refused=_refused(host, group.file("pids.events")) if local is None else local,
        at_the_limit=local is not None,
    )


def _refused(host: Host, file: str) -> int | None:
    """``max`` of an events file.

    >>> _refused(Host.recorded({"/e": b"max 23\\n"}), "/e")
    23
    """
    said = (host.optional_text(file) or "").split()
    return int(said[1]) if len(said) > 1 and said[0] == "max" and said[1].isdigit() else None


def upwards(host: Host, group: Group) -> tuple[Count, ...]:
    """The group itself, then those above it."""
    found = (count(host, one) for one in group.lineage())
    return tuple(one for one in found if one is not None)


def inside(host: Host, group: Group) -> tuple[Count, ...]:
    """The groups that were made below it: what forks there is counted there."""
    found = (count(host, one) for one in _below(host, group))
    return tuple(one for one in found if one is not None)


def counts(host: Host, group: Group) -> dict[str, Count]:
    """The group, those above and those inside, by their paths."""
    return {one.path: one for one in (*upwards(host, group), *inside(host, group))}


def levels(
    group: Group, before: Mapping[str, Count], after: Mapping[str, Count]
) -> tuple[Level, ...]:
    """What was counted at both looks, the container's own group first."""
    return tuple(
        Level(place=_place(path, group.path), before=before.get(path), after=count)
        for path, count in after.items()
    )


def _place(path: str, own: str) -> str:
    if path == own:
        return OWN
    return INNER if path.startswith(f"{own.rstrip('/')}/") else ABOVE


def located(group: Group, count: Count) -> Group:
    """One of the groups of ``counts``, to look into."""
    return Group(
        controller=group.controller,
        version=group.version,
        path=count.path,
        directory=count.directory,
        top=group.top,
    )


def limited(levels: Iterable[Level]) -> list[Level]:
    """Those that have a limit."""
    return [level for level in levels if level.after.limit is not None]


def refused(level: Level, levels: Iterable[Level]) -> tuple[int, int]:
    """Refusals because of this limit: in this window, and since there is a count."""
    # Whoever forked counts: what happened in groups beside the container is not its own.
    mine = [one for one in levels if one.place != ABOVE]
    counted = [level] if level.after.at_the_limit and not _by_forker(mine) else mine
    return sum(one.fresh for one in counted), sum(one.after.refused or 0 for one in counted)


def _by_forker(mine: Iterable[Level]) -> bool:
    """A group with no limit that counts refusals: mounted with ``pids_localevents``."""
    return any(one.after.limit is None and one.after.refused for one in mine)


def short(levels: Iterable[Level]) -> Level | None:
    """The limit that refuses forks: met within this window, or full and met before."""
    every = tuple(levels)
    refusing = [one for one in limited(every) if refused(one, every)[0]]
    if refusing:
        # Of several that may have been met, the one with the least room was.
        return min(refusing, key=lambda one: (not one.after.full, one.room))
    full = [one for one in limited(every) if one.after.full]
    return next((one for one in full if refused(one, every)[1]), None)


def shares(host: Host, group: Group) -> tuple[Share, ...]:
    """How the tasks of a group are spread over those right below it, the largest first."""
    children = [_child(group, name) for name in _directories(host, group.directory)]
    currents = [(child, host.optional_number(child.file("pids.current"))) for child in children]
    found = [Share(path=child.path, current=current or 0) for child, current in currents]
    return tuple(sorted(found, key=lambda share: -share.current))


def _below(host: Host, group: Group) -> Iterator[Group]:
    start = len(group.directory)
    for number, directory in enumerate(cgroup.below(host, group.directory)):
        if number > MOST_GROUPS:
            return
        if number:
            yield _child(group, directory[start + 1 :])


def _child(group: Group, name: str) -> Group:
    return Group(
        controller=group.controller,
        version=group.version,
        path=f"{group.path.rstrip('/')}/{name}",
        directory=f"{group.directory}/{name}",
        top=group.top,
    )


def _directories(host: Host, directory: str) -> tuple[str, ...]:
    try:
        return host.directories(directory)[:MOST_GROUPS]
    except OSError:
        return ()
