"""The sensor of dropped packets, attached for one container's window, and what it saw."""

from collections.abc import Iterator
from contextlib import contextmanager

from msgspec import structs

from whybox.kernel.bpf.objects import Object, Refused, loaded
from whybox.kernel.bpf.scope import NETNS, Mark, Scope
from whybox.kernel.conntrackdrops import Tables
from whybox.kernel.dropcauses import always_usual
from whybox.kernel.dropreasons import name
from whybox.kernel.drops import Drop as Told
from whybox.kernel.drops import Flow, merged
from whybox.kernel.dropsites import Sites
from whybox.kernel.hops import Around
from whybox.kernel.host import Host, printable
from whybox.kernel.pathloss import Drop, Watched
from whybox.kernel.sensors import packets as sensor
from whybox.kernel.symbols import KernelSymbols
from whybox.kernel.target import Target

__all__ = ["KernelSymbols", "Refused", "Sites", "attached", "seen"]

#: What is sent again and reset is not asked here.
_SPEC = structs.replace(sensor.SPEC, optional=())

MOST_DROPS = 64


@contextmanager
def attached(host: Host, target: Target, around: Around) -> Iterator[Object]:
    """The sensor, for this container. Raises ``Refused``."""
    with loaded(host, _SPEC) as object:
        slot = Scope(object).add(host, target)
        if around.shared:
            mark = Mark(kind=NETNS, id=around.net)
            object.map("scopes").set(mark.key, slot.to_bytes(4, "little"))
        sensor.know_addresses(object, around.addresses)
        sensor.know_wires(object, around.wires)
        yield object


def seen(object: Object, sites: Sites, tables: Tables) -> Watched:
    """What was dropped so far, the most frequent first."""
    sums = list(sensor.sums(object))
    # Most of what a healthy machine drops is told by the reason: symbols take long to read.
    loud = [one for one in sums if not always_usual(name(sites.reasons, one.place.reason))]
    faults, usual = merged(sites.drops(loud), {})
    worst = sorted(tables.judged(faults), key=lambda one: -one.packets)[:MOST_DROPS]
    quiet = sum(one.packets for one in sums) - sum(one.packets for one in loud)
    return Watched(
        drops=tuple(_drop(one) for one in worst),
        usual=sum(one.packets for one in usual) + quiet,
    )


def _drop(one: Told) -> Drop:
    return Drop(
        stage=one.hop.stage,
        namespace=one.hop.namespace,
        interface=None if one.hop.interface is None else printable(one.hop.interface),
        reason=one.reason,
        function=one.function,
        protocol=one.protocol,
        packets=one.packets,
        means=one.means,
        look=one.look,
        example=_flow(one.example),
    )


def _flow(one: Flow) -> str:
    """Such as ``10.0.0.2 to 10.0.0.1:53``."""
    if one.source is None or one.destination is None:
        return ""
    to = (
        one.destination
        if one.destination_port is None
        else f"{one.destination}:{one.destination_port}"
    )
    return f"{one.source} to {to}"
