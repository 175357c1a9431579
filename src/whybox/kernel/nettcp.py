"""What TCP has counted in a network namespace at one moment, and of its connections.

From ``/proc/PID/net/{snmp,netstat}`` and ``kernel.tcpinfo``.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack

from msgspec import Struct

from whybox.kernel import arrivals, netlink, tcpinfo
from whybox.kernel.arrivals import Arrival
from whybox.kernel.host import Host, ParseError
from whybox.kernel.netns import call_in
from whybox.kernel.netpath import counters
from whybox.kernel.target import Target
from whybox.kernel.tcpinfo import Connection

#: So many connections are kept, those with most to tell.
MOST_KEPT = 64

_KEPT = {
    "Tcp.InSegs",
    "Tcp.OutSegs",
    "Tcp.RetransSegs",
    *(
        f"TcpExt.{name}"
        for name in (
            *("TCPSACKReorder", "TCPTSReorder", "TCPRenoReorder"),
            *("TCPDSACKRecv", "TCPDSACKIgnoredDubious", "TCPOFOQueue"),
            *("TCPDSACKOldSent", "TCPDSACKOfoSent", "TCPLostRetransmit", "TCPTimeouts"),
        )
    ),
}


class Moment(Struct, frozen=True, kw_only=True):
    """One reading."""

    counters: Mapping[str, int]
    """By ``Tcp.RetransSegs`` and its like, of the whole namespace."""
    connections: tuple[Connection, ...] | None = None
    """Those that ever repeated or reordered something; ``None``: they could not be read."""

    def count(self, name: str) -> int | None:
        """A counter; ``None``: this kernel has none of that name."""
        return self.counters.get(name)


def read(host: Host, target: Target) -> Moment:
    """Of the namespace of a container's first process; raises OSError, ParseError."""
    pid = _pid(target)
    found: dict[str, int] = {}
    for name in ("snmp", "netstat"):
        path = f"/proc/{pid}/net/{name}"
        try:
            found |= counters(host.text(path))
        except ValueError as error:
            raise ParseError(path, str(error)) from None
    kept = {name: value for name, value in found.items() if name in _KEPT}
    return Moment(counters=kept, connections=_connections(host, pid))


def _connections(host: Host, pid: str) -> tuple[Connection, ...] | None:
    def asked() -> tuple[Connection, ...]:
        with netlink.Socket(netlink.NETLINK_SOCK_DIAG, limit_bytes=tcpinfo.LIMIT_BYTES) as sock:
            told = (one for one in tcpinfo.connections(sock) if _tells(one))
            return tcpinfo.most(told, MOST_KEPT)

    if not host.live:
        return None
    try:
        return call_in(f"/proc/{pid}/ns/net", asked)
    except (OSError, ParseError):
        return None  # not allowed, no tcp_diag, or too many


def _tells(one: Connection) -> bool:
    return bool(one.retransmitted or one.duplicates or one.reordered or one.early)


def _pid(target: Target) -> str:
    """Whose namespace it is."""
    return "self" if target.runtime == "self" or target.init is None else str(target.init.pid)


def watched(
    host: Host, target: Target, one: Connection, stack: ExitStack
) -> Callable[[], tuple[Arrival, ...]] | None:
    """Look at what arrives of a connection until ``stack`` is closed; ``None``: not allowed."""
    if not host.live:
        return None
    try:
        return stack.enter_context(arrivals.watched(f"/proc/{_pid(target)}/ns/net", one))
    except OSError:
        return None
