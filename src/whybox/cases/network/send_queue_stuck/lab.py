"""A program that fills its send queue and then makes SO_SNDBUF small; two segments are lost."""

import os
import signal
import socket
import time
from collections.abc import Callable
from functools import partial

from whybox.kernel import netlink
from whybox.kernel.netpath import counters
from whybox.kernel.sendqueue import Sending, sending
from whybox.kernel.tcpdetail import detailed
from whybox.lab import outside, tcppeer, workload
from whybox.lab.box import Box
from whybox.lab.lab import Lab, Scenario
from whybox.lab.process import Program
from whybox.lab.tcppeer import Peer, Segment
from whybox.model import Finding

MSS = 1460
#: What the peer takes before it loses something: by then the kernel lets much into the queue.
TAKEN = 400_000
#: So much must be on the way then: several pieces, since the first and last may always be cut.
ENOUGH = 300_000
#: The kernel doubles what is asked for (socket(7)).
SMALL, LIMIT = 4608, 9216
PATIENCE_SECONDS = 10.0


def filling(then_small: bool, pause_s: float = 0.0) -> Program:
    """Writes until there is no room for a second; with ``pause_s`` it goes on for ever."""

    def program() -> None:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        connection = socket.socket()
        connection.connect((tcppeer.ADDRESS, tcppeer.PORT))
        connection.settimeout(1.0)
        data = b"x" * (1 << 16)
        try:
            while True:
                connection.send(data)
                time.sleep(pause_s)
        except TimeoutError:
            pass
        if then_small:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
        while True:
            signal.pause()

    return program


class Taking:
    """A peer that takes everything, in whatever order."""

    def __init__(self) -> None:
        self.taken = 0
        self.begun = False
        """What is to go wrong may begin."""

    def came(self, peer: Peer, segment: Segment) -> None:
        """One segment came."""
        if segment.start <= self.taken < segment.end:
            self.taken = segment.end
        peer.acknowledge(self.taken)

    def tick(self, peer: Peer) -> None:
        """Time goes by."""


class Losing(Taking):
    """Once much is on the way it gets only pieces: what comes first is lost, and that again and
    again, until a hole behind it was filled. So a sender that heeds what it is told gets through.
    (That the very last is sent again is a probe for lost tails, which heeds nothing.)
    """

    def __init__(self) -> None:
        super().__init__()
        self.takes = TAKEN
        self.highest = self.seen = self.turn = 0
        self.filled = False

    @property
    def on_the_way(self) -> int:
        """Bytes behind the first that it did not take."""
        return self.highest - self.taken

    @property
    def _pieces(self) -> int:
        """Where the pieces begin that it has."""
        return self.taken + ENOUGH * 2 // 3

    def came(self, peer: Peer, segment: Segment) -> None:
        again = segment.end <= self.highest
        self.highest = max(self.highest, segment.end)
        if self.taken < self.takes or self.filled:
            super().came(peer, segment)
            return
        self.filled = self.begun and again and self.taken < segment.start < self._pieces
        if self.filled:
            self.taken = self.highest
            peer.acknowledge(self.taken)

    def tick(self, peer: Peer) -> None:
        """It has five segments from the middle of what the sender holds as one piece."""
        if self.filled:
            return
        # The sender may have come to its end before much was on the way.
        if not self.begun or self.on_the_way < ENOUGH:
            self._take_more(peer)
        else:
            self.turn = (self.turn + 1) % 7
            start = self._pieces + MSS * self.turn
            peer.acknowledge(self.taken, ((start, start + 5 * MSS),))

    def _take_more(self, peer: Peer) -> None:
        """On a machine that is busy the sender may not dare to send as much, before it has seen
        more arrive; what it holds is to last.
        """
        stopped, self.seen = self.seen == self.highest, self.highest
        if stopped and self.takes <= self.taken and self.on_the_way < ENOUGH:
            self.takes = self.highest + (0 if self.begun else TAKEN)
            self.taken = self.highest
            peer.acknowledge(self.taken)


class Silent(Taking):
    """Behind ``TAKEN`` nothing comes through any more."""

    def came(self, peer: Peer, segment: Segment) -> None:
        if self.taken < TAKEN:
            super().came(peer, segment)


class Closed(Taking):
    """Its program reads nothing: the window closes behind ``TAKEN``."""

    def came(self, peer: Peer, segment: Segment) -> None:
        if self.taken < TAKEN:
            peer.window = max(0, TAKEN - max(self.taken, segment.end))
            super().came(peer, segment)
        else:
            peer.window = 0
            peer.acknowledge(self.taken)


class Moving(Losing):
    """The same pieces from the middle, but something is always acknowledged."""

    def tick(self, peer: Peer) -> None:
        super().tick(peer)
        if self.begun and self.on_the_way > ENOUGH:
            self.taken += 10 * MSS
            peer.acknowledge(self.taken)


def queue(pid: int) -> list[Sending]:
    """What is in the send queues of a process' network."""

    def ask() -> list[Sending]:
        with netlink.Socket(netlink.NETLINK_SOCK_DIAG) as sock:
            found = detailed(sock, ("established",), info=True, queued=True)
            return [one for each in found if (one := sending(each)) is not None]

    return outside.opened(f"/proc/{pid}/ns/net", ask)


def until(condition: Callable[[], bool]) -> None:
    """Wait for a state, not for a time."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("what the lab waits for did not come")
        time.sleep(0.02)


def against(
    peer: Callable[[], Taking], program: Program, *states: Callable[[int], bool]
) -> Scenario:
    """A box whose program sends to such a peer, when those states are reached in turn."""

    def scenario(box: Box) -> None:
        plays = peer()
        box.network()
        box.start(workload.idle())
        tcppeer.play(box, plays.came, plays.tick)
        box.run(program)
        for state in states:
            until(partial(state, box.pid))
            plays.begun = True

    return scenario


def sends(pid: int) -> bool:
    """Something was sent."""
    with open(f"/proc/{pid}/net/snmp", encoding="ascii") as file:
        return counters(file.read())["Tcp.OutSegs"] > 50


def unanswered(pid: int) -> bool:
    """Something was sent again without an answer."""
    return any(one.timeouts > 1 for one in queue(pid))


def small(pid: int) -> bool:
    """The limit of the queue was made small."""
    return any(one.limit_bytes == LIMIT for one in queue(pid))


def cut_refused(pid: int) -> bool:
    """The kernel refused to cut a segment."""
    with open(f"/proc/{pid}/net/netstat", encoding="ascii") as file:
        return counters(file.read())["TcpExt.TCPWqueueTooBig"] > 0


def closed(pid: int) -> bool:
    """The peer has no room, and something waits."""
    return any(one.closed_window for one in queue(pid))


def numbers(finding: Finding) -> str | None:
    """The limit of the queue, as the kernel counts it."""
    if f"its limit is {LIMIT}" not in finding.summary:
        return f"the limit of {LIMIT} bytes is not in: {finding.summary}"
    if f"{tcppeer.ADDRESS}:{tcppeer.PORT}" not in finding.summary:
        return f"the peer is not named in: {finding.summary}"
    return None


LAB = Lab(
    healthy=against(Taking, filling(False, 0.02), sends),
    reproduce=against(Losing, filling(True), small, cut_refused),
    cured=against(Losing, filling(False), unanswered, sends),
    look_alikes={
        "the peer does not read": against(Closed, filling(True), closed),
        "nothing comes through": against(Silent, filling(True), unanswered),
        "refused, and yet it moves": against(Moving, filling(True), small, cut_refused),
    },
    numbers=numbers,
    window_seconds=1.5,
)
