"""The judge of network/ipvs_stalls_softirq on literal timers, as they were measured."""

import pytest
from msgspec import structs

from whybox.cases.network.ipvs_stalls_softirq.probe import Observation, judge
from whybox.change import HostSysctl, InNetwork
from whybox.kernel.estimation import Long, Seen, Table, Timer, parse, table
from whybox.kernel.host import Host
from whybox.model import Certainty, Severity, Verdict


def timer(*took_ns: int, gap_ns: int = 2_004_000_000, on_target: bool = False) -> Timer:
    """So many long runs one after the other, and as many short ones of another namespace."""
    return Timer(
        count=2 * max(len(took_ns), 1),
        longest_ns=max(took_ns, default=170_000),
        longs=tuple(
            Long(at_ns=n * gap_ns, took_ns=took, cpu=0, on_target=on_target)
            for n, took in enumerate(took_ns)
        ),
    )


def seen(*took_ns: int, services: int = 10_000, window_s: float = 5.0) -> Observation:
    return Observation(
        seen=Seen(
            table=Table(services=services, servers=2 * services),
            estimates=True,
            timer=timer(*took_ns),
        ),
        window_ns=round(window_s * 1e9),
    )


LONG = (13_100_000, 13_300_000)


def changed(**with_: object) -> Observation:
    return structs.replace(seen(*LONG), seen=structs.replace(seen(*LONG).seen, **with_))


@pytest.mark.parametrize(
    ("took_ns", "severity"),
    [
        (1_000_000, Severity.WARNING),
        (2_800_000, Severity.WARNING),
        (9_999_999, Severity.WARNING),
        (10_000_000, Severity.CRITICAL),
    ],
)
def test_the_time_inside_the_timer_decides(took_ns: int, severity: Severity) -> None:
    finding = judge(seen(took_ns, took_ns))
    assert (finding.verdict, finding.severity) == (Verdict.FOUND, severity)
    assert finding.certainty is Certainty.CONFIRMED


def test_the_number_of_services_alone_does_not() -> None:
    assert judge(seen(services=30_000)).verdict is Verdict.CLEAR
    assert judge(seen(5_000_000, 5_000_000, services=10)).verdict is Verdict.FOUND


def test_a_cpu_that_was_taken_away_once_is_not_taken_for_it() -> None:
    once = judge(seen(20_000_000))
    assert once.verdict is Verdict.CLEAR
    assert "not again after 2 s" in once.summary


def test_once_in_a_short_window_or_at_odd_times_is_likely() -> None:
    assert judge(seen(20_000_000, window_s=3.0)).certainty is Certainty.LIKELY
    odd = judge(changed(timer=timer(*LONG, gap_ns=700_000_000)))
    assert odd.certainty is Certainty.LIKELY


def test_it_says_how_long_how_often_and_of_how_many() -> None:
    finding = judge(seen(*LONG))
    assert "13 ms" in finding.summary
    assert "10000 services with 20000 real servers" in finding.summary
    assert any("one after the other: 2.00 s" in evidence.says for evidence in finding.evidence)
    assert finding.cures[0].change == HostSysctl("net.ipv4.vs.run_estimation", "0")


def test_that_it_interrupted_the_container_is_told() -> None:
    finding = judge(changed(timer=timer(*LONG, on_target=True)))
    assert any("on top of the container" in evidence.source for evidence in finding.evidence)


def test_a_kernel_that_cannot_switch_it_off_is_offered_no_such_cure() -> None:
    (cure,) = judge(changed(estimates=None)).cures
    assert isinstance(cure.change, InNetwork)


def test_without_ipvs_or_services_or_with_threads_it_is_clear() -> None:
    assert "no IPVS" in judge(changed(table=None, timer=None)).summary
    assert judge(changed(table=Table(services=0, servers=0), timer=None)).verdict is Verdict.CLEAR
    threads = judge(changed(threads=2, timer=None))
    assert threads.verdict is Verdict.CLEAR
    assert "2 threads" in threads.summary


def test_a_timer_that_did_not_run_is_clear_only_where_it_is_switched_off() -> None:
    never = Timer(count=0, longest_ns=0)
    assert judge(changed(timer=never, estimates=False)).verdict is Verdict.CLEAR
    assert "another network namespace" in judge(changed(timer=never)).summary
    short = structs.replace(changed(timer=never), window_ns=2_000_000_000)
    assert "--window 5s" in judge(short).summary


def test_what_could_not_be_watched_is_unknown() -> None:
    finding = judge(changed(timer=None, reason="no BTF"))
    assert finding.verdict is Verdict.UNKNOWN
    assert "no BTF" in finding.summary
    assert judge(changed(timer=None)).verdict is Verdict.UNKNOWN


def test_a_table_is_counted_and_its_absence_is_not_zero() -> None:
    assert table(Host.recorded({})) is None
    head = "IP Virtual Server version 1.2.1 (size=4096)\n  -> RemoteAddress:Port Forward\n"
    lines = "UDP  0A000001:0035 rr\n  -> 0A000002:0035 Masq 1 0 0\n  -> 0A000003:0035 Masq 1 0 0\n"
    found = table(Host.recorded({"/proc/2/net/ip_vs": (head + lines).encode()}))
    assert found == Table(services=1, servers=2)
    assert parse("") == Table(services=0, servers=0)
