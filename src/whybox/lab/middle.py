"""A machine in the middle: it takes what comes on one wire and puts it on another, in its manner.

    box ── node ── mid0 ──veth── near [a process] far ──veth── eth0
                10.99.2.1                                   10.99.2.2

It needs nothing of the kernel but wires and packet sockets, so packets can be late, lost and
doubled on purpose where the kernel has no netem. What the sender left to the hardware (checksums,
cutting to size) goes over with each packet (PACKET_VNET_HDR, packet(7)).
"""

import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

from whybox.kernel.host import Host
from whybox.kernel.libc import CLONE_NEWNET, setns, unshare
from whybox.kernel.netns import call_in
from whybox.kernel.task import status
from whybox.lab.box import Box
from whybox.lab.network import Wires
from whybox.lab.process import Line, Program, called, die_with_parent, fork, settle, silence

#: The node's interface on the way there.
NEAR_NODE = "mid0"
PATIENCE_SECONDS = 10.0

#: The machine behind it, and the node's end of the wire to it.
ADDRESS, GATEWAY, PREFIX = "10.99.2.2", "10.99.2.1", 24

# include/uapi/linux/if_packet.h, asm-generic/socket.h: Python 3.11 has no words for these.
SOL_PACKET, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 263, 15, 23
SO_RCVBUFFORCE = 33
ETH_P_ALL = 0x0003
#: A packet that was not cut yet may be so long, with the header for that.
_MOST_BYTES = 1 << 17
#: Acknowledgements and what the kernel says by itself are shorter, with the header.
_DATA_BYTES = 200
_BUFFER_BYTES = 4 << 20

#: What happens to one packet of data: those to be sent now, in order.
Manner = Callable[[bytes], Iterable[bytes]]


class Held:
    """Every ``nth`` packet waits until ``behind`` others have overtaken it, or none comes.

    Of all, every ``lost``-th is lost besides.
    """

    def __init__(self, nth: int, behind: int, *, lost: int | None = None) -> None:
        self._nth, self._behind, self._lost = nth, behind, lost
        self._count = self._left = 0
        self._packet: bytes | None = None

    def __call__(self, packet: bytes) -> Iterable[bytes]:
        self._count += 1
        if self._lost is not None and not self._count % self._lost:
            return ()
        if self._packet is not None:
            self._left -= 1
            return (packet,) if self._left else (packet, *self.rest())
        if self._count % self._nth:
            return (packet,)
        self._packet, self._left = packet, self._behind
        return ()

    def rest(self) -> Iterable[bytes]:
        """What waits."""
        packet, self._packet = self._packet, None
        return () if packet is None else (packet,)


def in_order(packet: bytes) -> Iterable[bytes]:
    """As a wire."""
    return (packet,)


def lossy(nth: int) -> Manner:
    """Every ``nth`` is lost."""
    return _every(nth, lambda _: ())


def doubling(nth: int) -> Manner:
    """Every ``nth`` arrives twice."""
    return _every(nth, lambda packet: (packet, packet))


def stalling(nth: int, seconds: float) -> Manner:
    """At every ``nth`` everything stands still for a while, in order."""

    def stall(packet: bytes) -> Iterable[bytes]:
        time.sleep(seconds)
        return (packet,)

    return _every(nth, stall)


def _every(nth: int, special: Manner) -> Manner:
    count = 0

    def manner(packet: bytes) -> Iterable[bytes]:
        nonlocal count
        count += 1
        return (packet,) if count % nth else special(packet)

    return manner


def between(box: Box, program: Program, *, out: Manner = in_order, back: Manner = in_order) -> None:
    """Put it behind the node of a running box, and a machine that runs ``program`` behind it.

    ``out`` is for what the box sends, ``back`` for what it receives.
    """
    node = f"/proc/{status(Host(), box.pid).ppid}/ns/net"
    box.closing.enter_context(wired(node, program, out=out, back=back))


@contextmanager
def wired(
    namespace: str, program: Program, *, out: Manner = in_order, back: Manner = in_order
) -> Iterator[None]:
    """The same on a wire to a network namespace, as long as the context lasts."""
    ours, theirs = Line.pair()
    pid = fork(lambda: _middle(namespace, program, out, back, theirs), theirs)
    theirs.close()
    try:
        ours.expect("ready")
        yield
    finally:
        _end(pid, ours)
        _until_gone(namespace)


def _until_gone(namespace: str) -> None:
    """The kernel takes a namespace apart a moment after its last process, and its wires with it."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    with suppress(OSError):  # no such interface; or the whole namespace has gone
        while time.monotonic() < deadline:
            call_in(namespace, lambda: socket.if_nametoindex(NEAR_NODE))
            time.sleep(0.02)


def _end(pid: int, line: Line) -> None:
    line.close()
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _middle(node: str, program: Program, out: Manner, back: Manner, line: Line) -> int:
    here = os.open(node, os.O_RDONLY | os.O_CLOEXEC)
    settle("whybox-middle", [line.fileno(), here])
    silence()
    far = _new_namespace()
    middle = _new_namespace()
    with Wires() as wires:
        wires.add_pair("near", NEAR_NODE, here)
        wires.add_pair("far", "eth0", far)
        wires.up("near")
        wires.up("far")
        ends = [_end_of_wire("near"), _end_of_wire("far")]
    _addressed(here, NEAR_NODE, GATEWAY, None)
    _addressed(far, "eth0", ADDRESS, GATEWAY)
    _behind(program)
    setns(middle, CLONE_NEWNET)
    line.tell("ready")
    _forward(ends, (out, back))
    return 0


def _new_namespace() -> int:
    unshare(CLONE_NEWNET)
    return os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _addressed(namespace: int, interface: str, address: str, gateway: str | None) -> None:
    setns(namespace, CLONE_NEWNET)
    with Wires() as wires:
        wires.add_address(interface, f"{address}/{PREFIX}")
        wires.up(interface)
        if gateway is not None:
            wires.up("lo")
            wires.add_route(interface, gateway)


def _behind(program: Program) -> None:
    """The machine's one process, which ends with us."""
    parent = os.getpid()
    if os.fork() == 0:
        try:
            die_with_parent()
            if os.getppid() == parent:
                called(program)
        finally:
            os._exit(0)


def _end_of_wire(interface: str) -> socket.socket:
    end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    end.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    end.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    end.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, _BUFFER_BYTES)
    end.bind((interface, ETH_P_ALL))
    end.setblocking(False)
    return end


def _forward(ends: list[socket.socket], manners: tuple[Manner, Manner]) -> None:
    while True:
        ready, _, _ = select.select(ends, [], [], 0.02)
        for end, other, manner in zip(ends, reversed(ends), manners, strict=True):
            if end in ready:
                _pass_on(end, other, manner)
            elif not ready and isinstance(manner, Held):
                _send(other, manner.rest())


def _pass_on(end: socket.socket, other: socket.socket, manner: Manner) -> None:
    with suppress(BlockingIOError):
        while True:
            packet = end.recv(_MOST_BYTES)
            _send(other, manner(packet) if len(packet) > _DATA_BYTES else (packet,))


def _send(end: socket.socket, packets: Iterable[bytes]) -> None:
    for packet in packets:
        with suppress(OSError):  # a full queue loses it, as any would
            end.send(packet)
