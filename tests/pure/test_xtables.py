"""Matches and targets of iptables in the bytes that the kernel gives."""

import socket
import struct

import pytest
from msgspec import structs

from whybox.kernel import xtables
from whybox.kernel.packetfilter import Packet

PACKET = Packet(family="inet", source="10.0.0.2", destination="10.1.0.2", sport=40000, dport=80)


def tcp(first: int, last: int, *, mask: int = 0, wanted: int = 0, invert: int = 0) -> bytes:
    return struct.pack("=4H4B", 0, 0xFFFF, first, last, 0, mask, wanted, invert)


def test_ports_of_tcp() -> None:
    assert xtables.match("tcp", 0, tcp(80, 80), PACKET) is True
    assert xtables.match("tcp", 0, tcp(81, 90), PACKET) is False
    assert xtables.match("tcp", 0, tcp(80, 80, invert=2), PACKET) is False
    assert xtables.match("tcp", 0, tcp(80, 80), structs.replace(PACKET, dport=None)) is None
    assert xtables.match("tcp", 0, tcp(80, 80), structs.replace(PACKET, protocol=17)) is False


def test_flags_of_tcp() -> None:
    syn = tcp(0, 0xFFFF, mask=0x06, wanted=0x02)
    assert xtables.match("tcp", 0, syn, PACKET) is True
    only_syn = tcp(0, 0xFFFF, mask=0x17, wanted=0x02)
    answer = structs.replace(PACKET, state="established")
    assert xtables.match("tcp", 0, only_syn, answer) is False


@pytest.mark.parametrize("revision", [1, 2, 3])
def test_the_state_of_the_connection(revision: int) -> None:
    layout = "=HHBB" if revision == 1 else "=HHHH"
    established = bytes(146) + struct.pack(layout, 0x2001, 0, 0x2 | 0x4, 0)
    assert xtables.match("conntrack", revision, established, PACKET) is False
    answer = structs.replace(PACKET, state="established")
    assert xtables.match("conntrack", revision, established, answer) is True
    others = bytes(146) + struct.pack(layout, 0x2001 | 0x8, 0, 0x8, 0)
    assert xtables.match("conntrack", revision, others, PACKET) is None, "an address is compared"


def test_the_kind_of_an_address() -> None:
    local = struct.pack("=HHI", 0, 1 << 2, 0)
    assert xtables.match("addrtype", 1, local, PACKET) is False
    own = structs.replace(PACKET, local=frozenset({"10.1.0.2"}))
    assert xtables.match("addrtype", 1, local, own) is True
    assert xtables.match("addrtype", 1, local, structs.replace(own, destination=None)) is None


def test_many_ports_and_ranges() -> None:
    ports = struct.pack("=15H", 22, 80, 90, *([0] * 12))
    ranges = bytes([0, 1, 0] + [0] * 12)
    info = struct.pack("=BB", 1, 3) + ports + ranges + bytes(1)
    assert xtables.match("multiport", 1, info, PACKET) is True
    assert xtables.match("multiport", 1, info, structs.replace(PACKET, dport=91)) is False


def test_what_is_not_known_leaves_it_open() -> None:
    for name in ("set", "limit", "statistic", "bpf"):
        assert xtables.match(name, 0, b"", PACKET) is None
    assert xtables.match("tcp", 0, b"short", PACKET) is None


def test_a_translation_tells_where_to() -> None:
    address = socket.inet_aton("10.0.0.3")
    old = struct.pack("=II4s4s", 1, 3, address, address) + struct.pack(">HH", 8080, 8080)
    new = struct.pack("=I16s16s", 3, address, address) + struct.pack(">HHH", 8080, 8080, 0)
    for revision, info in ((0, old), (2, new)):
        effect = xtables.target("DNAT", revision, info)
        assert (effect.verdict, effect.address, effect.port) == ("dnat", "10.0.0.3", 8080)


def test_other_targets() -> None:
    assert xtables.target("REJECT", 0, bytes(4)).verdict == "reject"
    assert xtables.target("MASQUERADE", 0, bytes(20)).verdict == "masquerade"
    assert xtables.target("TCPMSS", 0, bytes(2)).verdict == "clamp"
    assert xtables.target("LOG", 0, bytes(40)).verdict == "continue"
    assert xtables.target("MARK", 2, struct.pack("=II", 0x4000, 0x4000)).mark == 0x4000
    assert xtables.target("DNAT", 2, b"").verdict == "continue", "too short to be understood"
