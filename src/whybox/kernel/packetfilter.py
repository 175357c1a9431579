"""What the packet filters of a namespace would do with a packet; nothing here reads.

A packet is described as far as it is known; what is not known matches "perhaps". So one walk
answers both "what happens to this connection" and "can anything at all get through".
"""

from collections.abc import Callable, Generator, Iterator, Mapping
from ipaddress import ip_address
from typing import TypeAlias

from msgspec import Struct, structs

from whybox.kernel.netlink import Family

#: Chains jump at most so deep (NFT_JUMP_STACK_SIZE), and so many rules are looked at for a hook.
DEEPEST = 16
MOST_RULES = 50_000

TCP, UDP, ICMP, ICMP6 = 6, 17, 1, 58
ENDS = frozenset({"accept", "drop", "reject", "queue", "dnat", "snat", "masquerade", "redirect"})
STOPS = frozenset({"drop", "reject"})


class Packet(Struct, frozen=True, kw_only=True):
    """A packet at one place; ``None``: not known."""

    family: Family
    protocol: int = TCP
    source: str | None = None
    destination: str | None = None
    sport: int | None = None
    dport: int | None = None
    iif: str | None = None
    """The interface that it came in by; ``""``: none, it was made here."""
    oif: str | None = None
    state: str = "new"
    """Connection tracking's word: new, established, related."""
    snat: bool | None = False
    dnat: bool | None = False
    mark: int | None = 0
    local: frozenset[str] = frozenset()
    """The addresses of the namespace that it is in."""
    indexes: Mapping[str, int] = {}
    """Interfaces there, by name."""
    arp: bool = False
    """Not the packet itself, but the question for the link address that it needs."""

    @property
    def is_for_local(self) -> bool | None:
        """Whether its destination is an address of the namespace."""
        return None if self.destination is None else self.destination in self.local

    @property
    def is_from_local(self) -> bool | None:
        """Whether its source is."""
        return None if self.source is None else self.source in self.local


class Effect(Struct, frozen=True, kw_only=True):
    """What a rule does with a packet that it matches."""

    verdict: str
    """accept, drop, reject, return, continue, jump, goto, queue, dnat, snat, masquerade, …"""
    chain: str | None = None
    address: str | None = None
    port: int | None = None
    mark: int | None = None
    """It is given this mark."""
    mask: int = 0xFFFFFFFF
    """Only these bits of it."""


CONTINUE = Effect(verdict="continue")


class Named(Struct, frozen=True, kw_only=True):
    """A rule as a person finds it again, and its counter."""

    table: str
    """Such as ``iptables filter``, ``nft inet firewall``."""
    chain: str
    number: int
    """Its place in the chain from 1; 0: the chain's policy."""
    text: str
    packets: int | None
    handle: int | None = None

    def __str__(self) -> str:
        if self.number == 0:
            return f"the policy of chain {self.chain} ({self.table})"
        return f"rule {self.number} of chain {self.chain} ({self.table})"

    @property
    def key(self) -> tuple[str, str, int, int | None]:
        """The same before and after."""
        return self.table, self.chain, self.number, self.handle


Check: TypeAlias = Callable[[Packet], tuple[bool | None, Effect]]


class Rule(Struct, frozen=True, kw_only=True):
    """One rule: what it is called, and what it does with a packet."""

    named: Named
    check: Check


class Chain(Struct, frozen=True, kw_only=True):
    """Rules in order; a base chain hangs on a hook."""

    table: str
    name: str
    rules: tuple[Rule, ...] = ()
    hook: str | None = None
    """prerouting, input, forward, output, postrouting, ingress, egress."""
    family: str = "ip"
    """ip, ip6, inet, bridge, arp, netdev."""
    type: str = "filter"
    priority: int = 0
    policy: str = "accept"
    policy_packets: int | None = None


class Outcome(Struct, frozen=True, kw_only=True):
    """How a packet can leave a hook."""

    effect: Effect
    rule: Named | None
    certain: bool


class Passage(Struct, frozen=True, kw_only=True):
    """What a whole hook does with a packet."""

    hook: str
    stopped: Outcome | None = None
    """It is dropped or refused, whatever is not known."""
    suspects: tuple[Named, ...] = ()
    """Rules that may drop it, where that depends on what is not known."""
    nat: Outcome | None = None
    clamps: bool = False
    """A rule lowers the largest segment (TCPMSS)."""
    mark: int | None = 0
    """With which it leaves the hook."""


class Ruleset(Struct, frozen=True, kw_only=True):
    """All filters of a namespace."""

    chains: tuple[Chain, ...] = ()
    unread: str | None = None
    """Why some could not be read."""
    unread_ipv6: str | None = None
    """The same, of filters that see IPv6 alone."""

    def bases(self, hook: str, families: tuple[str, ...]) -> list[Chain]:
        """The chains of a hook in the order in which the kernel asks them."""
        found = [c for c in self.chains if c.hook == hook and c.family in families]
        return sorted(found, key=lambda chain: chain.priority)

    def counters(self) -> dict[tuple[str, str, int, int | None], int]:
        """How many packets each rule and policy has counted, where it counts."""
        named = [rule.named for chain in self.chains for rule in chain.rules]
        named += [policy_of(chain) for chain in self.chains if chain.hook is not None]
        return {each.key: each.packets for each in named if each.packets is not None}

    def passage(self, hook: str, packet: Packet, *, bridge: bool = False) -> Passage:
        """What happens to a packet at a hook."""
        ip = "ip" if packet.family == "inet" else "ip6"
        walk = _Walk(self, packet)
        return walk.through(hook, ("bridge",) if bridge else (ip, "inet"))


def policy_of(chain: Chain) -> Named:
    """A policy as a rule."""
    return Named(
        table=chain.table,
        chain=chain.name,
        number=0,
        text=f"policy {chain.policy}",
        packets=chain.policy_packets,
    )


class _Walk:
    """One packet's way through one hook."""

    def __init__(self, ruleset: Ruleset, packet: Packet) -> None:
        self.packet = packet
        self.clamps = False
        self._ruleset = ruleset
        self._chains = {(c.table, c.name): c for c in ruleset.chains}
        self._left = MOST_RULES

    def through(self, hook: str, families: tuple[str, ...]) -> Passage:
        suspects: list[Named] = []
        nat: Outcome | None = None
        for base in self._ruleset.bases(hook, families):
            if base.type == "nat" and self.packet.state != "new":
                continue  # only the first packet of a connection asks NAT's rules
            outcomes = self._outcomes(base)
            if outcomes and all(o.effect.verdict in STOPS for o in outcomes):
                return self._passage(hook, outcomes[0])
            suspects += [o.rule for o in outcomes if o.rule and o.effect.verdict in STOPS]
            if base.type == "nat" and nat is None:
                nat = _translation(outcomes)
        return self._passage(hook, None, tuple(suspects), nat)

    def _passage(
        self,
        hook: str,
        stopped: Outcome | None,
        suspects: tuple[Named, ...] = (),
        nat: Outcome | None = None,
    ) -> Passage:
        return Passage(
            hook=hook,
            stopped=stopped,
            suspects=suspects,
            nat=nat,
            clamps=self.clamps,
            mark=self.packet.mark,
        )

    def _outcomes(self, base: Chain) -> list[Outcome]:
        found = list(self._along(base, 0, True))
        for place, outcome in enumerate(found):
            if outcome.effect.verdict == "end":
                effect = Effect(verdict=base.policy)
                found[place] = Outcome(effect=effect, rule=policy_of(base), certain=outcome.certain)
        return found

    def _along(self, chain: Chain, depth: int, certain: bool) -> Iterator[Outcome]:
        """Every way in which the chain can be left; "end": past its last rule."""
        for rule in chain.rules:
            self._left -= 1
            if self._left < 0 or depth > DEEPEST:
                yield Outcome(effect=Effect(verdict="unknown"), rule=None, certain=False)
                return
            matches, effect = rule.check(self.packet)
            if matches is False:
                continue
            if effect.verdict == "clamp":
                self.clamps = True
            if effect.mark is not None:
                self._mark(effect, bool(matches))
            sure = certain and bool(matches)
            leaves = yield from self._followed(chain, rule, effect, depth, sure)
            if leaves and matches:
                return
            certain = certain and bool(matches or not leaves)
        yield Outcome(effect=Effect(verdict="end"), rule=None, certain=certain)

    def _followed(
        self, chain: Chain, rule: Rule, effect: Effect, depth: int, sure: bool
    ) -> Generator[Outcome, None, bool]:
        """Yield the ends; return whether no packet that matches comes to the next rule."""
        if effect.verdict in ENDS:
            yield Outcome(effect=effect, rule=rule.named, certain=sure)
            return True
        if effect.verdict == "return":
            yield Outcome(effect=Effect(verdict="end"), rule=None, certain=sure)
            return True
        if effect.verdict not in ("jump", "goto"):
            return False
        target = self._chains.get((chain.table, effect.chain or ""))
        if target is None:
            return False
        comes_back = False
        for outcome in self._along(target, depth + 1, sure):
            if outcome.effect.verdict == "end" and effect.verdict == "jump":
                comes_back = True
            else:
                yield outcome
        return not comes_back

    def _mark(self, effect: Effect, surely: bool) -> None:
        """A mark that may or may not have been set is not known from then on."""
        mark = self.packet.mark
        known = None
        if surely and mark is not None and effect.mark is not None:
            known = (mark & ~effect.mask) ^ effect.mark
        self.packet = structs.replace(self.packet, mark=known)


def _translation(outcomes: list[Outcome]) -> Outcome | None:
    """The address translation, if it is the only thing that can happen."""
    kinds = {"dnat", "snat", "masquerade", "redirect"}
    first = outcomes[0] if outcomes else None
    return first if first is not None and first.effect.verdict in kinds else None


def header(packet: Packet) -> tuple[list[int | None], list[int | None]]:
    """The network header and the beginning of the transport header, byte by byte as known."""
    if packet.arp:
        return [None] * 28, []
    network = _ipv4(packet) if packet.family == "inet" else _ipv6(packet)
    transport: list[int | None] = [*_port(packet.sport), *_port(packet.dport)]
    if packet.protocol == TCP:
        flags = 0x02 if packet.state == "new" else 0x12
        transport += [None] * 8 + [0xA0, flags] + [None] * 6
    elif packet.protocol in (ICMP, ICMP6):
        # "too big": the one kind that a way is asked about
        transport = [3, 4] if packet.protocol == ICMP else [2, 0]
    return network, transport


def ether_type(packet: Packet) -> list[int | None]:
    """The two bytes that say what a frame carries."""
    if packet.arp:
        return [0x08, 0x06]
    return [0x08, 0x00] if packet.family == "inet" else [0x86, 0xDD]


def _port(number: int | None) -> tuple[int | None, int | None]:
    return (None, None) if number is None else (number >> 8, number & 0xFF)


def _address(address: str | None, length: int) -> list[int | None]:
    return [None] * length if address is None else list(ip_address(address).packed)


def _ipv4(packet: Packet) -> list[int | None]:
    head: list[int | None] = [0x45, None, None, None, None, None, 0x40, 0, None, packet.protocol]
    head += [None, None, *_address(packet.source, 4), *_address(packet.destination, 4)]
    return head


def _ipv6(packet: Packet) -> list[int | None]:
    head: list[int | None] = [0x60, None, None, None, None, None, packet.protocol, None]
    return [*head, *_address(packet.source, 16), *_address(packet.destination, 16)]


def both(answers: Iterator[bool | None]) -> bool | None:
    """Whether all hold: one that does not settles it, one that is not known leaves it open."""
    known: bool | None = True
    for answer in answers:
        if answer is False:
            return False
        if answer is None:
            known = None
    return known


def turned(answer: bool | None, invert: bool) -> bool | None:
    """The answer, or its opposite."""
    return None if answer is None else answer != invert
