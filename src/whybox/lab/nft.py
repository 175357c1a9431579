"""A rule of nftables in the caller's network namespace, without any program.

``nft`` would say it so: ``add table ip whybox; add chain ip whybox NAME { type filter hook HOOK
priority 0; }; add rule ip whybox NAME ct state 0x8 …`` (include/uapi/linux/netfilter/nf_tables.h).
A rule that asks for the state of a connection is what switches connection tracking on.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterable

from whybox.kernel.netlink import attribute, fields, messages

NETLINK_NETFILTER = 12
NFNL_SUBSYS_NFTABLES, NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END = 10, 16, 17
NFT_MSG_NEWTABLE, NFT_MSG_NEWCHAIN, NFT_MSG_NEWRULE = 0, 3, 6
NLM_F_REQUEST, NLM_F_ACK, NLM_F_CREATE, NLM_F_APPEND = 0x1, 0x4, 0x400, 0x800
NLMSG_ERROR = 2
#: include/uapi/linux/netfilter.h
HOOKS = {"prerouting": 0, "input": 1, "forward": 2, "output": 3}
NF_DROP, NF_ACCEPT = 0, 1

_HEADER = struct.Struct("=IHHII")
_GENERIC = struct.Struct("=BBH")
_STATUS = struct.Struct("=i")
_NESTED = 0x8000
_TABLE = b"whybox\0"
_PATIENCE_SECONDS = 20.0


def track(hook: str) -> None:
    """Follow every connection that passes the hook, and refuse none."""
    _commit([_table(), _chain(hook), _rule(hook, [_state()])])


def drop_all(hook: str) -> None:
    """Drop every packet that passes the hook, and follow connections as well."""
    _commit([_table(), _chain(hook), _rule(hook, [_state(), _verdict(NF_DROP)])])


_Change = tuple[int, int, bytes]


def _table() -> _Change:
    return NFT_MSG_NEWTABLE, NLM_F_CREATE, attribute(1, _TABLE)


def _chain(hook: str) -> _Change:
    place = attribute(1, _be32(HOOKS[hook])) + attribute(2, _be32(0))
    body = attribute(1, _TABLE) + attribute(3, _name(hook))
    body += attribute(4 | _NESTED, place) + attribute(7, b"filter\0")
    return NFT_MSG_NEWCHAIN, NLM_F_CREATE, body


def _rule(hook: str, expressions: Iterable[bytes]) -> _Change:
    listed = b"".join(attribute(1 | _NESTED, each) for each in expressions)
    body = attribute(1, _TABLE) + attribute(2, _name(hook)) + attribute(4 | _NESTED, listed)
    return NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, body


def _state() -> bytes:
    """``ct state``, into a register that nobody looks at."""
    data = attribute(1, _be32(1)) + attribute(2, _be32(0))
    return attribute(1, b"ct\0") + attribute(2 | _NESTED, data)


def _verdict(code: int) -> bytes:
    verdict = attribute(2 | _NESTED, attribute(1, _be32(code)))
    data = attribute(1, _be32(0)) + attribute(2 | _NESTED, verdict)
    return attribute(1, b"immediate\0") + attribute(2 | _NESTED, data)


def _name(hook: str) -> bytes:
    return hook.encode() + b"\0"


def _be32(number: int) -> bytes:
    return number.to_bytes(4, "big")


def _commit(changes: list[_Change]) -> None:
    """One transaction; raises OSError with what the kernel refused."""
    family = _GENERIC.pack(socket.AF_INET, 0, 0)
    edge = _GENERIC.pack(socket.AF_UNSPEC, 0, socket.htons(NFNL_SUBSYS_NFTABLES))
    batch = _message(NFNL_MSG_BATCH_BEGIN, 0, 1, edge)
    for number, (kind, flags, body) in enumerate(changes, start=2):
        kind |= NFNL_SUBSYS_NFTABLES << 8
        batch += _message(kind, flags | NLM_F_ACK, number, family + body)
    batch += _message(NFNL_MSG_BATCH_END, 0, len(changes) + 2, edge)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as sock:
        sock.settimeout(_PATIENCE_SECONDS)  # a module may have to be loaded
        sock.send(batch)
        left = len(changes)
        while left > 0:
            for said in messages(sock.recv(1 << 16)):
                if said.type != NLMSG_ERROR:
                    continue
                (status,) = fields(_STATUS, said.payload[:4], "nftables")
                if status:
                    raise OSError(-status, os.strerror(-status), "nftables")
                left -= 1


def _message(kind: int, flags: int, sequence: int, payload: bytes) -> bytes:
    length = _HEADER.size + len(payload)
    return _HEADER.pack(length, kind, NLM_F_REQUEST | flags, sequence, 0) + payload


def missing() -> str | None:
    """Why there can be no such rule here; asked in a namespace that may be spoiled."""
    try:
        track("prerouting")
    except OSError as error:
        return f"no rule of nftables can be made here: {errno.errorcode.get(error.errno or 0, '')}"
    return None
