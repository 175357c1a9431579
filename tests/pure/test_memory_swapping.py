"""memory/swapping judged on literal observations, and its parser at the edges."""

from typing import Any

import pytest
from msgspec import structs

from whybox.cases.memory.swapping.probe import Observation, judge
from whybox.change import MemoryLimit, SwapLimit, Swappiness
from whybox.kernel import memorystat, swap
from whybox.kernel.host import ParseError
from whybox.kernel.squeeze import Level, Squeeze, Waits
from whybox.kernel.swap import Device, Holder, Rules
from whybox.model import Certainty, Severity, Verdict

MIB = 1 << 20
PAGES = MIB // 4096
GIB = 1 << 30
DISK = Device(path="/dev/sda2", type="partition", size_bytes=2 * GIB, used_bytes=GIB)


def level(
    path: str = "/docker/x",
    *,
    limit: int | None = 40 * MIB,
    current: int = 40 * MIB,
    swapped: int | None = 32 * MIB,
    swap_limit: int | None = None,
) -> Level:
    return Level(
        path=path,
        file=f"/sys/fs/cgroup{path}/memory.max",
        limit_bytes=limit,
        current_bytes=current,
        swap_current_bytes=swapped,
        swap_limit_bytes=swap_limit,
    )


def waits(share: float) -> Waits:
    usec = round(share * 5_000_000)
    return Waits(file="memory.pressure", some_usec=usec, full_usec=usec)


def seen(
    *levels: Level,
    back: int | None = 0,
    waited: float | None = 0.0,
    devices: tuple[Device, ...] | None = (DISK,),
    version: int = 2,
    swappiness: int = 60,
    refused: int | None = 0,
    **rest: object,
) -> Observation:
    """Five seconds, ``back`` pages from swap."""
    squeezed = Squeeze(
        elapsed_ns=5_000_000_000,
        levels=levels or (level(),),
        now=memorystat.parse("anon 1\nfile 1", version=2),
        refault_file=0,
        refault_anon=back,
        majfault=0,
        memory=None if waited is None else waits(waited),
        host_reclaimed=0,
        oom_kills=0,
        oom_kills_ever=0,
        total_bytes=16 * GIB,
    )
    return Observation(
        squeeze=structs.replace(squeezed, **rest),
        version=version,
        devices=devices,
        rules=Rules(
            swappiness=swappiness,
            swappiness_file="swappiness",
            refused=refused if version == 2 else None,
            events_file="memory.swap.events" if version == 2 else None,
        ),
        swapped_in=back,
        swapped_out=back,
        holders=(Holder(pid=7, comm="java", swap_bytes=30 * MIB),),
    )


SLOW = seen(back=200 * PAGES, waited=0.4)


def test_swap_that_is_waited_for_names_limit_process_device_and_what_would_be_enough() -> None:
    finding = judge(SLOW)
    assert (finding.verdict, finding.severity) == (Verdict.FOUND, Severity.CRITICAL)
    assert finding.certainty is Certainty.CONFIRMED
    for words in (
        "200 MiB",
        "40 % of the time",
        "limit of 40 MiB",
        "java (pid 7) 30 MiB",
        "a disk",
    ):
        assert words in finding.summary
    assert [cure.change for cure in finding.cures] == [MemoryLimit(88 * MIB), SwapLimit(0)]
    assert "OOM-killed" in finding.cures[1].advice


def test_on_v1_the_second_cure_is_swappiness() -> None:
    finding = judge(structs.replace(SLOW, version=1))
    assert finding.cures[1].change == Swappiness(0)


def test_an_ancestors_limit_is_named_and_raised() -> None:
    own, pod = level(limit=None), level("/pod", swapped=50 * MIB)
    finding = judge(seen(own, pod, back=200 * PAGES, waited=0.4))
    assert "of its parent /pod is too small" in finding.summary
    assert finding.cures[0].change == MemoryLimit(112 * MIB, cgroup="/pod")


def test_a_host_short_of_memory_is_named() -> None:
    finding = judge(
        seen(level(limit=None), back=200 * PAGES, waited=0.4, host_reclaimed=200 * PAGES)
    )
    assert "it is the host that is short of memory" in finding.summary
    assert finding.cures[0].change is None


def test_swap_that_lies_idle_is_clear_and_says_where() -> None:
    finding = judge(seen(back=8))
    assert finding.verdict is Verdict.CLEAR
    assert "32 MiB of it lie in swap and stay there: 8 pages came back" in finding.summary
    assert "/dev/sda2, 2048 MiB (a disk)" in finding.summary


def test_coming_back_after_the_limit_was_raised_is_clear() -> None:
    finding = judge(seen(level(limit=100 * MIB), back=200 * PAGES, waited=0.4))
    assert finding.verdict is Verdict.CLEAR
    assert "no limit is met" in finding.summary


def test_nobody_who_waits_is_clear() -> None:
    finding = judge(seen(back=200 * PAGES, waited=0.03))
    assert finding.verdict is Verdict.CLEAR
    assert "3.0 % of the time" in finding.summary


def test_page_cache_that_is_read_again_is_another_case() -> None:
    finding = judge(seen(back=20 * PAGES, waited=0.4, refault_file=300 * PAGES))
    assert finding.verdict is Verdict.CLEAR
    assert "memory/page_cache_thrashing" in finding.summary


@pytest.mark.parametrize(
    ("devices", "words"),
    [((), "There is no swap on this host"), (None, "built without swap")],
)
def test_no_swap_is_said(devices: tuple[Device, ...] | None, words: str) -> None:
    finding = judge(seen(devices=devices))
    assert finding.verdict is Verdict.CLEAR
    assert words in finding.summary


def test_without_pressure_files_it_is_likely() -> None:
    finding = judge(seen(back=200 * PAGES, waited=None))
    assert (finding.verdict, finding.certainty) == (Verdict.FOUND, Certainty.LIKELY)


def test_a_kernel_that_does_not_count_refaults_goes_by_major_faults() -> None:
    finding = judge(seen(back=None, waited=0.4, majfault=9000, refault_file=None))
    assert (finding.verdict, finding.certainty) == (Verdict.FOUND, Certainty.LIKELY)


KILLED: dict[str, Any] = {"oom_kills": 1, "oom_kills_ever": 2}


@pytest.mark.parametrize(
    ("observation", "why"),
    [
        (seen(level(swap_limit=0, swapped=0), **KILLED), "memory.swap.max is 0"),
        (
            seen(level(swap_limit=0, swapped=0), version=1, **KILLED),
            "the limit of memory and swap together is the one of memory",
        ),
        (seen(level(swapped=0), version=1, swappiness=0, **KILLED), "swappiness is 0"),
        (seen(level(swapped=0), swappiness=0, **KILLED), "swappiness of the machine is 0"),
        (
            seen(level(swap_limit=20 * MIB, swapped=20 * MIB), **KILLED),
            "its memory.swap.max is reached",
        ),
        (seen(refused=24, **KILLED), "swap was refused to it 24 times"),
        (
            seen(level(swap_limit=20 * MIB, swapped=MIB), version=1, **KILLED),
            "leaves it only 20 MiB of swap",
        ),
    ],
)
def test_killed_though_swap_is_free_says_why(observation: Observation, why: str) -> None:
    finding = judge(observation)
    assert finding.verdict is Verdict.CLEAR
    assert "OOM-killed 2 times though 1024 MiB of swap are free" in finding.summary
    assert why in finding.summary
    assert why in finding.ruled_out[0].because


def test_a_killer_at_work_is_not_called_swapping() -> None:
    finding = judge(
        seen(level(swap_limit=8 * MIB, swapped=8 * MIB), back=200 * PAGES, waited=0.4, **KILLED)
    )
    assert finding.verdict is Verdict.CLEAR
    assert "memory/oom_killed" in finding.summary


def test_no_window_with_swap_in_use_is_unknown() -> None:
    finding = judge(seen(elapsed_ns=1000))
    assert finding.verdict is Verdict.UNKNOWN
    assert "--window 2s" in finding.summary


def test_more_than_the_machine_has_is_not_advised() -> None:
    squeezed = structs.replace(SLOW.squeeze, total_bytes=64 * MIB)
    finding = judge(structs.replace(SLOW, squeeze=squeezed))
    assert not any(isinstance(cure.change, MemoryLimit) for cure in finding.cures)


def test_a_swap_file_with_blanks_in_its_name() -> None:
    text = "Filename\tType\tSize\tUsed\tPriority\n/a\\040b/swap file 1024 0 -2\n"
    (device,) = swap.parse(text)
    assert (device.path, device.kind, device.size_bytes) == ("/a b/swap", "a file", MIB)


def test_no_device_and_a_line_that_is_none() -> None:
    assert swap.parse("Filename Type Size Used Priority\n") == ()
    with pytest.raises(ParseError):
        swap.parse("Filename\nnonsense\n")
