"""Where a container's packets are dropped and why, and which of its connections repeat themselves.

From ``skb:kfree_skb``, which every dropped packet passes, and the tracepoints of TCP. On kernels
before 5.17 some places that free a packet without a fault pass it as well.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv6Address, ip_address

from msgspec import Struct

from whybox.kernel.bpf.objects import Object, Spec
from whybox.kernel.host import c_string

SPEC = Spec(
    name="packets",
    programs=(("on_drop",),),
    optional=(
        "on_retransmit",
        "on_synack",
        "on_destroy",
        "on_reset_sent",
        "on_reset_received",
        "on_connection",
    ),
    falls_back="the counters of its network namespace, which tell neither place nor reason",
)

#: Why a packet is the container's, bit by bit; and whether it is the first of a TCP connection.
IN_NETNS, ON_WIRE, FROM_IT, TO_IT, BY_NAT, OPENS = 1, 2, 4, 8, 16, 32

#: So many addresses and wires there is room for.
MOST_ADDRESSES, MOST_WIRES = 1024, 256

_DROPPED, _REPEATED, _RESET = 1, 2, 3
_ADDRESSES, _PORTS = 1, 2
_ZERO, _WORD, _TWO = struct.pack("=I", 0), struct.Struct("=I"), struct.Struct("=II")
_PLACE = struct.Struct("=QIIIHBB")
_FLOW = struct.Struct("=16s16sHHHBB")
_SUM = struct.Struct("=QQQQQII")
_HEAD = struct.Struct("=QII")
_CONNECTION = struct.Struct("=IHH16s16s")
_STATE = struct.Struct("=9I")
_REPEATS = struct.Struct("=QQQQQII")
_NO_ROOM = 4


class Place(Struct, frozen=True, kw_only=True):
    """Where and why packets are dropped."""

    location: int
    """An address in the kernel: who gave the packet up."""
    net: int
    """The inode of the network namespace; 0: not known."""
    ifindex: int
    """0: it was at no interface."""
    reason: int
    ethertype: int
    protocol: int
    why: int
    """Why it is the container's: ``IN_NETNS`` and its like."""


class Flow(Struct, frozen=True, kw_only=True):
    """Who sends to whom; what the headers do not tell is ``None``."""

    source: str | None = None
    destination: str | None = None
    source_port: int | None = None
    """Of ICMP, type and code: 256 times the type."""
    destination_port: int | None = None
    ethertype: int = 0
    protocol: int = 0


class Sum(Struct, frozen=True, kw_only=True):
    """All packets of one place."""

    place: Place
    packets: int
    bytes: int
    first_ns: int
    last_ns: int
    flow: Flow
    """Of the first."""
    device: str


class Dropped(Struct, frozen=True, kw_only=True):
    """One packet."""

    at_ns: int
    """Of the monotonic clock."""
    place: Place
    flow: Flow
    bytes: int
    device: str


class Pair(Struct, frozen=True, kw_only=True):
    """A TCP connection by its ends."""

    net: int
    local: str
    local_port: int
    remote: str
    remote_port: int


class State(Struct, frozen=True, kw_only=True):
    """What the kernel has counted of a connection since it began (struct tcp_sock)."""

    srtt_us: int
    retransmitted: int
    """Segments (``total_retrans``)."""
    reordered: int
    """How often it saw that segments were late and not lost (``reord_seen``)."""
    duplicates: int
    """Segments that the other side had already (``dsack_dups``)."""
    early: int
    """Segments that came before an earlier one (``rcv_ooopack``)."""
    sent: int
    state: int
    """``kernel.sock_diag.TCP_STATES``."""
    in_a_row: int
    """Timeouts without an answer in between (``icsk_retransmits``)."""
    reordering: int
    """By so many segments it takes reordering for possible."""


class Repeats(Struct, frozen=True, kw_only=True):
    """The retransmits of one connection."""

    pair: Pair
    count: int
    synacks: int
    first_ns: int
    last_ns: int
    most_in_a_row: int
    state: State
    gone: bool


class Repeated(Struct, frozen=True, kw_only=True):
    """One retransmit."""

    at_ns: int
    pair: Pair
    state: State


class Reset(Struct, frozen=True, kw_only=True):
    """Resets of one connection; as an event, the first of them."""

    at_ns: int | None
    pair: Pair
    sent: bool
    """By the container; else it received it."""
    reason: int
    """Why it was sent (enum sk_rst_reason); 0 on kernels that do not tell."""
    count: int


class NoRoom(Struct, frozen=True, kw_only=True):
    """What there was no room to count apart."""

    packets: int
    bytes: int
    connections: int
    resets: int


Told = Dropped | Repeated | Reset


def know_addresses(object: Object, addresses: Iterable[str]) -> int:
    """Packets from and to these, and no others, are the container's; how many were left out for
    want of room."""
    return _fill(object, "addresses", MOST_ADDRESSES, [packed(address) for address in addresses])


def know_wires(object: Object, wires: Iterable[tuple[int, int]]) -> int:
    """So are packets at these interfaces, each a namespace's inode with an index."""
    return _fill(object, "wires", MOST_WIRES, [_TWO.pack(*wire) for wire in wires])


def _fill(object: Object, name: str, most: int, keys: list[bytes]) -> int:
    for key in {key for key, _ in object.map(name).items()} - set(keys):
        object.map(name).delete(key)
    for key in keys[:most]:
        object.map(name).set(key, _WORD.pack(1))
    return max(0, len(keys) - most)


def packed(address: str) -> bytes:
    """An address as the maps have it.

    >>> packed("10.0.0.1").hex(), packed("::1").hex()
    ('00000000000000000000ffff0a000001', '00000000000000000000000000000001')
    """
    found = ip_address(address)
    return found.packed if found.version == 6 else b"\0" * 10 + b"\xff\xff" + found.packed


def unpacked(raw: bytes) -> str:
    """The same back.

    >>> unpacked(packed("10.0.0.1")), unpacked(packed("fe80::1"))
    ('10.0.0.1', 'fe80::1')
    """
    found = IPv6Address(raw)
    return str(found.ipv4_mapped or found)


def sums(object: Object) -> Iterator[Sum]:
    """All places so far, in no order."""
    for key, value in object.map("drops").items():
        count, size, first, last, *_ = _SUM.unpack_from(value)
        flow_at = _SUM.size
        yield Sum(
            place=_place(key),
            packets=count,
            bytes=size,
            first_ns=first,
            last_ns=last,
            flow=_flow(value[flow_at:]),
            device=c_string(value[flow_at + _FLOW.size :][:16]),
        )


def repeats(object: Object) -> Iterator[Repeats]:
    """All connections that repeated something, or ended with something to tell."""
    for key, value in object.map("connections").items():
        count, synacks, first, last, _, _, most = _REPEATS.unpack_from(value)
        at = _REPEATS.size
        yield Repeats(
            pair=_pair(key),
            count=count,
            synacks=synacks,
            first_ns=first,
            last_ns=last,
            most_in_a_row=most,
            state=_state(value[at:]),
            gone=bool(_WORD.unpack_from(value, at + _STATE.size)[0]),
        )


def resets(object: Object) -> Iterator[Reset]:
    """All resets so far, those of one connection together."""
    for key, value in object.map("resets").items():
        yield _reset(None, key, int.from_bytes(value[:8], "little"))


def living(object: Object) -> Mapping[Pair, State]:
    """The connections of the caller's namespace that have something to tell, at this moment."""
    object.map("listed").set(_ZERO, _ZERO)
    size = _CONNECTION.size + _STATE.size
    said = object.read_iterator("on_connection")
    whole = range(0, len(said) - size + 1, size)
    return {_pair(said[at:]): _state(said[at + _CONNECTION.size :]) for at in whole}


def no_room(object: Object) -> NoRoom:
    """What was too much."""
    counts = [
        sum(int.from_bytes(one, "little") for one in object.map("no_room").per_cpu(_WORD.pack(n)))
        for n in range(_NO_ROOM)
    ]
    return NoRoom(packets=counts[0], bytes=counts[1], connections=counts[2], resets=counts[3])


def told(raw: bytes) -> Told:
    """Decode ``struct event``."""
    at, kind, size = _HEAD.unpack_from(raw)
    rest = raw[_HEAD.size :]
    if kind == _DROPPED:
        return Dropped(
            at_ns=at,
            place=_place(rest),
            flow=_flow(rest[_PLACE.size :]),
            bytes=size,
            device=c_string(rest[_PLACE.size + _FLOW.size :][:16]),
        )
    if kind == _REPEATED:
        return Repeated(at_ns=at, pair=_pair(rest), state=_state(rest[_CONNECTION.size :]))
    return _reset(at, rest, 1)


def _place(raw: bytes) -> Place:
    location, net, ifindex, reason, ethertype, protocol, why = _PLACE.unpack_from(raw)
    return Place(
        location=location,
        net=net,
        ifindex=ifindex,
        reason=reason,
        ethertype=ethertype,
        protocol=protocol,
        why=why,
    )


def _flow(raw: bytes) -> Flow:
    source, destination, from_port, to_port, ethertype, protocol, known = _FLOW.unpack_from(raw)
    with_ports = bool(known & _PORTS)
    return Flow(
        source=unpacked(source) if known & _ADDRESSES else None,
        destination=unpacked(destination) if known & _ADDRESSES else None,
        source_port=from_port if with_ports else None,
        destination_port=to_port if with_ports else None,
        ethertype=ethertype,
        protocol=protocol,
    )


def _pair(raw: bytes) -> Pair:
    net, local_port, remote_port, local, remote = _CONNECTION.unpack_from(raw)
    return Pair(
        net=net,
        local=unpacked(local),
        local_port=local_port,
        remote=unpacked(remote),
        remote_port=remote_port,
    )


def _state(raw: bytes) -> State:
    return State(**dict(zip(State.__struct_fields__, _STATE.unpack_from(raw), strict=True)))


def _reset(at: int | None, raw: bytes, count: int) -> Reset:
    sent, reason = _TWO.unpack_from(raw, _CONNECTION.size)
    return Reset(at_ns=at, pair=_pair(raw), sent=bool(sent), reason=reason, count=count)
