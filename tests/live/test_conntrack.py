"""The readers of connection tracking, on connections that are made on purpose."""

import socket
import threading

from tests.live.conftest import require
from whybox.cases.network.conntrack_full.lab import send, trackable
from whybox.kernel import conntrack, conntrackentries
from whybox.kernel.conntrack import Holders, Table
from whybox.kernel.conntrackentries import Entry
from whybox.kernel.host import Host
from whybox.kernel.libc import CLONE_NEWNET, unshare
from whybox.lab import packetfilter
from whybox.lab.network import switch_loopback_on

MANY = 37
FIRST = 20_000


def test_entries_and_who_holds_them_and_the_counters_by_both_ways() -> None:
    require(trackable(Host()))
    found: list[tuple[Table | None, Holders, dict[str, int]]] = []
    sport: list[int] = []
    to_one: list[tuple[Entry, ...]] = []

    def look() -> None:
        unshare(CLONE_NEWNET)
        switch_loopback_on()
        packetfilter.track("output")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            send(sock, "127.0.0.1", range(FIRST, FIRST + MANY))
            found.append((conntrack.table(), conntrack.holders(), conntrack._by_netlink()))
            to_one.append(conntrackentries.to_port(FIRST + 3, socket.IPPROTO_UDP))
            to_one.append(conntrackentries.to_port(FIRST + 3, socket.IPPROTO_TCP))
            sport.append(sock.getsockname()[1])

    thread = threading.Thread(target=look)
    thread.start()
    thread.join(60)
    ((table, holders, counters),) = found
    assert table is not None
    assert table.entries == holders.looked_at == MANY
    assert holders.sources == (("127.0.0.1", MANY),)
    assert holders.destinations[0][0].startswith("udp 127.0.0.1:200")
    assert holders.unanswered == MANY
    assert table.counters
    assert counters == {name: table.counters[name] for name in counters}
    ((entry,), none) = to_one
    assert (entry.original.dport, entry.reply.sport) == (FIRST + 3, FIRST + 3)
    assert [entry.original.sport, entry.reply.dport] == 2 * sport
    assert (entry.answered, entry.snat, entry.dnat) == (False, False, False)
    assert none == ()
