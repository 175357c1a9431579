"""Who takes a connection at its end."""

from collections.abc import Iterable
from ipaddress import IPv6Address, ip_address

from whybox.kernel.sock_diag import Listener


def heard_at(found: Iterable[Listener], address: str) -> tuple[str | None, str]:
    """What is wrong with the listeners on a port for somebody who comes to ``address``, in words.

    A queue is full when more than its length wait (sk_acceptq_is_full()).
    """
    mine = list(found)
    takes = [each for each in mine if _takes(each, address)]
    if not mine:
        return "not_listening", "no socket listens there"
    if not takes:
        where = ", ".join(sorted({each.address for each in mine}))
        return "listens_elsewhere", f"it listens on {where} only"
    if all(each.ack_backlog > each.max_ack_backlog for each in takes):
        full = takes[0]
        waiting = f"{full.ack_backlog} connections wait, and it takes {full.max_ack_backlog}"
        return "queue_full", f"its queue is full: {waiting}"
    return None, f"{takes[0].address} listens"


def _takes(listener: Listener, address: str) -> bool:
    wanted, own = ip_address(address), ip_address(listener.address)
    if isinstance(own, IPv6Address):
        if own.is_unspecified:
            return wanted.version == 6 or not listener.v6only
        own = own.ipv4_mapped or own
    return own.is_unspecified or own == wanted
