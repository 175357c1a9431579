"""What a network namespace asks of its nameservers and what comes back, seen as it passes.

A packet socket (packet(7)) in the namespace, with a filter that lets only DNS over UDP and ICMP's
"unreachable" through: nothing is sent, and no other packet is copied. The kernel keeps the packets
with their times until the window is over. What does not fit is counted, not seen.
"""

import ctypes
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress

from msgspec import Struct

from whybox.kernel import dns
from whybox.kernel.dns import Packet

ETH_P_ALL = 0x0003
PACKET_HOST, PACKET_OUTGOING = 0, 4
SOL_PACKET, PACKET_STATISTICS = 263, 6
SO_RCVBUFFORCE, SO_ATTACH_FILTER, SO_TIMESTAMPNS = 33, 26, 35

#: Room for some thousand packets, as the kernel counts them.
_ROOM_BYTES = 4 << 20
_SNAP_BYTES = 1024
MOST_PACKETS = 2000
MOST_QUESTIONS = 512
#: A container's own nameserver, such as Docker's, may be moved to another port by a rule.
_MOST_OWN = 4

_TIMESPEC = struct.Struct("=qq")
_ADDRESS = struct.Struct("=HHi12x")  # struct sockaddr_ll
_INSTRUCTION = struct.Struct("=HBBI")
_STATISTICS = struct.Struct("=II")

# Classic BPF (Documentation/networking/filter.rst).
_LDB, _LDH, _LDW, _MSH = 0x30, 0x28, 0x20, 0xB1
_LDBX, _LDHX = 0x50, 0x48
_JEQ, _JSET, _RSH, _RET, _JA = 0x15, 0x45, 0x74, 0x06, 0x05


class Answer(Struct, frozen=True, kw_only=True):
    """What a server said to a question."""

    server: str
    rcode: int
    records: int
    after_ns: int
    """Since it was first asked, whomever."""


class Refusal(Struct, frozen=True, kw_only=True):
    """An ICMP error that came back instead."""

    server: str
    told_by: str
    code: str
    after_ns: int


class Question(Struct, frozen=True, kw_only=True):
    """One message with its number: resolvers send the same again, and to the next server."""

    name: str
    qtype: int
    asked_ns: int
    """Since the window began."""
    servers: tuple[str, ...]
    """In the order in which they were asked."""
    sent: int
    answers: tuple[Answer, ...]
    refusals: tuple[Refusal, ...]


class Caught(Struct, frozen=True, kw_only=True):
    """One packet and when and which way it passed."""

    at_ns: int
    """Wall clock."""
    outward: bool
    inward: bool
    """On the loopback interface it is both."""
    packet: Packet


class Watch:
    """The socket. Made in the namespace, it stays in it, whoever reads."""

    def __init__(self, own: Iterable[str] = ()) -> None:
        # For no protocol at first: not a packet passes before the filter is there.
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        try:
            _attach(self._socket, filter(list(own)[:_MOST_OWN]))
            with suppress(OSError):
                self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, _ROOM_BYTES)
            self._socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
            _bind(self._socket)
        except BaseException:
            self._socket.close()
            raise

    def caught(self) -> tuple[list[Caught], int]:
        """All that passed, and how many did not fit."""
        found: list[Caught] = []
        read = 0
        while read < MOST_PACKETS:
            try:
                data, extra, _, sender = self._socket.recvmsg(_SNAP_BYTES, 64, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            read += 1
            packet = dns.packet(data)
            if packet is not None:
                found.append(_caught(packet, extra, sender))
        said = self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, _STATISTICS.size)
        passed, lost = _STATISTICS.unpack(said)
        # ``passed`` counts the lost ones too.
        return found, max(lost, passed - read)

    def close(self) -> None:
        """Give the socket back, and the namespace that it kept alive."""
        self._socket.close()


def _caught(
    packet: Packet, extra: list[tuple[int, int, bytes]], sender: tuple[str, int, int, int, bytes]
) -> Caught:
    seconds = nanoseconds = 0
    for level, kind, value in extra:
        if (level, kind) == (socket.SOL_SOCKET, SO_TIMESTAMPNS):
            seconds, nanoseconds = _TIMESPEC.unpack_from(value)
    loopback = sender[0] == "lo"
    return Caught(
        at_ns=seconds * 1_000_000_000 + nanoseconds,
        outward=sender[2] == PACKET_OUTGOING or loopback,
        inward=sender[2] == PACKET_HOST or loopback,
        packet=packet,
    )


class _Open(Struct):
    """A question while its packets are gone through."""

    at_ns: int
    servers: list[str]
    sent: int
    answers: list[Answer]
    refusals: list[Refusal]


_Key = tuple[int, str, int]


def questions(caught: Iterable[Caught], started_ns: int) -> tuple[Question, ...]:
    """What was asked from here, and what came back; what was asked before is left out."""
    open_: dict[_Key, _Open] = {}
    ports: dict[tuple[int, str], _Key] = {}
    passed: set[tuple[bool, _Key, str, int, int]] = set()
    for one in sorted(caught, key=lambda one: one.at_ns):
        packet, said = one.packet, one.packet.message
        if packet.unreachable is not None:
            _refuse(open_, ports, one)
        elif said is not None and said.response:
            _answer(open_, one)
        elif said is not None and one.outward and len(open_) < MOST_QUESTIONS:
            key = (said.id, said.name, said.qtype)
            # On the loopback interface each packet passes twice within a moment.
            pass_ = (True, key, packet.destination, packet.source_port, one.at_ns // 1_000_000)
            if pass_ not in passed:
                passed.add(pass_)
                _ask(open_, key, one)
                ports[packet.source_port, packet.destination] = key
    return tuple(_closed(key, one, started_ns) for key, one in open_.items())


def _ask(open_: dict[_Key, _Open], key: _Key, one: Caught) -> None:
    known = open_.setdefault(key, _Open(one.at_ns, [], 0, [], []))
    known.sent += 1
    if one.packet.destination not in known.servers:
        known.servers.append(one.packet.destination)


def _answer(open_: dict[_Key, _Open], one: Caught) -> None:
    said = one.packet.message
    known = None if said is None else open_.get((said.id, said.name, said.qtype))
    if said is None or known is None or not one.inward:
        return
    server = one.packet.source
    if any(answer.server == server for answer in known.answers):
        return
    after = one.at_ns - known.at_ns
    answer = Answer(server=server, rcode=said.rcode, records=said.records, after_ns=after)
    known.answers.append(answer)


def _refuse(open_: dict[_Key, _Open], ports: dict[tuple[int, str], _Key], one: Caught) -> None:
    packet = one.packet
    key = ports.get((packet.source_port, packet.destination))
    if packet.message is not None:
        key = (packet.message.id, packet.message.name, packet.message.qtype)
    known = None if key is None else open_.get(key)
    if known is None or not one.inward or packet.unreachable is None:
        return
    if any(refusal.server == packet.destination for refusal in known.refusals):
        return
    refusal = Refusal(
        server=packet.destination,
        told_by=packet.told_by or "",
        code=packet.unreachable,
        after_ns=one.at_ns - known.at_ns,
    )
    known.refusals.append(refusal)


def _closed(key: _Key, one: _Open, started_ns: int) -> Question:
    return Question(
        name=key[1],
        qtype=key[2],
        asked_ns=one.at_ns - started_ns,
        servers=tuple(one.servers),
        sent=one.sent,
        answers=tuple(one.answers),
        refusals=tuple(one.refusals),
    )


def filter(own: Iterable[str] = ()) -> bytes:
    """The program, for packets that begin with their network header.

    ``own``: IPv4 addresses whose datagrams pass whatever their port.
    """
    lines: list[tuple[int, int, str, str]] = [
        (_LDB, 0, "", ""),
        (_RSH, 4, "", ""),
        (_JEQ, 4, "v4", ""),
        (_JEQ, 6, "v6", "no"),
        (_LDB, 9, "v4:", ""),
        (_JEQ, socket.IPPROTO_ICMP, "icmp", ""),
        (_JEQ, socket.IPPROTO_UDP, "", "no"),
        (_LDH, 6, "", ""),
        (_JSET, 0x1FFF, "no", ""),
        (_MSH, 0, "", ""),
        (_LDHX, 0, "", ""),
        (_JEQ, dns.PORT, "yes", ""),
        (_LDHX, 2, "", ""),
        (_JEQ, dns.PORT, "yes", ""),
    ]
    numbers = [int.from_bytes(socket.inet_aton(address), "big") for address in own]
    for at in (12, 16):
        lines.append((_LDW, at, "", ""))
        lines += [(_JEQ, number, "yes", "") for number in numbers]
    lines += [
        (_JA, 0, "no", ""),
        (_MSH, 0, "icmp:", ""),
        (_LDBX, 0, "", ""),
        (_JEQ, 3, "yes", "no"),
        (_LDB, 6, "v6:", ""),
        (_JEQ, socket.IPPROTO_ICMPV6, "icmp6", ""),
        (_JEQ, socket.IPPROTO_UDP, "", "no"),
        (_LDH, 40, "", ""),
        (_JEQ, dns.PORT, "yes", ""),
        (_LDH, 42, "", ""),
        (_JEQ, dns.PORT, "yes", "no"),
        (_LDB, 40, "icmp6:", ""),
        (_JEQ, 1, "yes", "no"),
        (_RET, _SNAP_BYTES, "yes:", ""),
        (_RET, 0, "no:", ""),
    ]
    return b"".join(_assembled(lines))


def _assembled(lines: list[tuple[int, int, str, str]]) -> Iterator[bytes]:
    labels = {word[:-1]: at for at, (*_, word, _) in enumerate(lines) if word.endswith(":")}
    for at, (code, value, true, false) in enumerate(lines):
        then, other = (labels[w] - at - 1 if w in labels else 0 for w in (true, false))
        if code == _JA:
            yield _INSTRUCTION.pack(code, 0, 0, then)
        else:
            yield _INSTRUCTION.pack(code, then, other, value)


def _bind(sock: socket.socket) -> None:
    """Take packets of all protocols from all interfaces; Python's ``bind`` wants one by name."""
    address = _ADDRESS.pack(socket.AF_PACKET, socket.htons(ETH_P_ALL), 0)
    if ctypes.CDLL(None, use_errno=True).bind(sock.fileno(), address, len(address)) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _attach(sock: socket.socket, program: bytes) -> None:
    buffer = ctypes.create_string_buffer(program, len(program))
    count = len(program) // _INSTRUCTION.size
    # struct sock_fprog, whose pointer is aligned.
    sock.setsockopt(
        socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", count, ctypes.addressof(buffer))
    )
