"""The part that all sessions on one BPF object share."""

from collections.abc import Sequence

from whybox.kernel.bpf.objects import Cost, Object
from whybox.kernel.bpf.scope import Scope
from whybox.kernel.host import Host
from whybox.kernel.target import Target


class ObjectSession:
    """A session on one object whose programs watch the containers of one scope."""

    def __init__(
        self, host: Host, target: Target, object: Object, notes: Sequence[str] = ()
    ) -> None:
        self.host = host
        self.object = object
        self.scope = Scope(object)
        self.slot = self.scope.add(host, target)
        self.notes: Sequence[str] = tuple(notes)
        self._first = target

    @property
    def attached(self) -> Sequence[str]:
        """The sections of its programs."""
        return self.object.attached

    def cost(self) -> Cost | None:
        """Of its programs."""
        return self.object.cost()

    def lost(self) -> int:
        """Events for which the ring had no room."""
        return self.object.lost()

    def adopt(self, target: Target) -> None:
        """Into the slot of the first: it is the same container to whoever asks."""
        self.scope.add(self.host, target, slot=self.slot)
