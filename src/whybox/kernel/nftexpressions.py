"""The expressions of one nftables rule, and what they do to a packet.

A rule is a small program on registers (net/netfilter/nf_tables_core.c). Here a register holds
bytes of which some may not be known.
"""

import socket
import sys
from collections.abc import Callable, Mapping

from msgspec import Struct

from whybox.kernel import xtables
from whybox.kernel.netlink import attributes, text
from whybox.kernel.packetfilter import (
    CONTINUE,
    Check,
    Effect,
    Packet,
    both,
    ether_type,
    header,
    turned,
)

Bytes = list[int | None]

VALUE, VERDICT, VERDICT_CODE, VERDICT_CHAIN = 1, 2, 1, 2
VERDICTS = {
    0: "drop", 1: "accept", 3: "queue", -1: "continue", -2: "break",
    -3: "jump", -4: "goto", -5: "return",
}  # fmt: skip
META = {
    0: "length", 1: "protocol", 3: "mark", 4: "iif", 5: "oif", 6: "iifname", 7: "oifname",
    10: "skuid", 11: "skgid", 15: "nfproto", 16: "l4proto", 17: "ibrname", 18: "obrname",
    19: "pkttype",
}  # fmt: skip
CT_KEYS = {0: "state", 1: "direction", 2: "status", 3: "mark"}
CT_STATES = {"established": 2, "related": 4, "new": 8}
STATUS_SNAT, STATUS_DNAT = 0x10, 0x20
INTERVAL, MAP = 0x4, 0x8
RTN_UNICAST, RTN_LOCAL = 1, 2
#: Their effect is not on whether a packet passes.
HARMLESS = frozenset({"counter", "log", "notrack", "dup", "last", "objref", "dynset", "offload"})


class Expression(Struct, frozen=True):
    """One step of a rule."""

    name: str
    found: Mapping[int, bytes]

    def number(self, kind: int) -> int:
        """A number in the network's byte order; absent is 0."""
        return int.from_bytes(self.found.get(kind, b""), "big")

    def value(self, kind: int) -> bytes:
        """The bytes of a data attribute."""
        return attributes(self.found.get(kind, b"")).get(VALUE, b"")


class Element(Struct, frozen=True, kw_only=True):
    """One element of a set."""

    key: bytes
    key_end: bytes | None
    is_end: bool
    data: Mapping[int, bytes]


class NftSet(Struct, frozen=True, kw_only=True):
    """A set or a map."""

    flags: int
    elements: tuple[Element, ...]


def rule_check(expressions: tuple[Expression, ...], sets: Mapping[str, NftSet]) -> Check:
    """The rule as a function of the packet."""

    def check(packet: Packet) -> tuple[bool | None, Effect]:
        return _Run(packet, sets).run(expressions)

    return check


class _Run:
    """A rule's program on one packet."""

    def __init__(self, packet: Packet, sets: Mapping[str, NftSet]) -> None:
        self._packet, self._sets = packet, sets
        self._registers: dict[int, int | None] = {}
        self._network, self._transport = header(packet)
        self._matches: bool | None = True
        self._effect = CONTINUE

    def run(self, expressions: tuple[Expression, ...]) -> tuple[bool | None, Effect]:
        for expression in expressions:
            step = _STEPS.get(expression.name)
            if step is not None:
                self._met(step(self, expression))
            elif expression.name not in HARMLESS:
                self._met(None)  # a limit, a socket's owner, an expression newer than this
            if self._matches is False:
                return False, CONTINUE
        return self._matches, self._effect

    def _met(self, answer: bool | None) -> None:
        self._matches = both(iter((self._matches, answer)))

    def _load(self, register: int, length: int) -> Bytes:
        start = _offset(register)
        return [self._registers.get(start + at) for at in range(length)]

    def _store(self, register: int, value: Bytes) -> None:
        start = _offset(register)
        # The kernel fills the rest of the last four bytes with zeros (nft_payload_eval()).
        padded = value + [0] * (-len(value) % 4)
        self._registers |= {start + at: byte for at, byte in enumerate(padded)}

    def meta(self, each: Expression) -> bool | None:
        key = META.get(each.number(2), "")
        if 3 in each.found:  # a register is written to the packet
            if key == "mark":
                value = self._load(each.number(3), 4)
                known = None not in value and self._matches
                mark = int.from_bytes(bytes(b or 0 for b in value), sys.byteorder)
                self._effect = Effect(verdict=self._effect.verdict, mark=mark)
                if not known:
                    self._met(None)
            return True
        self._store(each.number(1), _meta(self._packet, key))
        return True

    def payload(self, each: Expression) -> bool | None:
        base, offset, length = (each.number(kind) for kind in (2, 3, 4))
        frame: Bytes = [None] * 12
        place = {0: frame + ether_type(self._packet), 1: self._network, 2: self._transport}.get(
            base, []
        )
        found = place[offset : offset + length]
        self._store(each.number(1), found + [None] * (length - len(found)))
        return True

    def bitwise(self, each: Expression) -> bool | None:
        mask, xor = each.value(4), each.value(5)
        length = each.number(3)
        value = self._load(each.number(1), length)
        if each.number(6) or len(mask) < length or len(xor) < length:
            self._store(each.number(2), [None] * length)
            return True
        done: Bytes = []
        for byte, keep, turn in zip(value, mask, xor, strict=False):
            known = byte if keep else 0
            done.append(None if known is None else (known & keep) ^ turn)
        self._store(each.number(2), done)
        return True

    def compare(self, each: Expression) -> bool | None:
        data = each.value(3)
        return compared(self._load(each.number(1), len(data)), each.number(2), data)

    def range_(self, each: Expression) -> bool | None:
        first, last = each.value(3), each.value(4)
        value = self._load(each.number(1), len(first))
        inside = both(iter((compared(value, 5, first), compared(value, 3, last))))
        return turned(inside, each.number(2) == 1)

    def ct(self, each: Expression) -> bool | None:
        if 4 in each.found:
            return True
        key, packet = CT_KEYS.get(each.number(2)), self._packet
        value: Bytes = [None] * 16
        if key == "state" and packet.state in CT_STATES:
            value = list(CT_STATES[packet.state].to_bytes(4, sys.byteorder))
        elif key == "status" and packet.snat is not None and packet.dnat is not None:
            bits = STATUS_SNAT * packet.snat | STATUS_DNAT * packet.dnat
            value = list(bits.to_bytes(4, sys.byteorder))
        elif key == "direction":
            value = [0 if packet.state == "new" else 1]
        self._store(each.number(1), value)
        return True

    def fib(self, each: Expression) -> bool | None:
        value: Bytes = [None] * 4
        of = self._packet.is_for_local if each.number(3) & 2 else self._packet.is_from_local
        if each.number(2) == 3 and of is not None:
            value = list((RTN_LOCAL if of else RTN_UNICAST).to_bytes(4, sys.byteorder))
        self._store(each.number(1), value)
        return True

    def lookup(self, each: Expression) -> bool | None:
        held = self._sets.get(text(each.found.get(1, b"")))
        if held is None:
            return None
        width = max((len(one.key) for one in held.elements), default=0)
        value = self._load(each.number(2), width)
        found, element = _member(held, value)
        if element is not None and held.flags & MAP and found:
            self._map(each, element)
        elif held.flags & MAP and found is None:
            return None
        return turned(found, bool(each.number(5) & 1))

    def _map(self, each: Expression, element: Element) -> None:
        if VERDICT in element.data:
            self._effect = verdict(element.data[VERDICT])
        elif 3 in each.found:
            self._store(each.number(3), list(element.data.get(VALUE, b"")))

    def immediate(self, each: Expression) -> bool | None:
        data = attributes(each.found.get(2, b""))
        if VERDICT in data:
            self._effect = verdict(data[VERDICT])
        else:
            self._store(each.number(1), list(data.get(VALUE, b"")))
        return True

    def reject(self, _: Expression) -> bool | None:
        self._effect = Effect(verdict="reject")
        return True

    def nat(self, each: Expression) -> bool | None:
        kind = "snat" if each.number(1) == 0 else "dnat"
        width = 4 if each.number(2) == 2 else 16
        address = self._known(each, 3, width) if 3 in each.found else None
        port = self._known(each, 5, 2) if 5 in each.found else None
        self._effect = Effect(
            verdict=kind,
            address=None if address is None else ip(address),
            port=None if port is None else int.from_bytes(port, "big"),
        )
        return True

    def masquerade(self, _: Expression) -> bool | None:
        self._effect = Effect(verdict="masquerade")
        return True

    def redirect(self, each: Expression) -> bool | None:
        port = self._known(each, 1, 2) if 1 in each.found else None
        number = None if port is None else int.from_bytes(port, "big")
        self._effect = Effect(verdict="redirect", port=number)
        return True

    def _known(self, each: Expression, kind: int, width: int) -> bytes | None:
        value = self._load(each.number(kind), width)
        return None if None in value else bytes(byte or 0 for byte in value)

    def match(self, each: Expression) -> bool | None:
        name, info = text(each.found.get(1, b"")), each.found.get(3, b"")
        return xtables.match(name, each.number(2), info, self._packet)

    def target(self, each: Expression) -> bool | None:
        name, info = text(each.found.get(1, b"")), each.found.get(3, b"")
        self._effect = xtables.target(name, each.number(2), info)
        return True


_STEPS: dict[str, Callable[[_Run, Expression], bool | None]] = {
    "meta": _Run.meta, "payload": _Run.payload, "bitwise": _Run.bitwise, "cmp": _Run.compare,
    "range": _Run.range_, "ct": _Run.ct, "fib": _Run.fib, "lookup": _Run.lookup,
    "immediate": _Run.immediate, "reject": _Run.reject, "nat": _Run.nat,
    "masq": _Run.masquerade, "redir": _Run.redirect, "match": _Run.match, "target": _Run.target,
}  # fmt: skip


def _offset(register: int) -> int:
    """NFT_REG_1 to 4 are of 16 bytes; NFT_REG32_00 and on, of 4, are the same room."""
    return (register - 1) * 16 if register < 8 else (register - 8) * 4


def _meta(packet: Packet, key: str) -> Bytes:
    native: dict[str, int | None] = {
        "mark": packet.mark,
        "iif": None if packet.iif is None else packet.indexes.get(packet.iif, 0),
        "oif": None if packet.oif is None else packet.indexes.get(packet.oif, 0),
    }
    names = {"iifname": packet.iif, "oifname": packet.oif}
    if key in names:
        name = names[key]
        return [None] * 16 if name is None else list(name.encode()[:15].ljust(16, b"\0"))
    if key == "nfproto":
        return [2 if packet.family == "inet" else 10]
    if key == "l4proto":
        return [packet.protocol]
    if key == "protocol":
        return ether_type(packet)
    number = native.get(key)
    return [None] * 16 if number is None else list(number.to_bytes(4, sys.byteorder))


def compared(value: Bytes, operator: int, data: bytes) -> bool | None:
    """As memcmp() would, as far as it is known."""
    if operator in (0, 1):
        equal = both(None if a is None else a == b for a, b in zip(value, data, strict=True))
        return turned(equal, operator == 1)
    if None in value:
        return None
    mine = bytes(byte or 0 for byte in value)
    return {2: mine < data, 3: mine <= data, 4: mine > data, 5: mine >= data}.get(operator)


def _member(held: NftSet, value: Bytes) -> tuple[bool | None, Element | None]:
    if held.flags & INTERVAL:
        return _between(held, value)
    answers = [(compared(value, 0, one.key), one) for one in held.elements]
    if hit := next((one for answer, one in answers if answer), None):
        return True, hit
    return (None if any(answer is None for answer, _ in answers) else False), None


def _between(held: NftSet, value: Bytes) -> tuple[bool | None, Element | None]:
    """Each element opens an interval, or closes the one before it; a concatenation has both."""
    if None in value:
        return None, None
    mine = bytes(byte or 0 for byte in value)
    if any(one.key_end is not None for one in held.elements):
        return None, None
    below = [one for one in held.elements if one.key <= mine]
    last = max(below, key=lambda one: (one.key, not one.is_end), default=None)
    return (True, last) if last is not None and not last.is_end else (False, None)


def verdict(value: bytes) -> Effect:
    """What a verdict's attributes say."""
    found = attributes(value)
    code = int.from_bytes(found.get(VERDICT_CODE, b""), "big", signed=True)
    chain = text(found[VERDICT_CHAIN]) if VERDICT_CHAIN in found else None
    return Effect(verdict=VERDICTS.get(code, "unknown"), chain=chain)


def ip(value: bytes) -> str:
    """An address by its length."""
    return socket.inet_ntop(socket.AF_INET if len(value) == 4 else socket.AF_INET6, value)
