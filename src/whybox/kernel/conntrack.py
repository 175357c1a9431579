"""Connection tracking's own figures in a network namespace.

``/proc/net/stat/nf_conntrack`` has a line of names and one of hexadecimal numbers for each CPU;
"entries" is the whole namespace's on each line:

>>> said = statistics("entries drop\\n00000007 00000002\\n00000007 0000000a")
>>> said["drop"], said["entries"]
(12, 7)
"""

from contextlib import suppress

from msgspec import Struct

from whybox.kernel.host import ParseError

STATISTICS = "/proc/thread-self/net/stat/nf_conntrack"
COUNT = "/proc/sys/net/netfilter/nf_conntrack_count"
MAX = "/proc/sys/net/netfilter/nf_conntrack_max"


class Tracking(Struct, frozen=True, kw_only=True):
    """How full the table is, and what did not get in; ``None``: not told here."""

    count: int | None = None
    max: int | None = None
    drop: int | None = None
    """Packets dropped because there was no room (since the namespace was made)."""
    early_drop: int | None = None
    """Entries thrown out to make room."""
    insert_failed: int | None = None

    @property
    def is_full(self) -> bool:
        """Whether no connection gets in any more."""
        return self.count is not None and self.max is not None and 0 < self.max <= self.count


def statistics(text: str) -> dict[str, int]:
    """The sum over all CPUs by name."""
    names, *lines = [line.split() for line in text.splitlines() if line.strip()] or [[]]
    found = dict.fromkeys(names, 0)
    for line in lines:
        for name, value in zip(names, line, strict=False):
            try:
                number = int(value, 16)
            except ValueError:
                raise ParseError(STATISTICS, " ".join(line)) from None
            found[name] = number if name == "entries" else found[name] + number
    return found


def tracking() -> Tracking:
    """Of the namespace that the running thread is in."""
    said: dict[str, int] = {}
    with suppress(OSError), open(STATISTICS, encoding="ascii") as file:
        said = statistics(file.read(1 << 18))
    return Tracking(
        count=_number(COUNT),
        max=_number(MAX),
        drop=said.get("drop"),
        early_drop=said.get("early_drop"),
        insert_failed=said.get("insert_failed"),
    )


def _number(path: str) -> int | None:
    with suppress(OSError, ValueError), open(path, encoding="ascii") as file:
        return int(file.read(64))
    return None
