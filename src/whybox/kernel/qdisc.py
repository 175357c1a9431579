"""The queueing discipline at the root of each interface (struct tcmsg, rtnetlink(7))."""

import struct
from collections.abc import Mapping

from whybox.kernel import netlink
from whybox.kernel.netns import call_in

RTM_GETQDISC = 38
TCA_KIND = 1
TC_H_ROOT = 0xFFFFFFFF

#: Packets do not stand in these longer than the interface is busy: what interfaces have by default.
PLAIN = frozenset(("noqueue", "mq", "pfifo_fast", "fq_codel", "fq", "pfifo", "bfifo", "noop"))

_MESSAGE = struct.Struct("=BxxxiIII")


def roots(ns_path: str) -> Mapping[int, str]:
    """Kinds by the interface's index, such as ``{2: "tbf"}``; raises OSError."""

    def asked() -> dict[int, str]:
        with netlink.Socket() as sock:
            said = sock.dump(RTM_GETQDISC, _MESSAGE.pack(0, 0, 0, 0, 0), "RTM_GETQDISC")
        found = (parse(message.payload) for message in said)
        return {index: kind for index, parent, kind in found if parent == TC_H_ROOT}

    return call_in(ns_path, asked)


def parse(payload: bytes) -> tuple[int, int, str]:
    """The interface's index, the parent's handle and the kind."""
    _, index, _, parent, _ = netlink.fields(_MESSAGE, payload, "tcmsg")
    kind = netlink.attributes(payload, _MESSAGE.size).get(TCA_KIND, b"")
    return index, parent, netlink.text(kind)
