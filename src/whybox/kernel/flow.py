"""One connection's way through the namespaces of this machine, hop by hop; nothing here reads.

``flowwalk`` makes it. The walk goes on behind a hop that stops the packet, so far as there is a
way, for whoever judges to take the first.
"""

from collections.abc import Mapping

from msgspec import Struct

from whybox.kernel.packetfilter import Named

#: The fault of a rule that drops the packet or not, by what is not known here.
SUSPECT = "suspect"


#: The space of what belongs to no namespace.
MACHINE = "the machine"


class Endpoint(Struct, frozen=True, kw_only=True):
    """Whom a person asked about."""

    address: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{host}:{self.port}"


class Step(Struct, frozen=True, kw_only=True):
    """One hop, and what was seen there."""

    way: str
    """``there``, ``back``, or ``in``: towards a port of the container's own."""
    space: str
    """Whose network namespace it is in."""
    kind: str
    """link, route, filter, nat, bridge, neighbour, listener, conntrack, beyond."""
    name: str
    says: str
    fault: str | None = None
    """What stops the packet here, as one word."""
    meter: str | None = None
    """The counter of that namespace which moves when it does."""
    rule: Named | None = None
    certain: bool = True
    facts: Mapping[str, str] = {}
    """Names that a cure needs."""


class Attempt(Struct, frozen=True, kw_only=True):
    """What became of one ``connect`` from the container's network namespace."""

    errno: int | None = None
    """``None``: it was answered, or nobody has answered yet."""
    connected: bool = False
    resent: int | None = None
    """How often the kernel sent the first segment again."""
    waited_ns: int = 0


class Flow(Struct, frozen=True, kw_only=True):
    """The whole walk, and the counters on the way before and after the attempt."""

    to: Endpoint
    steps: tuple[Step, ...]
    before: Mapping[str, Mapping[str, int]] = {}
    after: Mapping[str, Mapping[str, int]] = {}
    attempt: Attempt | None = None

    def moved(self, step: Step) -> int:
        """By how much the counter that belongs to a hop grew."""
        if step.meter is None:
            return 0
        now = self.after.get(step.space, {}).get(step.meter, 0)
        return now - self.before.get(step.space, {}).get(step.meter, now)

    def broken(self) -> tuple[Step, ...]:
        """The hops that stop it, in order; of what only may stop it, what has counted it."""
        return tuple(
            step
            for step in self.steps
            if step.fault is not None and (step.fault != SUSPECT or self.moved(step) > 0)
        )


def meter_of(rule: Named) -> str:
    """The counter of a rule, by its name."""
    return f"{rule.table} {rule.chain} {rule.number} {rule.handle or 0}"
