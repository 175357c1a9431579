"""Packets that connection tracking refused, since its table was full.

They are given up where those are that a rule of iptables-legacy refuses (``nf_hook_slow``), so
that only the table's own count tells them apart: column ``drop`` of
``/proc/net/stat/nf_conntrack`` (measured on 6.1).
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress

from msgspec import structs

from whybox.kernel.drops import Drop
from whybox.kernel.netns import call_in

_FILE = "/proc/thread-self/net/stat/nf_conntrack"
_WHERE = "nf_hook_slow"

_FULL = (
    "the table of connection tracking is full",
    "net.netfilter.nf_conntrack_max of the host against nf_conntrack_count of that namespace",
)
_RULE = (
    "a firewall hook dropped it; the table of connection tracking was not full",
    "the rules of that namespace: iptables-legacy-save, nft list ruleset",
)


def refused(text: str) -> int | None:
    """Of all CPUs; the columns have names, and the numbers are hexadecimal.

    >>> refused("entries drop early_drop\\n00000009 0000000a 0\\n00000009 00000001 0\\n")
    11
    """
    names, *rows = (line.split() for line in text.splitlines() or [""])
    if "drop" not in names:
        return None
    at = names.index("drop")
    return sum(int(row[at], 16) for row in rows if len(row) > at)


class Tables:
    """The tables of some namespaces, each by its inode and a path to it."""

    def __init__(self, places: Mapping[int, str | None]) -> None:
        self._places = {inode: path for inode, path in places.items() if path is not None}
        self._before = self._read()

    def judged(self, drops: Iterable[Drop]) -> tuple[Drop, ...]:
        """The same drops; those that a full table may have made say whether it did."""
        after = self._read()
        return tuple(self._judged(drop, after) for drop in drops)

    def _judged(self, drop: Drop, after: Mapping[int, int]) -> Drop:
        inode = drop.hop.inode
        if drop.function.partition(".")[0] != _WHERE or inode not in after:
            return drop
        means, look = _FULL if after[inode] > self._before.get(inode, 0) else _RULE
        return structs.replace(drop, means=means, look=look)

    def _read(self) -> dict[int, int]:
        found: dict[int, int] = {}
        for inode, path in self._places.items():
            with suppress(OSError, ValueError):
                count = call_in(path, _own)
                if count is not None:
                    found[inode] = count
        return found


def _own() -> int | None:
    with open(_FILE, encoding="ascii") as file:
        return refused(file.read(1 << 20))
