"""Netlink: one request, its complete answer, and attributes (include/uapi/linux/netlink.h).

An attribute is a length, a type and a value padded to four bytes; a value may be attributes again.

>>> attributes(attribute(3, b"eth0") + attribute(5, b"12345"))
{3: b'eth0', 5: b'12345'}
"""

import errno
import os
import socket
import struct
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Literal, Self

from msgspec import Struct

from whybox.kernel.host import ParseError, decode

NETLINK_ROUTE = 0
NETLINK_SOCK_DIAG = 4
NETLINK_NETFILTER = 12

SOL_NETLINK = 270
NETLINK_CAP_ACK = 10
NETLINK_EXT_ACK = 11
NETLINK_GET_STRICT_CHK = 12

NLMSG_NOOP, NLMSG_ERROR, NLMSG_DONE, NLMSG_OVERRUN = 1, 2, 3, 4
NLM_F_REQUEST = 0x001
NLM_F_MULTI = 0x002
NLM_F_ACK = 0x004
NLM_F_DUMP_INTR = 0x010
NLM_F_CAPPED = 0x100  # in an error: the request is not repeated in it
NLM_F_ACK_TLVS = 0x200  # in an error: attributes follow
NLM_F_DUMP = 0x300  # in a request: NLM_F_ROOT | NLM_F_MATCH
# In a request that makes something.
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE, NLM_F_APPEND = 0x100, 0x200, 0x400, 0x800
NLMSGERR_ATTR_MSG = 1
NLA_F_NESTED = 0x8000
NLA_TYPE_MASK = 0x3FFF  # above it: the flags "nested" and "network byte order"

TIMEOUT_SEC = 2.0
LIMIT_BYTES = 64 << 20
DUMP_TRIES = 5
#: netlink_dump() fills at most 32 KiB per datagram, more only for one message that is larger.
DATAGRAM_BYTES = 256 << 10

Family = Literal["inet", "inet6"]
FAMILIES: dict[int, Family] = {socket.AF_INET: "inet", socket.AF_INET6: "inet6"}

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_STATUS = struct.Struct("=i")
#: Netfilter's before its attributes: family, version, resource (struct nfgenmsg).
NFGENMSG = struct.Struct(">BBH")


class Message(Struct, frozen=True, kw_only=True):
    """One netlink message without its header."""

    type: int
    flags: int
    sequence: int
    payload: bytes


class Portion(Struct, frozen=True, kw_only=True):
    """What one datagram adds to an answer."""

    messages: tuple[Message, ...]
    done: bool
    interrupted: bool
    """The kernel's tables changed between two datagrams of this dump."""


def malformed(what: str) -> ParseError:
    """The error for bytes that the protocol does not allow."""
    return ParseError("netlink", what)


def aligned(length: int) -> int:
    """Where the next message, attribute or next hop begins."""
    return (length + 3) & ~3


def attribute(kind: int, value: bytes) -> bytes:
    """An attribute as it is sent."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def nested(kind: int, value: bytes) -> bytes:
    """An attribute of attributes; netfilter wants to be told that it is one."""
    return attribute(kind | NLA_F_NESTED, value)


def request(kind: int, flags: int, sequence: int, payload: bytes) -> bytes:
    """A message as it is sent."""
    length = _HEADER.size + len(payload)
    return _HEADER.pack(length, kind, NLM_F_REQUEST | flags, sequence, 0) + payload


def messages(data: bytes) -> Iterator[Message]:
    """The messages of one datagram."""
    at = 0
    while at < len(data):
        if len(data) - at < _HEADER.size:
            raise malformed(f"{len(data) - at} bytes where a header should be")
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size or at + length > len(data):
            raise malformed(f"message of type {kind} says it has {length} bytes")
        payload = data[at + _HEADER.size : at + length]
        yield Message(type=kind, flags=flags, sequence=sequence, payload=payload)
        at += aligned(length)


def attributes(data: bytes, start: int = 0) -> dict[int, bytes]:
    """Values by type; of a type that comes twice the last one counts, as in nla_parse()."""
    found = {}
    at, end = start, len(data)
    while at < end:
        if end - at < _ATTRIBUTE.size:
            raise malformed(f"{end - at} bytes where an attribute should be")
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size or at + length > end:
            raise malformed(f"attribute of type {kind & NLA_TYPE_MASK} says it has {length} bytes")
        found[kind & NLA_TYPE_MASK] = data[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3  # aligned(), in the one loop where the call would be felt
    return found


def fields(layout: struct.Struct, payload: bytes, what: str) -> tuple[int, ...]:
    """The fixed head of a payload; newer kernels may append to it, so only "too short" is wrong."""
    if len(payload) < layout.size:
        raise malformed(f"{what} of {len(payload)} bytes")
    return layout.unpack_from(payload)


def unsigned(value: bytes) -> int:
    """An integer in the machine's byte order; its width is what the kernel sent."""
    if len(value) not in (1, 2, 4, 8):
        raise malformed(f"integer of {len(value)} bytes")
    return int.from_bytes(value, sys.byteorder)


def signed(value: bytes) -> int:
    """The same, two's complement."""
    number, bits = unsigned(value), 8 * len(value)
    return number - (1 << bits) if number >> (bits - 1) else number


def text(value: bytes) -> str:
    """A string, which the kernel ends with a zero byte."""
    return decode(value.split(b"\0", 1)[0])


def ip_address(value: bytes) -> str:
    """An address; its length tells the family."""
    if len(value) == 4:
        return socket.inet_ntop(socket.AF_INET, value)
    if len(value) == 16:
        return socket.inet_ntop(socket.AF_INET6, value)
    raise malformed(f"IP address of {len(value)} bytes")


def portion(data: bytes, sequence: int, asked: str) -> Portion:
    """What a datagram says to the request ``sequence``; a refusal is raised.

    Messages of another sequence are left over from an answer that was given up.
    """
    found: list[Message] = []
    done = interrupted = False
    for message in messages(data):
        if message.sequence != sequence or message.type == NLMSG_NOOP:
            continue
        interrupted |= bool(message.flags & NLM_F_DUMP_INTR)
        if message.type in (NLMSG_ERROR, NLMSG_DONE):
            _raise_refusal(message, asked)
            done = True
        elif message.type == NLMSG_OVERRUN:
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS), asked)
        else:
            found.append(message)
            done |= not message.flags & NLM_F_MULTI
    return Portion(messages=tuple(found), done=done, interrupted=interrupted)


def _raise_refusal(message: Message, asked: str) -> None:
    if message.type == NLMSG_DONE and not message.payload:
        return  # some families end a dump without a status
    (status,) = fields(_STATUS, message.payload, asked)
    number = -status
    if number == 0:
        return
    if number < 0:
        raise malformed(f"{asked}: error {-number}")
    explanation = _explanation(message)
    reason = os.strerror(number) + (f" ({explanation})" if explanation else "")
    raise OSError(number, reason, asked)


def _explanation(message: Message) -> str:
    """The kernel's own sentence (extended ack), where it gives one."""
    if not message.flags & NLM_F_ACK_TLVS:
        return ""
    start = _STATUS.size
    if message.type == NLMSG_ERROR:
        echoed, *_ = fields(_HEADER, message.payload[start:], "error")
        start += _HEADER.size if message.flags & NLM_F_CAPPED else aligned(echoed)
    return text(attributes(message.payload, start).get(NLMSGERR_ATTR_MSG, b""))


def consistent(answers: Iterable[tuple[list[Message], bool]], asked: str) -> list[Message]:
    """The first answer that was not interrupted; asking stops there."""
    for found, interrupted in answers:
        if not interrupted:
            return found
    raise OSError(errno.EBUSY, "it changed each time it was read", asked)


class Socket:
    """A netlink socket of the namespace its creator was in; it stays there whoever uses it.

    The kernel answers inside sendmsg() and recvmsg(), and may wait there for its own locks (rtnl);
    ``timeout_sec`` bounds the waiting for datagrams, not that. Who must not wait at all reads in
    ``netns.call_in``.
    """

    def __init__(
        self,
        protocol: int = NETLINK_ROUTE,
        *,
        timeout_sec: float = TIMEOUT_SEC,
        limit_bytes: int = LIMIT_BYTES,
    ) -> None:
        self.timeout_sec = timeout_sec
        self.limit_bytes = limit_bytes
        self._sequence = 0
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        # Explanations since Linux 4.12. Strict checking since 4.20: without it a route dump also
        # carries every cached exception (path MTUs, redirects).
        for option in (NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK):
            with suppress(OSError):
                self._socket.setsockopt(SOL_NETLINK, option, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the socket back, and the namespace that it kept alive."""
        self._socket.close()

    def fileno(self) -> int:
        """The descriptor."""
        return self._socket.fileno()

    def get(self, kind: int, payload: bytes, asked: str) -> Message:
        """The one message that answers a request; ``asked`` names the request in errors."""
        found, _ = self._ask(kind, 0, payload, asked, time.monotonic() + self.timeout_sec)
        if not found:
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA), asked)
        return found[0]

    def dump(self, kind: int, payload: bytes, asked: str) -> list[Message]:
        """The whole of a kernel table, as it was at one moment."""
        deadline = time.monotonic() + self.timeout_sec
        tries = range(DUMP_TRIES)
        return consistent(
            (self._ask(kind, NLM_F_DUMP, payload, asked, deadline) for _ in tries), asked
        )

    def _ask(
        self, kind: int, flags: int, payload: bytes, asked: str, deadline: float
    ) -> tuple[list[Message], bool]:
        self._sequence += 1
        self._socket.send(request(kind, flags, self._sequence, payload))
        found: list[Message] = []
        done = interrupted = False
        room = self.limit_bytes
        while not done:
            data = self._receive(asked, deadline)
            room -= len(data)
            if room < 0:
                reason = f"the answer is larger than {self.limit_bytes} bytes"
                raise OSError(errno.EMSGSIZE, reason, asked)
            part = portion(data, self._sequence, asked)
            found.extend(part.messages)
            interrupted |= part.interrupted
            done = part.done
        return found, interrupted

    def _receive(self, asked: str, deadline: float) -> bytes:
        """The next datagram from the kernel; other processes may send to this socket too."""
        while (remaining := deadline - time.monotonic()) > 0:
            self._socket.settimeout(remaining)
            try:
                data, _, flags, (sender, _) = self._socket.recvmsg(DATAGRAM_BYTES)
            except TimeoutError:
                break
            except OSError as error:
                raise OSError(error.errno, error.strerror, asked) from error
            if flags & socket.MSG_TRUNC:
                raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE), asked)
            if sender == 0:
                return data
        reason = f"no complete answer within {self.timeout_sec} s"
        raise TimeoutError(errno.ETIMEDOUT, reason, asked)
