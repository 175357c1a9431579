"""How a CPU is shared out: ``cpu.shares`` (v1), ``cpu.weight`` (v2), ``cpu.idle`` and nice.

Weights count among siblings alone: two groups are compared at the level below their last common
ancestor, where each is stood for by one group, or by a task that is in the ancestor itself
(scheduler/sched-design-CFS.rst, "Group scheduler extensions to CFS"). All are told in v1's word, in
which 1024 is ordinary; v2's ordinary weight is 100.
"""

from msgspec import Struct

from whybox.kernel.cgroup import Group
from whybox.kernel.host import Host

#: An ordinary weight, and that of an idle group (kernel/sched/sched.h, WEIGHT_IDLEPRIO).
ORDINARY, IDLE = 1024, 3

#: kernel/sched/fair.c, MAX_SHARES.
MOST_SHARES = 262_144


class Contest(Struct, frozen=True, kw_only=True):
    """Where two who want the same CPU meet, and what each brings."""

    version: int
    level: str
    """The group that stands for ours, by its path."""
    own: int | None
    """Its weight; ``None`` where the kernel shows none."""
    rival: int | None
    own_file: str
    rival_file: str
    """Empty for a task that is in no group of its own."""


def weight(host: Host, group: Group) -> int | None:
    """A group's weight in v1's word; ``None`` at the root and where the controller is off."""
    if host.optional_number(group.file("cpu.idle")) == 1:
        return IDLE
    said = host.optional_number(group.file(name(group)))
    if said is None or group.version == 1:
        return said
    return max(said * ORDINARY // 100, 2)


def name(group: Group) -> str:
    """The file that holds a group's weight."""
    return "cpu.shares" if group.version == 1 else "cpu.weight"


def of_nice(nice: int) -> int:
    """A task's weight: each step of nice is a quarter (kernel/sched/core.c, sched_prio_to_weight).

    >>> of_nice(0), of_nice(19), of_nice(-5)
    (1024, 15, 3125)
    """
    return round(ORDINARY / 1.25**nice)


def as_shares(weight: int, version: int) -> int:
    """What an engine must be told for this weight.

    Engines make ``cpu.weight`` of shares by a line through (2, 1) and (262144, 10000), which is
    not the kernel's own scale.

    >>> as_shares(32_768, 1), as_shares(32_768, 2)
    (32768, 83870)
    """
    if version == 1:
        return min(max(weight, 2), MOST_SHARES)
    return min(2 + -(-(weight * 100 // ORDINARY - 1) * 262_142 // 9999), MOST_SHARES)


def contest(host: Host, own: Group, rival: str, nice: int) -> Contest | None:
    """Where ours meets the one at a path of the same tree; ``None`` if that is a part of ours."""
    below: Group | None = None
    for group in own.lineage():
        rest = rest_below(group.path, rival)
        if rest is not None:
            return None if below is None else _met(host, below, group, rest, nice)
        below = group
    return None


def rest_below(above: str, path: str) -> str | None:
    """What of a path is below another, ``""`` if it is the same; ``None`` if it is elsewhere.

    >>> rest_below("/", "/a/b"), rest_below("/a", "/a"), rest_below("/a", "/ab")
    ('a/b', '', None)
    """
    if path == above:
        return ""
    prefix = above.rstrip("/") + "/"
    return path[len(prefix) :] if path.startswith(prefix) else None


def _met(host: Host, ours: Group, common: Group, rest: str, nice: int) -> Contest:
    child = rest.partition("/")[0]
    theirs = Group(
        controller=common.controller,
        version=common.version,
        path=f"{common.path.rstrip('/')}/{child}",
        directory=f"{common.directory}/{child}",
        top=common.top,
    )
    return Contest(
        version=common.version,
        level=ours.path,
        own=weight(host, ours),
        rival=weight(host, theirs) if child else of_nice(nice),
        own_file=ours.file(name(ours)),
        rival_file=theirs.file(name(theirs)) if child else "",
    )
