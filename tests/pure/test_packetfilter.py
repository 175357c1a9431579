"""What filters do with a packet: as far as it is known, and no further."""

import pytest
from msgspec import structs

from whybox.kernel.packetfilter import (
    CONTINUE,
    Chain,
    Effect,
    Named,
    Packet,
    Passage,
    Rule,
    Ruleset,
)

PACKET = Packet(family="inet", source="10.0.0.2", destination="10.1.0.2", dport=80)
DROP, ACCEPT, RETURN = (Effect(verdict=word) for word in ("drop", "accept", "return"))
DNAT = Effect(verdict="dnat", address="10.0.0.3", port=8080)


def rule(number: int, effect: Effect, *, matches: bool | None = True, chain: str = "fwd") -> Rule:
    named = Named(table="nft ip t", chain=chain, number=number, text="", packets=0)
    return Rule(named=named, check=lambda _: (matches, effect))


def chain(*rules: Rule, name: str = "fwd", hook: str | None = "forward", **more: object) -> Chain:
    plain = Chain(table="nft ip t", name=name, rules=rules, hook=hook)
    return structs.replace(plain, **more)


def passage(*chains: Chain, packet: Packet = PACKET, hook: str = "forward") -> Passage:
    return Ruleset(chains=chains).passage(hook, packet)


def stopped_by(found: Passage) -> str:
    assert found.stopped is not None
    return str(found.stopped.rule)


def test_without_chains_everything_passes() -> None:
    assert passage() == Passage(hook="forward")


def test_the_first_rule_that_matches_decides() -> None:
    found = passage(chain(rule(1, CONTINUE), rule(2, DROP), rule(3, ACCEPT)))
    assert stopped_by(found) == "rule 2 of chain fwd (nft ip t)"
    assert passage(chain(rule(1, ACCEPT), rule(2, DROP))).stopped is None


def test_the_policy_is_the_last_word() -> None:
    assert stopped_by(passage(chain(policy="drop"))) == "the policy of chain fwd (nft ip t)"
    assert passage(chain(rule(1, ACCEPT), policy="drop")).stopped is None


def test_accept_ends_one_chain_only() -> None:
    first = chain(rule(1, ACCEPT), name="first", priority=-10)
    second = chain(rule(1, DROP), name="second", priority=10)
    assert passage(second, first).stopped is not None


def test_what_depends_on_what_is_not_known_is_a_suspicion() -> None:
    found = passage(chain(rule(1, DROP, matches=None)))
    assert found.stopped is None
    assert [str(each) for each in found.suspects] == ["rule 1 of chain fwd (nft ip t)"]


def test_two_unknown_rules_that_both_drop_are_certain_enough() -> None:
    found = passage(chain(rule(1, DROP, matches=None), policy="drop"))
    assert found.stopped is not None
    assert not found.stopped.certain


def test_an_unknown_accept_before_a_drop_lets_hope() -> None:
    found = passage(chain(rule(1, ACCEPT, matches=None), rule(2, DROP)))
    assert found.stopped is None
    assert len(found.suspects) == 1


def test_a_jump_comes_back_and_a_goto_does_not() -> None:
    own = chain(rule(1, RETURN, chain="own"), name="own", hook=None)
    jump, goto = (Effect(verdict=word, chain="own") for word in ("jump", "goto"))
    assert passage(own, chain(rule(1, jump), rule(2, DROP))).stopped is not None
    assert passage(own, chain(rule(1, goto), rule(2, DROP))).stopped is None
    assert passage(own, chain(rule(1, goto), policy="drop")).stopped is not None


def test_a_chain_that_jumps_to_itself_is_given_up() -> None:
    loop = Effect(verdict="jump", chain="fwd")
    found = passage(chain(rule(1, loop)))
    assert found.stopped is None


def test_the_rules_of_nat_are_asked_for_the_first_packet_only() -> None:
    nat = chain(rule(1, DNAT, chain="pre"), name="pre", hook="prerouting", type="nat")
    found = passage(nat, hook="prerouting")
    assert found.nat is not None
    assert (found.nat.effect.address, found.nat.effect.port) == ("10.0.0.3", 8080)
    later = structs.replace(PACKET, state="established")
    assert passage(nat, packet=later, hook="prerouting").nat is None


def test_the_filters_of_the_other_family_and_of_the_bridge_are_not_asked() -> None:
    for family in ("ip6", "bridge", "arp"):
        assert passage(chain(policy="drop", family=family)).stopped is None
    assert passage(chain(policy="drop", family="inet")).stopped is not None
    bridge = Ruleset(chains=(chain(policy="drop", family="bridge"),))
    assert bridge.passage("forward", PACKET, bridge=True).stopped is not None


def test_a_mark_that_was_set_is_seen_by_the_rules_behind_it() -> None:
    def marked(packet: Packet) -> tuple[bool | None, Effect]:
        return packet.mark == 7, DROP

    named = Named(table="nft ip t", chain="fwd", number=2, text="", packets=None)
    second = Rule(named=named, check=marked)
    mark = Effect(verdict="continue", mark=7)
    assert passage(chain(rule(1, mark), second)).stopped is not None
    assert passage(chain(second)).stopped is None


def test_a_mark_that_may_have_been_set_is_not_known() -> None:
    """As policy engines do it: what one of their rules has accepted carries a mark."""

    def unmarked(packet: Packet) -> tuple[bool | None, Effect]:
        return None if packet.mark is None else packet.mark != 7, DROP

    named = Named(table="nft ip t", chain="fwd", number=2, text="", packets=None)
    last = Rule(named=named, check=unmarked)
    mark = Effect(verdict="continue", mark=7, mask=0xF)
    assert passage(chain(rule(1, mark, matches=None), last)).stopped is None
    assert passage(chain(rule(1, mark, matches=False), last)).stopped is not None
    assert passage(chain(rule(1, mark), last)).stopped is None


@pytest.mark.parametrize("verdict", ["drop", "reject"])
def test_a_refusal_stops_as_a_drop_does(verdict: str) -> None:
    found = passage(chain(rule(1, Effect(verdict=verdict))))
    assert found.stopped is not None
    assert found.stopped.effect.verdict == verdict


def test_counters_are_found_again_by_name() -> None:
    counted = Ruleset(chains=(chain(rule(1, DROP), policy_packets=5),)).counters()
    assert counted == {("nft ip t", "fwd", 1, None): 0, ("nft ip t", "fwd", 0, None): 5}
