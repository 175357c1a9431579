"""memory/hugepages_exhausted: judged on literal observations."""

import errno

import pytest
from msgspec import structs

from whybox.cases.memory.hugepages_exhausted.probe import judge, observe
from whybox.change import HostSysctl, HugepageLimit
from whybox.kernel.host import Host
from whybox.kernel.hugelimits import HugePages, Mount
from whybox.kernel.hugetlb import Level, Limit, Node, Pool
from whybox.kernel.refusals import Refused, What, Window
from whybox.kernel.target import Exit, Target
from whybox.model import Certainty, Finding, Severity, Verdict

MIB = 1 << 20
PAGE = 2 * MIB
PATH = "/docker/x"


def pool(**changed: object) -> Pool:
    plain = Pool(
        page_bytes=PAGE,
        directory="/sys/kernel/mm/hugepages/hugepages-2048kB",
        default=True,
        pages=24,
        free=24,
        reserved=0,
        surplus=0,
        overcommit=0,
    )
    return structs.replace(plain, **changed)


def limit(name: str, size: int | None = None, usage: int = 0, failcnt: int | None = None) -> Limit:
    file = f"/sys/fs/cgroup/x/hugetlb.2MB.{name}"
    return Limit(file=file, limit_bytes=size, usage_bytes=usage, failcnt=failcnt)


def level(path: str = PATH, **changed: object) -> Level:
    plain = Level(
        path=path,
        version=2,
        page_bytes=PAGE,
        pages=limit("max"),
        reservations=limit("rsvd.max"),
        max_events=3,
        events_file=f"/sys/fs/cgroup{path}/hugetlb.2MB.events",
    )
    return structs.replace(plain, **changed)


def fault(**changed: object) -> Refused:
    plain = Refused(
        what=What.HUGE_PAGES,
        how="SIGBUS, si_code 2",
        errno=None,
        pid=7,
        comm="dpdk",
        size_bytes=16 * MIB,
    )
    return structs.replace(plain, **changed)


def call(**changed: object) -> Refused:
    return fault(how="mmap ENOMEM", errno=errno.ENOMEM, **changed)


def seen(*refused: Refused, moved: int = 0, **changed: object) -> HugePages:
    own = changed.pop("own", level())
    above = changed.pop("above", level("/docker"))
    assert isinstance(own, Level)
    assert isinstance(above, Level)
    then = None if own.max_events is None else own.max_events - moved
    plain = HugePages(
        pools_before=(pool(),),
        pools=(pool(),),
        before=(structs.replace(own, max_events=then), above),
        after=(own, above),
        refused=Window(seen=refused, count=len(refused)),
    )
    return structs.replace(plain, **changed)


def is_clear(found: Finding, *words: str) -> bool:
    return found.verdict is Verdict.CLEAR and all(word in found.summary for word in words)


def test_its_own_limit_is_found_with_who_ran_into_it_and_what_would_do() -> None:
    own = level(pages=limit("max", 8 * MIB))
    found = judge(seen(fault(), moved=2, own=own))
    assert (found.verdict, found.certainty) == (Verdict.FOUND, Certainty.CONFIRMED)
    assert found.severity is Severity.CRITICAL
    for words in ("2 times", "its own limit of 8 MiB", "dpdk (pid 7) wanted 16 MiB", "SIGBUS"):
        assert words in found.summary
    assert found.evidence[0].says == "max 3 (+2)"
    assert found.cures[0].change == HugepageLimit(16 * MIB, PAGE)


def test_a_parents_limit_counts_at_the_child_and_is_still_the_parents() -> None:
    above = level("/docker", pages=limit("max", 8 * MIB, usage=8 * MIB))
    found = judge(seen(fault(), moved=1, above=above))
    assert "its parent's (/docker) limit of 8 MiB" in found.summary
    assert found.cures[0].change == HugepageLimit(24 * MIB, PAGE, cgroup="/docker")


def test_of_two_limits_the_one_with_less_room_is_likely() -> None:
    own = level(pages=limit("max", 64 * MIB, usage=2 * MIB))
    above = level("/docker", pages=limit("max", 80 * MIB, usage=78 * MIB))
    found = judge(seen(fault(), moved=1, own=own, above=above))
    assert found.certainty is Certainty.LIKELY
    assert "(/docker)" in found.summary


def test_mmap_is_refused_by_the_limit_on_reservations_and_both_are_raised() -> None:
    own = level(pages=limit("max", 8 * MIB), reservations=limit("rsvd.max", 8 * MIB))
    found = judge(seen(call(), moved=1, own=own))
    assert "limit of 8 MiB on reserved pages" in found.summary
    assert found.severity is Severity.WARNING
    assert found.cures[0].change == HugepageLimit(16 * MIB, PAGE, reserved=True)
    found = judge(seen(fault(), moved=1, own=own))
    assert "reserved pages" not in found.summary
    assert found.cures[0].change == HugepageLimit(16 * MIB, PAGE, reserved=True)


def test_v1_counts_at_the_limit_that_refused() -> None:
    def v1(path: str, failcnt: int) -> Level:
        pages = limit("limit_in_bytes", 8 * MIB, failcnt=failcnt)
        return level(path, version=1, max_events=None, pages=pages, reservations=None)

    own = v1(PATH, 5)
    found = judge(
        seen(
            before=(own, v1("/docker", 1)),
            after=(own, v1("/docker", 4)),
        )
    )
    assert found.certainty is Certainty.CONFIRMED
    assert "3 times in this window by its parent's (/docker)" in found.summary
    assert found.evidence[0].source.endswith("hugetlb.2MB.failcnt")
    assert found.evidence[0].says == "4 (+3)"


def test_a_limit_is_found_although_nobody_watched() -> None:
    own = level(pages=limit("max", 8 * MIB))
    found = judge(seen(moved=1, own=own, refused=Window(reason="no BTF")))
    assert found.verdict is Verdict.FOUND
    assert found.cures[0].change == HugepageLimit(16 * MIB, PAGE)


def test_a_pool_that_cannot_give_what_the_limit_would_is_to_grow_as_well() -> None:
    own = level(pages=limit("max", 8 * MIB))
    found = judge(seen(fault(), moved=1, own=own, pools=(pool(free=5),)))
    assert found.cures[1].change == HostSysctl("vm.nr_hugepages", str(24 + 3))


@pytest.mark.parametrize(
    ("now", "words", "pages"),
    [
        (pool(pages=0, free=0), "has none at all", 8),
        (pool(pages=6, free=6), "pool of 6 can give 6", 8),
        (pool(pages=20, free=20, reserved=16), "can give 4", 24),
        (pool(pages=6, free=0, surplus=2, overcommit=3), "can give 1", 11),
    ],
)
def test_a_pool_that_is_too_small_is_found_and_by_how_much(
    now: Pool, words: str, pages: int
) -> None:
    found = judge(seen(call(), pools_before=(now,), pools=(now,)))
    assert (found.verdict, found.severity) == (Verdict.FOUND, Severity.WARNING)
    assert words in found.summary
    assert "wanted 8 huge pages of 2 MiB" in found.summary
    assert found.cures[0].change == HostSysctl("vm.nr_hugepages", str(pages))
    assert any("limit of the hugetlb controller" in r.what for r in found.ruled_out)


def test_a_fault_without_a_reservation_is_critical() -> None:
    found = judge(seen(fault(), pools=(pool(pages=4, free=0),)))
    assert found.severity is Severity.CRITICAL
    assert "a fault was SIGBUS" in found.summary


def test_a_pool_of_another_size_has_no_sysctl() -> None:
    large = pool(page_bytes=1 << 30, default=False, pages=0, free=0, directory="/sys/1G")
    asked = call(page_bytes=1 << 30, size_bytes=1 << 30)
    found = judge(seen(asked, pools=(pool(), large), pools_before=(pool(), large)))
    assert found.cures[0].change is None
    assert found.cures[0].commands == ("echo 1 > /sys/1G/nr_hugepages",)


def test_pages_on_nodes_that_it_may_not_use_are_none() -> None:
    two = pool(nodes=(Node(node=0, pages=2, free=2), Node(node=1, pages=22, free=22)))
    asked = seen(call(), pools=(two,), pools_before=(two,))
    assert judge(asked).verdict is Verdict.CLEAR
    found = judge(structs.replace(asked, nodes=(0,)))
    assert "can give 2 on the NUMA nodes [0]" in found.summary


def test_refused_although_the_pool_has_room_is_the_address_spaces_fault() -> None:
    assert is_clear(judge(seen(call())), "but the pool can give 24", "ulimit -v")


def test_a_hugetlbfs_with_a_size_is_a_limit_of_its_own() -> None:
    mount = Mount(mountpoint="/huge", device="0:50", size_bytes=8 * MIB)
    found = judge(seen(call(device="0:50"), mounts=(mount,)))
    assert found.verdict is Verdict.FOUND
    assert "its hugetlbfs at /huge, which may hold 8 MiB" in found.summary
    assert judge(seen(call(device="0:51"), mounts=(mount,))).verdict is Verdict.CLEAR


def test_a_size_that_the_kernel_does_not_have_is_nobodys_want() -> None:
    assert is_clear(judge(seen(call(page_bytes=64 << 10))), "does not have")


def test_a_pool_that_is_all_in_use_is_clear_where_somebody_watched() -> None:
    own = level(pages=limit("max", usage=48 * MIB))
    used = seen(own=own, pools=(pool(free=0),), pools_before=(pool(free=0),))
    assert is_clear(judge(used), "no huge page in this window")
    unwatched = structs.replace(used, refused=Window(reason="a window of no length"))
    assert judge(unwatched).verdict is Verdict.UNKNOWN
    assert "--window" in judge(unwatched).summary
    counted = seen(refused=Window(reason="a window of no length"))
    assert judge(counted).verdict is Verdict.CLEAR
    assert judge(structs.replace(counted, before=(), after=())).verdict is Verdict.UNKNOWN


def test_what_was_refused_in_the_past_is_clear_and_told() -> None:
    assert is_clear(judge(seen()), "before it, 3 times since its group was made")


@pytest.mark.parametrize("what", [What.BEYOND_END, What.TMPFS, What.BROKEN])
def test_another_kind_of_sigbus_is_named(what: What) -> None:
    assert is_clear(judge(seen(fault(what=what))), f"it got SIGBUS for {what}")


def test_of_one_that_died_of_it_the_limit_is_told_by_who_was_refused() -> None:
    own = level(pages=limit("max", 8 * MIB))
    gone = seen(fault(), own=own, after=())
    assert "its own limit of 8 MiB" in judge(gone).summary
    empty = structs.replace(gone, pools_before=(pool(free=0),))
    assert "machine's pool" in judge(empty).summary


def test_the_counters_of_v1_tell_that_nothing_was_refused_although_nobody_watched() -> None:
    pages = limit("limit_in_bytes", 8 * MIB, failcnt=2)
    own = level(version=1, max_events=None, pages=pages, reservations=None)
    still = seen(before=(own,), after=(own,), refused=Window(reason="no BTF"))
    assert judge(still).verdict is Verdict.CLEAR
    assert judge(still).evidence[0].says == "2 (+0)"


def test_a_machine_without_huge_pages_or_the_controller_is_clear() -> None:
    assert judge(seen(before=(), after=(), pools=(), pools_before=())).verdict is Verdict.CLEAR


def test_of_the_dead_a_status_of_sigbus_gets_a_way_out() -> None:
    def why(code: int) -> str:
        exit = Exit(source="docker inspect", status="exited", exit_code=code)
        gone = Target(id="x", name="x", runtime="docker", init=None, exit=exit)
        with pytest.raises(OSError, match=r"SIGBUS|not running") as refusal:
            next(observe(Host("/nonexistent"), gone))
        return str(refusal.value)

    assert "start it again" in why(135)
    assert "not running" in why(137)
