"""UDP sockets and what each had no room for: the last column of ``/proc/net/udp``."""

from collections.abc import Iterable

from msgspec import Struct

from whybox.kernel.host import Host, ParseError


class UdpSocket(Struct, frozen=True, kw_only=True):
    """One UDP socket."""

    port: int
    inode: int
    drops: int
    """Datagrams that its receive buffer had no room for."""


def udp_sockets(host: Host, pid: int | str) -> tuple[UdpSocket, ...]:
    """Those of the network namespace of a process; none where they cannot be read."""
    found: list[UdpSocket] = []
    for name in ("udp", "udp6"):
        text = host.optional_text(f"/proc/{pid}/net/{name}")
        found += [] if text is None else parse(text)
    return tuple(found)


def parse(text: str) -> list[UdpSocket]:
    """``/proc/net/udp``: a heading, then a socket a line.

    >>> parse("head\\n 7: 00000000:0035 00000000:0000 07 0:0 0:0 0 0 0 42 2 ffff 5\\n")
    [UdpSocket(port=53, inode=42, drops=5)]
    """
    found = []
    for line in text.splitlines()[1:]:
        words = line.split()
        try:
            port = int(words[1].rpartition(":")[2], 16)
            found.append(UdpSocket(port=port, inode=int(words[9]), drops=int(words[-1])))
        except (IndexError, ValueError):
            raise ParseError("/proc/net/udp", line) from None
    return found


def dropping(before: Iterable[UdpSocket], after: Iterable[UdpSocket]) -> tuple[UdpSocket, ...]:
    """Those that dropped something meanwhile, the worst first, with how much."""
    known = {one.inode: one.drops for one in before}
    grown = (
        UdpSocket(port=one.port, inode=one.inode, drops=one.drops - known.get(one.inode, 0))
        for one in after
    )
    return tuple(sorted((one for one in grown if one.drops > 0), key=lambda one: -one.drops))
