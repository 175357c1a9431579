"""Asking the kernel which way it would send a packet; nothing is sent for it."""

import os
import socket
import struct

from whybox.kernel import netlink
from whybox.kernel.netlink import attribute, attributes
from whybox.kernel.rtnetlink import RTA_DST, RTM_GETROUTE, RTMSG, Route, parse_route

RTA_SRC, RTA_IIF, RTA_CACHEINFO = 2, 3, 12
RTM_F_LOOKUP_TABLE = 0x1000


def route_to(sock: netlink.Socket, address: str) -> Route:
    """The way the kernel would send to ``address``; where there is none, the errno of connect().

    ENETUNREACH: no route; EHOSTUNREACH: an unreachable route; EACCES: prohibit; EINVAL: blackhole.
    """
    return route_of(sock, address)


def route_of(
    sock: netlink.Socket, address: str, *, source: str | None = None, iif: int | None = None
) -> Route:
    """The same for a packet that comes in by the link ``iif`` and says it is from ``source``.

    EXDEV: the reverse path filter refuses it; EHOSTUNREACH: also where forwarding is off.
    """
    asked = f"RTM_GETROUTE {address}"
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        value = socket.inet_pton(family, address)
    except (OSError, ValueError) as error:
        raise ValueError(f"not an IP address: {address!r}") from error
    # Only IPv4 must be told to name the table of the lookup, and only IPv4 may be.
    flags = RTM_F_LOOKUP_TABLE if family == socket.AF_INET else 0
    origin = b"" if source is None else socket.inet_pton(family, source)
    header = RTMSG.pack(family, 8 * len(value), 8 * len(origin), 0, 0, 0, 0, 0, flags)
    body = attribute(RTA_DST, value) + (attribute(RTA_SRC, origin) if origin else b"")
    if iif is not None:
        body += attribute(RTA_IIF, struct.pack("=i", iif))
    answer = sock.get(RTM_GETROUTE, header + body, asked)
    raise_route_error(answer.payload, asked)
    route = parse_route(answer.payload)
    if route is None:
        raise netlink.malformed(f"{asked}: an answer of another family")
    return route


def raise_route_error(payload: bytes, asked: str) -> None:
    """IPv4 refuses the request; IPv6 answers with the unreachable route and the errno in it."""
    cache_info = attributes(payload, RTMSG.size).get(RTA_CACHEINFO, b"")
    if len(cache_info) < 16:
        return
    number = -netlink.signed(cache_info[12:16])  # rta_cacheinfo.rta_error
    if number > 0:
        raise OSError(number, os.strerror(number), asked)
