"""How long a container's packets take between its own interface and the host's, piece by piece.

From ``net:net_dev_queue``, ``net_dev_start_xmit``, ``netif_rx`` and ``netif_receive_skb``
(include/trace/events/net.h).
"""

import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from msgspec import Struct

from whybox.kernel.bpf.objects import Object, Spec, loaded
from whybox.kernel.host import Host

SPEC = Spec(
    name="path",
    programs=(("on_queue",), ("on_xmit",), ("on_arrival",), ("on_receive",)),
    falls_back="nothing: the kernel counts no times of packets by itself",
)

#: The pieces, by the number that the programs give them.
KINDS = (
    *("queue_out", "wait_out", "forward_out", "queue_in", "wait_in", "forward_in"),
    *("first_out", "first_in"),
)

#: There is room for so many containers.
MOST_SLOTS = 250

_EDGE, _WIRE, _BUCKETS = 0, 1, 128
_TWO = struct.Struct("=II")
_SUMS = struct.Struct(f"=3Q{_BUCKETS}I")


class Piece(Struct, frozen=True, kw_only=True):
    """One piece of the way, over all packets."""

    kind: str
    """One of ``KINDS``."""
    count: int
    sum_ns: int
    longest_ns: int
    median_ns: int
    """To a quarter of a power of two."""


class Paths:
    """The attached sensor; nobody's ends are known at first."""

    def __init__(self, object: Object) -> None:
        self.object = object
        self._slots = 0

    def add(self, edges: Iterable[tuple[int, int]], wires: Iterable[tuple[int, int]]) -> int:
        """A container by its ends, each a namespace's inode with an index; its slot.

        Raises OSError where there is no more room.
        """
        if self._slots >= MOST_SLOTS:
            raise OSError(f"more than {MOST_SLOTS} containers are not watched at once")
        self._slots += 1
        for kind in range(len(KINDS)):
            self.object.map("pieces").set(_TWO.pack(self._slots, kind), bytes(_SUMS.size))
        for role, ends in ((_EDGE, edges), (_WIRE, wires)):
            for end in ends:
                self.object.map("ends").set(_TWO.pack(*end), _TWO.pack(self._slots, role))
        return self._slots

    def pieces(self, slot: int) -> Iterator[Piece]:
        """What was counted so far; a piece that no packet passed is left out."""
        for number, kind in enumerate(KINDS):
            raw = self.object.map("pieces").get(_TWO.pack(slot, number))
            count, sum_ns, longest, *buckets = _SUMS.unpack(raw or bytes(_SUMS.size))
            if count:
                yield Piece(
                    kind=kind,
                    count=count,
                    sum_ns=sum_ns,
                    longest_ns=longest,
                    median_ns=median_ns(buckets),
                )


@contextmanager
def attached(host: Host) -> Iterator[Paths]:
    """The sensor. Raises ``Refused``."""
    with loaded(host, SPEC) as object:
        yield Paths(object)


def median_ns(buckets: Iterable[int]) -> int:
    """The middle of the bucket that has the middle one.

    >>> median_ns([0] * 40 + [3, 0, 1])  # 2^10 ns to 5/4 of it
    1152
    """
    counts = tuple(buckets)
    left = sum(counts) / 2
    for number, count in enumerate(counts):
        left -= count
        if count and left <= 0:
            low = (1 << number // 4) * (4 + number % 4) / 4
            return round(low + (1 << number // 4) / 8)
    return 0
