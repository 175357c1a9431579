"""``whybox trace disk``: direct IO of a known count and size, freely and under a limit."""

import mmap
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.live.conftest import require
from tests.live.tracing import PATIENCE_SECONDS, asked
from whybox.kernel.bpf import objects
from whybox.lab import workload
from whybox.lab.box import Box
from whybox.lab.rootfs import disk
from whybox.trace.disk import Answer, Device, Io, Kind
from whybox.trace.question import Options

COUNT, SIZE = 64, 64 << 10
BLOCK = SIZE.bit_length() - 1 - 9  # its bucket


def device() -> tuple[int, int]:
    """The whole disk that boxes write to."""
    number = os.stat(disk()).st_dev
    here = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve()
    if not here.exists():
        require("what boxes write is on no disk")
    whole = here.parent if (here / "partition").exists() else here
    major, minor = (whole / "dev").read_text().split(":")
    return int(major), int(minor)


def direct(act: Callable[[int, mmap.mmap], None]) -> Callable[[], None]:
    """Lays a file out, says so, and does that with it when it is told to."""

    def program() -> None:
        with open("/tmp/file", "wb") as file:
            file.write(os.urandom(COUNT * SIZE))
            os.fsync(file.fileno())
        descriptor = os.open("/tmp/file", os.O_RDWR | os.O_DIRECT)
        buffer = mmap.mmap(-1, SIZE)
        os.sync()  # the file's own journal too is over before anybody looks
        os.mkdir("/tmp/ready")
        while not os.path.exists("/tmp/go"):
            time.sleep(0.02)
        act(descriptor, buffer)
        os.mkdir("/tmp/done")
        time.sleep(1000)

    return program


def write_all(descriptor: int, buffer: mmap.mmap) -> None:
    for n in range(COUNT):
        os.pwrite(descriptor, buffer, n * SIZE)


def read_all(descriptor: int, buffer: mmap.mmap) -> None:
    for n in range(COUNT):
        os.preadv(descriptor, [buffer], n * SIZE)


def until(path: Path) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.02)


def inside(box: Box) -> Path:
    return Path(f"/proc/{box.pid}/root/tmp")


@contextmanager
def started(act: Callable[[int, mmap.mmap], None]) -> Iterator[Box]:
    with Box("trace-disk") as box:
        box.start(workload.idle())
        box.run(direct(act))
        until(inside(box) / "ready")
        yield box


def go(box: Box) -> None:
    (inside(box) / "go").mkdir()
    until(inside(box) / "done")


def used(answer: Answer) -> Device:
    return next(one for one in answer.devices if (one.major, one.minor) == device())


def kind(answer: Answer, name: str) -> Kind:
    return next(one for one in used(answer).kinds if one.kind == name)


@pytest.mark.parametrize(("name", "act"), [("write", write_all), ("read", read_all)])
def test_each_io_is_counted_with_its_size(name: str, act: Callable[[int, mmap.mmap], None]) -> None:
    with started(act) as box:
        with asked("disk", box.target()) as trace:
            go(box)
        assert box.error() is None
        assert trace.begin is not None
        assert "raw_tp/block_rq_issue" in trace.begin.attached
        told = kind(trace.answer, name)
        # A machine may hide what interrupts its own agent: then some ends are not seen, and told.
        hidden = trace.answer.unfinished
        # The directories that tell when to begin and that it is done are on the disk as well.
        assert COUNT <= told.count + hidden < COUNT + 16
        assert COUNT * SIZE <= told.bytes + hidden * SIZE < COUNT * SIZE + 16 * SIZE
        assert COUNT - hidden <= used(trace.answer).size_buckets[BLOCK] <= COUNT
        assert sum(used(trace.answer).device_buckets) == sum(
            one.count for one in used(trace.answer).kinds
        )
        assert told.device_ns is not None
        assert told.longest_ns is not None
        assert 0 < told.longest_ns <= told.device_ns + (told.queued_ns or 0)
        assert told.throttled == 0
        assert used(trace.answer).limits == ()
        assert trace.end is not None
        assert trace.dropped == 0


def test_what_others_do_on_the_same_disk_is_not_its_own() -> None:
    with started(write_all) as box:
        with asked("disk", box.target()) as trace:
            path = Path(disk(), f"whybox-test-{os.getpid()}")
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600)
            try:
                write_all(descriptor, mmap.mmap(-1, SIZE))
            finally:
                os.close(descriptor)
                path.unlink()
            go(box)
        # All but those whose end a machine may hide.
        assert used(trace.answer).others_bytes > COUNT * SIZE / 2
        assert kind(trace.answer, "write").bytes < (COUNT + 16) * SIZE


def limited(box: Box, bytes_a_second: int, direction: str = "write") -> None:
    """As ``docker run --device-write-bps`` and ``--device-read-bps``."""
    assert box.groups is not None
    name = f"{device()[0]}:{device()[1]}"
    if box.groups.version == 1:
        file = Path(box.groups.directories["blkio"], f"blkio.throttle.{direction}_bps_device")
        file.write_text(f"{name} {bytes_a_second}")
    else:
        (directory,) = box.groups.directories.values()
        Path(directory, "io.max").write_text(f"{name} {direction[0]}bps={bytes_a_second}")


def test_under_a_limit_the_time_is_spent_before_the_device() -> None:
    """4 MiB at 4 MiB a second take about one second, one write after the other."""
    with started(write_all) as box:
        limited(box, COUNT * SIZE)
        with asked("disk", box.target(), Options(slower_ns=50_000_000)) as trace:
            go(box)
        seen = used(trace.answer)
        told = kind(trace.answer, "write")
        assert told.throttled_ns is not None
        assert 0.5e9 < told.throttled_ns < 3e9
        assert told.device_ns is not None
        assert told.throttled_ns > told.device_ns
        assert told.throttled >= 3
        assert seen.wait == "throttled"
        (bound,) = seen.limits
        assert (bound.what, bound.value) == ("write bytes", COUNT * SIZE)
        held = [one for one in trace.of(Io) if one.throttled_ns > one.took_ns / 2]
        assert len(held) >= 3
        assert {one.bytes for one in held if one.bytes > 4096} == {SIZE}


def test_of_many_at_once_under_a_limit_all_waits_are_counted() -> None:
    """16 processes read 4 times each. While a process is in its call it is nearly all the time held
    back, so the sum of both is the same but for what emulation adds."""
    readers = 16

    def read_some(descriptor: int, buffer: mmap.mmap, first: int) -> None:
        began = time.monotonic_ns()
        for n in range(first, first + COUNT // readers):
            os.preadv(descriptor, [buffer], n * SIZE)
        Path(f"/tmp/took{first}").write_text(str(time.monotonic_ns() - began))

    def at_once(descriptor: int, buffer: mmap.mmap) -> None:
        pids = []
        waiting, starting = os.pipe()
        for first in range(0, COUNT, COUNT // readers):
            pids.append(os.fork())
            if not pids[-1]:
                os.close(starting)
                os.read(waiting, 1)
                read_some(descriptor, buffer, first)
                os._exit(0)
        os.close(starting)  # all of them now, however slowly they were made
        for pid in pids:
            os.waitpid(pid, 0)

    with started(at_once) as box:
        limited(box, COUNT * SIZE // 2, "read")
        with asked("disk", box.target()) as trace:
            go(box)
        took = sum(int(file.read_text()) for file in inside(box).glob("took*"))
        told = kind(trace.answer, "read")
        assert told.throttled_ns is not None
        assert 0.6 * took < told.throttled_ns < 1.3 * took
        assert told.throttled > COUNT / 8
        assert used(trace.answer).wait == "throttled"


def test_memory_is_no_disk() -> None:
    with Box("trace-disk") as box:
        box.start(workload.idle())
        with asked("disk", box.target()) as trace:
            time.sleep(0.3)
        assert trace.answer.devices == ()


def test_without_programs_the_counts_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "SENSORS", Path("/nonexistent"))
    with started(write_all) as box:
        with asked("disk", box.target()) as trace:
            go(box)
        assert trace.begin is not None
        assert "instead: the sums" in trace.begin.notes[0]
        told = kind(trace.answer, "write")
        assert COUNT <= told.count < COUNT + 16
        assert COUNT * SIZE <= told.bytes < (COUNT + 16) * SIZE
        assert told.device_ns is None
        assert used(trace.answer).wait is None
