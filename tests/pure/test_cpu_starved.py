"""cpu/starved judged on literal observations, at the edges."""

import msgspec
import pytest
from msgspec import structs

from whybox.cases.cpu.starved.observation import Observation
from whybox.cases.cpu.starved.probe import judge
from whybox.change import CpuSet, CpuWeight, InProgram
from whybox.kernel import cpuweight
from whybox.kernel.cpurivals import Rival
from whybox.kernel.cpustat import Used
from whybox.kernel.cpustops import Stops
from whybox.kernel.cpuwait import Thread
from whybox.kernel.cpuweight import Contest
from whybox.model import Certainty, Severity, Verdict

WINDOW_NS = 2_000_000_000


def cpu(number: int, busy: float, *, steal: float = 0.0) -> Used:
    """A CPU by the shares of the window in which it was busy, and kept by the hypervisor."""
    return Used(
        cpu=number,
        busy_ns=int(busy * WINDOW_NS),
        interrupt_ns=0,
        steal_ns=int(steal * WINDOW_NS),
        idle_ns=int((1 - busy - steal) * WINDOW_NS),
    )


def thread(ran: float, waited: float, *, cpus: tuple[int, ...] = (0, 1), tid: int = 7) -> Thread:
    """One of its threads, in shares of the window."""
    return Thread(
        tid=tid, run_ns=int(ran * WINDOW_NS), wait_ns=int(waited * WINDOW_NS), comm="app", cpus=cpus
    )


def meet(own: int = 1024, rival: int = 1024, *, level: str = "/docker/x") -> Contest:
    return Contest(
        version=1,
        level=level,
        own=own,
        rival=rival,
        own_file=f"{level}/cpu.shares",
        rival_file="/docker/y/cpu.shares",
    )


NEIGHBOUR = Rival(
    name="docker y", source="/docker/y/cpuacct.usage", used_ns=WINDOW_NS, contest=meet()
)


def seen(
    *threads: Thread,
    used: float | None = None,
    cpus: tuple[Used, ...] = (cpu(0, 1.0), cpu(1, 1.0)),
    rivals: tuple[Rival, ...] = (NEIGHBOUR,),
    levels: tuple[Stops, ...] = (),
    observer: float = 0.0,
) -> Observation:
    """Two seconds on two CPUs."""
    ran = sum(one.run_ns for one in threads)
    return Observation(
        elapsed_ns=WINDOW_NS,
        group="/docker/x",
        threads=threads,
        used_ns=ran if used is None else int(used * WINDOW_NS),
        pressure_usec=None,
        levels=levels,
        local_file=None,
        local_stopped_usec=None,
        cpus=cpus,
        group_cpus=None,
        observer_ns=int(observer * WINDOW_NS),
        rivals=rivals,
        hidden=False,
    )


def stops(throttled: int, stopped_s: float, *, periods: int = 20) -> Stops:
    return Stops(
        path="/docker/x",
        file="cpu.stat",
        periods=periods,
        throttled=throttled,
        stopped_usec=int(stopped_s * 1e6),
        quota_usec=20_000,
        period_usec=100_000,
    )


def test_a_neighbour_of_the_same_weight_is_named_with_its_share() -> None:
    finding = judge(seen(thread(0.5, 0.5), thread(0.5, 0.5, tid=8)))
    assert (finding.verdict, finding.certainty) == (Verdict.FOUND, Certainty.CONFIRMED)
    assert "behind docker y, which used 1.00 cores" in finding.summary
    assert "2 busy threads waited 2.00 s in these 2.0 s, 50% of their time" in finding.summary
    assert finding.cures[0].change == CpuWeight(32_768)
    assert "docker y" in finding.cures[-1].advice


@pytest.mark.parametrize("threads", [1, 2])
def test_who_waits_for_whybox_alone_is_well(threads: int) -> None:
    """As measured on two emulated CPUs, where looking takes a quarter of one."""
    waiting = [thread(0.85, 0.15, tid=tid) for tid in range(threads)]
    busy = tuple(cpu(n, (threads * 0.85 + 0.34) / 2) for n in range(2))
    finding = judge(seen(*waiting, cpus=busy, rivals=(), observer=0.25))
    assert finding.verdict is Verdict.CLEAR
    assert "for whybox itself, which looked" in finding.summary


def test_whybox_does_not_hide_a_neighbour() -> None:
    finding = judge(seen(thread(0.5, 0.5), thread(0.5, 0.5, tid=8), observer=0.25))
    assert finding.verdict is Verdict.FOUND
    assert "docker y" in finding.summary


def test_on_few_of_many_cpus_whybox_was_seldom() -> None:
    """It moves about: of 0.3 cores that others used on CPU 0, a quarter of 0.3 may be its own."""
    cpus = (cpu(0, 1.0), cpu(1, 0.1), cpu(2, 0.1), cpu(3, 0.1))
    finding = judge(seen(thread(0.7, 0.3, cpus=(0,)), cpus=cpus, rivals=(), observer=0.3))
    assert finding.verdict is Verdict.FOUND


def test_many_threads_that_lose_little_to_a_small_neighbour_wait_for_themselves() -> None:
    """As measured: six that spin on two CPUs, beside one of weight 64, wait 0.9 s for it in sum."""
    small = structs.replace(NEIGHBOUR, used_ns=int(0.14 * WINDOW_NS))
    six = [thread(0.31, 0.69, tid=tid) for tid in range(6)]
    finding = judge(seen(*six, rivals=(small,)))
    assert finding.verdict is Verdict.CLEAR
    assert "waits for nobody but itself" in finding.summary
    half = [thread(1 / 6, 5 / 6, tid=tid) for tid in range(6)]
    assert "docker y" in judge(seen(*half)).summary


def test_what_the_kernel_does_for_it_on_cpus_that_are_idle_starves_nobody() -> None:
    """As measured: four that sync all the time wait for kblockd, while CPUs are idle for a third.

    Where there is nothing idle left, a thread of the kernel is a neighbour like any other.
    """
    worker = Rival(
        name="kernel thread kworker/1:1H-kblockd (pid 9)",
        source="/proc/9/stat",
        used_ns=int(0.2 * WINDOW_NS),
        kernel=True,
    )
    four = [thread(0.22, 0.22, tid=tid) for tid in range(4)]
    idle = (cpu(0, 0.65), cpu(1, 0.65))
    finding = judge(seen(*four, cpus=idle, rivals=(worker,)))
    assert finding.verdict is Verdict.CLEAR
    assert "which may well be for it" in finding.summary
    assert "idle for 35%" in finding.summary
    assert judge(seen(*four, rivals=(worker,))).verdict is Verdict.FOUND
    neighbour = structs.replace(NEIGHBOUR, used_ns=int(0.2 * WINDOW_NS))
    assert judge(seen(*four, cpus=idle, rivals=(neighbour,))).verdict is Verdict.FOUND


def test_a_small_weight_is_told_where_the_two_meet() -> None:
    rival = structs.replace(NEIGHBOUR, contest=meet(64, 1024, level="/docker"))
    finding = judge(seen(thread(0.06, 0.94), thread(0.06, 0.94, tid=8), rivals=(rival,)))
    assert finding.severity is Severity.CRITICAL
    assert "Its weight is 64 against 1024 (1024 is ordinary), at /docker." in finding.summary
    assert finding.cures[0].change == CpuWeight(32_768, cgroup="/docker")


@pytest.mark.parametrize("waited", [0.049, 0.099])
def test_waiting_that_costs_little_is_clear_and_says_the_number(waited: float) -> None:
    finding = judge(seen(thread(0.9, waited)))
    assert finding.verdict is Verdict.CLEAR
    assert f"waited {waited * 2:.2f} s" in finding.summary


def test_a_tenth_of_the_work_is_felt() -> None:
    assert judge(seen(thread(0.8, 0.1))).verdict is Verdict.FOUND


def test_one_that_its_quota_stops_is_never_told_as_starved_by_others() -> None:
    for waited, stopped, throttled in ((0.8, 1.6, 20), (0.79, 1.2, 20), (0.79, 0.9, 11)):
        finding = judge(seen(thread(0.2, waited), levels=(stops(throttled, stopped),)))
        assert finding.verdict is Verdict.CLEAR, finding.summary
        assert "cpu/throttled" in finding.summary


def test_a_few_stops_do_not_hide_a_neighbour() -> None:
    finding = judge(seen(thread(0.3, 0.7), levels=(stops(2, 0.1),)))
    assert finding.verdict is Verdict.FOUND
    assert finding.ruled_out[0].what == "cpu/throttled"
    assert "0.20 s of stops" in finding.ruled_out[0].because


def test_stops_by_a_hidden_quota_that_its_own_queues_tell_of_are_taken_off() -> None:
    alone = seen(thread(0.2, 0.8), cpus=(cpu(0, 0.2), cpu(1, 0.1)), rivals=())
    told = structs.replace(alone, local_file="cpu.stat.local", local_stopped_usec=1_600_000)
    assert judge(told).verdict is Verdict.CLEAR


def test_waiting_for_idle_cpus_is_nobodys_fault_that_can_be_seen() -> None:
    alone = seen(thread(0.2, 0.8), cpus=(cpu(0, 0.2), cpu(1, 0.0)), rivals=())
    inside = judge(structs.replace(alone, hidden=True))
    assert inside.verdict is Verdict.UNKNOWN
    assert "Ask on the host" in inside.summary
    assert judge(alone).verdict is Verdict.UNKNOWN


def test_more_threads_than_a_small_cpuset_has_wait_for_each_other() -> None:
    own = (cpu(0, 1.0), cpu(1, 0.0))
    finding = judge(seen(*(thread(0.25, 0.75, cpus=(0,), tid=n) for n in range(4)), cpus=own))
    assert "may run on CPU 0 alone, 1 of 2" in finding.summary
    assert finding.cures[0].change == CpuSet("0-1")


def test_a_program_that_pins_itself_is_told_from_its_cpuset() -> None:
    pinned = seen(
        *(thread(0.25, 0.75, cpus=(0,), tid=n) for n in range(4)), cpus=(cpu(0, 1.0), cpu(1, 0.0))
    )
    finding = judge(structs.replace(pinned, group_cpus=(0, 1)))
    assert isinstance(finding.cures[0].change, InProgram)


def test_more_threads_than_the_machine_has_cpus_are_its_own_affair() -> None:
    finding = judge(seen(*(thread(0.5, 0.5, tid=n) for n in range(4)), rivals=()))
    assert finding.verdict is Verdict.CLEAR
    assert "waits for nobody but itself" in finding.summary


def test_an_idle_cpu_that_it_may_not_use_is_the_first_cure() -> None:
    there = structs.replace(NEIGHBOUR, cpus=(0,))
    finding = judge(
        seen(thread(0.5, 0.5, cpus=(0,)), cpus=(cpu(0, 1.0), cpu(1, 0.1)), rivals=(there,))
    )
    assert "It may run on CPU 0 alone, while others are idle." in finding.summary
    assert [type(cure.change) for cure in finding.cures[:2]] == [CpuSet, CpuWeight]


def test_a_neighbour_on_other_cpus_is_not_blamed() -> None:
    elsewhere = structs.replace(NEIGHBOUR, name="docker elsewhere", cpus=(1,))
    here = structs.replace(NEIGHBOUR, name="docker here", cpus=(0,), used_ns=WINDOW_NS // 2)
    finding = judge(seen(thread(0.5, 0.5, cpus=(0,)), rivals=(elsewhere, here)))
    assert "docker here" in finding.summary
    assert "elsewhere" not in str(finding)


def test_no_weight_is_advised_against_a_real_time_task() -> None:
    rival = structs.replace(NEIGHBOUR, name="spin (pid 9)", realtime=True)
    finding = judge(seen(thread(0.33, 0.67), rivals=(rival,)))
    assert "the real-time spin (pid 9)" in finding.summary
    assert all(not isinstance(cure.change, CpuWeight) for cure in finding.cures)
    assert "chrt" in finding.cures[0].advice


def test_stolen_time_is_the_hypervisors() -> None:
    stolen = (cpu(0, 0.8, steal=0.2), cpu(1, 0.0, steal=0.2))
    finding = judge(seen(thread(0.8, 0.0), cpus=stolen, rivals=()))
    assert "hypervisor keeps 20%" in finding.summary
    idle = judge(seen(thread(0.01, 0.0), cpus=stolen, rivals=()))
    assert idle.verdict is Verdict.CLEAR


def test_a_thread_that_never_got_a_cpu_waited_for_the_whole_window() -> None:
    finding = judge(seen(structs.replace(thread(0.0, 1.0), stuck=True)))
    assert finding.verdict is Verdict.FOUND


def test_short_lived_processes_are_told_by_the_groups_pressure() -> None:
    storm = structs.replace(seen(used=1.0), pressure_usec=1_500_000)
    assert judge(storm).verdict is Verdict.FOUND
    assert judge(structs.replace(storm, pressure_usec=None)).verdict is Verdict.CLEAR


def test_who_is_out_of_sight_is_not_named() -> None:
    finding = judge(structs.replace(seen(thread(0.5, 0.5), rivals=()), hidden=True))
    assert (finding.verdict, finding.certainty) == (Verdict.FOUND, Certainty.LIKELY)
    assert "cannot be seen from here" in finding.summary


def test_nobody_who_wants_a_cpu_is_clear_and_a_short_window_is_not() -> None:
    assert judge(seen()).verdict is Verdict.CLEAR
    short = structs.replace(seen(thread(0.5, 0.5)), elapsed_ns=100_000_000)
    assert judge(short).verdict is Verdict.UNKNOWN


def test_an_observation_survives_being_kept() -> None:
    before = seen(thread(0.5, 0.5))
    assert msgspec.json.decode(msgspec.json.encode(before), type=Observation) == before


def test_weights_on_v2_are_told_in_the_engines_scale() -> None:
    """32 times the ordinary weight of 100 is 3200, which engines make of some 83,870 shares."""
    shares = cpuweight.as_shares(32 * 1024, 2)
    assert 1 + (shares - 2) * 9999 // 262_142 == 3200
