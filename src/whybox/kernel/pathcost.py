"""What a container's way to the host costs, besides what the host's own packets cost."""

import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress

from msgspec import Struct

from whybox.kernel import qdisc
from whybox.kernel.host import Host
from whybox.kernel.namespace import inode_in
from whybox.kernel.netpath import Path
from whybox.kernel.netview import WIRES, View, Way
from whybox.kernel.rtnetlink import Link
from whybox.kernel.target import Target

#: The sensor's name among those that all who watch share.
SENSOR = "path"

#: So many round trips are measured on the loopback.
ROUND_TRIPS = 50

#: With fewer packets each way nothing is usual.
FEWEST = 20
_PATIENCE_SECONDS = 0.2


class End(Struct, frozen=True, kw_only=True):
    """One end of the container's wire."""

    namespace: int
    ifindex: int
    name: str
    queue: str | None = None
    """The queueing discipline; ``None``: not known."""


class Wire(Struct, frozen=True, kw_only=True):
    """A wire of the container with what was counted of it."""

    inner: End
    outer: End


class Piece(Struct, frozen=True, kw_only=True):
    """A piece of the way, over the window."""

    kind: str
    """``queue_out``, ``wait_out``, ``forward_out``, ``queue_in``, ``wait_in``, ``forward_in``; and
    ``first_out``, ``first_in``: forwarding the first packet of a connection."""
    packets: int
    median_ns: int
    mean_ns: int
    longest_ns: int


class Seen(Struct, frozen=True, kw_only=True):
    """All pieces, or why there are none."""

    wires: tuple[Wire, ...] = ()
    pieces: tuple[Piece, ...] = ()
    reason: str | None = None
    wireless: bool = False
    """Its interfaces have no host's end: macvlan, ipvlan, hardware, or none at all."""


@contextmanager
def watched(host: Host, target: Target) -> Iterator[Callable[[], Seen]]:
    """Count the pieces of a container's way; asked for those so far."""
    if host.window_seconds <= 0:
        yield lambda: Seen(reason="nothing can be counted in a window of no length")
        return
    with ExitStack() as stack:
        try:
            look = _watch(host, target, stack)
        except (OSError, ValueError) as error:
            reason = str(getattr(error, "strerror", None) or error)
            yield lambda: Seen(reason=reason)
            return
        yield look


def _watch(host: Host, target: Target, stack: ExitStack) -> Callable[[], Seen]:
    path = Path(host, target, ())
    view = path.view()
    found = tuple(_wires(target, view, path))
    if not found:
        unseen = next((way.unseen for way in view.ways if way.unseen is not None), None)
        seen = Seen(reason=unseen) if unseen is not None else Seen(wireless=True)
        return lambda: seen
    if not any(map(_carries, (view.near.link(way.ifindex) for way in view.ways))):
        # Programs at every packet of the host are not worth it for a wire that nobody uses.
        return lambda: Seen(wires=found)
    from whybox.kernel.sensors import path as sensor  # loads libbpf: only for a window

    attached = stack.enter_context(host.sensor(SENSOR, lambda: sensor.attached(host)))
    slot = attached.add(
        [(wire.inner.namespace, wire.inner.ifindex) for wire in found],
        [(wire.outer.namespace, wire.outer.ifindex) for wire in found],
    )

    def pieces() -> Iterator[Piece]:
        for one in attached.pieces(slot):
            yield Piece(
                kind=one.kind,
                packets=one.count,
                median_ns=one.median_ns,
                mean_ns=one.sum_ns // one.count,
                longest_ns=one.longest_ns,
            )

    return lambda: Seen(wires=found, pieces=tuple(pieces()))


def _wires(target: Target, view: View, path: Path) -> Iterator[Wire]:
    for way in view.ways:
        link = view.near.link(way.ifindex)
        if link is None or link.kind not in WIRES or way.far is None or way.far.peer is None:
            continue
        init = target.init
        here = "/proc/self/ns/net" if init is None else f"/proc/{init.pid}/ns/net"
        yield Wire(
            inner=_end(target.namespaces.get("net", 0), link, _queues(here)),
            outer=_outer(way, way.far.peer, _queues(path.far_place(link))),
        )


def _carries(link: Link | None) -> bool:
    """Whether an interface ever sent more than what a new one sends by itself."""
    counted = None if link is None else link.statistics
    return counted is None or counted.tx_packets >= FEWEST


def _outer(way: Way, peer: Link, queues: Mapping[int, str]) -> End:
    return _end(inode_in(way.far.namespace) if way.far is not None else 0, peer, queues)


def _end(namespace: int, link: Link, queues: Mapping[int, str]) -> End:
    return End(
        namespace=namespace,
        ifindex=link.ifindex,
        name=link.name,
        queue=queues.get(link.ifindex),
    )


def _queues(place: str | None) -> Mapping[int, str]:
    with suppress(OSError, ValueError):
        return {} if place is None else qdisc.kinds(place)
    return {}


def loopback_ns() -> int | None:
    """The usual round trip of a datagram to ourselves and back; ``None``: none came back.

    It passes the same softirq as a wire does, and nothing else: the control for the machine's speed
    and its other work. No other namespace than our own sees it.
    """
    took = []
    with suppress(OSError), _datagrams() as one, _datagrams() as other:
        for _ in range(ROUND_TRIPS):
            began = time.perf_counter_ns()
            for end, peer in ((one, other), (other, one)):
                end.sendto(b".", peer.getsockname())
                peer.recv(1)
            took.append(time.perf_counter_ns() - began)
    return sorted(took)[len(took) // 2] if took else None


def _datagrams() -> socket.socket:
    end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    end.settimeout(_PATIENCE_SECONDS)
    end.bind(("127.0.0.1", 0))
    return end


def squeezed(host: Host) -> int | None:
    """How often NET_RX had to stop with packets left, on all CPUs (``softnet_stat``)."""
    text = host.optional_text("/proc/net/softnet_stat")
    if text is None:
        return None
    return sum(int(line.split()[2], 16) for line in text.splitlines())
