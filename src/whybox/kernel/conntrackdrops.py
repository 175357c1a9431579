"""Packets that connection tracking refused, since its table was full.

They are given up where those are that a rule of iptables-legacy refuses (``nf_hook_slow``), so
that only the table's own count of drops tells them apart (measured on 6.1).
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from msgspec import structs

from whybox.kernel import conntrack
from whybox.kernel.host import ParseError
from whybox.kernel.netns import call_in

if TYPE_CHECKING:
    from whybox.kernel.drops import Drop  # with the sensor's own, which only a window needs

_WHERE = "nf_hook_slow"

_FULL = (
    "the table of connection tracking is full",
    "net.netfilter.nf_conntrack_max of the host against nf_conntrack_count of that namespace",
)
_RULE = (
    "a firewall hook dropped it; the table of connection tracking was not full",
    "the rules of that namespace: iptables-legacy-save, nft list ruleset",
)


class Tables:
    """The tables of some namespaces, each by its inode and a path to it."""

    def __init__(self, places: Mapping[int, str | None]) -> None:
        self._places = {inode: path for inode, path in places.items() if path is not None}
        self._before = self._read()

    def judged(self, drops: Iterable["Drop"]) -> tuple["Drop", ...]:
        """The same drops; those that a full table may have made say whether it did."""
        after = self._read()
        return tuple(self._judged(drop, after) for drop in drops)

    def _judged(self, drop: "Drop", after: Mapping[int, int]) -> "Drop":
        inode = drop.hop.inode
        if drop.function.partition(".")[0] != _WHERE or inode not in after:
            return drop
        means, look = _FULL if after[inode] > self._before.get(inode, 0) else _RULE
        return structs.replace(drop, means=means, look=look)

    def _read(self) -> dict[int, int]:
        found: dict[int, int] = {}
        for inode, path in self._places.items():
            with suppress(OSError, ParseError):
                table = call_in(path, conntrack.table)
                if table is not None and "drop" in table.counters:
                    found[inode] = table.counters["drop"]
        return found
