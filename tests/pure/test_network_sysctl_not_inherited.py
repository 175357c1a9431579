"""network/sysctl_not_inherited: judged on literal observations."""

import pytest
from msgspec import structs

from whybox.cases.network.sysctl_not_inherited.probe import Observation, judge
from whybox.change import Sysctl
from whybox.kernel.netsysctl import Kind, Pair, Seen, Value, defaults, key, kind
from whybox.model import Certainty, Severity, Verdict

SEEN = Seen(pairs=(), inherit=0, ehash=262144, sockets=3, sealed=True)


def pair(path: str, host: str | None, own: str | None, *, writable: bool = True) -> Pair:
    return Pair(
        key=path,
        host=None if host is None else Value(host, True),
        own=None if own is None else Value(own, writable),
    )


def seen(*pairs: Pair, asked: str | None = None, sockets: int | None = 3) -> Observation:
    return Observation(
        own=True,
        inside=False,
        asked=asked,
        place="/proc/2/ns/net",
        seen=structs.replace(SEEN, pairs=pairs, sockets=sockets),
    )


def test_the_hosts_was_changed_and_the_container_has_the_kernels_default() -> None:
    finding = judge(seen(pair("ipv4/tcp_fin_timeout", "15", "60")))
    assert finding.verdict is Verdict.FOUND
    assert (finding.severity, finding.certainty) == (Severity.WARNING, Certainty.LIKELY)
    assert "net.ipv4.tcp_fin_timeout is 15 there and 60 in the container" in finding.summary
    assert "the kernel's default" in finding.summary
    assert finding.cures[0].change == Sysctl("net.ipv4.tcp_fin_timeout", "15")


def test_several_are_cured_together() -> None:
    finding = judge(
        seen(
            pair("ipv4/tcp_keepalive_time", "600", "7200"),
            pair("core/somaxconn", "65535", "4096"),
        )
    )
    change = finding.cures[0].change
    assert isinstance(change, Sysctl)
    assert change.pairs == (("net.ipv4.tcp_keepalive_time", "600"), ("net.core.somaxconn", "65535"))


@pytest.mark.parametrize(
    ("host", "own"),
    [("4096", "1024"), ("8192", "1024"), ("8192", "8192"), ("4096", "4096")],
)
def test_a_value_that_the_container_was_given_is_not_missed(host: str, own: str) -> None:
    finding = judge(seen(pair("core/somaxconn", host, own)))
    assert finding.verdict is Verdict.CLEAR
    assert ("values of its own" in finding.summary) is (host != own)


def test_what_a_host_sets_for_itself_is_not_missed() -> None:
    finding = judge(
        seen(pair("ipv4/ip_forward", "1", "0"), pair("unix/max_dgram_qlen", "512", "10"))
    )
    assert finding.verdict is Verdict.CLEAR
    assert "values of its own" not in finding.summary
    assert len(finding.evidence) == 2


def test_without_a_socket_it_is_only_information() -> None:
    shape = pair("ipv4/tcp_fin_timeout", "15", "60")
    assert judge(seen(shape, sockets=0)).severity is Severity.INFO
    assert judge(seen(shape, sockets=None)).severity is Severity.WARNING


def test_what_depends_on_the_machine_is_computed_or_not_judged() -> None:
    assert defaults("ipv4/tcp_max_syn_backlog", -262144) == ("2048",)
    assert defaults("ipv4/tcp_max_syn_backlog", 1024) == ("128",)
    assert defaults("ipv4/tcp_max_tw_buckets", 262144) == ("131072",)
    assert defaults("ipv4/tcp_max_syn_backlog", None) == ()
    changed = pair("ipv4/tcp_max_syn_backlog", "65536", "2048")
    assert judge(seen(changed)).verdict is Verdict.FOUND
    blind = structs.replace(SEEN, pairs=(changed,), ehash=None)
    assert judge(structs.replace(seen(), seen=blind)).verdict is Verdict.CLEAR


def test_a_copy_that_was_made_too_early() -> None:
    finding = judge(seen(pair("ipv4/tcp_congestion_control", "bbr", "cubic")))
    assert finding.verdict is Verdict.FOUND
    assert "copies the first one's value once" in finding.summary


def test_of_a_copy_it_may_not_be_known_who_changed_what() -> None:
    key = "ipv4/tcp_congestion_control"
    finding = judge(seen(pair(key, "reno", "bbr")))
    assert finding.verdict is Verdict.CLEAR
    assert "may be what the host had then" in finding.summary
    asked = judge(seen(pair(key, "reno", "bbr"), asked=key))
    assert (asked.verdict, asked.severity) == (Verdict.FOUND, Severity.INFO)
    assert "changed after it was made, or it was given" in asked.summary


def test_the_hosts_network_is_its_own() -> None:
    observation = structs.replace(seen(), own=False, seen=None)
    assert judge(observation).verdict is Verdict.CLEAR


def test_from_inside_nothing_can_be_compared() -> None:
    observation = structs.replace(seen(), inside=True, place=None, seen=None)
    assert judge(observation).verdict is Verdict.UNKNOWN


def test_a_global_parameter_is_explained_and_is_no_trouble() -> None:
    path = "core/netdev_max_backlog"
    finding = judge(seen(pair(path, "1000", None), asked=path))
    assert finding.verdict is Verdict.CLEAR
    assert "one for the whole machine: the host's 1000 counts" in finding.summary


def test_a_shared_parameter_is_explained() -> None:
    path = "core/rmem_max"
    finding = judge(seen(pair(path, "212992", "212992", writable=False), asked=path))
    assert finding.verdict is Verdict.CLEAR
    assert "may read the host's 212992 and not change it" in finding.summary


def test_one_that_was_asked_for_and_is_the_containers_own() -> None:
    path = "core/somaxconn"
    same = judge(seen(pair(path, "4096", "4096"), asked=path))
    assert same.verdict is Verdict.CLEAR
    assert "/proc/sys is read-only" in same.summary
    given = judge(seen(pair(path, "4096", "1024"), asked=path))
    assert (given.verdict, given.severity) == (Verdict.FOUND, Severity.INFO)
    assert "was given a value of its own" in given.summary
    missed = judge(seen(pair(path, "65535", "4096"), asked=path))
    assert (missed.verdict, missed.severity) == (Verdict.FOUND, Severity.WARNING)
    assert missed.cures[0].change == Sysctl("net.core.somaxconn", "65535")


def test_one_that_nobody_has() -> None:
    finding = judge(seen(pair("ipv4/no_such", None, None), asked="ipv4/no_such"))
    assert finding.verdict is Verdict.UNKNOWN
    assert "net.ipv4.no_such" in finding.summary


@pytest.mark.parametrize(
    ("path", "inherit", "expected"),
    [
        ("core/somaxconn", 0, Kind.RESET),
        ("ipv4/tcp_rmem", 0, Kind.INHERITED),
        ("ipv4/conf/all/rp_filter", 0, Kind.INHERITED),
        ("ipv4/conf/all/rp_filter", 2, Kind.RESET),
        ("ipv6/conf/default/accept_ra", None, Kind.RESET),
        ("ipv6/conf/default/accept_ra", 1, Kind.INHERITED),
        ("ipv4/conf/eth0/rp_filter", 0, Kind.INTERFACE),
        ("ipv4/neigh/default/retrans_time_ms", 0, Kind.RESET),
    ],
)
def test_kinds(path: str, inherit: int | None, expected: Kind) -> None:
    assert kind(pair(path, "1", "1"), inherit) is expected


def test_kinds_by_what_may_be_written() -> None:
    assert kind(pair("a/b", "1", None), 0) is Kind.GLOBAL
    assert kind(pair("a/b", "1", "1", writable=False), 0) is Kind.SHARED
    closed = Pair(key="a/b", host=Value("1", False), own=Value("1", False))
    assert kind(closed, 0) is Kind.READ_ONLY
    assert kind(pair("a/b", None, None), 0) is None


@pytest.mark.parametrize(
    "word",
    ["kernel.pid_max", "net", "net.", "net/../kernel", "net/core/../x", "net.core.a b", "", "core"],
)
def test_what_is_no_network_parameter(word: str) -> None:
    assert key(word) is None


def test_a_name_with_a_dot_in_an_interface() -> None:
    assert key("net.ipv4.conf.eth0/5.rp_filter") == "ipv4/conf/eth0.5/rp_filter"
    assert pair("ipv4/conf/eth0.5/rp_filter", "1", "1").name == "net.ipv4.conf.eth0/5.rp_filter"
    assert key("/proc/sys/net/core/somaxconn") == "core/somaxconn"
