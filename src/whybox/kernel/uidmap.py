"""Whom the ids of a user namespace are outside: ``/proc/PID/uid_map`` (user_namespaces(7)).

Each line is a range: its first id inside, the same one outside, and how many. "Outside" is the
namespace of who reads; for a reader who is inside himself, it is the parent.

>>> outside(parse("         0     100000      65536\\n"), 0)
100000
>>> outside(parse("0 1000 1\\n1 100000 65536"), 70000) is None
True
"""

from collections.abc import Iterable

from msgspec import Struct

from whybox.kernel.host import Host, ParseError


class Range(Struct, frozen=True, kw_only=True):
    """One line."""

    inside: int
    outside: int
    count: int


def parse(text: str, file: str = "/proc/PID/uid_map") -> tuple[Range, ...]:
    """Every range; none where nobody has written the map yet."""
    return tuple(_range(line, file) for line in text.splitlines())


def _range(line: str, file: str) -> Range:
    try:
        inside, outside, count = (int(field) for field in line.split())
    except ValueError:
        raise ParseError(file, line) from None
    return Range(inside=inside, outside=outside, count=count)


def read(host: Host, pid: int | str) -> tuple[Range, ...] | None:
    """The map of a task's user namespace, or ``None`` if it may not be read."""
    file = f"/proc/{pid}/uid_map"
    text = host.optional_text(file)
    return None if text is None else parse(text, file)


def outside(ranges: Iterable[Range], uid: int) -> int | None:
    """Who that user is outside; ``None``: nobody, its files show the overflow id."""
    for one in ranges:
        if one.inside <= uid < one.inside + one.count:
            return one.outside + uid - one.inside
    return None
