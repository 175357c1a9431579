"""Who else is at the limit that killed: groups that share it, and others close to their own.

Asked only where something was killed: a node may have many groups.
"""

from collections.abc import Iterator

from msgspec import Struct

from whybox.kernel import memory, memorystat
from whybox.kernel.cgroup import Group
from whybox.kernel.host import Host, printable

#: So many groups are looked at, and so many told of.
MOST_GROUPS = 100
MOST_TOLD = 3
#: A group is close to its limit if what it cannot give up is so much of it.
CLOSE = 0.9


class Neighbour(Struct, frozen=True, kw_only=True):
    """Another group."""

    path: str
    """Harmless to print."""
    file: str
    """What says how much it holds."""
    current_bytes: int
    limit_bytes: int | None
    needed_bytes: int | None
    """Of that what cannot be given up without swap: no page cache."""


class Neighbours(Struct, frozen=True, kw_only=True):
    """The groups around one that had a kill."""

    sharing: tuple[Neighbour, ...] = ()
    """Others below the group whose limit was reached, the largest first."""
    close: tuple[Neighbour, ...] = ()
    """Others beside it that are close to their own limit."""


def neighbours(host: Host, own: Group | None, limited: str | None) -> Neighbours:
    """Around ``own``; ``limited`` is the path of the group whose limit was reached."""
    if own is None:
        return Neighbours()
    above = next((one for one in own.lineage() if one.path == limited), None)
    sharing = [] if above is None or above.path == own.path else list(_below(host, above, own))
    beside = own.parent()
    close = [] if beside is None else [n for n in _below(host, beside, own) if _is_close(n)]
    return Neighbours(
        sharing=tuple(sorted(sharing, key=lambda n: -n.current_bytes)[:MOST_TOLD]),
        close=tuple(close[:MOST_TOLD]),
    )


def _is_close(one: Neighbour) -> bool:
    limit, needed = one.limit_bytes, one.needed_bytes
    return limit is not None and needed is not None and needed >= CLOSE * limit


def _below(host: Host, above: Group, own: Group) -> Iterator[Neighbour]:
    """The children of a group, without the one that is ours or holds ours."""
    try:
        names = host.directories(above.directory)[:MOST_GROUPS]
    except OSError:
        return
    for name in names:
        directory = f"{above.directory}/{name}"
        if f"{own.directory}/".startswith(f"{directory}/"):
            continue
        child = Group(
            controller=above.controller,
            version=above.version,
            path=f"{above.path.rstrip('/')}/{name}",
            directory=directory,
            top=above.top,
        )
        if (one := _neighbour(host, child)) is not None:
            yield one


def _neighbour(host: Host, group: Group) -> Neighbour | None:
    v1 = group.version == 1
    file = group.file("memory.usage_in_bytes" if v1 else "memory.current")
    current = host.optional_number(file)
    if current is None:
        return None
    limit = host.optional_number(group.file("memory.limit_in_bytes" if v1 else "memory.max"))
    limit = None if limit is None or limit >= memory.UNLIMITED_V1 else limit
    # Page cache alone may fill a limit, and gives way.
    full = limit is not None and current >= CLOSE * limit
    said = memorystat.stat(host, group) if full else None
    return Neighbour(
        path=printable(group.path),
        file=printable(file),
        current_bytes=current,
        limit_bytes=limit,
        needed_bytes=None if said is None else said.needed_bytes,
    )
