"""What the tasks of a container do whenever a clock on each CPU ticks: their stacks, counted.

By time, not by a counter of the CPU: most virtual machines have none.
"""

import struct
from collections import Counter
from collections.abc import Iterator

from msgspec import Struct

from whybox.kernel.bpf.maps import Map
from whybox.kernel.bpf.objects import Object, Spec
from whybox.kernel.usersymbols import ImageKey

SPEC = Spec(
    name="hot",
    programs=(("on_clock",),),
    falls_back="nothing: without perf events no stack can be sampled",
)

#: Frames of a stack at most (include/uapi/linux/perf_event.h, PERF_MAX_STACK_DEPTH).
DEEPEST = 127

#: So many different samples are kept; more are counted as lost.
MOST_KEPT = 200_000

_SAMPLE = struct.Struct("=IIii")
_NUMBER, _ZERO = struct.Struct("=I"), struct.pack("=I", 0)

#: Instead of the number of a stack: another one has the same hash (``-EEXIST``).
NO_PLACE = -17


class Sample(Struct, frozen=True, kw_only=True):
    """What was seen. Stacks begin with the innermost function."""

    key: ImageKey
    user: tuple[int, ...]
    kernel: tuple[int, ...]
    unplaced: bool = False
    """A stack of it is missing: there was no place for it."""


class Stacks:
    """A map of stacks; each is read once."""

    def __init__(self, stacks: Map) -> None:
        self._map = stacks
        self._known: dict[int, tuple[int, ...]] = {}

    def get(self, number: int) -> tuple[int, ...]:
        """The addresses, the innermost function first; none if there is no such stack."""
        if number < 0:
            return ()
        if number not in self._known:
            self._known[number] = addresses(self._map.get(_NUMBER.pack(number)) or b"")
        return self._known[number]

    def forget(self) -> None:
        """Remove from the map all that were read."""
        for number in self._known:
            self._map.delete(_NUMBER.pack(number))
        self._known.clear()


def addresses(raw: bytes) -> tuple[int, ...]:
    """The addresses of a stack, which ends at the first that is 0.

    >>> addresses(struct.pack("=4Q", 5, 7, 0, 9))
    (5, 7)
    """
    all = struct.unpack(f"={len(raw) // 8}Q", raw)
    return all[: all.index(0)] if 0 in all else all


class Samples:
    """All samples of an object.

    The programs write to one pair of maps while the other is emptied, so neither a long trace nor
    many CPUs fill them.
    """

    def __init__(self, object: Object) -> None:
        self._object = object
        self._pairs = [
            (object.map(f"samples{name}"), Stacks(object.map(f"stacks{name}")))
            for name in ("", "_too")
        ]
        self._turn = 0
        self._kept: Counter[Sample] = Counter()
        self.dropped = 0
        """Samples that there was no room for here."""

    def turn(self) -> None:
        """Empty the pair that has not been written to since the last call, and swap."""
        # A program that began before the last swap has long ended by now.
        other = 1 - self._turn
        for sample, count in self._read(other, remove=True):
            if sample in self._kept or len(self._kept) < MOST_KEPT:
                self._kept[sample] += count
            else:
                self.dropped += count
        self._object.map("turn").set(_ZERO, _NUMBER.pack(other))
        self._turn = other

    def all(self) -> Counter[Sample]:
        """All samples so far, and how often each was seen."""
        found = Counter(self._kept)
        for number in range(len(self._pairs)):
            for sample, count in self._read(number):
                found[sample] += count
        return found

    def _read(self, number: int, *, remove: bool = False) -> Iterator[tuple[Sample, int]]:
        samples, stacks = self._pairs[number]
        for key, value in samples.items():
            tgid, exec, user, kernel = _SAMPLE.unpack(key)
            sample = Sample(
                key=ImageKey(tgid=tgid, exec=exec),
                user=stacks.get(user),
                kernel=stacks.get(kernel),
                unplaced=NO_PLACE in (user, kernel),
            )
            yield sample, int.from_bytes(value, "little")
            if remove:
                samples.delete(key)
        if remove:
            stacks.forget()
