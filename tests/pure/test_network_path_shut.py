"""A filter that stops everything, found without anybody being named; and how a port gets in."""

import pytest
from msgspec import structs

from tests.pure.paths import NEAR, WAY, seen
from whybox.cases.network.path_broken.probe import judge
from whybox.change import FilterRule
from whybox.ingress import _concluded
from whybox.kernel.flow import Step
from whybox.kernel.flowlisten import heard_at
from whybox.kernel.packetfilter import Named
from whybox.kernel.sock_diag import Listener
from whybox.model import Certainty, Severity, Verdict

RULE = Named(table="iptables filter", chain="FORWARD", number=0, text="policy drop", packets=7)
OUT = Step(
    way="there", space="net:[7]", kind="filter", name="FORWARD", says="the policy drops it",
    fault="dropped", rule=RULE,
)  # fmt: skip


def test_that_nothing_gets_out_may_be_meant_so() -> None:
    finding = judge(structs.replace(seen(NEAR, WAY), shut=(OUT,)))
    assert (finding.severity, finding.certainty) == (Severity.WARNING, Certainty.LIKELY)
    assert finding.cures[0].change == FilterRule("iptables filter", "FORWARD", 0)
    assert "7 packets so far" in finding.evidence[0].says


def test_that_nobody_gets_in_to_a_published_port_may_not() -> None:
    into = structs.replace(OUT, way="in", space="the container", facts={"port": "80"})
    finding = judge(structs.replace(seen(NEAR, WAY, ports=(80,)), shut=(OUT, into)))
    assert (finding.severity, finding.certainty) == (Severity.CRITICAL, Certainty.CONFIRMED)
    assert "published port 80" in finding.summary
    change = finding.cures[0].change
    assert isinstance(change, FilterRule)
    assert change.in_container


def test_a_hop_before_the_filter_comes_first() -> None:
    off = structs.replace(NEAR, links=tuple(structs.replace(k, up=False) for k in NEAR.links))
    finding = judge(structs.replace(seen(off, WAY), shut=(OUT,)))
    assert finding.verdict is Verdict.FOUND
    assert "switched off" in finding.summary


def listener(address: str, *, waiting: int = 0, v6only: bool | None = None) -> Listener:
    return Listener(
        family="inet6" if ":" in address else "inet", address=address, port=80, ifindex=None,
        uid=0, inode=1, ack_backlog=waiting, max_ack_backlog=4, v6only=v6only,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("found", "fault"),
    [
        ((), "not_listening"),
        ((listener("127.0.0.1"),), "listens_elsewhere"),
        ((listener("::", v6only=True),), "listens_elsewhere"),
        ((listener("::", v6only=False),), None),
        ((listener("::ffff:10.0.0.2"),), None),
        ((listener("10.0.0.2", waiting=4),), None),
        ((listener("10.0.0.2", waiting=5),), "queue_full"),
        ((listener("10.0.0.2", waiting=5), listener("0.0.0.0")), None),
    ],
)
def test_who_takes_a_connection(found: tuple[Listener, ...], fault: str | None) -> None:
    assert heard_at(found, "10.0.0.2")[0] == fault


@pytest.mark.parametrize(
    ("kinds", "words"),
    [
        ({"dnat", "proxy"}, "flushing NAT does not close the port"),
        ({"dnat"}, "without it the port is closed"),
        ({"proxy"}, "and yet it answers"),
        ({"proxy", "orphan"}, "asked by nobody"),
        ({"tracked"}, "Nothing new gets in"),
        ({"ipvs", "dnat"}, "IPVS takes"),
        (set(), "Nothing leads"),
    ],
)
def test_what_follows_from_the_ways_in(kinds: set[str], words: str) -> None:
    assert words in _concluded(kinds, 8080)
