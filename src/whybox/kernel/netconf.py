"""Per-link settings of IPv4 and IPv6, in two answers instead of many files under /proc/sys/net.

RTM_GETNETCONF tells what /proc/sys/net/ipv{4,6}/conf/*/{forwarding,rp_filter} do.
"""

import struct
from collections.abc import Mapping
from contextlib import suppress

from msgspec import Struct

from whybox.kernel import netlink
from whybox.kernel.netlink import FAMILIES, Family

RTM_GETNETCONF = 82
NETCONFA_IFINDEX, NETCONFA_FORWARDING, NETCONFA_RP_FILTER = 1, 2, 3
#: The link number of "conf/all".
ALL = -1
_NETCONFMSG = struct.Struct("=Bxxx")


class Settings(Struct, frozen=True, kw_only=True):
    """By family and link; ``ALL`` is what holds for all."""

    forwarding: Mapping[tuple[Family, int], bool]
    rp_filter: Mapping[int, int]
    """IPv4 alone. 1: strict, 2: loose. The larger of a link's and all's counts."""

    def filters_source(self, ifindex: int) -> int:
        """How a link checks where a packet says it comes from (IN_DEV_RPFILTER)."""
        return max(self.rp_filter.get(ifindex, 0), self.rp_filter.get(ALL, 0))


def settings(sock: netlink.Socket) -> Settings:
    """Of the socket's namespace."""
    forwarding: dict[tuple[Family, int], bool] = {}
    rp_filter: dict[int, int] = {}
    for number, family in FAMILIES.items():
        with suppress(OSError):  # a kernel without IPv6
            asked = f"RTM_GETNETCONF {family}"
            for message in sock.dump(RTM_GETNETCONF, _NETCONFMSG.pack(number), asked):
                found = netlink.attributes(message.payload, _NETCONFMSG.size)
                if NETCONFA_IFINDEX not in found:
                    continue
                ifindex = netlink.signed(found[NETCONFA_IFINDEX])
                if NETCONFA_FORWARDING in found:
                    on = netlink.signed(found[NETCONFA_FORWARDING])
                    forwarding[family, ifindex] = bool(on)
                if NETCONFA_RP_FILTER in found and family == "inet":
                    rp_filter[ifindex] = netlink.signed(found[NETCONFA_RP_FILTER])
    return Settings(forwarding=forwarding, rp_filter=rp_filter)
