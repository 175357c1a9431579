"""A CPU that is kept in a softirq every two seconds, by the statistics of IPVS."""

from itertools import pairwise

from msgspec import Struct

from whybox.change import HostSysctl, InNetwork
from whybox.kernel import estimation
from whybox.kernel.estimation import Seen, Table, Timer
from whybox.kernel.host import Host
from whybox.kernel.target import Target
from whybox.model import (
    Case,
    Certainty,
    Cure,
    Evidence,
    Finding,
    RuledOut,
    Safety,
    Severity,
    Verdict,
    Watch,
    clear,
    unknown,
)
from whybox.needs import living

#: From so long on, packets and timers of that CPU are late by what a request takes.
BAD_NS = 10_000_000

#: Twice HZ; it is armed anew when it has run, and may begin a little late.
PERIOD_NS = 2_000_000_000
SLACK = 0.15

MOST_TOLD = 4


class Observation(Struct, frozen=True, kw_only=True):
    """The services, and what the timer took."""

    seen: Seen
    window_ns: int


def observe(host: Host, target: Target) -> Watch[Observation]:
    """Count services; watch the timers if there are any."""
    with estimation.watched(host, target) as look:
        began = host.monotonic_ns()
        yield
        return Observation(seen=look(), window_ns=host.monotonic_ns() - began)


def judge(seen: Observation) -> Finding:
    """By the time inside the timer, not by the number of services."""
    found = seen.seen
    if found.table is None:
        return clear("There is no IPVS on this host, whose statistics could hold up a CPU.")
    if found.reason is not None:
        return unknown(f"IPVS has {_services(found.table)}, but {found.reason}")
    if not found.table.services:
        return clear("IPVS has no services on this host, so there are no rates to work out.")
    if found.threads:
        return clear(
            f"IPVS has {_services(found.table)}; {found.threads} threads of the kernel work out "
            "their rates, and those can be interrupted: no softirq is held up."
        )
    if found.timer is None:
        return unknown("nothing happens in a window of no length: look for 5 s")
    if not found.timer.count:
        return _did_not_run(seen, found.table)
    longs = found.timer.longs
    if not longs:
        return clear(
            f"IPVS has {_services(found.table)}, and their rates take a CPU for at most "
            f"{_ms(found.timer.longest_ns)} at a time.",
            evidence=(_timer(found.timer),),
        )
    if len(longs) == 1 and seen.window_ns >= 2.25 * PERIOD_NS:
        return clear(
            f"The timer of IPVS took {_ms(longs[0].took_ns)} once and not again after 2 s: that "
            "CPU was taken away just then.",
            evidence=(_timer(found.timer),),
        )
    return _stalls(found, found.table, found.timer)


def _did_not_run(seen: Observation, table: Table) -> Finding:
    if seen.seen.estimates is False:
        return clear(
            f"IPVS has {_services(table)}, and does not work out their rates "
            "(net.ipv4.vs.run_estimation=0)."
        )
    if seen.window_ns < 1.25 * PERIOD_NS:
        return unknown("the rates of IPVS are worked out every 2 s: look longer, with --window 5s")
    return unknown(
        f"IPVS has {_services(table)}, but its timer was not seen: kernel.kptr_restrict hides the "
        "names of timers, or another network namespace has it"
    )


def _stalls(found: Seen, table: Table, timer: Timer) -> Finding:
    took = sorted(long.took_ns for long in timer.longs)
    usual_ns = took[len(took) // 2]  # the module statistics takes longer to import than all of it
    gaps = _gaps(timer)
    regular = any(abs(gap / PERIOD_NS - 1) <= SLACK for gap in gaps)
    return Finding(
        verdict=Verdict.FOUND,
        summary=(
            f"Every 2 s IPVS keeps a CPU in the softirq TIMER for {_ms(usual_ns)}: it works out "
            f"the rates of {_services(table)} in one go, and nothing else runs there meanwhile."
        ),
        certainty=Certainty.CONFIRMED if regular else Certainty.LIKELY,
        severity=Severity.CRITICAL if usual_ns >= BAD_NS else Severity.WARNING,
        evidence=(
            _timer(timer),
            Evidence("/proc/net/ip_vs (the host's)", _services(table)),
            *_interrupted(timer),
        ),
        ruled_out=(
            RuledOut(
                "other timers and packets",
                "the time is that of estimation_timer() alone, from its entry to its exit",
            ),
            RuledOut(
                "a CPU that was taken away",
                f"it came again after {gaps[0] / 1e9:.2f} s" if gaps else "seen once: look longer",
            ),
        ),
        cures=_cures(found),
    )


def _gaps(timer: Timer) -> list[int]:
    return [after.at_ns - before.at_ns for before, after in pairwise(timer.longs)]


def _timer(timer: Timer) -> Evidence:
    felt = ", ".join(_ms(long.took_ns) for long in timer.longs[:MOST_TOLD])
    gaps = ", ".join(f"{gap / 1e9:.2f} s" for gap in _gaps(timer)[:MOST_TOLD])
    return Evidence(
        "timer:timer_expire_entry, timer_expire_exit function=estimation_timer",
        f"{timer.count} times   longest {_ms(timer.longest_ns)}"
        + (f"   of 1 ms and more: {felt}" if felt else "")
        + (f"   one after the other: {gaps}" if gaps else ""),
    )


def _interrupted(timer: Timer) -> tuple[Evidence, ...]:
    mine = [long.took_ns for long in timer.longs if long.on_target]
    if not mine:
        return ()
    told = f"{len(mine)} times   longest {_ms(max(mine))}"
    return (Evidence("timer_expire_entry on top of the container's tasks", told),)


def _cures(found: Seen) -> tuple[Cure, ...]:
    fewer = Cure(
        advice=(
            "Have fewer services: one for a range of ports (by firewall mark), and none that are "
            "not used. Or a newer kernel: since 6.2 threads do it (net.ipv4.vs.est_cpulist)."
        ),
        safety=Safety.MUTATING,
        change=InNetwork("have fewer services in IPVS"),
    )
    if found.estimates is None:
        return (fewer,)
    off = Cure(
        advice="Do without the rates (ipvsadm --rate shows zeros then); the totals go on.",
        safety=Safety.LOW_RISK,
        change=HostSysctl("net.ipv4.vs.run_estimation", "0"),
    )
    return off, fewer


def _services(table: Table) -> str:
    if table.more:
        return "more services than 8 MiB of /proc/net/ip_vs hold"
    return f"{table.services} services with {table.servers} real servers"


def _ms(ns: float) -> str:
    return f"{ns / 1e6:.0f} ms" if ns >= 9_500_000 else f"{ns / 1e6:.2f} ms"


CASE = Case(
    title="IPVS keeps a CPU in a softirq every two seconds",
    question="Why does latency jitter with many services?",
    question_zh="怎么解决海量 IPVS 规则带来的网络延时抖动?",
    lesson="B1",
    needs=(living,),
    observation=Observation,
    observe=observe,
    judge=judge,
)
