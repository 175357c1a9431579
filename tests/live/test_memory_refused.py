"""What the labs of memory/{hugepages,shm}_exhausted do not show: other cures, and one that died."""

import mmap
import time
from pathlib import Path

import pytest

from whybox import cases
from whybox.cases.memory.hugepages_exhausted import lab as huge
from whybox.cases.memory.shm_exhausted import lab as shm
from whybox.change import HostSysctl, Sysctl
from whybox.diagnose import diagnose
from whybox.kernel import sysvipc, tmpfs
from whybox.kernel.host import Host
from whybox.lab import machine
from whybox.lab.box import Box
from whybox.lab.cure import change_of
from whybox.lab.lab import Scenario
from whybox.model import Finding, Verdict

HUGE, SHM = "memory/hugepages_exhausted", "memory/shm_exhausted"
POOL = Path("/proc/sys/vm/nr_hugepages")


def asked(box: Box, case: str, seconds: float = 1.5) -> Finding:
    """What one case says of the box."""
    report = diagnose(Host(window_seconds=seconds), [box.target()], {case: cases.load(case)})
    return report.targets[0].findings[0]


@pytest.mark.parametrize(
    ("case", "scenario", "kind"),
    [
        (HUGE, huge.empty_pool, HostSysctl),
        (HUGE, huge.small_pool, HostSysctl),
        (SHM, shm.many_segments, Sysctl),
        (SHM, shm.many_pages, Sysctl),
        (SHM, shm.large_segment, Sysctl),
        (SHM, shm.semaphores, Sysctl),
    ],
)
def test_the_printed_parameter_cures_the_living(case: str, scenario: Scenario, kind: type) -> None:
    before = POOL.read_text()
    with Box("parameter") as box:
        scenario(box)
        found = asked(box, case)
        change = change_of(found)
        assert change is not None
        assert isinstance(change, kind), found.summary
        assert box.apply(change)
        time.sleep(0.5)
        assert asked(box, case).verdict is Verdict.CLEAR
    assert POOL.read_text() == before


def test_a_first_process_that_dies_of_sigbus_within_the_window_is_found() -> None:
    def program() -> None:
        time.sleep(0.7)
        huge._touch(huge.WANTED_PAGES)

    with Box("dying") as box:
        machine.set_sysctl(HostSysctl("vm.nr_hugepages", "24"), box.closing)
        box.huge_pages(huge.LIMIT)
        box.start(program)
        finding = asked(box, HUGE, 3.0)
    assert finding.verdict is Verdict.FOUND, finding.summary
    assert "its own limit of 8 MiB" in finding.summary


def test_the_lists_are_those_of_the_boxs_namespace_and_the_room_that_of_its_tmpfs() -> None:
    def program() -> None:
        shm.shmget(5 * mmap.PAGESIZE, 42)
        with open("/dev/shm/x", "wb") as file:
            file.write(b"x" * (3 << 20))
        time.sleep(60)

    with Box("lists") as box:
        box.sysctl("kernel.shmmni", "77")
        box.shm(8 << 20)
        box.start(program)
        time.sleep(0.7)
        host = Host()
        there = sysvipc.ipc(host, box.target())
        (room,) = [one for one in tmpfs.all_of(host, box.pid) if one.mountpoint == "/dev/shm"]
    assert (there.limits.shmmni, there.pages) == (77, 5)
    assert [(one.key, one.attached) for one in there.segments] == [(42, 0)]
    assert (room.size_bytes, room.used_bytes) == (8 << 20, 3 << 20)


def test_from_inside_as_nobody_what_is_full_is_found() -> None:
    """PID 1 asks about itself, and says what it learnt by failing."""

    def program() -> None:
        from whybox.kernel import finding

        shm._fill("/dev/shm/file", shm.WANTED)
        host = Host(window_seconds=0.2)
        loaded = {name: cases.load(name) for name in (HUGE, SHM)}
        report = diagnose(host, [finding.myself(host)], loaded)
        raise RuntimeError(
            " ".join(f"{f.verdict}: {f.summary}" for f in report.targets[0].findings)
        )

    for name in (HUGE, SHM):
        cases.load(name)  # inside there is no library to load it from
    with Box("self") as box:
        box.start(program)
        assert box.wait(30) is not None
        said = box.error() or ""
    assert "found: The next who wants a page in /dev/shm is refused" in said, said
    # Without the sensor a container can tell by the counters of its group alone, if it has them.
    assert "clear: It was refused no huge page" in said or "unknown: Whether" in said, said
