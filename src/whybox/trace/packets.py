"""Where packets are dropped and why, hop by hop; retransmits and reordering."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress

from msgspec import Struct

from whybox.kernel import dropreasons, netcounters
from whybox.kernel.bpf import ability
from whybox.kernel.bpf.objects import Cost, Object, Refused, loaded
from whybox.kernel.bpf.scope import NETNS, Mark
from whybox.kernel.conntrackdrops import Tables
from whybox.kernel.drops import Drop, Flow, Merged, along, flow, merged
from whybox.kernel.dropsites import Sites
from whybox.kernel.hops import Around, Hop, Owners, around
from whybox.kernel.host import Host
from whybox.kernel.netcounters import Counter
from whybox.kernel.netns import call_in
from whybox.kernel.sensors import packets as sensor
from whybox.kernel.sensors.packets import Dropped, Pair, Repeated, State
from whybox.kernel.target import Target
from whybox.trace.connections import Connection, Reset, connections, reset, state_name
from whybox.trace.question import Options, Question, Session
from whybox.trace.session import ObjectSession

#: How often the counters are read, so that they are known when the container has ended.
COUNT_SECONDS = 1.0

_CONNTRACK = "/proc/sys/net/netfilter/nf_conntrack_max"

MOST_DROPS, MOST_CONNECTIONS = 200, 200


class Lost(Struct, frozen=True, kw_only=True, tag="drop"):
    """One packet that was dropped."""

    at_ns: int
    """Of the monotonic clock."""
    namespace: str
    interface: str | None
    reason: str | None
    function: str
    flow: Flow
    bytes: int


class Again(Struct, frozen=True, kw_only=True, tag="retransmit"):
    """One segment that was sent again."""

    at_ns: int
    local: str
    remote: str
    """With their ports."""
    state: str
    in_a_row: int
    """Timeouts without an answer in between."""


class Broken(Struct, frozen=True, kw_only=True, tag="reset"):
    """The first reset of a connection."""

    at_ns: int
    local: str
    remote: str
    sent: bool
    reason: str | None
    """Why it was sent, as the kernel calls it; ``None``: it does not tell."""


class Answer(Struct, frozen=True, kw_only=True):
    """What became of its packets."""

    watched: bool
    """Whether drops and connections were watched; else only counters are told."""
    path: tuple[Hop, ...]
    """The hops from the container outwards, those included at which nothing was dropped."""
    dropped: int
    """Packets, without the usual ones."""
    drops: tuple[Drop, ...]
    """In the order of the hops; at each, the most frequent first."""
    usual_dropped: int
    usual: tuple[Drop, ...]
    """What a healthy network drops as well."""
    uncounted: int
    """Packets for whose place there was no room; they are in ``dropped``."""
    connections: tuple[Connection, ...]
    """TCP connections that sent something again or saw reordering, the worst first."""
    more_connections: int
    resets: tuple[Reset, ...]
    more_resets: int
    counters: tuple[Counter, ...]
    """Those of its namespace that grew."""
    conclusions: tuple[str, ...]
    """What they say, a sentence each."""


class _Counters:
    """The counters of its namespace: since the beginning."""

    def __init__(self, host: Host, target: Target) -> None:
        self._host, self._target = host, target
        self.before: Mapping[str, int] = self._read()
        self.after = self.before
        self._looked = time.monotonic()

    def look(self, *, now: bool = False) -> None:
        """Read them again, if it is time."""
        if not now and time.monotonic() - self._looked < COUNT_SECONDS:
            return
        self._looked = time.monotonic()
        self.after = self._read() or self.after

    def adopt(self, target: Target) -> None:
        """Those of a new namespace begin at zero."""
        self._target = target
        self.before = self.after = self._read()

    def _read(self) -> dict[str, int]:
        self._host.next_moment()
        init = self._target.init
        return {} if init is None else netcounters.read(self._host, init.pid)


class _Session(ObjectSession):
    """Sums in the kernel, and the first few of each kind and second one by one."""

    def __init__(self, host: Host, target: Target, object: Object) -> None:
        super().__init__(host, target, object)
        self._why_reset = dropreasons.read_resets()
        self._owners = Owners(host, target)
        self._ring = object.ring()
        self._examples: dict[Merged, Flow] = {}
        self._counters = _Counters(host, target)
        self._around = self._surround(target)
        self._sites = Sites(host, self._around, self._owners)
        self._tables = Tables({net: self._owners.path(net) for net in self._around.nets})
        self._before = self._living(target)
        self.notes = (*self.notes, *self._around.notes, *_notes(host, object, self._sites.reasons))

    def adopt(self, target: Target) -> None:
        super().adopt(target)
        self._first = target
        self._owners.adopt(target)
        self._around = self._surround(target)
        self._sites = Sites(self.host, self._around, self._owners)
        self._counters.adopt(target)

    def events(self) -> Sequence[Struct]:
        self._counters.look()
        return [told for raw in self._ring.read() if (told := self._told(raw)) is not None]

    def answer(self) -> Answer:
        self._counters.look(now=True)
        drops = self._sites.drops(sensor.sums(self.object))
        faults, usual = merged(drops, self._examples)
        no_room = sensor.no_room(self.object)
        conns = connections(
            self._before, self._living(self._first), sensor.repeats(self.object), self._owners.name
        )
        seen = [reset(one, self._why_reset) for one in sensor.resets(self.object)]
        resets = sorted(seen, key=lambda one: -one.count)
        counted = self._counters
        return Answer(
            watched=True,
            path=along(self._around.path, faults, self._owners.name),
            dropped=sum(drop.packets for drop in faults) + no_room.packets,
            drops=self._tables.judged(faults[:MOST_DROPS]),
            usual_dropped=sum(drop.packets for drop in usual),
            usual=usual[:MOST_DROPS],
            uncounted=no_room.packets,
            connections=conns[:MOST_CONNECTIONS],
            more_connections=max(0, len(conns) - MOST_CONNECTIONS) + no_room.connections,
            resets=tuple(resets[:MOST_CONNECTIONS]),
            more_resets=max(0, len(resets) - MOST_CONNECTIONS) + no_room.resets,
            counters=netcounters.grown(counted.before, counted.after),
            conclusions=tuple(netcounters.conclusions(counted.before, counted.after)),
        )

    def _surround(self, target: Target) -> Around:
        found = around(self.host, target)
        if found.shared:
            mark = Mark(kind=NETNS, id=found.net)
            self.object.map("scopes").set(mark.key, self.slot.to_bytes(4, "little"))
        self._owners.connect(found.nets)
        left = sensor.know_addresses(self.object, found.addresses)
        left += sensor.know_wires(self.object, found.wires)
        if left:
            self.notes = (*self.notes, f"{left} of its addresses and wires are too many to watch")
        return found

    def _living(self, target: Target) -> Mapping[Pair, State]:
        if "on_connection" not in self.object.choice.taken or target.init is None:
            return {}
        with suppress(OSError):  # it has ended
            place = f"/proc/{target.init.pid}/ns/net"
            return call_in(place, lambda: sensor.living(self.object))
        return {}

    def _told(self, raw: bytes) -> Struct | None:
        match sensor.told(raw):
            case Dropped() as one:
                return self._lost(one)
            case Repeated() as one:
                return _again(one)
            case one:
                ends = reset(one, self._why_reset)
                return Broken(
                    at_ns=one.at_ns or 0,
                    local=ends.local,
                    remote=ends.remote,
                    sent=ends.sent,
                    reason=ends.reason,
                )

    def _lost(self, one: Dropped) -> Lost | None:
        if self._sites.is_anothers(one.place, one.flow):
            return None
        where = self._sites.merged(one.place, one.device)
        self._examples[where] = flow(one.flow)
        if where.cause.usual:
            return None
        return Lost(
            at_ns=one.at_ns,
            namespace=where.hop.namespace,
            interface=where.hop.interface,
            reason=where.reason,
            function=where.function,
            flow=flow(one.flow),
            bytes=one.bytes,
        )


def _again(one: Repeated) -> Again:
    return Again(
        at_ns=one.at_ns,
        local=f"{one.pair.local}:{one.pair.local_port}",
        remote=f"{one.pair.remote}:{one.pair.remote_port}",
        state=state_name(one.state.state),
        in_a_row=one.state.in_a_row,
    )


def _notes(host: Host, object: Object, reasons: Mapping[int, str]) -> Iterator[str]:
    if not reasons:
        yield (
            "this kernel gives no reasons for drops (they came with 5.17): they are told from the"
            " function that gave a packet up"
        )
    if host.exists(_CONNTRACK) and not _knows_conntrack(host):
        yield (
            "this kernel does not tell the types of its module nf_conntrack: packets whose address"
            " was changed (NAT) are not recognised once they have another one"
        )
    lacks = dict.fromkeys(lack for name, lack in object.choice.left.items() if name != "on_drop")
    yield from (f"retransmits and resets are not all seen: {lack}" for lack in lacks)


def _knows_conntrack(host: Host) -> bool:
    # As a module it has types of its own since commit 36e68442d1af ("bpf: Load and verify kernel
    # module BTFs") (in v5.11).
    of_module = host.exists("/sys/kernel/btf/nf_conntrack")
    return of_module or ability.knows_type("nf_conntrack_tuple_hash")


class _CountersOnly:
    """Without a program: what the namespace has counted."""

    attached = ("/proc/PID/net/snmp", "/proc/PID/net/netstat", "/proc/PID/net/dev")

    def __init__(self, host: Host, target: Target, reason: str) -> None:
        self._counters = _Counters(host, target)
        self.notes = (f"{reason}; instead: {sensor.SPEC.falls_back}",)

    def events(self) -> Sequence[Struct]:
        self._counters.look()
        return ()

    def answer(self) -> Answer:
        self._counters.look(now=True)
        counted = self._counters
        return Answer(
            watched=False,
            path=(),
            dropped=0,
            drops=(),
            usual_dropped=0,
            usual=(),
            uncounted=0,
            connections=(),
            more_connections=0,
            resets=(),
            more_resets=0,
            counters=netcounters.grown(counted.before, counted.after),
            conclusions=tuple(netcounters.conclusions(counted.before, counted.after)),
        )

    def lost(self) -> int:
        return 0

    def cost(self) -> Cost | None:
        return None

    def adopt(self, target: Target) -> None:
        self._counters.adopt(target)


@contextmanager
def _open(host: Host, target: Target, options: Options) -> Iterator[Session]:
    with ExitStack() as stack:
        try:
            object = stack.enter_context(loaded(host, sensor.SPEC, stats=True))
        except Refused as refusal:
            yield _CountersOnly(host, target, str(refusal.strerror))
            return
        yield _Session(host, target, object)


QUESTION = Question(open=_open, events=(Lost, Again, Broken), answer=Answer)
