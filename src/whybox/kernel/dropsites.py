"""Dropped packets, as the sensor sums them, with the hop, the function and what that means."""

from collections.abc import Iterable, Iterator
from functools import cached_property

from whybox.kernel import dropcauses, dropreasons
from whybox.kernel.drops import Merged, settled
from whybox.kernel.hops import Around, Hop, Owners
from whybox.kernel.host import Host
from whybox.kernel.sensors import packets as sensor
from whybox.kernel.sensors.packets import Place
from whybox.kernel.symbols import KernelSymbols


class Sites:
    """Knows a container's surroundings; the kernel's symbols are read when the first is asked."""

    def __init__(
        self, host: Host, around: Around, owners: Owners, symbols: KernelSymbols | None = None
    ) -> None:
        self._around, self._owners = around, owners
        self._symbols = KernelSymbols(host) if symbols is None else symbols

    @cached_property
    def reasons(self) -> dict[int, str]:
        """The names of the kernel's reasons; empty where it gives none."""
        return dropreasons.read()

    def drops(self, sums: Iterable[sensor.Sum]) -> Iterator[tuple[Merged, sensor.Sum]]:
        """Those that are the container's."""
        for one in sums:
            if not self.is_anothers(one.place, one.flow):
                yield self.merged(one.place, one.device), one

    def merged(self, place: Place, device: str) -> Merged:
        """Where and why, in words."""
        place = settled(place, self._around.net)
        # It is where the function would go on: behind the call.
        function = self._symbols.frame(place.location - 1).name
        reason = dropreasons.name(self.reasons, place.reason)
        opens = bool(place.why & sensor.OPENS)
        return Merged(
            hop=self._hop(place, device),
            reason=reason,
            function=function,
            ethertype=place.ethertype,
            protocol=place.protocol,
            why=place.why & ~sensor.OPENS,
            cause=dropcauses.cause(reason, function, opens=opens),
        )

    def _hop(self, place: Place, device: str) -> Hop:
        return Hop(
            stage=self._around.stage(place.net, place.ifindex),
            namespace=self._owners.name(place.net),
            inode=place.net,
            interface=device or None,
            ifindex=place.ifindex,
        )

    def is_anothers(self, place: Place, seen: sensor.Flow) -> bool:
        """Two networks may have the same address; then it is whose the packet is in."""
        by_address = place.why & (sensor.FROM_IT | sensor.TO_IT)
        if not by_address or self._around.stage(place.net, place.ifindex) != "elsewhere":
            return False
        if not self._owners.connected(place.net):
            return True
        ends = {seen.source} if place.why & sensor.FROM_IT else set()
        ends |= {seen.destination} if place.why & sensor.TO_IT else set()
        return all(end is not None and self._owners.has(place.net, end) for end in ends)
