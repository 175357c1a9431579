"""What every hop of a container's way gave up: interfaces, their queues, the CPUs' backlogs.

Two looks tell what was lost between them. Counters do not tell why; that is for the sensor of
``skb:kfree_skb`` to tell, which is attached only where some of these counters ever moved.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING

from msgspec import Struct

from whybox.kernel import netlink, qdisc
from whybox.kernel.conntrackdrops import Tables
from whybox.kernel.host import Host
from whybox.kernel.netcounters import read
from whybox.kernel.netns import call_in
from whybox.kernel.qdisc import Queue
from whybox.kernel.rtnetlink import IFINFOMSG, RTM_GETLINK, Link, parse_link
from whybox.kernel.target import Target

if TYPE_CHECKING:
    from whybox.kernel.hops import Around

#: With more sensors than this at once, watching would cost more than it tells.
MOST_WATCHED = 8
_watching: list[int] = []
_numbers = itertools.count()

#: Counters of its namespace that tell of a packet that was lost.
LOSSES = (
    "TcpExt.TCPBacklogDrop", "TcpExt.TCPRcvQDrop", "Udp.RcvbufErrors", "Udp.SndbufErrors",
    "Udp.MemErrors", "Udp.InErrors", "Udp6.UdpRcvbufErrors", "Ip.InDiscards", "Ip.OutDiscards",
    "Ip.FragFails", "Ip.ReasmFails", "Ip.InHdrErrors", "TcpExt.IPReversePathFilter",
)  # fmt: skip
#: What is sent again, and what the backlogs of the machine dropped, is there on every machine: it
#: tells of trouble where it is more than one of a thousand, or of ten thousand.
AGAIN_SHARE, BACKLOG_SHARE = 0.001, 0.0001
#: So many datagrams without one that came: what a packet filter drops is in no counter of the way.
UNANSWERED = 10


class Hop(Struct, frozen=True, kw_only=True):
    """One interface of the way, and what it has counted since it was made."""

    stage: str
    """``container``, ``wire``: the other end of its veth, ``bridge``, ``host``."""
    namespace: str
    """Whose it is, in words."""
    net: int
    interface: str
    up: bool
    """With carrier."""
    mtu_bytes: int
    received: int
    sent: int
    receive_dropped: int
    send_dropped: int
    errors: int
    queue: Queue | None
    """At its root; ``None``: it has none (``noqueue``)."""

    @property
    def key(self) -> tuple[int, str]:
        """The same interface at another moment."""
        return self.net, self.interface


class Look(Struct, frozen=True, kw_only=True):
    """The way at one moment."""

    at_ns: int
    hops: tuple[Hop, ...]
    counters: Mapping[str, int]
    """Of its namespace; ``softnet dropped`` is of the whole machine."""


class Drop(Struct, frozen=True, kw_only=True):
    """Packets that the kernel gave up at one place for one reason."""

    stage: str
    namespace: str
    interface: str | None
    reason: str | None
    function: str
    protocol: str
    packets: int
    means: str
    look: str
    example: str
    """Who sent one of them to whom."""


class Watched(Struct, frozen=True, kw_only=True):
    """What the sensor saw."""

    reason: str | None = None
    """Why it was not attached."""
    drops: tuple[Drop, ...] = ()
    usual: int = 0
    """Packets that a healthy network drops as well."""


class Way:
    """One container's way, to be looked at again and again."""

    def __init__(self, host: Host, target: Target) -> None:
        from whybox.kernel.hops import Owners, around  # what it needs is for a window alone

        self._host, self._target = host, target
        self.around: Around = around(host, target)
        self.owners: Owners = Owners(host, target)
        self._tables = Tables({net: self.owners.path(net) for net in self.around.nets})

    @property
    def missing(self) -> str | None:
        """Why some of it cannot be seen."""
        return "; ".join(self.around.notes) or None

    def look(self) -> Look:
        """What its hops have counted."""
        init = self._target.init
        pid = "self" if self._target.runtime == "self" or init is None else init.pid
        return Look(
            at_ns=self._host.monotonic_ns(),
            hops=tuple(self._hops()),
            counters=read(self._host, pid),
        )

    def _hops(self) -> Iterator[Hop]:
        for net, hops in groupby(self.around.path, lambda hop: hop.inode):
            indexes, place = {hop.ifindex: hop.stage for hop in hops}, self.owners.path(net)
            if place is None:
                continue
            with suppress(OSError):  # it may not be entered, or is gone
                for link, queue in call_in(place, partial(_interfaces, tuple(indexes))):
                    yield _hop(indexes[link.ifindex], self.owners.name(net), net, link, queue)

    @contextmanager
    def watched(self, worth: bool) -> Iterator[Callable[[], Watched]]:
        """Watch where and why its packets are dropped, if that is worth it."""
        reason = None if worth else "no counter of its way ever told of a loss"
        if self._host.window_seconds <= 0:
            reason = "nothing is lost in a window of no length"
        if reason is None and len(_watching) >= MOST_WATCHED:
            reason = f"{MOST_WATCHED} other containers are watched: ask for this one alone"
        if reason is not None:
            yield lambda: Watched(reason=reason)
            return
        with ExitStack() as stack:
            yield self._attached(stack)

    def _attached(self, stack: ExitStack) -> Callable[[], Watched]:
        from whybox.kernel import dropwatch  # loads libbpf: only where it is worth it

        host, around, owners = self._host, self.around, self.owners
        try:
            object = stack.enter_context(dropwatch.attached(host, self._target, around))
        except dropwatch.Refused as refusal:
            refused = Watched(reason=str(refusal.strerror))
            return lambda: refused
        number = next(_numbers)
        _watching.append(number)
        stack.callback(_watching.remove, number)
        # Every container of a run asks the same symbols, and they are read by the first who has to.
        symbols = stack.enter_context(
            host.sensor("kernel symbols", lambda: nullcontext(dropwatch.KernelSymbols(host)))
        )
        owners.connect(around.nets)
        sites = dropwatch.Sites(host, around, owners, symbols)
        return lambda: dropwatch.seen(object, sites, self._tables)


def _hop(stage: str, namespace: str, net: int, link: Link, queue: Queue | None) -> Hop:
    said = link.statistics
    return Hop(
        stage=stage,
        namespace=namespace,
        net=net,
        interface=link.name,
        up=link.lower_up,
        mtu_bytes=link.mtu_bytes,
        received=0 if said is None else said.rx_packets,
        sent=0 if said is None else said.tx_packets,
        receive_dropped=0 if said is None else said.rx_dropped,
        send_dropped=0 if said is None else said.tx_dropped,
        errors=0 if said is None else said.rx_errors + said.tx_errors,
        queue=queue,
    )


def _interfaces(indexes: tuple[int, ...]) -> list[tuple[Link, Queue | None]]:
    """Runs in their namespace."""
    with netlink.Socket() as sock:
        asked = [IFINFOMSG.pack(0, 0, index, 0, 0) for index in indexes]
        links = [parse_link(sock.get(RTM_GETLINK, one, "RTM_GETLINK").payload) for one in asked]
        queues = {at: qdisc.queue(said) for at, said in qdisc.roots(sock) if at in indexes}
    return [(link, queues.get(link.ifindex)) for link in links]


def ever_lost(look: Look) -> bool:
    """Whether a counter of the way ever moved that tells of a loss."""

    def said(name: str) -> int:
        return look.counters.get(name, 0)

    if any(said(name) for name in LOSSES):
        return True
    if said("Tcp.RetransSegs") > AGAIN_SHARE * said("Tcp.OutSegs"):
        return True
    if said("Udp.OutDatagrams") >= UNANSWERED and not said("Udp.InDatagrams"):
        return True
    if said("softnet dropped") > BACKLOG_SHARE * said("softnet taken"):
        return True
    return any(
        hop.receive_dropped or hop.send_dropped or hop.errors or (hop.queue and hop.queue.drops)
        for hop in look.hops
        if hop.stage in ("container", "wire")
    )
