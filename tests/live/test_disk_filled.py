"""storage/disk_filled: who holds the room of a full disk, in states beside those of its lab."""

import mmap
import os
from collections.abc import Callable
from contextlib import suppress

import pytest

from whybox import cases
from whybox.cases.storage.disk_filled.lab import (
    DATA,
    HELD,
    begin,
    fill,
    limits,
    no_disk,
    nothing,
    once_more,
    once_then_again,
    write,
)
from whybox.change import ProjectQuota
from whybox.diagnose import observe
from whybox.kernel.diskfill import DiskUse
from whybox.kernel.diskplaces import Kind
from whybox.kernel.host import Host
from whybox.lab import disk, quota
from whybox.lab.box import Box
from whybox.model import Finding, Severity, Verdict

NAME = "storage/disk_filled"
MIB = 1 << 20


def seen(box: Box, seconds: float = 0.5) -> tuple[DiskUse, Finding]:
    case = cases.load(NAME)
    window = observe(Host(window_seconds=seconds), [box.target()], {NAME: case})
    ((_, (one,)),) = window.targets
    assert one.reason is None, one.reason
    return one.observation, case.judge(one.observation)


def full(first: Callable[[], None], again: Callable[[], None]) -> tuple[DiskUse, Finding]:
    with Box("full") as box:
        disk.mounted(box, DATA, mib=16)
        begin(box, once_then_again(first, again))
        return seen(box)


def test_a_removed_file_that_is_only_mapped_is_found() -> None:
    kept: list[object] = []

    def first() -> None:
        os.close(write(f"{DATA}/log", HELD))
        opened = os.open(f"{DATA}/log", os.O_RDWR)
        kept.append(mmap.mmap(opened, HELD))
        os.unlink(f"{DATA}/log")
        for other in os.listdir("/proc/self/fd"):  # a mapping of Python keeps a descriptor too
            with suppress(OSError):
                if os.readlink(f"/proc/self/fd/{other}").startswith(DATA):
                    os.close(int(other))
        write(f"{DATA}/rest")

    observation, finding = full(first, once_more())
    assert "/data/log, which once_then_again" in finding.summary
    assert "has mapped: 8.0 MiB" in finding.summary
    (held,) = [one.held for one in observation.disks[-1].holders if one.held is not None]
    assert (held.descriptor, held.named, held.bytes) == (None, False, HELD)


def test_a_full_disk_on_which_nobody_writes_is_a_warning_with_its_files() -> None:
    observation, finding = full(fill, nothing)
    assert (finding.verdict, finding.severity) == (Verdict.FOUND, Severity.WARNING)
    (place,) = [one for one in observation.disks[-1].holders if one.kind is Kind.VOLUME]
    largest = place.use.largest[0]
    assert (largest.path, largest.bytes) == (f"{DATA}/large", HELD)
    # Told of by whoever adds it up: what statfs says is taken, but for directories.
    said = observation.disks[-1].room
    assert 0 <= said.used_bytes - place.bytes < MIB / 4


def test_limits_that_say_the_same_are_named() -> None:
    with Box("limits") as box:
        limits(box)
        observation, finding = seen(box)
    said = {one.how for one in observation.elsewhere}
    assert {
        "shmget ENOSPC",
        "add_key EDQUOT",
        "inotify_add_watch ENOSPC",
        "unshare ENOSPC",
    } <= said
    assert finding.verdict is Verdict.CLEAR
    assert "is not for want of disk" in finding.summary


def test_a_full_tmpfs_is_named_and_dev_full_is_not_even_seen() -> None:
    with Box("memory") as box:
        no_disk(box)
        observation, finding = seen(box)
    assert {one.device for one in observation.elsewhere} != {None}
    assert len({one.device for one in observation.elsewhere}) == 1
    assert "a tmpfs, which is memory" in finding.summary


def test_a_large_tree_is_looked_through_in_time_and_where_it_was_filled_last() -> None:
    with Box("tree") as box:
        made = disk.mounted(box, DATA, mib=48, inodes=40_000)
        for number in range(150):
            os.makedirs(f"{made.mountpoint}/old/{number}")
            for name in range(200):
                path = f"{made.mountpoint}/old/{number}/{name}"
                os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
        os.makedirs(f"{made.mountpoint}/a/b/c/d")
        os.close(write(f"{made.mountpoint}/a/b/c/d/new"))
        begin(box, once_then_again(nothing, nothing))
        observation, _ = seen(box, 0.1)
    (place,) = [one for one in observation.disks[-1].holders if one.kind is Kind.VOLUME]
    assert place.use.largest[0].path == f"{DATA}/a/b/c/d/new"
    assert place.bytes > 0.9 * observation.disks[-1].room.used_bytes


def test_a_project_quota_is_told_from_a_full_disk_and_raised_by_the_printed_change() -> None:
    reason = quota.missing(Host())
    if reason is not None and os.environ.get("WHYBOX_VM") != "1":
        pytest.skip(f"{reason}; make vm VMTESTS=tests/live runs it")
    with Box("project") as box:
        made = disk.Disk(box.name, mib=64, projects=True)
        box.closing.callback(made.remove)
        mine = f"{made.mountpoint}/mine"
        os.mkdir(mine)
        os.chmod(mine, 0o777)
        quota.make_project(mine, 42)
        quota.limit(ProjectQuota(42, made.mountpoint, "ext4", bytes=10 * MIB))
        box.volume(DATA, source=mine)
        begin(box, once_then_again(fill, once_more()))
        observation, finding = seen(box)
        (short,) = [one for one in observation.disks if one.project is not None]
        assert (short.room.size_bytes, short.room.full) == (10 * MIB, True)
        assert "Its project quota is used up, 10 MiB" in finding.summary
        assert "/data/large (8.0 MiB)" in finding.summary
        change = finding.cures[0].change
        assert isinstance(change, ProjectQuota)
        assert (change.id, change.bytes) == (42, 20 * MIB)
        assert box.apply(change)
        _, cured = seen(box)
        assert cured.verdict is Verdict.CLEAR
