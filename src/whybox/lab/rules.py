"""Packet filter rules in bulk, by nftables' netlink (include/uapi/linux/netfilter/nf_tables.h).

table ip whybox { chain forward { type filter hook forward priority filter; ip daddr … } }
"""

import socket
import struct
import time

from whybox.kernel import netlink
from whybox.kernel.netlink import NLM_F_REQUEST, attribute, request
from whybox.kernel.netns import call_in

NETLINK_NETFILTER = 12
_BATCH_BEGIN, _BATCH_END, _NFTABLES = 0x10, 0x11, 10
_NEW_TABLE, _NEW_CHAIN, _NEW_RULE = 0, 3, 6
_CREATE, _APPEND, _ACK, _DUMP_NONE = 0x400, 0x800, 0x4, 0
_FORWARD, _FILTER_PRIORITY = 2, 0
_NAME, _CHAIN = b"whybox\0", b"forward\0"
#: So many rules fit into what a socket sends at once.
_AT_ONCE = 200
_PATIENCE_SECONDS = 60.0


def many(ns_path: str, count: int) -> None:
    """Have every packet that is forwarded in the namespace compared with so many rules.

    They match nothing: each compares the destination with an address that nobody has.
    """
    call_in(ns_path, lambda: _many(count), timeout_sec=_PATIENCE_SECONDS)


def _many(count: int) -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as end:
        end.settimeout(_PATIENCE_SECONDS)
        hook = _number(1, _FORWARD) + _number(2, _FILTER_PRIORITY)
        chain = attribute(1, _NAME) + attribute(3, _CHAIN) + _nested(4, hook)
        _send(
            end,
            [
                (_NEW_TABLE, _CREATE, attribute(1, _NAME)),
                (_NEW_CHAIN, _CREATE, chain + attribute(7, b"filter\0")),
            ],
        )
        for first in range(0, count, _AT_ONCE):
            rules = min(_AT_ONCE, count - first)
            _send(end, [(_NEW_RULE, _CREATE | _APPEND, _rule(first + n)) for n in range(rules)])


def _rule(number: int) -> bytes:
    """``ip daddr 203.…``: load four bytes of the header at 16, compare them."""
    load = _number(1, 1) + _number(2, 1) + _number(3, 16) + _number(4, 4)
    address = struct.pack(">I", (203 << 24) + number)
    equal = _number(1, 1) + _number(2, 0) + _nested(3, attribute(1, address))
    expressions = _expression(b"payload\0", load) + _expression(b"cmp\0", equal)
    return attribute(1, _NAME) + attribute(2, _CHAIN) + _nested(4, expressions)


def _expression(name: bytes, data: bytes) -> bytes:
    return _nested(1, attribute(1, name) + _nested(2, data))


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack(">I", value))


def _nested(kind: int, value: bytes) -> bytes:
    return attribute(kind | 0x8000, value)


def _send(end: socket.socket, changes: list[tuple[int, int, bytes]]) -> None:
    """One transaction; only the last change is acknowledged, a refused one always is."""
    parts = [_message(_BATCH_BEGIN, 0, 0, b"", socket.AF_UNSPEC)]
    for at, (kind, flags, body) in enumerate(changes, 1):
        last = _ACK if at == len(changes) else 0
        parts.append(_message(_NFTABLES << 8 | kind, flags | last, at, body, socket.AF_INET))
    parts.append(_message(_BATCH_END, 0, len(changes) + 1, b"", socket.AF_UNSPEC))
    end.send(b"".join(parts))
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < deadline:
        for message in netlink.messages(end.recv(1 << 16)):
            if message.type == netlink.NLMSG_ERROR:
                number = -int.from_bytes(message.payload[:4], "little", signed=True)
                if number:
                    raise OSError(number, "the packet filter refused the rules")
                return


def _message(kind: int, flags: int, sequence: int, body: bytes, family: int) -> bytes:
    head = struct.pack(">BBH", family, 0, _NFTABLES if kind in (_BATCH_BEGIN, _BATCH_END) else 0)
    return request(kind, NLM_F_REQUEST | flags, sequence, head + body)
