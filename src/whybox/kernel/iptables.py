"""The tables of legacy iptables (include/uapi/linux/netfilter_ipv4/ip_tables.h).

Only tables that are there already are read: to ask for another would make it.
"""

import ctypes
import os
import socket
import struct
from collections.abc import Iterator

from whybox.kernel import xtables
from whybox.kernel.host import c_string
from whybox.kernel.nftables import too_many
from whybox.kernel.packetfilter import (
    CONTINUE,
    Chain,
    Check,
    Effect,
    Named,
    Packet,
    Rule,
    both,
    turned,
)

NAMES = "/proc/thread-self/net/ip_tables_names"
GET_INFO, GET_ENTRIES = 64, 65
HOOKS = ("prerouting", "input", "forward", "output", "postrouting")
#: Their priorities (include/uapi/linux/netfilter_ipv4.h); nat's and security's differ by hook.
PRIORITIES = {"raw": -300, "mangle": -150, "nat": -100, "filter": 0, "security": 50}
NO_ENTRY = 0xFFFFFFFF

# ipt_getinfo: name, valid_hooks, hook_entry[5], underflow[5], num_entries, size
_INFO = struct.Struct("=32sI5I5III")
_GET = struct.Struct("=32sI4x")
# ipt_ip: src, dst, smsk, dmsk, iniface, outiface, their masks, proto, flags, invflags
_IP = struct.Struct("=4s4s4s4s16s16s16s16sHBB")
# after it: nfcache, target_offset, next_offset, comefrom, packets, bytes
_REST = struct.Struct("=IHHIQQ")
_EXTENSION = struct.Struct("=H29sB")
ENTRY_BYTES = 112
INVERT_IIF, INVERT_OIF, INVERT_SOURCE, INVERT_DESTINATION, INVERT_PROTOCOL = 1, 2, 8, 16, 64
GOTO = 0x02
LIMIT_BYTES = 64 << 20

_libc = ctypes.CDLL(None, use_errno=True)


def read(most: int | None = None) -> tuple[Chain, ...]:
    """The chains of all tables of the namespace that the running thread is in.

    OSError with E2BIG where a table has more than ``most`` rules.
    """
    try:
        with open(NAMES, encoding="ascii") as file:
            names = file.read(4096).split()
    except FileNotFoundError:
        return ()
    if not names:
        return ()
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
        return tuple(chain for name in names for chain in _table(sock, name, most))


def _ask(sock: socket.socket, option: int, request: bytes, size: int) -> bytes:
    buffer = ctypes.create_string_buffer(request.ljust(size, b"\0"), size)
    length = ctypes.c_uint(size)
    if _libc.getsockopt(sock.fileno(), socket.IPPROTO_IP, option, buffer, ctypes.byref(length)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "iptables")
    return buffer.raw


def _table(sock: socket.socket, name: str, most: int | None) -> Iterator[Chain]:
    said = _INFO.unpack(_ask(sock, GET_INFO, name.encode(), _INFO.size))
    valid, entries, underflows, size = said[1], said[2:7], said[7:12], said[13]
    too_many(said[12], most)
    if size > LIMIT_BYTES:
        raise OSError(27, "the table is too large", f"iptables {name}")
    raw = _ask(sock, GET_ENTRIES, _GET.pack(name.encode(), size), _GET.size + size)
    hooks = {hook: (entries[n], underflows[n]) for n, hook in enumerate(HOOKS) if valid >> n & 1}
    yield from chains(name, raw[_GET.size :], hooks)


def chains(name: str, data: bytes, hooks: dict[str, tuple[int, int]]) -> Iterator[Chain]:
    """The blob cut into chains: a base chain begins at its hook, another at its ERROR target."""
    starts = {entry: hook for hook, (entry, _) in hooks.items()}
    ends = {under: hook for hook, (_, under) in hooks.items()}
    places = _names(data, starts)
    found: dict[str, list[Rule]] = {}
    policies: dict[str, tuple[str, int]] = {}
    current = ""
    for at, entry in _entries(data):
        if at in starts:
            current = starts[at].upper()
            found[current] = []
        kind, info = _target_of(entry)
        if kind == "ERROR":
            current = c_string(info[:30])
            found[current] = []
        elif at in ends:
            policies[current] = (_verdict(info), _counted(entry))
        else:
            rules = found.setdefault(current, [])
            rules.append(_rule(name, current, len(rules) + 1, entry, places, at))
    found.pop("ERROR", None)  # the mark of the table's end
    for chain, rules in found.items():
        base = chain.lower() if chain.lower() in hooks and chain in policies else None
        policy, packets = policies.get(chain, ("accept", 0))
        yield Chain(
            table=f"iptables {name}",
            name=chain,
            rules=tuple(_without_end(rules, base)),
            hook=base,
            type="nat" if name == "nat" else "filter",
            priority=_priority(name, base),
            policy=policy,
            policy_packets=packets if base else None,
        )


def _priority(name: str, hook: str | None) -> int:
    if name == "nat" and hook in ("input", "postrouting"):
        return 100
    return PRIORITIES.get(name, 0)


def _without_end(rules: list[Rule], base: str | None) -> list[Rule]:
    """A chain of one's own ends in an unconditional RETURN, which nobody wrote."""
    return rules if base else rules[:-1]


def _entries(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + ENTRY_BYTES <= len(data):
        _, _, length, *_ = _REST.unpack_from(data, at + _IP.size)
        if length < ENTRY_BYTES:
            return
        yield at, data[at : at + length]
        at += length


def _names(data: bytes, starts: dict[int, str]) -> dict[int, str]:
    """Where each chain begins, for jumps: behind its ERROR entry, or at its hook."""
    found = {at: hook.upper() for at, hook in starts.items()}
    for at, entry in _entries(data):
        kind, info = _target_of(entry)
        if kind == "ERROR":
            found[at + len(entry)] = c_string(info[:30])
    return found


def _target_of(entry: bytes) -> tuple[str, bytes]:
    _, offset, *_ = _REST.unpack_from(entry, _IP.size)
    size, name, _ = _EXTENSION.unpack_from(entry, offset)
    return c_string(name), entry[offset + _EXTENSION.size : offset + size]


def _verdict(info: bytes) -> str:
    (number,) = struct.unpack_from("=i", info)
    return xtables.STANDARD.get(number, "jump")


def _counted(entry: bytes) -> int:
    return int(_REST.unpack_from(entry, _IP.size)[4])


def _matches(entry: bytes) -> Iterator[tuple[str, int, bytes]]:
    _, end, *_ = _REST.unpack_from(entry, _IP.size)
    at = ENTRY_BYTES
    while at + _EXTENSION.size <= end:
        size, name, revision = _EXTENSION.unpack_from(entry, at)
        if size < _EXTENSION.size:
            return
        yield c_string(name), revision, entry[at + _EXTENSION.size : at + size]
        at += size


def _effect(entry: bytes, places: dict[int, str], at: int) -> Effect:
    kind, info = _target_of(entry)
    if kind:
        _, offset, *_ = _REST.unpack_from(entry, _IP.size)
        revision = _EXTENSION.unpack_from(entry, offset)[2]
        return xtables.target(kind, revision, info)
    (number,) = struct.unpack_from("=i", info)
    if number < 0:
        return Effect(verdict=xtables.STANDARD.get(number, "unknown"))
    if number == at + len(entry):
        return CONTINUE  # no target was given: on to the next rule
    goes = bool(_IP.unpack_from(entry)[9] & GOTO)
    return Effect(verdict="goto" if goes else "jump", chain=places.get(number))


def _rule(
    table: str, chain: str, number: int, entry: bytes, places: dict[int, str], at: int
) -> Rule:
    effect = _effect(entry, places, at)
    named = Named(
        table=f"iptables {table}",
        chain=chain,
        number=number,
        text=_text(entry, effect),
        packets=_counted(entry),
    )
    return Rule(named=named, check=_check(entry, effect))


def _check(entry: bytes, effect: Effect) -> Check:
    head = _IP.unpack_from(entry)
    more = tuple(_matches(entry))

    def check(packet: Packet) -> tuple[bool | None, Effect]:
        answers = [_head(head, packet)]
        answers += [xtables.match(name, revision, info, packet) for name, revision, info in more]
        return both(iter(answers)), effect

    return check


def _head(head: tuple[bytes | int, ...], packet: Packet) -> bool | None:
    source, destination, smask, dmask, iif, oif, imask, omask, protocol, _, inverted = head
    invert = int(inverted)
    answers = (
        turned(_within(packet.source, source, smask), bool(invert & INVERT_SOURCE)),
        turned(_within(packet.destination, destination, dmask), bool(invert & INVERT_DESTINATION)),
        turned(_named(packet.iif, iif, imask), bool(invert & INVERT_IIF)),
        turned(_named(packet.oif, oif, omask), bool(invert & INVERT_OIF)),
        turned(not protocol or packet.protocol == protocol, bool(invert & INVERT_PROTOCOL)),
    )
    return both(iter(answers))


def _within(address: str | None, wanted: object, mask: object) -> bool | None:
    assert isinstance(wanted, bytes)
    assert isinstance(mask, bytes)
    if not any(mask):
        return True
    if address is None:
        return None
    mine = socket.inet_aton(address)
    return all(a & m == w & m for a, w, m in zip(mine, wanted, mask, strict=True))


def _named(name: str | None, wanted: object, mask: object) -> bool | None:
    assert isinstance(wanted, bytes)
    assert isinstance(mask, bytes)
    if not any(mask):
        return True
    if name is None:
        return None
    mine = name.encode().ljust(16, b"\0")
    return all(a & m == w & m for a, w, m in zip(mine, wanted, mask, strict=True))


def _text(entry: bytes, effect: Effect) -> str:
    source, destination, smask, dmask, iif, oif, _, _, protocol, *_ = _IP.unpack_from(entry)
    words = []
    if any(smask):
        words.append(f"-s {xtables.network(source, smask)}")
    if any(dmask):
        words.append(f"-d {xtables.network(destination, dmask)}")
    words += [f"{flag} {c_string(name)}" for flag, name in (("-i", iif), ("-o", oif)) if name[0]]
    if protocol:
        words.append(f"-p { {6: 'tcp', 17: 'udp', 1: 'icmp'}.get(protocol, protocol) }")
    words += [xtables.describe(name, info) for name, _, info in _matches(entry)]
    kind, _ = _target_of(entry)
    words.append(f"-j {kind or effect.chain or effect.verdict.upper()}")
    return " ".join(word for word in words if word)
