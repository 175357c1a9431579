"""What two looks at the accept queues of a namespace say: whose queue overflowed, and why. Pure."""

from collections.abc import Iterator

from msgspec import Struct

from whybox.kernel.acceptqueue import Counts, Look, Queue
from whybox.kernel.socketowner import Owner, Owners


class Queues(Struct, frozen=True, kw_only=True):
    """Both looks; ``None`` where the namespace could not be looked into."""

    before: Look | None
    after: Look | None
    owners: Owners | None
    reason: str | None = None
    """Why there is nothing to see."""
    shared: bool = False
    """It uses the host's network, with everybody else who does."""
    inside: bool = False


class Overflow(Struct, frozen=True, kw_only=True):
    """One listener whose queue overflowed."""

    queue: Queue
    """As it was last."""
    before: Queue | None
    dropped: int | None
    """At this listener in the window; ``None``: this kernel counts for the namespace alone."""
    owner: Owner | None

    @property
    def kept_full(self) -> bool:
        """It was full, or as good as that, at both ends of the window."""
        return self.queue.crammed and self.before is not None and self.before.crammed

    @property
    def same_wait(self) -> bool | None:
        """Whether the very same connections waited at both ends; ``None``: that is not known."""
        marks = None if self.before is None else self.before.who, self.queue.who
        return None if None in marks else marks[0] == marks[1]


def grown(seen: Queues, name: str) -> int:
    """By how much a counter of the namespace grew."""
    if seen.before is None or seen.after is None:
        return 0
    return int(getattr(seen.after.counts, name)) - int(getattr(seen.before.counts, name))


def accepted(seen: Queues) -> int:
    """How many connections the programs of the namespace accepted: came in, and wait no more."""
    if seen.before is None or seen.after is None:
        return 0
    waited = sum(one.waiting for one in seen.before.queues)
    wait = sum(one.waiting for one in seen.after.queues)
    return grown(seen, "opened") + waited - wait


def suspects(before: Look, after: Look) -> tuple[tuple[Queue, Queue | None, int | None], ...]:
    """Listeners at which something was dropped in the window, or that are full."""
    known = {one.inode: one for one in before.queues}
    found = []
    for queue in after.queues:
        was = known.get(queue.inode)
        start = 0 if was is None or was.drops is None else was.drops
        dropped = None if queue.drops is None else queue.drops - start
        if dropped or queue.full:
            found.append((queue, was, dropped))
    return tuple(found)


def overflows(seen: Queues) -> tuple[Overflow, ...]:
    """The container's listeners that turned connections away in the window, the worst first."""
    if seen.before is None or seen.after is None or grown(seen, "overflows") <= 0:
        return ()
    found = [one for one in _own(seen) if one.dropped is None or one.dropped > 0]
    full = [one for one in found if one.queue.full or (one.before is not None and one.before.full)]
    # A drop for another reason counts at its listener as well: where one was seen to be full, and
    # the rest is more than the overflows, the others are not accused.
    total = sum(one.dropped or 0 for one in found)
    if full and total > grown(seen, "overflows"):
        found = full
    return tuple(sorted(found, key=lambda one: (not one.queue.full, -(one.dropped or 0))))


def stuck(seen: Queues) -> tuple[Overflow, ...]:
    """Those that turned somebody away before the window, and were full at both ends of it."""
    if seen.after is None or not seen.after.counts.overflows:
        return ()
    own = (one for one in _own(seen) if one.queue.full and one.queue.drops)
    return tuple(one for one in own if one.before is not None and one.before.full)


def brimming(seen: Queues) -> tuple[Overflow, ...]:
    """Full, but nobody was turned away yet."""
    return tuple(one for one in _own(seen) if one.queue.full and not one.queue.drops)


def anothers(seen: Queues) -> tuple[Queue, ...]:
    """Listeners at which something was dropped, and which no process of the container has."""
    if seen.before is None or seen.after is None or not _told(seen):
        return ()
    mine = {one.queue.inode for one in _own(seen)}
    return tuple(q for q, _, d in suspects(seen.before, seen.after) if d and q.inode not in mine)


def _own(seen: Queues) -> Iterator[Overflow]:
    if seen.before is None or seen.after is None:
        return
    of = {} if seen.owners is None else seen.owners.of
    for queue, was, dropped in suspects(seen.before, seen.after):
        owner = of.get(queue.inode or 0)
        # Where not all can be seen, what is in its own namespace is taken for its own.
        if owner is not None or not _told(seen):
            yield Overflow(queue=queue, before=was, dropped=dropped, owner=owner)


def _told(seen: Queues) -> bool:
    """Whether a listener that none of its processes has is another's."""
    complete = seen.owners is not None and seen.owners.complete
    return complete or seen.shared


def counts(look: Look | None) -> Counts:
    """Those of a look, or zeros."""
    if look is not None:
        return look.counts
    return Counts(overflows=0, drops=0, cookies=0, refused=0, opened=0)


def gone(seen: Queues) -> tuple[int, ...]:
    """Ports that were listened on at the beginning and are not any more."""
    if seen.before is None or seen.after is None:
        return ()
    there = {one.inode for one in seen.after.queues}
    return tuple(sorted({one.port for one in seen.before.queues if one.inode not in there}))
