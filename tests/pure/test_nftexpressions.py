"""One rule of nftables on one packet, expression by expression."""

import socket
import struct
import sys

import pytest
from msgspec import structs

from whybox.kernel.netlink import attribute
from whybox.kernel.nftexpressions import Element, Expression, NftSet, rule_check
from whybox.kernel.nfttext import rule_text
from whybox.kernel.packetfilter import Packet

PACKET = Packet(
    family="inet", source="10.0.0.2", destination="10.1.0.2", sport=40000, dport=80,
    iif="eth0", oif="", local=frozenset({"10.1.0.2"}),
)  # fmt: skip


def number(value: int) -> bytes:
    return struct.pack(">I", value)


def data(value: bytes) -> bytes:
    return attribute(1, value)


def expression(name: str, **found: bytes) -> Expression:
    return Expression(name, {int(key[1:]): value for key, value in found.items()})


def payload(base: int, offset: int, length: int) -> Expression:
    return expression(
        "payload", _1=number(1), _2=number(base), _3=number(offset), _4=number(length)
    )


def meta(key: int) -> Expression:
    return expression("meta", _1=number(1), _2=number(key))


def cmp(value: bytes, operator: int = 0) -> Expression:
    return expression("cmp", _1=number(1), _2=number(operator), _3=data(value))


def bitwise(mask: bytes) -> Expression:
    return expression(
        "bitwise", _1=number(1), _2=number(1), _3=number(len(mask)), _4=data(mask),
        _5=data(bytes(len(mask))),
    )  # fmt: skip


def verdict(code: int, chain: bytes = b"") -> Expression:
    value = attribute(1, struct.pack(">i", code)) + (attribute(2, chain + b"\0") if chain else b"")
    return expression("immediate", _1=number(0), _2=attribute(2, value))


DADDR = (payload(1, 16, 4), cmp(socket.inet_aton("10.1.0.2")))


def judged(
    *steps: Expression, packet: Packet = PACKET, sets: dict[str, NftSet] | None = None
) -> tuple[bool | None, str]:
    matches, effect = rule_check(steps, sets or {})(packet)
    return matches, effect.verdict


def test_an_address_a_port_and_a_verdict() -> None:
    port = (payload(2, 2, 2), cmp(struct.pack(">H", 80)))
    assert judged(*DADDR, *port, verdict(0)) == (True, "drop")
    other = structs.replace(PACKET, dport=81)
    assert judged(*DADDR, *port, verdict(0), packet=other) == (False, "continue")
    unknown = structs.replace(PACKET, dport=None)
    assert judged(*DADDR, *port, verdict(0), packet=unknown) == (None, "drop")


def test_a_network_is_an_address_under_a_mask() -> None:
    inside = (payload(1, 12, 4), bitwise(bytes([255, 255, 0, 0])), cmp(bytes([10, 0, 0, 0])))
    assert judged(*inside, verdict(1)) == (True, "accept")
    unknown = structs.replace(PACKET, source=None)
    assert judged(*inside, verdict(1), packet=unknown)[0] is None
    nothing = (payload(1, 12, 4), bitwise(bytes(4)), cmp(bytes(4)))
    assert judged(*nothing, verdict(1), packet=unknown)[0] is True


def test_the_interface_that_it_came_in_by() -> None:
    name = cmp(b"eth0".ljust(16, b"\0"))
    assert judged(meta(6), name, verdict(0)) == (True, "drop")
    assert judged(meta(6), cmp(b"eth"), verdict(0)) == (True, "drop"), "eth* is a prefix"
    assert judged(meta(7), name, verdict(0))[0] is False
    unknown = structs.replace(PACKET, iif=None)
    assert judged(meta(6), name, verdict(0), packet=unknown)[0] is None


def test_the_state_of_the_connection() -> None:
    state = expression("ct", _1=number(1), _2=number(0))
    mask = bitwise((2 | 4).to_bytes(4, sys.byteorder))
    known = (state, mask, cmp(bytes(4), 1), verdict(1))
    assert judged(*known)[0] is False
    answer = structs.replace(PACKET, state="established")
    assert judged(*known, packet=answer) == (True, "accept")


def test_whether_an_address_is_the_hosts_own() -> None:
    fib = expression("fib", _1=number(1), _2=number(3), _3=number(2))
    local = cmp((2).to_bytes(4, sys.byteorder))
    assert judged(fib, local, verdict(1))[0] is True
    assert (
        judged(fib, local, verdict(1), packet=structs.replace(PACKET, local=frozenset()))[0]
        is False
    )


def element(key: bytes, *, end: bool = False, value: dict[int, bytes] | None = None) -> Element:
    return Element(key=key, key_end=None, is_end=end, data=value or {})


def lookup(*, inverted: bool = False, into: bool = False) -> Expression:
    found = {"_1": b"s\0", "_2": number(1), "_5": number(int(inverted))}
    return expression("lookup", **(found | ({"_3": number(0)} if into else {})))


@pytest.mark.parametrize(("port", "within"), [(79, False), (80, True), (89, True), (90, False)])
def test_a_set_of_intervals(port: int, within: bool) -> None:
    held = NftSet(
        flags=4,
        elements=(
            element(struct.pack(">H", 0), end=True),
            element(struct.pack(">H", 80)),
            element(struct.pack(">H", 90), end=True),
        ),
    )
    asked = structs.replace(PACKET, dport=port)
    found = judged(payload(2, 2, 2), lookup(), verdict(0), packet=asked, sets={"s": held})
    assert found[0] is within
    turned = judged(
        payload(2, 2, 2), lookup(inverted=True), verdict(0), packet=asked, sets={"s": held}
    )
    assert turned[0] is not within


def test_a_verdict_map_sends_on() -> None:
    to = attribute(1, struct.pack(">i", -3)) + attribute(2, b"web\0")
    held = NftSet(flags=8, elements=(element(struct.pack(">H", 80), value={2: to}),))
    matches, effect = rule_check((payload(2, 2, 2), lookup(into=True)), {"s": held})(PACKET)
    assert (matches, effect.verdict, effect.chain) == (True, "jump", "web")


def test_a_set_of_addresses_with_ports() -> None:
    key = socket.inet_aton("10.1.0.2") + struct.pack(">H", 80) + bytes(2)
    held = NftSet(flags=0, elements=(element(key),))
    port = expression("payload", _1=number(9), _2=number(2), _3=number(2), _4=number(2))
    address = expression("payload", _1=number(8), _2=number(1), _3=number(16), _4=number(4))
    asked = expression("lookup", _1=b"s\0", _2=number(8))
    assert judged(address, port, asked, verdict(0), sets={"s": held}) == (True, "drop")
    other = structs.replace(PACKET, dport=81)
    assert judged(address, port, asked, verdict(0), packet=other, sets={"s": held})[0] is False


def test_a_set_that_was_not_read_leaves_it_open() -> None:
    assert judged(payload(2, 2, 2), lookup(), verdict(0)) == (None, "drop")


def test_what_is_not_understood_leaves_it_open() -> None:
    assert judged(expression("limit"), verdict(0)) == (None, "drop")
    assert judged(expression("counter"), verdict(0)) == (True, "drop")


def test_a_request_for_a_link_address_has_no_ip_header() -> None:
    question = structs.replace(PACKET, arp=True)
    ether = (payload(0, 12, 2), cmp(b"\x08\x06"))
    assert judged(*ether, verdict(0), packet=question) == (True, "drop")
    assert judged(*ether, verdict(0))[0] is False
    assert judged(*DADDR, verdict(0), packet=question)[0] is None


def test_a_rule_is_written_about_as_nft_writes_it() -> None:
    port = (payload(2, 2, 2), cmp(struct.pack(">H", 80)))
    assert rule_text((*DADDR, *port, verdict(0))) == "ip daddr 10.1.0.2 dport 80 drop"
    assert rule_text((meta(6), cmp(b"br0\0"), verdict(-3, b"own"))) == "iifname br0 jump own"
