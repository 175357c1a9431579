"""How full the one table of IPv4 neighbours is, which all network namespaces share.

``/proc/net/stat/arp_cache``: a line of names, and one of hexadecimal numbers for each CPU. It is
there, and so are the limits, in the first network namespace alone, and we may be in another.

>>> table_fulls("entries table_fulls\\n00000002 00000003\\n00000002 00000001\\n")
4
"""

from contextlib import suppress

from whybox.kernel.conntrack import stats
from whybox.kernel.host import Host
from whybox.kernel.namespace import FIRST_NET
from whybox.kernel.netns import call_in

STATISTICS = "/proc/thread-self/net/stat/arp_cache"
LIMIT = "/proc/sys/net/ipv4/neigh/default/gc_thresh3"
METER = "arp_cache table_fulls"


def table_fulls(text: str) -> int:
    """How often there was no room for a neighbour, since the machine was started."""
    return stats(text).get("table_fulls", 0)


def meters(host: Host) -> dict[str, int]:
    """The same as a counter by name; nothing where it is not told."""
    with suppress(OSError):
        return {METER: table_fulls(call_in(FIRST_NET, lambda: host.text(STATISTICS)))}
    return {}


def limit(host: Host) -> int | None:
    """How many neighbours there may be; ``None`` where it is not told."""
    with suppress(OSError):
        return call_in(FIRST_NET, lambda: host.optional_number(LIMIT))
    return None
