"""The judge of a way that was walked and tried, on literal walks."""

import errno

import pytest
from msgspec import structs

from tests.pure.paths import NEAR, WAY, seen
from whybox.cases.network.path_broken.probe import judge
from whybox.change import FilterRule, HostSysctl
from whybox.kernel.flow import Attempt, Endpoint, Flow, Step, meter_of
from whybox.kernel.packetfilter import Named
from whybox.model import Certainty, Finding, Severity, Verdict

TO = Endpoint(address="10.1.0.2", port=80)
RULE = Named(table="nft ip filter", chain="FORWARD", number=3, text="drop", packets=4, handle=9)
SILENT = Attempt(resent=1, waited_ns=1_200_000_000)
CONNECTED = Attempt(connected=True)
REFUSED = Attempt(errno=errno.ECONNREFUSED)


def step(kind: str, name: str, fault: str | None = None, **more: object) -> Step:
    plain = Step(way="there", space="the host", kind=kind, name=name, says="said", fault=fault)
    return structs.replace(plain, **more)


HOME = step("route", "route to 10.1.0.2", space="the container")
DROPPED = step("filter", "FORWARD", "dropped", rule=RULE, meter=meter_of(RULE))


def judged(*steps: Step, attempt: Attempt = SILENT, moved: int = 0) -> Finding:
    meter = meter_of(RULE)
    flow = Flow(
        to=TO,
        steps=(HOME, *steps),
        before={"the host": {meter: 4}},
        after={"the host": {meter: 4 + moved}},
        attempt=attempt,
    )
    return judge(structs.replace(seen(NEAR, WAY), flow=flow))


def test_a_connection_that_is_made_is_clear_whatever_the_walk_says() -> None:
    finding = judged(DROPPED, attempt=CONNECTED)
    assert finding.verdict is Verdict.CLEAR
    assert finding.hops


def test_a_rule_that_drops_is_named_with_its_counter_and_can_be_taken_away() -> None:
    finding = judged(DROPPED, moved=2)
    assert (finding.verdict, finding.severity) == (Verdict.FOUND, Severity.CRITICAL)
    assert "rule 3 of chain FORWARD" in finding.summary
    assert any(evidence.says == "+2" for evidence in finding.evidence)
    assert finding.cures[0].change == FilterRule("nft ip filter", "FORWARD", 3, handle=9)
    assert [hop.broken for hop in finding.hops] == [False, True]


def test_the_first_broken_hop_counts() -> None:
    finding = judged(DROPPED, step("listener", "port 80", "not_listening"))
    assert "FORWARD" in finding.summary


def test_who_is_refused_met_something_that_refuses() -> None:
    finding = judged(DROPPED, step("listener", "port 80", "not_listening"), attempt=REFUSED)
    assert "port 80" in finding.summary


def test_a_silent_neighbour_is_the_work_of_what_drops_its_question() -> None:
    silent = step("neighbour", "10.0.0.1 on eth0", "neighbour", space="the container")
    assert "FORWARD" in judged(silent, DROPPED).summary


def test_a_rule_that_only_may_drop_counts_if_it_counted() -> None:
    suspect = structs.replace(DROPPED, fault="suspect", certain=False)
    assert "rule 3" not in judged(suspect).summary
    finding = judged(suspect, moved=1)
    assert "rule 3" in finding.summary
    assert finding.certainty is Certainty.LIKELY


@pytest.mark.parametrize("attempt", [CONNECTED, SILENT])
def test_what_hurts_later_is_told_where_nothing_hurts_now(attempt: Attempt) -> None:
    narrow = step("link", "eth0 → veth0", "narrow_end", facts={"link": "veth0", "mtu": "1500"})
    finding = judged(narrow, attempt=attempt)
    assert finding.verdict is Verdict.FOUND
    assert finding.severity is Severity.WARNING
    assert "veth0" in finding.cures[0].commands[0]


def test_what_cannot_be_seen_is_not_made_up() -> None:
    finding = judged(step("beyond", "eth0"))
    assert (finding.verdict, finding.certainty) == (Verdict.FOUND, Certainty.LIKELY)
    assert "Nobody answers" in finding.summary
    assert finding.cures[0].change is None
    refused = judged(step("beyond", "eth0"), attempt=REFUSED)
    assert "itself refuses" in refused.summary


def test_who_was_not_given_time_to_answer_is_not_called_silent() -> None:
    finding = judged(step("beyond", "eth0"), attempt=Attempt(waited_ns=1000))
    assert finding.verdict is Verdict.UNKNOWN
    assert "--window" in finding.summary


def test_the_way_back_is_mended_before_the_reverse_path_filter_is_made_loose() -> None:
    filtered = step("route", "route to 10.1.0.2", "rp_filter", facts={"iif": "br0"})
    route, loose = judged(filtered).cures
    assert route.change is None
    assert loose.change == HostSysctl(key="net.ipv4.conf.br0.rp_filter", value="2")


def test_in_a_third_namespace_no_command_is_printed() -> None:
    there = structs.replace(DROPPED, space="net:[7]")
    finding = judged(step("link", "eth0 → veth0"), there)
    assert finding.cures[0].change is None
    assert finding.cures[0].advice.startswith("In net:[7]: ")


@pytest.mark.parametrize(
    ("fault", "word"),
    [
        ("hairpin", "hairpin"), ("isolated", "said"), ("no_way_back", "way back"),
        ("forwarding", "said"), ("queue_full", "said"), ("conntrack", "said"),
        ("same_address", "luck"), ("too_narrow", "hang"), ("loop", "said"),
    ],
)  # fmt: skip
def test_every_fault_has_a_sentence_and_an_advice(fault: str, word: str) -> None:
    finding = judged(step("bridge", "veth0 on br0", fault))
    assert word in finding.summary
    assert finding.cures[0].advice
