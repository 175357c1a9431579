"""Those who speak to a box from outside: sockets on its node, or on the remote machine behind it.

A socket stays in the network namespace that it was made in (network_namespaces(7)), so the lab
itself holds them.
"""

import os
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from whybox.kernel import task
from whybox.kernel.host import Host
from whybox.kernel.netns import call_in
from whybox.lab.box import Box

_T = TypeVar("_T")


def node(box: Box) -> str:
    """The network namespace of the box's node: that of PID 1's parent."""
    return f"/proc/{task.stat(Host(), box.pid).ppid}/ns/net"


def remote(box: Box) -> str:
    """That of the remote machine, which the same parent has open beside its own."""
    parent = f"/proc/{task.stat(Host(), box.pid).ppid}"
    own = os.readlink(f"{parent}/ns/net")
    for name in os.listdir(f"{parent}/fd"):
        link = os.readlink(f"{parent}/fd/{name}")
        if link.startswith("net:[") and link != own:
            return f"{parent}/fd/{name}"
    raise FileNotFoundError(f"no second network namespace is open in {parent}")


def address(box: Box) -> str:
    """Of the box, without the length of its network."""
    if box.wired is None:
        raise ValueError(f"box {box.name} has no network")
    return box.wired.address.partition("/")[0]


def opened(place: str, make: Callable[[], _T]) -> _T:
    """What ``make`` makes in a network namespace."""
    return call_in(place, make, 10.0)


def connecting(place: str, to: tuple[str, int], count: int) -> list[socket.socket]:
    """So many connections that were asked for at once, from that namespace."""

    def ask() -> list[socket.socket]:
        asked = []
        for _ in range(count):
            one = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            with suppress(BlockingIOError):
                one.connect(to)
            asked.append(one)
        return asked

    return opened(place, ask)


def keep_connecting(box: Box, place: str, port: int, *, count: int, every_s: float) -> None:
    """So many connections again and again, until the box is closed; those of before are closed."""
    asked: list[socket.socket] = []

    def again() -> None:
        _close(asked)
        asked.extend(connecting(place, (address(box), port), count))

    box.closing.callback(_close, asked)
    repeated(box, again, every_s)


def keep_half_opening(box: Box, source: str, port: int, *, count: int, every_s: float) -> None:
    """So many SYNs again and again, from an address that will not answer."""
    place = node(box)
    repeated(box, lambda: _half_open(place, source, (address(box), port), count), every_s)


def repeated(box: Box, action: Callable[[], None], every_s: float) -> None:
    """Do it again and again, until the box is closed."""
    done = threading.Event()

    def again() -> None:
        while not done.is_set():
            with suppress(OSError):  # the box is going
                action()
            done.wait(every_s)

    thread = threading.Thread(target=again, name="outside", daemon=True)
    thread.start()
    box.closing.callback(thread.join, 10.0)
    box.closing.callback(done.set)


def held(box: Box, sockets: list[socket.socket]) -> None:
    """Keep these until the box is closed."""
    box.closing.callback(_close, sockets)


def _close(sockets: list[socket.socket]) -> None:
    while sockets:
        sockets.pop().close()


def _half_open(place: str, source: str, to: tuple[str, int], count: int) -> None:
    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
            for port in range(20_000, 20_000 + count):
                raw.sendto(_syn(source, to[0], port, to[1]), (to[0], 0))

    opened(place, send)


def _syn(source: str, destination: str, from_port: int, to_port: int) -> bytes:
    tcp = struct.pack("!HHIIBBHHH", from_port, to_port, 1, 0, 5 << 4, 2, 8192, 0, 0)
    return with_ip(source, destination, tcp)


def with_ip(source: str, destination: str, tcp: bytes) -> bytes:
    """A TCP segment with its checksum and an IP header, whose own the kernel makes (raw(7))."""
    ends = socket.inet_aton(source), socket.inet_aton(destination)
    pseudo = struct.pack("!4s4sBBH", *ends, 0, socket.IPPROTO_TCP, len(tcp))
    tcp = tcp[:16] + struct.pack("!H", _checksum(pseudo + tcp)) + tcp[18:]
    return struct.pack("!BBHHHBBH4s4s", 0x45, 0, 0, 0, 0, 64, socket.IPPROTO_TCP, 0, *ends) + tcp


def _checksum(data: bytes) -> int:
    """RFC 1071."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF
