"""How published ports get in, for people."""

from whybox.ingress import Entrance


def lines(entrances: tuple[Entrance, ...]) -> list[str]:
    """A heading for each port, its ways in order, and what follows from them."""
    return [line for one in entrances for line in _entrance(one)] or ["no port is published"]


def _entrance(one: Entrance) -> list[str]:
    outside = "" if one.host_port is None else f"{one.host_address or '*'}:{one.host_port} → "
    found = [f"{outside}{one.port}/{one.protocol}   {one.says}"]
    for way in one.ways:
        found += [f"   {way.kind:<8} {way.says}", f"            {way.source}"]
    return found
