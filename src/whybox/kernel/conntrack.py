"""Connection tracking of a network namespace: how many entries, what was refused, who holds them.

``/proc/net/stat/nf_conntrack`` counts for each CPU, in hexadecimal, and each namespace has its own
(measured). The table's largest size is one number for the machine, and holds for each namespace
alone: ``__nf_conntrack_alloc()`` compares it with the namespace's count.

>>> stats("entries drop early_drop\\n00000009 0000000a 0\\n00000009 00000001 0\\n")
{'drop': 11, 'early_drop': 0}
"""

import socket
import time
from collections import Counter
from collections.abc import Iterable, Iterator

from msgspec import Struct

from whybox.kernel import netlink
from whybox.kernel.host import ParseError
from whybox.kernel.netlink import NETLINK_NETFILTER, NFGENMSG

#: include/uapi/linux/netfilter/nfnetlink_conntrack.h: (NFNL_SUBSYS_CTNETLINK << 8) | message
IPCTNL_MSG_CT_GET, IPCTNL_MSG_CT_GET_STATS_CPU = 0x101, 0x104
CTA_TUPLE_ORIG, CTA_STATUS = 1, 3
CTA_TUPLE_IP, CTA_TUPLE_PROTO = 1, 2
CTA_IP_V4_SRC, CTA_IP_V4_DST, CTA_IP_V6_SRC, CTA_IP_V6_DST = 1, 2, 3, 4
CTA_PROTO_NUM, CTA_PROTO_DST_PORT = 1, 3
IPS_SEEN_REPLY = 2
_STATS = {4: "invalid", 8: "insert", 9: "insert_failed", 10: "drop", 11: "early_drop"}

_STAT = "/proc/thread-self/net/stat/nf_conntrack"
_SYSCTL = "/proc/sys/net/netfilter/nf_conntrack_"
#: Enough to tell who holds a table; the kernel lists it by hash, so the first are like the rest.
MOST_ENTRIES = 10_000
_MOST_SECONDS = 0.5
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


class Entry(Struct, frozen=True):
    """One connection, as it was opened."""

    source: str
    destination: str
    """With protocol and port."""
    answered: bool


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
    entries: list[Entry] = []
    deadline = time.monotonic() + _MOST_SECONDS
    # A socket of its own, closed in the midst of the answer: the table may be long.
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as sock:
        sock.settimeout(_MOST_SECONDS)
        body = NFGENMSG.pack(socket.AF_UNSPEC, 0, 0)
        sock.send(netlink.request(IPCTNL_MSG_CT_GET, netlink.NLM_F_DUMP, 1, body))
        done = False
        while not done and len(entries) < MOST_ENTRIES and time.monotonic() < deadline:
            part = netlink.portion(sock.recv(netlink.DATAGRAM_BYTES), 1, "CT_GET")
            entries += parsed(message.payload for message in part.messages)
            done = part.done
    return held(entries)


def parsed(payloads: Iterable[bytes]) -> Iterator[Entry]:
    """Entries; what is neither IPv4 nor IPv6 is left out."""
    for payload in payloads:
        values = netlink.attributes(payload, NFGENMSG.size)
        tuple_ = netlink.attributes(values.get(CTA_TUPLE_ORIG, b""))
        ip = netlink.attributes(tuple_.get(CTA_TUPLE_IP, b""))
        source = ip.get(CTA_IP_V4_SRC) or ip.get(CTA_IP_V6_SRC)
        destination = ip.get(CTA_IP_V4_DST) or ip.get(CTA_IP_V6_DST)
        if source is None or destination is None:
            continue
        proto = netlink.attributes(tuple_.get(CTA_TUPLE_PROTO, b""))
        status = int.from_bytes(values.get(CTA_STATUS, b""), "big")
        yield Entry(
            netlink.ip_address(source),
            _place(netlink.ip_address(destination), proto),
            bool(status & IPS_SEEN_REPLY),
        )


_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6", 132: "sctp"}


def _place(address: str, proto: dict[int, bytes]) -> str:
    number = int.from_bytes(proto.get(CTA_PROTO_NUM, b""), "big")
    port = proto.get(CTA_PROTO_DST_PORT)
    name = _PROTOCOLS.get(number, f"protocol {number}")
    if port is None:
        return f"{name} {address}"
    shown = f"[{address}]" if ":" in address else address
    return f"{name} {shown}:{int.from_bytes(port, 'big')}"


def held(entries: Iterable[Entry], most: int = 5) -> Holders:
    """Counted."""
    all_ = list(entries)
    return Holders(
        looked_at=len(all_),
        sources=tuple(Counter(entry.source for entry in all_).most_common(most)),
        destinations=tuple(Counter(entry.destination for entry in all_).most_common(most)),
        unanswered=sum(not entry.answered for entry in all_),
    )
