"""Connection tracking of a network namespace: how many entries, what was refused, who holds them.

``/proc/net/stat/nf_conntrack`` counts for each CPU, in hexadecimal, and each namespace has its own
(measured). The table's largest size is one number for the machine, and holds for each namespace
alone: ``__nf_conntrack_alloc()`` compares it with the namespace's count.

>>> stats("entries drop early_drop\\n00000009 0000000a 0\\n00000009 00000001 0\\n")
{'drop': 11, 'early_drop': 0}
"""

import socket
from collections import Counter
from collections.abc import Iterable

from msgspec import Struct

from whybox.kernel import netlink
from whybox.kernel.conntrackentries import Opened, sample
from whybox.kernel.host import ParseError
from whybox.kernel.netlink import NETLINK_NETFILTER, NFGENMSG

#: include/uapi/linux/netfilter/nfnetlink_conntrack.h: (NFNL_SUBSYS_CTNETLINK << 8) | message
IPCTNL_MSG_CT_GET_STATS_CPU = 0x104
_STATS = {4: "invalid", 8: "insert", 9: "insert_failed", 10: "drop", 11: "early_drop"}

_STAT = "/proc/thread-self/net/stat/nf_conntrack"
_SYSCTL = "/proc/sys/net/netfilter/nf_conntrack_"
_MOST_BYTES = 1 << 20


class Table(Struct, frozen=True, kw_only=True):
    """One namespace's at one moment."""

    entries: int
    largest: int | None
    """``nf_conntrack_max``; ``None``: no limit."""
    counters: dict[str, int]
    """Those that count packets, of all CPUs."""

    @property
    def is_full(self) -> bool:
        """Whether no connection gets in any more."""
        return self.largest is not None and self.largest <= self.entries


class Holders(Struct, frozen=True, kw_only=True):
    """Who holds the entries, from a sample."""

    looked_at: int
    sources: tuple[tuple[str, int], ...]
    """Who opened them, the most first."""
    destinations: tuple[tuple[str, int], ...]
    """To whom, such as ``udp 10.0.0.1:53``."""
    unanswered: int
    """Nothing came back for them yet."""


def table() -> Table | None:
    """Of the caller's namespace; ``None``: this kernel tracks no connections."""
    entries = _number("count")
    if entries is None:
        return None
    largest = _number("max")
    counters = _counters()
    # 0 is no limit (__nf_conntrack_alloc()).
    return Table(entries=entries, largest=largest or None, counters=counters)


def _number(name: str) -> int | None:
    try:
        with open(_SYSCTL + name, encoding="ascii") as file:
            return int(file.read(64))
    except OSError:
        return None
    except ValueError as error:
        raise ParseError(_SYSCTL + name, str(error)) from None


def _counters() -> dict[str, int]:
    """From the file, or where a kernel has none (CONFIG_NF_CONNTRACK_PROCFS) by netlink."""
    try:
        with open(_STAT, encoding="ascii") as file:
            return stats(file.read(_MOST_BYTES))
    except FileNotFoundError:
        return _by_netlink()


def stats(text: str) -> dict[str, int]:
    """Sums over all CPUs; ``entries`` is repeated on each line, and left out."""
    names, *rows = (line.split() for line in text.splitlines() or [""])
    try:
        found = {
            name: sum(int(row[at], 16) for row in rows if len(row) > at)
            for at, name in enumerate(names)
        }
    except ValueError as error:
        raise ParseError("/proc/net/stat/nf_conntrack", str(error)) from None
    found.pop("entries", None)
    return found


def _by_netlink() -> dict[str, int]:
    found: Counter[str] = Counter()
    with netlink.Socket(NETLINK_NETFILTER) as sock:
        asked = NFGENMSG.pack(socket.AF_UNSPEC, 0, 0)
        for message in sock.dump(IPCTNL_MSG_CT_GET_STATS_CPU, asked, "CT_GET_STATS_CPU"):
            values = netlink.attributes(message.payload, NFGENMSG.size)
            found.update({n: int.from_bytes(values.get(k, b""), "big") for k, n in _STATS.items()})
    return dict(found)


def holders() -> Holders:
    """Who holds the entries of the caller's namespace. Needs CAP_NET_ADMIN over it."""
    return held(sample())


def held(entries: Iterable[Opened], most: int = 5) -> Holders:
    """Counted."""
    all_ = list(entries)
    tuples = [entry.original for entry in all_]
    destinations = Counter((one.protocol, one.destination, one.dport) for one in tuples)
    return Holders(
        looked_at=len(all_),
        sources=tuple(Counter(one.source for one in tuples).most_common(most)),
        destinations=tuple((_place(*to), n) for to, n in destinations.most_common(most)),
        unanswered=sum(not entry.answered for entry in all_),
    )


_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6", 132: "sctp"}


def _place(protocol: int, address: str, port: int | None) -> str:
    name = _PROTOCOLS.get(protocol, f"protocol {protocol}")
    if port is None:
        return f"{name} {address}"
    shown = f"[{address}]" if ":" in address else address
    return f"{name} {shown}:{port}"
