"""Walking the way to somebody before and after trying it, and the filters that let nobody through.

The first is done for whom a person named; the second only reads.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from msgspec import structs

from whybox.kernel import neightable
from whybox.kernel.flow import MACHINE, Endpoint, Flow, Step, meter_of
from whybox.kernel.flowspace import Space
from whybox.kernel.flowwalk import Walk
from whybox.kernel.host import Host
from whybox.kernel.knock import Knock
from whybox.kernel.neightable import METER
from whybox.kernel.netview import View, WayOut, ways_out
from whybox.kernel.packetfilter import Packet
from whybox.kernel.target import Port, Target

#: Without being told for whom, no more rules than these are asked: it is done for every container.
MOST_RULES = 1000


def place(target: Target) -> str:
    """Where a target's network namespace is; from inside, PID 1 may be another user's."""
    pid = "self" if target.runtime == "self" or target.init is None else target.init.pid
    return f"/proc/{pid}/ns/net"


class Watched:
    """One attempt, and the counters on its way at both ends of the window."""

    def __init__(self, host: Host, target: Target, to: Endpoint) -> None:
        self._host, self._path, self._to = host, place(target), to
        walk = Walk(host, self._path, to)
        walk.run()
        self._before = walk.meters() | {MACHINE: neightable.meters(host)}
        self._knock = Knock(self._path, to)

    def close(self) -> None:
        """Give the attempt up."""
        self._knock.close()

    def flow(self) -> Flow:
        """What was seen."""
        attempt = self._knock.outcome()
        walk = Walk(self._host, self._path, self._to)
        steps = walk.run()
        after = walk.meters() | {MACHINE: neightable.meters(self._host)}
        return Flow(
            to=self._to,
            steps=(*self._overflowed(after[MACHINE]), *steps),
            before=self._before,
            after=after,
            attempt=attempt,
        )

    def _overflowed(self, now: Mapping[str, int]) -> Iterator[Step]:
        """There is one table of neighbours for all, so whose packet found no room is not told."""
        before = self._before[MACHINE]
        if now.get(METER, 0) <= before.get(METER, now.get(METER, 0)):
            return
        limit = neightable.limit(self._host)
        yield Step(
            way="there",
            space=MACHINE,
            kind="neighbour",
            name="the table of neighbours",
            says=f"it was full: net.ipv4.neigh.default.gc_thresh3 is {limit}",
            fault="neighbour_table",
            meter=METER,
            certain=False,
            facts={"limit": str(limit)},
        )


@contextmanager
def watched(host: Host, target: Target) -> Iterator[Watched | None]:
    """Begin, where a person asked for it; it is given up on every way out."""
    if host.to is None or not host.live:
        yield None
        return
    watch = Watched(host, target, Endpoint(address=host.to[0], port=host.to[1]))
    try:
        yield watch
    finally:
        watch.close()


def shut(
    host: Host,
    target: Target,
    view: View | None,
    ports: Iterable[Port],
    places: Mapping[int, str],
) -> tuple[Step, ...]:
    """Filters that stop everything new that goes out, or all that comes to a published port.

    ``places``: namespaces by the numbers that the container's own knows them by.
    """
    if view is None or host.to is not None:
        return ()  # who is named is walked to, which tells more
    asked = tuple(ports)
    here = Space(host, place(target), "the container", most_rules=MOST_RULES)
    return tuple(step for out in ways_out(view) for step in _shut(host, here, out, asked, places))


def _shut(
    host: Host, here: Space, out: WayOut, ports: tuple[Port, ...], places: Mapping[int, str]
) -> Iterator[Step]:
    own = next((address.partition("/")[0] for address in out.addresses), None)
    first = Packet(family=out.way.family, source=own, iif="", oif=out.link.name)
    yield from _stopped(here, "output", first, "there")
    for port in ports:
        came = Packet(
            family=out.way.family, destination=own, dport=port.port, iif=out.link.name, oif=""
        )
        yield from _stopped(here, "input", came, "in")
    far = out.way.far
    at = None if far is None else (far.bridge or far.peer)
    if at is None or out.link.link_netnsid is None:
        return
    number = out.link.link_netnsid
    there = places.get(number) or here.place_of(number)
    if there is None:
        return
    name = "its host" if far is None else far.namespace
    router = Space(host, there, name, most_rules=MOST_RULES)
    sent = Packet(family=out.way.family, source=own, iif=at.name, oif="")
    yield from _stopped(router, "prerouting", sent, "there")
    passed = Packet(family=out.way.family, source=own, iif=at.name)
    yield from _stopped(router, "forward", passed, "there")
    for port in ports:
        if not _has_proxy(router, port):
            came = Packet(family=out.way.family, destination=own, dport=port.port, oif=at.name)
            yield from _stopped(router, "forward", came, "in")


def _has_proxy(router: Space, port: Port) -> bool:
    """Whether a program there takes the connections and makes new ones (docker-proxy)."""
    return port.host_port is not None and bool(router.listeners(port.host_port))


def _stopped(space: Space, hook: str, packet: Packet, way: str) -> Iterator[Step]:
    known = structs.replace(packet, local=space.local, indexes=space.indexes)
    stopped = space.ruleset.passage(hook, known).stopped
    if stopped is not None and stopped.rule is not None:
        refuses = stopped.effect.verdict == "reject"
        yield Step(
            way=way,
            space=space.name,
            kind="filter",
            name=hook.upper(),
            says=f"{stopped.rule} {'refuses' if refuses else 'drops'} it: {stopped.rule.text}",
            fault="refused" if refuses else "dropped",
            meter=meter_of(stopped.rule),
            rule=stopped.rule,
            facts={"port": "" if packet.dport is None else str(packet.dport)},
        )
