"""A sensor that is attached once and shared: what came is kept for everybody who asks."""

from collections.abc import Callable
from typing import Generic, TypeVar

from whybox.kernel.bpf.objects import Object
from whybox.kernel.bpf.scope import Scope

_Event = TypeVar("_Event")


class Kept(Generic[_Event]):
    """The events of a loaded object, each told by ``parse``; beyond ``most`` they are only counted.

    Nobody is in its scope until somebody is added.
    """

    def __init__(self, object: Object, parse: Callable[[bytes], _Event], most: int) -> None:
        self.object = object
        self.scope = Scope(object)
        self._ring = object.ring()
        self._parse, self._most = parse, most
        self._kept: list[_Event] = []
        self._dropped = 0

    def read(self) -> list[_Event]:
        """What came since the last call of anybody."""
        return [self._parse(raw) for raw in self._ring.read()]

    def all(self) -> tuple[_Event, ...]:
        """All that came so far."""
        while new := self.read():
            room = self._most - len(self._kept)
            self._kept += new[:room]
            self._dropped += max(0, len(new) - room)
            if room <= 0:
                break  # a storm must not hold us up
        return tuple(self._kept)

    @property
    def lost(self) -> int:
        """How many came and were not kept."""
        return self.object.lost() + self._dropped
