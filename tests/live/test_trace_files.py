"""``whybox trace files``: copies of known files, and what only looks like one."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.live.tracing import PATIENCE_SECONDS, asked
from whybox.kernel.bpf import objects
from whybox.lab import workload
from whybox.lab.box import Box
from whybox.trace.files import Operation
from whybox.trace.question import Options

MIB = 1 << 20

#: Their sizes are no whole pages.
SIZES = (3 * MIB + 7, 2 * MIB + 1, MIB, 5_000, 100)
FILES = {f"/srv/data/big{n}": size for n, size in enumerate(SIZES)}


def when_told(act: Callable[[], None]) -> Callable[[], None]:
    """Waits to be told, acts, and says when it has."""

    def program() -> None:
        os.mkdir("/tmp/ready")
        while not os.path.exists("/tmp/go"):
            time.sleep(0.02)
        act()
        os.mkdir("/tmp/done")
        time.sleep(1000)

    return program


def until(path: Path) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.02)


@contextmanager
def started(act: Callable[[], None]) -> Iterator[Box]:
    with Box("trace-files") as box:
        for path, size in FILES.items():
            box.lower_file(path, bytes=size)
        box.lower_file("/srv/data/other", bytes=10_000)
        box.start(workload.idle())
        box.run(when_told(act))
        until(tmp(box) / "ready")
        yield box
        assert box.error() is None


def tmp(box: Box) -> Path:
    return Path(f"/proc/{box.pid}/root/tmp")


def go(box: Box) -> None:
    (tmp(box) / "go").mkdir()
    until(tmp(box) / "done")


def opened(path: str, flags: int = os.O_WRONLY) -> None:
    os.close(os.open(path, flags))


def test_each_file_that_is_copied_is_told_with_its_size_and_path() -> None:
    def act() -> None:
        for path in FILES:
            opened(path)

    with started(act) as box:
        with asked("files", box.target()) as trace:
            go(box)
        assert trace.begin is not None
        assert trace.begin.attached[:2] == ("tp_btf/sys_enter", "tp_btf/sys_exit")
        assert {one.path: one.bytes for one in trace.answer.copied} == FILES
        assert trace.answer.copies == len(FILES)
        assert trace.answer.copied_bytes == sum(SIZES)
        told = [one for one in trace.of(Operation) if one.copied_bytes is not None]
        assert [one.path for one in told] == list(FILES)
        assert {(one.operation, one.call, one.error) for one in told} == {("open", "openat", None)}
        assert all(one.confirmed and one.written_bytes >= (one.copied_bytes or 0) for one in told)
        assert all(one.took_ns > 0 for one in told)
        assert trace.end is not None
        assert trace.dropped == 0


def test_a_new_mode_and_a_new_name_copy_too() -> None:
    def act() -> None:
        os.chdir("/srv")
        os.chmod("data/big0", 0o600)
        os.rename("/srv/data/big1", "/srv/data/moved")
        descriptor = os.open("/srv/data", os.O_RDONLY)
        os.utime("big2", (1, 1), dir_fd=descriptor)
        file = os.open("/srv/data/big3", os.O_RDONLY)
        os.fchmod(file, 0o600)

    with started(act) as box:
        with asked("files", box.target()) as trace:
            go(box)
        told = {one.path: one for one in trace.answer.copied}
        assert {path: one.bytes for path, one in told.items() if "big1" not in path} == {
            path: FILES[path] for path in ("/srv/data/big0", "/srv/data/big2", "/srv/data/big3")
        }
        # By the name that it had; its copy now has another, so the size is as accounted.
        assert FILES["/srv/data/big1"] <= told["/srv/data/big1"].bytes < 2 * SIZES[1]
        assert [one.operation for one in trace.of(Operation) if one.copied_bytes is not None] == [
            "chmod",
            "rename",
            "utime",
            "chmod",
        ]


def test_a_path_through_a_link_leads_to_the_copy() -> None:
    def act() -> None:
        os.chmod("/tmp/link/big3", 0o600)

    with started(act) as box:
        (tmp(box) / "link").symlink_to("/srv/data")
        with asked("files", box.target()) as trace:
            go(box)
        told = {one.path: one.bytes for one in trace.answer.copied}
        assert told == {"/tmp/link/big3": FILES["/srv/data/big3"]}


def test_what_only_looks_like_a_copy_is_none() -> None:
    def act() -> None:
        for path in FILES:
            opened(path)  # copied before anybody looks

        os.mkdir("/tmp/copied")
        while not os.path.exists("/tmp/look"):
            time.sleep(0.02)
        for path in FILES:  # the second change
            opened(path)
            os.chmod(path, 0o600)
        with open("/srv/data/new", "wb") as file:  # a large file of its own
            file.write(bytes(4 * MIB))
            os.fsync(file.fileno())
        with open("/srv/data/other", "wb") as file:  # truncated, so nothing is copied
            file.write(bytes(4 * MIB))
        os.unlink("/srv/data/new")

    with started(act) as box:
        (tmp(box) / "go").mkdir()
        until(tmp(box) / "copied")
        with asked("files", box.target()) as trace:
            (tmp(box) / "look").mkdir()
            until(tmp(box) / "done")
        assert trace.answer.copies == 0
        assert trace.answer.copied == ()
        assert not [one for one in trace.of(Operation) if one.copied_bytes is not None]


def test_every_operation_is_told_when_asked_for_with_its_path_and_error() -> None:
    def act() -> None:
        os.mkdir("/srv/data/deep")
        os.chdir("/srv/data/deep")
        file = os.open("own", os.O_CREAT | os.O_RDWR)
        os.write(file, b"x" * 1000)
        os.fsync(file)
        os.pread(file, 1000, 0)
        for path in ("nothing", "../nothing/either"):
            with suppress(FileNotFoundError):
                os.unlink(path)
        reading, writing = os.pipe()
        os.write(writing, b"y")
        os.read(reading, 1)

    with started(act) as box:
        with asked("files", box.target(), Options(slower_ns=0)) as trace:
            go(box)
        own = [one for one in trace.of(Operation) if one.path == "/srv/data/deep/own"]
        assert [one.operation for one in own] == ["open", "write", "sync", "read"]
        failed = {one.path: one.error for one in trace.of(Operation) if one.operation == "unlink"}
        assert failed == {
            "/srv/data/deep/nothing": "ENOENT",
            "/srv/data/deep/../nothing/either": "ENOENT",
        }
        kinds = {kind.operation: kind for kind in trace.answer.kinds}
        assert kinds["unlink"].errors == 2
        # Those to the pipe are none: who waits there waits for no file.
        assert {one.path for one in trace.of(Operation) if one.operation == "write"} == {
            "/srv/data/deep/own"
        }
        assert all(sum(kind.buckets) == kind.count for kind in trace.answer.kinds)


def test_nothing_is_told_of_what_is_neither_slow_nor_a_copy() -> None:
    def act() -> None:
        for _ in range(1000):
            os.stat("/srv/data/big0")
            opened("/srv/data/big0", os.O_RDONLY)

    with started(act) as box:
        with asked("files", box.target(), Options(slower_ns=10**11)) as trace:
            go(box)
        assert trace.happened == []
        assert trace.answer.kinds == ()
        assert trace.programs.runs > 4000


def test_without_the_sensor_the_upper_layer_tells_what_landed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(objects, "SENSORS", Path("/nonexistent"))

    def act() -> None:
        for path in FILES:
            opened(path)

    with started(act) as box:
        with asked("files", box.target()) as trace:
            go(box)
        assert trace.begin is not None
        assert "instead: only the copies" in trace.begin.notes[0]
        assert {one.path: one.bytes for one in trace.answer.copied} == FILES
        assert {one.pid for one in trace.answer.copied} == {None}
