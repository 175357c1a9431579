"""A way that was walked, drawn hop by hop.

the container
  │  route to 10.99.1.2    via 10.99.0.1 over eth0
the host
  │  veth0 on br0          plugged in
  ✗  FORWARD               rule 1 of chain FORWARD (nft ip filter) drops it
"""

from collections.abc import Iterator

from whybox.kernel.host import printable
from whybox.model import Hop

#: A name longer than this does not push all others aside.
WIDEST = 28


def drawn(hops: tuple[Hop, ...]) -> list[str]:
    """The lines, without colours and not wrapped."""
    return list(_lines(hops))


def _lines(hops: tuple[Hop, ...]) -> Iterator[str]:
    width = min(max((len(printable(hop.name)) for hop in hops), default=0), WIDEST)
    where, back = "", False
    for hop in hops:
        if hop.back != back:
            back, where = hop.back, ""
            yield "and the answer:"
        if hop.where != where:
            where = hop.where
            yield printable(where)
        mark = "✗" if hop.broken else "│"
        yield f"  {mark}  {printable(hop.name):<{width}}  {printable(hop.says)}"
