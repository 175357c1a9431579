"""A packet filter in a namespace of a lab: one chain, one rule at most.

``nft`` would say it so: https://wiki.nftables.org; and these are the messages that it sends
(include/uapi/linux/netfilter/nf_tables.h). All that is changed together goes in one batch.
"""

import os
import socket
import struct
import time

from msgspec import Struct

from whybox.change import FilterRule
from whybox.kernel import netlink
from whybox.kernel.netlink import attribute
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
    NETLINK_NETFILTER,
    NUMBERS,
    RULE_CHAIN,
    RULE_EXPRESSIONS,
    RULE_HANDLE,
    RULE_TABLE,
)

TABLE = "lab"
NLA_F_NESTED = 0x8000
NLM_F_ACK, NLM_F_CREATE, NLM_F_APPEND = 0x4, 0x400, 0x800
_SUBSYSTEM = 10
BATCH_BEGIN, BATCH_END = 16, 17
NEWTABLE, NEWCHAIN, NEWRULE, DELRULE = (_SUBSYSTEM << 8 | number for number in (0, 3, 6, 8))
_NFGENMSG = struct.Struct(">BBH")
VERDICTS = {"drop": 0, "accept": 1}


class Filtered(Struct, frozen=True, kw_only=True):
    """A chain on one hook; ``forward`` is the node's, ``input`` and ``output`` the box's."""

    hook: str
    policy: str = "drop"
    to: str | None = None
    """What is for this IPv4 address is treated the other way."""


class Filter(netlink.Socket):
    """Changes the filters of the network namespace that it was made in."""

    def __init__(self) -> None:
        super().__init__(NETLINK_NETFILTER)

    def add(self, wanted: Filtered) -> None:
        """The table, its chain, and the rule if there is one."""
        hook = _nested(
            CHAIN_HOOK,
            _number(HOOK_NUMBER, HOOKS.index(wanted.hook)) + _number(HOOK_PRIORITY, 0),
        )
        chain = (
            _text(CHAIN_TABLE, TABLE)
            + _text(CHAIN_NAME, wanted.hook)
            + hook
            + _number(CHAIN_POLICY, VERDICTS[wanted.policy])
            + _text(CHAIN_TYPE, "filter")
        )
        steps = [(NEWTABLE, NLM_F_CREATE, _text(1, TABLE)), (NEWCHAIN, NLM_F_CREATE, chain)]
        if wanted.to is not None:
            steps.append((NEWRULE, NLM_F_CREATE | NLM_F_APPEND, _rule(wanted)))
        self._commit(NUMBERS["inet"], steps, f"filter {wanted.hook}")

    def remove(self, change: FilterRule) -> None:
        """A rule; or the policy, which then accepts."""
        _, family, table = change.table.split(" ", 2)
        if change.number == 0:
            chain = _text(CHAIN_TABLE, table) + _text(CHAIN_NAME, change.chain)
            step = (NEWCHAIN, 0, chain + _number(CHAIN_POLICY, VERDICTS["accept"]))
        else:
            rule = _text(RULE_TABLE, table) + _text(RULE_CHAIN, change.chain)
            handle = struct.pack(">Q", change.handle or 0)
            step = (DELRULE, 0, rule + attribute(RULE_HANDLE, handle))
        self._commit(NUMBERS[family], [step], f"remove {change}")

    def _commit(self, family: int, steps: list[tuple[int, int, bytes]], asked: str) -> None:
        edge = _NFGENMSG.pack(0, 0, _SUBSYSTEM)
        head = _NFGENMSG.pack(family, 0, 0)
        sent = [netlink.request(BATCH_BEGIN, 0, 0, edge)]
        for number, (kind, flags, payload) in enumerate(steps, 1):
            sent.append(netlink.request(kind, flags | NLM_F_ACK, number, head + payload))
        sent.append(netlink.request(BATCH_END, 0, len(steps) + 1, edge))
        self._socket.send(b"".join(sent))
        deadline = time.monotonic() + self.timeout_sec
        answered = 0
        while answered < len(steps):
            for message in netlink.messages(self._receive(asked, deadline)):
                answered += 1
                (status,) = struct.unpack_from("=i", message.payload)
                if status:
                    raise OSError(-status, os.strerror(-status), asked)


def apply(change: FilterRule) -> None:
    """In the namespace that the running thread is in."""
    with Filter() as changing:
        changing.remove(change)


def add(wanted: Filtered) -> None:
    """In the namespace that the running thread is in."""
    with Filter() as changing:
        changing.add(wanted)


def _nested(kind: int, value: bytes) -> bytes:
    return attribute(kind | NLA_F_NESTED, value)


def _text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack(">I", value))


def _expression(name: str, data: bytes) -> bytes:
    body = _text(EXPRESSION_NAME, name) + _nested(EXPRESSION_DATA, data)
    return _nested(LIST_ELEMENT, body)


def _rule(wanted: Filtered) -> bytes:
    """``ip daddr ADDRESS counter VERDICT``."""
    other = VERDICTS["drop" if wanted.policy == "accept" else "accept"]
    family = _nested(3, attribute(1, bytes([NUMBERS["ip"]])))
    value = _nested(3, attribute(1, socket.inet_aton(wanted.to or "")))
    verdict = _nested(2, _nested(2, _number(1, other)))
    steps = (
        # meta nfproto into register 1, compared with IPv4
        _expression("meta", _number(1, 1) + _number(2, 15)),
        _expression("cmp", _number(1, 1) + _number(2, 0) + family),
        # four bytes from 16 on of the network header: the destination
        _expression("payload", _number(1, 1) + _number(2, 1) + _number(3, 16) + _number(4, 4)),
        _expression("cmp", _number(1, 1) + _number(2, 0) + value),
        _expression("counter", b""),
        _expression("immediate", _number(1, 0) + verdict),
    )
    head = _text(RULE_TABLE, TABLE) + _text(RULE_CHAIN, wanted.hook)
    return head + _nested(RULE_EXPRESSIONS, b"".join(steps))
