"""Looking along a path, as far as that needs no privileges."""

import os
from pathlib import Path

import pytest
from msgspec import structs

from whybox.cases.network.path_broken.probe import CASE, judge
from whybox.diagnose import diagnose
from whybox.kernel.host import Host, ParseError
from whybox.kernel.netpath import counters
from whybox.kernel.target import Target
from whybox.kernel.task import TaskId
from whybox.model import Finding, Verdict


def target(**changes: object) -> Target:
    alive = Target(
        id="x",
        name="x",
        runtime="docker",
        init=TaskId(pid=os.getpid(), start_ticks=1),
        init_nspid=1,
    )
    return structs.replace(alive, **changes)


def observed(host: Host, of: Target) -> Finding:
    """What a window of no length says; the target need not be the one that it was."""
    report = diagnose(host, [structs.replace(of, init=of.init)], {"network/path_broken": CASE})
    return report.targets[0].findings[0]


def test_a_tree_of_files_has_no_namespace(tmp_path: Path) -> None:
    finding = observed(Host(str(tmp_path)), target())
    assert finding.verdict is Verdict.UNKNOWN
    assert "tree of files" in finding.summary


def test_a_dead_container_is_unknown() -> None:
    finding = observed(Host(), target(init=None))
    assert finding.verdict is Verdict.UNKNOWN
    assert "not running" in finding.summary


def test_the_host_network_is_not_looked_at() -> None:
    watch = CASE.observe(Host(), target(namespaces={"net": 7}, host_namespaces={"net": 7}))
    next(watch)
    with pytest.raises(StopIteration) as end:
        next(watch)
    assert end.value.value.after is None


def test_the_own_namespace_can_be_observed_without_privileges() -> None:
    """This very process, as ``self``: whatever it has, the judge has an answer."""
    watch = CASE.observe(Host(), target(runtime="self"))
    next(watch)
    with pytest.raises(StopIteration) as end:
        next(watch)
    links = {each.name for each in end.value.value.after.near.links}
    assert links == set(os.listdir("/sys/class/net"))
    assert judge(end.value.value).summary


def test_counters_are_read_by_name() -> None:
    text = "Ip: Forwarding OutNoRoutes\nIp: 1 7\nTcp: MaxConn OutRsts\nTcp: -1 3\n"
    assert counters(text) == {
        "Ip.Forwarding": 1,
        "Ip.OutNoRoutes": 7,
        "Tcp.MaxConn": -1,
        "Tcp.OutRsts": 3,
    }
    with pytest.raises(ParseError, match="seven"):
        counters("Ip: OutNoRoutes\nIp: seven\n")
