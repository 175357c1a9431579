"""Matches and targets of iptables, as the legacy tables and nftables' "compat" both carry them.

Their layouts are include/uapi/linux/netfilter/xt_*.h, in the machine's own byte order. What is not
known here matches "perhaps".
"""

import socket
import struct
from collections.abc import Callable

from whybox.kernel.netlink import ip_address
from whybox.kernel.packetfilter import CONTINUE, ICMP, TCP, UDP, Effect, Packet, both, turned

#: Of a standard target: -1 - NF_DROP, -1 - NF_ACCEPT, -1 - NF_REPEAT (XT_RETURN).
STANDARD = {-1: "drop", -2: "accept", -4: "queue", -5: "return"}
RTN_UNICAST, RTN_LOCAL, RTN_BROADCAST, RTN_MULTICAST = 1, 2, 3, 5
CONNTRACK_STATES = 0x2001
#: xt_conntrack_mtinfo*: eight addresses, two times, five 16-bit numbers, and then the flags.
CONNTRACK_FLAGS_AT = 8 * 16 + 2 * 4 + 5 * 2
#: XT_CONNTRACK_STATE_BIT: 1 << (ctinfo % IP_CT_IS_REPLY + 1); SNAT and DNAT above them.
STATE_BITS = {"established": 0x2, "related": 0x4, "new": 0x8}
STATE_SNAT, STATE_DNAT = 1 << 6, 1 << 7


def match(name: str, revision: int, info: bytes, packet: Packet) -> bool | None:
    """Whether a match holds."""
    check = _MATCHES.get(name)
    if check is None:
        return None
    try:
        return check(revision, info, packet)
    except struct.error:
        return None


def _within(port: int | None, first: int, last: int) -> bool | None:
    if (first, last) == (0, 0xFFFF):
        return True
    return None if port is None else first <= port <= last


def _tcp(_: int, info: bytes, packet: Packet) -> bool | None:
    if packet.protocol != TCP:
        return False
    s0, s1, d0, d1, option, mask, wanted, invert = struct.unpack_from("=4H4B", info)
    flags = 0x02 if packet.state == "new" else 0x12
    answers = (
        turned(_within(packet.sport, s0, s1), bool(invert & 1)),
        turned(_within(packet.dport, d0, d1), bool(invert & 2)),
        turned((flags & mask) == wanted, bool(invert & 4)),
        None if option else True,
    )
    return both(iter(answers))


def _udp(_: int, info: bytes, packet: Packet) -> bool | None:
    if packet.protocol != UDP:
        return False
    s0, s1, d0, d1, invert = struct.unpack_from("=4HB", info)
    answers = (
        turned(_within(packet.sport, s0, s1), bool(invert & 1)),
        turned(_within(packet.dport, d0, d1), bool(invert & 2)),
    )
    return both(iter(answers))


def _icmp(_: int, info: bytes, packet: Packet) -> bool | None:
    """The one message that is asked about is "fragmentation needed", type 3 code 4."""
    if packet.protocol != ICMP:
        return False
    kind, first, last, invert = struct.unpack_from("=4B", info)
    return turned(kind == 0xFF or (kind == 3 and first <= 4 <= last), bool(invert & 1))


def _conntrack(revision: int, info: bytes, packet: Packet) -> bool | None:
    """Addresses and ports of the original direction are left open; the state is what is used."""
    layout = {1: "=HHBB", 2: "=HHHH", 3: "=HHHH"}.get(revision)
    if layout is None:
        return None
    wanted, invert, states, _ = struct.unpack_from(layout, info, CONNTRACK_FLAGS_AT)
    return None if wanted & ~CONNTRACK_STATES else _state(states, invert, packet)


def _state(states: int, invert: int, packet: Packet) -> bool | None:
    mine = STATE_BITS.get(packet.state)
    if mine is None:
        return None
    bits = mine | STATE_SNAT * bool(packet.snat) | STATE_DNAT * bool(packet.dnat)
    found: bool | None = bool(bits & states)
    if not found and states & (STATE_SNAT | STATE_DNAT) and None in (packet.snat, packet.dnat):
        found = None
    return turned(found, bool(invert & 1))


def _old_state(_: int, info: bytes, packet: Packet) -> bool | None:
    (states,) = struct.unpack_from("=I", info)
    return _state(states, 0, packet)


def _addrtype(revision: int, info: bytes, packet: Packet) -> bool | None:
    source, destination, *flags = struct.unpack_from("=HHI" if revision else "=HHII", info)
    turn_source, turn_destination = flags if not revision else (flags[0] & 1, flags[0] & 2)
    answers = (
        turned(_kind(source, packet.is_from_local), bool(turn_source)),
        turned(_kind(destination, packet.is_for_local), bool(turn_destination)),
    )
    return both(iter(answers))


def _kind(wanted: int, local: bool | None) -> bool | None:
    if not wanted:
        return True
    if local is None:
        return None
    return bool(wanted >> (RTN_LOCAL if local else RTN_UNICAST) & 1)


def _multiport(revision: int, info: bytes, packet: Packet) -> bool | None:
    flags, count = struct.unpack_from("=BB", info)
    ports = struct.unpack_from("=15H", info, 2)
    ranges, invert = (info[32:47], info[47]) if revision else (bytes(15), 0)
    candidates = {0: (packet.sport,), 1: (packet.dport,)}.get(flags, (packet.sport, packet.dport))
    if None in candidates:
        return None
    found, at = False, 0
    while at < min(count, 15):
        last = ports[at + 1] if ranges[at] and at < 14 else ports[at]
        found |= any(ports[at] <= (port or 0) <= last for port in candidates)
        at += 2 if ranges[at] else 1
    return turned(found, bool(invert))


def _mark(_: int, info: bytes, packet: Packet) -> bool | None:
    mark, mask, invert = struct.unpack_from("=IIB", info)
    if packet.mark is None:
        return None
    return turned(packet.mark & mask == mark, bool(invert))


_MATCHES: dict[str, Callable[[int, bytes, Packet], bool | None]] = {
    "tcp": _tcp, "udp": _udp, "icmp": _icmp, "conntrack": _conntrack, "state": _old_state,
    "addrtype": _addrtype, "multiport": _multiport, "mark": _mark,
    "comment": lambda *_: True,
}  # fmt: skip


def target(name: str, revision: int, info: bytes) -> Effect:
    """What a target does; one that is not known here lets the packet go on."""
    try:
        return _target(name, revision, info)
    except struct.error:
        return CONTINUE


def _target(name: str, revision: int, info: bytes) -> Effect:
    if name == "REJECT":
        return Effect(verdict="reject")
    if name in ("MASQUERADE", "NFQUEUE"):
        return Effect(verdict={"NFQUEUE": "queue"}.get(name, "masquerade"))
    if name in ("DNAT", "SNAT", "REDIRECT"):
        return _translated(name.lower(), revision, info)
    if name == "TCPMSS":
        return Effect(verdict="clamp")
    if name == "MARK":
        mark, mask = struct.unpack_from("=II", info)
        return Effect(verdict="continue", mark=mark if mask else None, mask=mask)
    return CONTINUE


def _translated(kind: str, revision: int, info: bytes) -> Effect:
    """nf_nat_ipv4_multi_range_compat, or for newer revisions nf_nat_range(2)."""
    if kind != "dnat" or revision == 0:
        _, flags, first = struct.unpack_from("=II4s", info)
        (port,) = struct.unpack_from(">H", info, 16)
    else:
        flags, first = struct.unpack_from("=I16s", info)
        (port,) = struct.unpack_from(">H", info, 36)
        first = first if any(first[4:]) else first[:4]
    address = ip_address(first) if flags & 1 else None
    return Effect(verdict=kind, address=address, port=port if flags & 2 else None)


def describe(name: str, info: bytes) -> str:
    """A match as ``iptables -S`` would say it, or its name alone."""
    if name in ("tcp", "udp") and len(info) >= 8:
        with_ports = struct.unpack_from("=4H", info)
        said = [
            f"--{word} {first}" + (f":{last}" if last != first else "")
            for word, first, last in (("sport", *with_ports[:2]), ("dport", *with_ports[2:]))
            if (first, last) != (0, 0xFFFF)
        ]
        return " ".join(said)
    return "" if name == "comment" else f"-m {name}"


def network(address: bytes, mask: bytes) -> str:
    """An address with the length of its network."""
    return f"{socket.inet_ntoa(address)}/{sum(byte.bit_count() for byte in mask)}"
