"""What two looks at the send queues of a namespace say: which does not move, and whose fault it is.

Pure. That a queue is long is no fault, and that the kernel refused to cut a segment
(``TCPWqueueTooBig``) is none as long as the queue moves.
"""

from collections.abc import Iterator

from msgspec import Struct

from whybox.kernel.sendqueue import Look, Sending
from whybox.kernel.socketowner import Owner, Owners

#: A queue that moves, but needs longer than this to be gone, is as good as stuck.
CRAWLS_SECONDS = 30.0
#: Without an answer for so many round trips, and so long, nothing moves.
ROUND_TRIPS, LEAST_NS = 4, 500_000_000


class Queues(Struct, frozen=True, kw_only=True):
    """Both looks; ``None`` where the namespace could not be looked into."""

    before: Look | None
    after: Look | None
    owners: Owners | None
    reason: str | None = None
    shared: bool = False
    """It uses the host's network, with everybody else who does."""

    @property
    def elapsed_ns(self) -> int:
        """Between the looks."""
        if self.before is None or self.after is None:
            return 0
        return self.after.at_ns - self.before.at_ns


class Queue(Struct, frozen=True, kw_only=True):
    """One connection at both ends of the window."""

    before: Sending
    after: Sending
    elapsed_ns: int
    owner: Owner | None

    @property
    def acked_bytes(self) -> int | None:
        """How much was acknowledged meanwhile."""
        if self.before.acked_bytes is None or self.after.acked_bytes is None:
            return None
        return self.after.acked_bytes - self.before.acked_bytes

    @property
    def still(self) -> bool:
        """Nothing moved, for longer than an answer takes."""
        patience = max(LEAST_NS, ROUND_TRIPS * 1000 * self.before.rtt_usec)
        if self.elapsed_ns < patience:
            return False
        if self.acked_bytes is not None:
            return self.acked_bytes == 0
        same = self.before.queue_bytes == self.after.queue_bytes
        return same and self.before.unacked == self.after.unacked

    @property
    def seconds_left(self) -> float | None:
        """How long the queue needs at this pace; ``None``: that cannot be told."""
        if not self.acked_bytes:
            return None
        return self.after.queue_bytes / self.acked_bytes * self.elapsed_ns / 1e9

    @property
    def crawls(self) -> bool:
        """It moves too slowly to matter."""
        left = self.seconds_left
        return left is not None and left >= CRAWLS_SECONDS

    @property
    def over(self) -> bool:
        """It was over twice its limit at both ends."""
        return self.before.over and self.after.over

    @property
    def closed_window(self) -> bool:
        """The peer has no room, at either end: it waits for the peer's program."""
        return self.before.closed_window or self.after.closed_window

    @property
    def unanswered(self) -> bool:
        """What is out is not acknowledged, and was sent again for that."""
        return self.after.unacked > 0 and self.after.timeouts > 0


def pairs(before: Look, after: Look) -> Iterator[tuple[Sending, Sending]]:
    """Connections that had something in the queue at both ends."""
    known = {one.key: one for one in before.sending}
    for one in after.sending:
        was = known.get(one.key)
        if was is not None:
            yield was, one


def queues(seen: Queues) -> tuple[Queue, ...]:
    """Those of the container, the longest first."""
    if seen.before is None or seen.after is None:
        return ()
    of = {} if seen.owners is None else seen.owners.of
    told = seen.shared or (seen.owners is not None and seen.owners.complete)
    found = (
        Queue(before=was, after=one, elapsed_ns=seen.elapsed_ns, owner=of.get(one.inode or 0))
        for was, one in pairs(seen.before, seen.after)
    )
    # A connection whose program is gone belongs to no descriptor any more.
    mine = (one for one in found if one.owner is not None or not told or _orphan(one, seen))
    return tuple(sorted(mine, key=lambda one: -one.after.queue_bytes))


def _orphan(one: Queue, seen: Queues) -> bool:
    return one.after.inode is None and not seen.shared


def too_big(seen: Queues) -> int | None:
    """How often the kernel refused to cut a segment; ``None``: this kernel does not count it."""
    if seen.before is None or seen.after is None:
        return None
    first, last = seen.before.counts.too_big, seen.after.counts.too_big
    return None if first is None or last is None else last - first


def grown(seen: Queues, name: str) -> int:
    """By how much another counter of the namespace grew."""
    if seen.before is None or seen.after is None:
        return 0
    return int(getattr(seen.after.counts, name)) - int(getattr(seen.before.counts, name))
