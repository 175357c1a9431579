"""A packet filter in a namespace of a lab: a table ``lab``, in it one chain for a hook, its rules.

``nft`` would say it so: https://wiki.nftables.org; and these are the messages that it sends
(include/uapi/linux/netfilter/nf_tables.h). What makes or changes something does so in the
namespace that the running thread is in.
"""

import errno
import socket
import struct
import time
from collections.abc import Sequence

from msgspec import Struct

from whybox.change import FilterRule
from whybox.kernel import netlink
from whybox.kernel.netlink import (
    NFGENMSG,
    NLM_F_ACK,
    NLM_F_APPEND,
    NLM_F_CREATE,
    attribute,
    nested,
    request,
)
from whybox.kernel.netns import call_in
from whybox.kernel.nftables import (
    CHAIN_HOOK,
    CHAIN_NAME,
    CHAIN_POLICY,
    CHAIN_TABLE,
    CHAIN_TYPE,
    EXPRESSION_DATA,
    EXPRESSION_NAME,
    HOOK_NUMBER,
    HOOK_PRIORITY,
    HOOKS,
    LIST_ELEMENT,
    NUMBERS,
    RULE_CHAIN,
    RULE_EXPRESSIONS,
    RULE_HANDLE,
    RULE_TABLE,
    SUBSYSTEM,
    TABLE_NAME,
)
from whybox.kernel.nftexpressions import VALUE, VERDICT, VERDICT_CODE

TABLE = "lab"
BATCH_BEGIN, BATCH_END = 16, 17
NEWTABLE, NEWCHAIN, NEWRULE, DELRULE = (SUBSYSTEM << 8 | number for number in (0, 3, 6, 8))
VERDICTS = {"drop": 0, "accept": 1}

#: Where an expression puts a value, and where the next one finds it: 0 is the verdict's.
_VERDICT_REGISTER, _REGISTER = 0, 1
#: The destination is 4 bytes at 16 of the network header (NFT_PAYLOAD_NETWORK_HEADER).
_NETWORK_HEADER, _DESTINATION, _ADDRESS_BYTES, _EQUAL = 1, 16, 4, 0
_META_NFPROTO, _CT_STATE = 15, 0

#: So many rules fit into what a socket sends at once.
_AT_ONCE = 200
#: A module may have to be loaded, and an emulated machine takes its time for a long chain.
_PATIENCE_SECONDS = 60.0

Step = tuple[int, int, bytes]
"""The message's type, flags and attributes."""


class Filtered(Struct, frozen=True, kw_only=True):
    """A chain on one hook; ``forward`` is the node's, ``input`` and ``output`` the box's."""

    hook: str
    policy: str = "drop"
    to: str | None = None
    """What is for this IPv4 address is treated the other way."""


class Filter(netlink.Socket):
    """Changes the filters of the network namespace that it was made in."""

    def __init__(self) -> None:
        super().__init__(netlink.NETLINK_NETFILTER, timeout_sec=_PATIENCE_SECONDS)

    def commit(self, family: str, steps: Sequence[Step], asked: str) -> None:
        """One transaction; raises OSError with what the kernel refused of it.

        A refused step is always answered, and before the last one, which alone is acknowledged.
        """
        self._sequence += 1
        edge, head = NFGENMSG.pack(0, 0, SUBSYSTEM), NFGENMSG.pack(NUMBERS[family], 0, 0)
        sent = [(BATCH_BEGIN, 0, edge)]
        sent += [(kind, flags, head + body) for kind, flags, body in steps[:-1]]
        kind, flags, body = steps[-1]
        sent += [(kind, flags | NLM_F_ACK, head + body), (BATCH_END, 0, edge)]
        self._socket.send(b"".join(request(k, f, self._sequence, body) for k, f, body in sent))
        deadline = time.monotonic() + self.timeout_sec
        while not netlink.portion(self._receive(asked, deadline), self._sequence, asked).done:
            pass


def add(wanted: Filtered) -> None:
    """The chain, and the rule if there is one."""
    steps = _chain(wanted.hook, wanted.policy)
    if wanted.to is not None:
        other = "drop" if wanted.policy == "accept" else "accept"
        # meta nfproto ipv4 ip daddr ADDRESS counter VERDICT
        is_ipv4 = (_load("meta", _META_NFPROTO), _equal(bytes([NUMBERS["ip"]])))
        rest = (*_is_to(wanted.to), _expression("counter", b""), _verdict(other))
        steps.append(_rule(wanted.hook, *is_ipv4, *rest))
    _commit("inet", steps, f"filter {wanted.hook}")


def apply(change: FilterRule) -> None:
    """Remove a rule; or the policy, which then accepts."""
    _, family, table = change.table.split(" ", 2)
    if change.number == 0:
        chain = _text(CHAIN_TABLE, table) + _text(CHAIN_NAME, change.chain)
        step = (NEWCHAIN, 0, chain + _number(CHAIN_POLICY, VERDICTS["accept"]))
    else:
        rule = _text(RULE_TABLE, table) + _text(RULE_CHAIN, change.chain)
        handle = struct.pack(">Q", change.handle or 0)
        step = (DELRULE, 0, rule + attribute(RULE_HANDLE, handle))
    _commit(family, [step], f"remove {change}")


def track(hook: str) -> None:
    """Follow every IPv4 connection that passes the hook, and refuse none.

    A rule that asks for the state of a connection is what switches connection tracking on.
    """
    _commit("ip", [*_chain(hook), _rule(hook, _load("ct", _CT_STATE))], f"track {hook}")


def drop_all(hook: str) -> None:
    """Drop every IPv4 packet that passes the hook, and follow connections as well."""
    rule = _rule(hook, _load("ct", _CT_STATE), _verdict("drop"))
    _commit("ip", [*_chain(hook), rule], f"drop {hook}")


def missing() -> str | None:
    """Why there can be no such rule here; asked in a namespace that may be spoiled."""
    try:
        track("prerouting")
    except OSError as error:
        return f"no rule of nftables can be made here: {errno.errorcode.get(error.errno or 0, '')}"
    return None


def many(ns_path: str, count: int) -> None:
    """Have every IPv4 packet that is forwarded in the namespace compared with so many rules.

    They match nothing: each compares the destination with an address that nobody has.
    """
    call_in(ns_path, lambda: _many(count), timeout_sec=_PATIENCE_SECONDS)


def _many(count: int) -> None:
    nobody = (socket.inet_ntoa(struct.pack(">I", (203 << 24) + n)) for n in range(count))
    rules = [_rule("forward", *_is_to(address)) for address in nobody]
    with Filter() as changing:
        changing.commit("ip", _chain("forward"), "filter forward")
        for first in range(0, count, _AT_ONCE):
            changing.commit("ip", rules[first : first + _AT_ONCE], f"{count} rules")


def _commit(family: str, steps: Sequence[Step], asked: str) -> None:
    with Filter() as changing:
        changing.commit(family, steps, asked)


def _chain(hook: str, policy: str = "accept") -> list[Step]:
    """The table, and the chain of the hook."""
    place = _number(HOOK_NUMBER, HOOKS.index(hook)) + _number(HOOK_PRIORITY, 0)
    chain = _text(CHAIN_TABLE, TABLE) + _text(CHAIN_NAME, hook) + nested(CHAIN_HOOK, place)
    chain += _number(CHAIN_POLICY, VERDICTS[policy]) + _text(CHAIN_TYPE, "filter")
    return [(NEWTABLE, NLM_F_CREATE, _text(TABLE_NAME, TABLE)), (NEWCHAIN, NLM_F_CREATE, chain)]


def _rule(hook: str, *expressions: bytes) -> Step:
    """At the end of the hook's chain."""
    body = _text(RULE_TABLE, TABLE) + _text(RULE_CHAIN, hook)
    body += nested(RULE_EXPRESSIONS, b"".join(expressions))
    return NEWRULE, NLM_F_CREATE | NLM_F_APPEND, body


def _is_to(address: str) -> tuple[bytes, ...]:
    """``ip daddr ADDRESS``."""
    place = _number(2, _NETWORK_HEADER) + _number(3, _DESTINATION) + _number(4, _ADDRESS_BYTES)
    load = _expression("payload", _number(1, _REGISTER) + place)
    return load, _equal(socket.inet_aton(address))


def _load(name: str, key: int) -> bytes:
    """What ``meta`` or ``ct`` knows by a key."""
    return _expression(name, _number(1, _REGISTER) + _number(2, key))


def _equal(value: bytes) -> bytes:
    wanted = nested(3, attribute(VALUE, value))
    return _expression("cmp", _number(1, _REGISTER) + _number(2, _EQUAL) + wanted)


def _verdict(name: str) -> bytes:
    verdict = nested(2, nested(VERDICT, _number(VERDICT_CODE, VERDICTS[name])))
    return _expression("immediate", _number(1, _VERDICT_REGISTER) + verdict)


def _expression(name: str, data: bytes) -> bytes:
    body = _text(EXPRESSION_NAME, name) + nested(EXPRESSION_DATA, data)
    return nested(LIST_ELEMENT, body)


def _text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack(">I", value))
