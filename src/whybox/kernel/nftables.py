"""The nftables of a network namespace (include/uapi/linux/netfilter/nf_tables.h).

``iptables-nft`` and Docker write theirs here too. Reading needs CAP_NET_ADMIN there.
"""

import errno
import struct
from collections.abc import Iterator

from msgspec import Struct, structs

from whybox.kernel import netlink
from whybox.kernel.netlink import NETLINK_NETFILTER, NFGENMSG, attributes, text
from whybox.kernel.nftexpressions import Element, Expression, NftSet, rule_check
from whybox.kernel.nfttext import rule_text
from whybox.kernel.packetfilter import Chain, Named, Rule

SUBSYSTEM = 10
GETCHAIN, GETRULE, GETSET, GETSETELEM = (SUBSYSTEM << 8 | number for number in (4, 7, 10, 13))

FAMILIES = {0: "unspec", 1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
NUMBERS = {name: number for number, name in FAMILIES.items()}
HOOKS = ("prerouting", "input", "forward", "output", "postrouting", "ingress")
NETDEV_HOOKS = ("ingress", "egress")

TABLE_NAME = 1
CHAIN_TABLE, CHAIN_NAME, CHAIN_HOOK, CHAIN_POLICY, CHAIN_TYPE, CHAIN_COUNTERS = 1, 3, 4, 5, 7, 8
HOOK_NUMBER, HOOK_PRIORITY = 1, 2
COUNTER_PACKETS = 2
RULE_TABLE, RULE_CHAIN, RULE_HANDLE, RULE_EXPRESSIONS = 1, 2, 3, 4
LIST_ELEMENT, EXPRESSION_NAME, EXPRESSION_DATA = 1, 1, 2
SET_TABLE, SET_NAME, SET_FLAGS = 1, 2, 3
SET_LIST_TABLE, SET_LIST_SET, SET_LIST_ELEMENTS = 1, 2, 3
ELEMENT_KEY, ELEMENT_DATA, ELEMENT_FLAGS, ELEMENT_KEY_END = 1, 2, 3, 10

#: Sets larger than all these together are not read: whoever is in them is then not known.
MOST_SETS = 256


class _RawRule(Struct, frozen=True):
    family: str
    table: str
    chain: str
    handle: int
    expressions: tuple[Expression, ...]


def read(most: int | None = None) -> tuple[Chain, ...]:
    """The chains with their rules, of the namespace that the running thread is in.

    OSError with E2BIG where there are more than ``most``: to understand them takes some 50
    microseconds of CPU each.
    """
    with netlink.Socket(NETLINK_NETFILTER) as sock:
        chains = [_chain(m.payload) for m in _dump(sock, GETCHAIN, "NFT_MSG_GETCHAIN")]
        if not chains:
            return ()
        said = _dump(sock, GETRULE, "NFT_MSG_GETRULE")
        too_many(len(said), most)
        rules = [_raw_rule(message.payload) for message in said]
        sets = _sets(sock) if any(_looks_up(rule) for rule in rules) else {}
    return tuple(_filled(chains, rules, sets))


def too_many(found: int, most: int | None) -> None:
    """Refuse more rules than are wanted."""
    if most is not None and found > most:
        raise OSError(errno.E2BIG, f"{found} rules are more than are asked without being told to")


def _dump(
    sock: netlink.Socket, kind: int, asked: str, family: int = 0, body: bytes = b""
) -> list[netlink.Message]:
    return sock.dump(kind, NFGENMSG.pack(family, 0, 0) + body, asked)


def big(value: bytes) -> int:
    """A number as netfilter sends it: the network's byte order."""
    return int.from_bytes(value, "big")


def signed(value: bytes) -> int:
    """The same, two's complement."""
    return int.from_bytes(value, "big", signed=True)


def _family(payload: bytes) -> str:
    return FAMILIES.get(payload[0] if payload else 0, "unknown")


def _chain(payload: bytes) -> Chain:
    found = attributes(payload, NFGENMSG.size)
    family = _family(payload)
    hook = attributes(found.get(CHAIN_HOOK, b""))
    number = big(hook[HOOK_NUMBER]) if HOOK_NUMBER in hook else None
    hooks = NETDEV_HOOKS if family == "netdev" else HOOKS
    counters = attributes(found.get(CHAIN_COUNTERS, b""))
    return Chain(
        table=_table(family, text(found.get(CHAIN_TABLE, b""))),
        name=text(found.get(CHAIN_NAME, b"")),
        hook=hooks[number] if number is not None and number < len(hooks) else None,
        family=family,
        type=text(found.get(CHAIN_TYPE, b"filter")),
        priority=signed(hook[HOOK_PRIORITY]) if HOOK_PRIORITY in hook else 0,
        policy="drop" if CHAIN_POLICY in found and big(found[CHAIN_POLICY]) == 0 else "accept",
        policy_packets=big(counters[COUNTER_PACKETS]) if COUNTER_PACKETS in counters else None,
    )


def _table(family: str, name: str) -> str:
    return f"nft {family} {name}"


def _raw_rule(payload: bytes) -> _RawRule:
    found = attributes(payload, NFGENMSG.size)
    return _RawRule(
        family=_family(payload),
        table=_table(_family(payload), text(found.get(RULE_TABLE, b""))),
        chain=text(found.get(RULE_CHAIN, b"")),
        handle=big(found.get(RULE_HANDLE, b"")),
        expressions=tuple(_expressions(found.get(RULE_EXPRESSIONS, b""))),
    )


def elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Attributes of a list, where one type comes again and again."""
    at = 0
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        if length < 4 or at + length > len(data):
            raise netlink.malformed(f"list element says it has {length} bytes")
        yield kind & netlink.NLA_TYPE_MASK, data[at + 4 : at + length]
        at += netlink.aligned(length)


def _expressions(data: bytes) -> Iterator[Expression]:
    for kind, value in elements(data):
        if kind == LIST_ELEMENT:
            found = attributes(value)
            yield Expression(
                name=text(found.get(EXPRESSION_NAME, b"")),
                found=attributes(found.get(EXPRESSION_DATA, b"")),
            )


def _looks_up(rule: _RawRule) -> bool:
    return any(each.name == "lookup" for each in rule.expressions)


def _sets(sock: netlink.Socket) -> dict[tuple[str, str], NftSet]:
    """The sets and their elements; a set that is too large or gone is left out."""
    found = {}
    for message in _dump(sock, GETSET, "NFT_MSG_GETSET")[:MOST_SETS]:
        said = attributes(message.payload, NFGENMSG.size)
        table, name = said.get(SET_TABLE, b""), said.get(SET_NAME, b"")
        body = netlink.attribute(SET_LIST_TABLE, table) + netlink.attribute(SET_LIST_SET, name)
        try:
            family = message.payload[0]
            asked = f"NFT_MSG_GETSETELEM {text(name)}"
            members = tuple(_elements(_dump(sock, GETSETELEM, asked, family, body)))
        except OSError:
            continue
        flags = big(said.get(SET_FLAGS, b""))
        whose = _table(_family(message.payload), text(table))
        found[whose, text(name)] = NftSet(flags=flags, elements=members)
    return found


def _elements(messages: list[netlink.Message]) -> Iterator[Element]:
    for message in messages:
        found = attributes(message.payload, NFGENMSG.size)
        for _, value in elements(found.get(SET_LIST_ELEMENTS, b"")):
            said = attributes(value)
            yield Element(
                key=attributes(said.get(ELEMENT_KEY, b"")).get(1, b""),
                key_end=attributes(said.get(ELEMENT_KEY_END, b"")).get(1),
                is_end=bool(big(said.get(ELEMENT_FLAGS, b"")) & 1),
                data=attributes(said.get(ELEMENT_DATA, b"")),
            )


def _filled(
    chains: list[Chain], rules: list[_RawRule], sets: dict[tuple[str, str], NftSet]
) -> Iterator[Chain]:
    inside: dict[tuple[str, str], list[_RawRule]] = {}
    for rule in rules:
        inside.setdefault((rule.table, rule.chain), []).append(rule)
    for chain in chains:
        own = inside.get((chain.table, chain.name), [])
        mine = {name: members for (table, name), members in sets.items() if table == chain.table}
        yield structs.replace(
            chain, rules=tuple(_rule(raw, place, mine) for place, raw in enumerate(own, 1))
        )


def _rule(raw: _RawRule, place: int, sets: dict[str, NftSet]) -> Rule:
    counters = [each.found for each in raw.expressions if each.name == "counter"]
    packets = [big(found[COUNTER_PACKETS]) for found in counters if COUNTER_PACKETS in found]
    named = Named(
        table=raw.table,
        chain=raw.chain,
        number=place,
        text=rule_text(raw.expressions),
        packets=packets[0] if packets else None,
        handle=raw.handle,
    )
    return Rule(named=named, check=rule_check(raw.expressions, sets))
