"""A network namespace as a packet meets it: links, routes, filters, neighbours, listeners."""

import struct
from collections.abc import Mapping
from contextlib import suppress

from msgspec import Struct

from whybox.kernel import conntrack, iptables, netlink, nftables, routelookup, rtnetlink
from whybox.kernel.conntrack import Table
from whybox.kernel.flow import meter_of
from whybox.kernel.host import Host
from whybox.kernel.namespace import HOST_NETS
from whybox.kernel.netconf import Settings, settings
from whybox.kernel.netns import call_in
from whybox.kernel.netpath import among, namespaces, own_counters
from whybox.kernel.packetfilter import Chain, Ruleset, policy_of
from whybox.kernel.rtnetlink import Address, Link, Neighbour, Route
from whybox.kernel.sock_diag import Listener, listeners

IP6_TABLES = "/proc/thread-self/net/ip6_tables_names"
BRIDGE_CALLS = "/proc/sys/net/bridge/bridge-nf-call-iptables"


class Plain(Struct, frozen=True, kw_only=True):
    """Its links and addresses: all that is needed of a neighbour on a bridge."""

    links: tuple[Link, ...]
    addresses: tuple[Address, ...]


class Facts(Struct, frozen=True, kw_only=True):
    """The rest: what it does with a packet."""

    neighbours: tuple[Neighbour, ...]
    settings: Settings
    tracked: Table | None
    bridge_calls: bool
    """Whether what a bridge passes on goes through the filters of IPv4 too."""
    counters: Mapping[str, int]


class Space:
    """One network namespace, looked at once a moment."""

    def __init__(self, host: Host, path: str, name: str, *, most_rules: int | None = None) -> None:
        self.path, self.name = path, name
        self._most = most_rules
        self.inode = host.inode(path)
        self._host = host
        self._plain: Plain = host.remembered(
            f"flow plain {self.inode}", lambda: call_in(path, _plain)
        )

    @property
    def facts(self) -> Facts:
        """Read when it is first asked for."""
        return self._host.remembered(f"flow facts {self.inode}", lambda: call_in(self.path, _facts))

    @property
    def ruleset(self) -> Ruleset:
        """Its packet filters."""
        most = self._most
        key = f"flow ruleset {self.inode} {most}"
        return self._host.remembered(key, lambda: call_in(self.path, lambda: ruleset(most)))

    @property
    def links(self) -> tuple[Link, ...]:
        """All of its links."""
        return self._plain.links

    def link(self, ifindex: int | None) -> Link | None:
        """A link by its number."""
        return next((link for link in self.links if link.ifindex == ifindex), None)

    def addresses(self, ifindex: int) -> list[str]:
        """Those of one link."""
        return [a.address for a in self._plain.addresses if a.ifindex == ifindex]

    @property
    def local(self) -> frozenset[str]:
        """All of its addresses."""
        return frozenset(address.address for address in self._plain.addresses)

    @property
    def indexes(self) -> dict[str, int]:
        """Links by name."""
        return {link.name: link.ifindex for link in self.links}

    def route(
        self, address: str, source: str | None = None, iif: Link | None = None
    ) -> Route | int:
        """The kernel's choice, or the errno with which it refuses."""
        index = None if iif is None else iif.ifindex

        def ask() -> Route:
            with netlink.Socket() as sock:
                return routelookup.route_of(sock, address, source=source, iif=index)

        try:
            return call_in(self.path, ask)
        except OSError as error:
            return error.errno or 5

    def listeners(self, port: int) -> tuple[Listener, ...] | None:
        """Who accepts connections on a port; ``None``: this kernel does not tell."""

        def ask() -> tuple[Listener, ...]:
            with netlink.Socket(netlink.NETLINK_SOCK_DIAG) as sock:
                return tuple(each for each in listeners(sock) if each.port == port)

        try:
            return call_in(self.path, ask)
        except OSError:
            return None

    def neighbour(self, ifindex: int, address: str) -> Neighbour | None:
        """What is known of somebody on a link."""
        known = (n for n in self.facts.neighbours if (n.ifindex, n.address) == (ifindex, address))
        return next((each for each in known if each.states), None)

    def place_of(self, netnsid: int) -> str | None:
        """A path to the namespace that this one knows by a number."""
        key = f"netns {netnsid} of {self.inode}"
        return self._host.remembered(
            key,
            lambda: (
                among(self.path, netnsid, HOST_NETS)
                or among(self.path, netnsid, namespaces(self._host))
            ),
        )

    def meters(self) -> dict[str, int]:
        """Every counter that a hop may be confirmed by."""
        facts = self.facts
        found = dict(facts.counters)
        for link in self.links:
            if link.statistics is not None:
                found[f"{link.name} rx_dropped"] = link.statistics.rx_dropped
                found[f"{link.name} tx_dropped"] = link.statistics.tx_dropped
        if facts.tracked is not None:
            found["conntrack drop"] = facts.tracked.counters.get("drop", 0)
        for chain in self.ruleset.chains:
            rules = [rule.named for rule in chain.rules]
            rules += [policy_of(chain)] if chain.hook else []
            found |= {meter_of(r): r.packets for r in rules if r.packets is not None}
        return found


def _plain() -> Plain:
    """Runs in the namespace."""
    with netlink.Socket() as sock:
        return Plain(links=rtnetlink.links(sock), addresses=rtnetlink.addresses(sock))


def _facts() -> Facts:
    """Runs in the namespace."""
    with netlink.Socket() as sock:
        return Facts(
            neighbours=rtnetlink.neighbours(sock),
            settings=settings(sock),
            tracked=conntrack.table(),
            bridge_calls=_bridge_calls(),
            counters=_counters(),
        )


def ruleset(most: int | None = None) -> Ruleset:
    """The filters of the namespace that the running thread is in."""
    chains: list[Chain] = []
    unread = []
    for name, read in (("nftables", nftables.read), ("iptables", iptables.read)):
        try:
            chains += read(most)
        except (OSError, ValueError, struct.error) as error:
            unread.append(f"{name}: {error}")
    return Ruleset(
        chains=tuple(chains), unread="; ".join(unread) or None, unread_ipv6=_legacy_ipv6()
    )


def _legacy_ipv6() -> str | None:
    with suppress(OSError), open(IP6_TABLES, encoding="ascii") as file:
        names = file.read(4096).split()
        return f"ip6tables: its tables {', '.join(names)} are not read" if names else None
    return None


def _bridge_calls() -> bool:
    with suppress(OSError), open(BRIDGE_CALLS, encoding="ascii") as file:
        return file.read(8).strip() == "1"
    return False


def _counters() -> dict[str, int]:
    found: dict[str, int] = {}
    for name in ("snmp", "netstat"):
        with suppress(OSError):
            found |= own_counters(name)
    return found
