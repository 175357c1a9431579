"""``files``: decoding, adding up and showing on literal data."""

import os
import struct
import time
from pathlib import Path

import pytest
from msgspec import structs

from whybox.kernel import syscalltable
from whybox.kernel.host import Host
from whybox.kernel.overlay import Overlay
from whybox.kernel.sensors import files as sensor
from whybox.kernel.sensors.files import BASE_BYTES, PATH_BYTES, Copied, Done, Layers
from whybox.trace import files as question
from whybox.trace.files import Operation, Tally
from whybox.trace.question import Answered, Happened
from whybox.views.trace import files as view
from whybox.views.trace import text

MS, MIB = 1_000_000, 1 << 20


def done(path: str = "/srv/x", *, took_ns: int = 20 * MS, **more: object) -> Done:
    one = Done(
        at_ns=10**9,
        took_ns=took_ns,
        slot=1,
        pid=7,
        tid=7,
        comm="db",
        call="openat",
        kind="open",
        path=path,
        error=None,
        read_bytes=0,
        written_bytes=0,
        copying_ns=0,
        truncated=False,
    )
    return structs.replace(one, **more)


def raw(
    *,
    call: str = "openat",
    result: int = 3,
    flags: int = os.O_WRONLY,
    path: bytes = b"x\0",
    base: bytes = b"data\0srv\0",
    complete: int = 1,
    absolute: int = 0,
) -> bytes:
    number = syscalltable.number(call)
    assert number is not None
    return struct.pack(
        f"=7Qq8I16s{PATH_BYTES}s{BASE_BYTES}s",
        *(5, 4, 3, 2, 1, 0, flags, result),
        *(1, 7, 8, number, len(path), len(base), complete, absolute),
        b"db\0rest",
        path,
        base,
    )


def test_an_operation_is_decoded_with_the_path_inside() -> None:
    one = sensor.done(raw())
    assert (one.at_ns, one.took_ns, one.read_bytes, one.written_bytes) == (5, 4, 3, 2)
    assert (one.copying_ns, one.slot, one.pid, one.tid, one.comm) == (1, 1, 7, 8, "db")
    assert (one.call, one.kind, one.path, one.error) == ("openat", "open", "/srv/data/x", None)
    assert not one.truncated


def test_an_error_a_truncation_and_an_open_file_are_decoded() -> None:
    assert sensor.done(raw(result=-2)).error == 2
    assert sensor.done(raw(flags=os.O_WRONLY | os.O_TRUNC)).truncated
    assert not sensor.done(raw(call="fsync", flags=os.O_TRUNC)).truncated
    assert sensor.done(raw(absolute=1, path=b"other\0")).path == "/srv/data"


@pytest.mark.parametrize(
    ("path", "base", "complete", "shown"),
    [
        (b"/abs/x", b"never\0", True, "/abs/x"),
        (b"", b"b\0a\0", True, "/a/b"),
        (b"./x//y", b"a\0", True, "/a/x/y"),
        (b"../x", b"a\0", True, "/a/../x"),
        (b"x", b"a\0", False, "…/a/x"),
        (b"x", b"", False, "x"),
        (b"", b"", True, "/"),
        (b"\xff\x1b", b"a\0", True, "/a/\\xff\x1b"),
    ],
)
def test_paths_are_joined(path: bytes, base: bytes, complete: bool, shown: str) -> None:
    assert sensor.joined(path, base, complete=complete) == shown


def test_the_table_of_calls_has_each_once_and_fits() -> None:
    rows = list(sensor.table())
    assert len({key for key, _ in rows}) == len(rows)
    assert all(len(key) == 4 and len(value) == 8 for key, value in rows)
    number = syscalltable.number("openat")
    assert number is not None
    (packed,) = [value for key, value in rows if key == struct.pack("=I", number)]
    assert packed == bytes((1, 0, 1, 7, 2, 1, 1, 0))


def layers(tmp_path: Path, content: bytes = b"") -> Layers:
    upper = tmp_path / "upper"
    (upper / "srv").mkdir(parents=True)
    (upper / "srv" / "x").write_bytes(content)
    mount = Overlay(
        mountpoint="/",
        upperdir=str(upper),
        workdir=None,
        lowerdirs=(str(tmp_path / "lower"),),
        userxattr=True,
        volatile=False,
    )
    return Layers(Host(), [mount])


@pytest.mark.parametrize(
    "change",
    [
        {"error": 2},
        {"truncated": True},
        {"written_bytes": 0},
        {"call": "fsync", "kind": "sync"},
        {"written_bytes": MIB - 1},
    ],
)
def test_what_copies_nothing_is_no_copy(tmp_path: Path, change: dict[str, object]) -> None:
    one = structs.replace(done(written_bytes=2 * MIB), **change)
    assert layers(tmp_path).copied(one, 0) is None


@pytest.mark.parametrize("path", ["/gone", "…/x", "relative", "/../../etc/passwd", "/srv/\0"])
def test_a_copy_that_is_not_found_again_is_told_by_its_account(tmp_path: Path, path: str) -> None:
    copied = layers(tmp_path).copied(done(path, written_bytes=2 * MIB), 0)
    assert copied is not None
    assert (copied.bytes, copied.exact) == (2 * MIB, False)


def test_a_copy_in_the_upper_layer_counts_once_and_only_if_it_was_born_then(
    tmp_path: Path,
) -> None:
    asked = layers(tmp_path, b"12345")
    file = tmp_path / "upper" / "srv" / "x"
    try:
        os.setxattr(file, "user.overlay.origin", b"")
    except OSError:
        pytest.skip("this file system has no attributes")
    now = sensor.clock_offset_ns()
    at_ns = time.monotonic_ns()
    late = done(at_ns=at_ns + 10**12, took_ns=MS, written_bytes=4096)
    assert asked.copied(late, now) is None
    one = done(at_ns=at_ns, took_ns=10**10, written_bytes=4096)
    copied = asked.copied(one, now)
    assert copied is not None
    assert (copied.bytes, copied.exact) == (5, True)
    assert asked.copied(one, now) is None


def test_slow_ones_and_copies_are_counted_and_the_rest_is_not() -> None:
    tally = Tally(10 * MS)
    slow = done("/a", took_ns=10 * MS, error=2)
    quick = done("/b", took_ns=10 * MS - 1)
    copy = done("/c", took_ns=MS, written_bytes=8192)
    assert isinstance(tally.take(slow, None), Operation)
    assert tally.take(quick, None) is None
    event = tally.take(copy, Copied(done=copy, bytes=5000, exact=True))
    assert event is not None
    assert (event.copied_bytes, event.confirmed) == (5000, True)
    answer = tally.answer()
    assert (answer.copies, answer.copied_bytes, answer.copying_ns) == (1, 5000, MS)
    (kind,) = answer.kinds
    assert (kind.operation, kind.count, kind.errors, kind.sum_ns) == ("open", 1, 1, 10 * MS)
    assert kind.buckets[question.bucket(10 * MS)] == 1
    assert [file.path for file in answer.files] == ["/a"]


def test_memory_is_bounded_whatever_names_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(question, "MOST_FILES", 3)
    monkeypatch.setattr(question, "MOST_COPIES", 2)
    tally = Tally(0)
    for n in range(10):
        one = done(f"/{n}")
        tally.take(one, Copied(done=one, bytes=n, exact=True))
    answer = tally.answer()
    assert (answer.copies, answer.copied_bytes) == (10, 45)
    assert [copy.bytes for copy in answer.copied] == [9, 8]
    assert (len(answer.files), answer.others) == (3, 7)


def test_the_answer_in_words() -> None:
    tally = Tally(10 * MS)
    one = done("/srv/big", took_ns=30 * MS, written_bytes=4 * MIB)
    tally.take(one, Copied(done=one, bytes=4 * MIB, exact=True))
    lines = view.answer(tally.answer())
    assert lines[0] == "1 file of the image copied on the first change, 4 MiB in 30 ms:"
    assert lines[1] == "  /srv/big: 4 MiB in 30 ms, openat by db 7"
    assert "  1 open: 30 ms in all, 30 ms at most" in lines
    assert view.answer(Tally(10 * MS).answer()) == [
        "no file of the image was copied",
        "no operation took 10 ms or longer",
    ]


def test_a_hostile_name_cannot_harm_a_terminal_or_a_picture() -> None:
    tally = Tally(10 * MS)
    one = done("/\x1b[31m\n→", comm="\x9b")
    event = tally.take(one, Copied(done=one, bytes=1, exact=False))
    told = text("files", Happened(event=event)) + text("files", Answered(answer=tally.answer()))
    assert "(by its account)" in told[0]
    assert not any(bad in line for line in told for bad in ("\x1b", "\n", "\x9b"))
    picture = view.PICTURES["svg"](tally.answer(), "<i>\x1b")
    assert "<i>" not in picture
    assert "\x1b" not in picture
    assert view.PICTURES["svg"](Tally(1).answer(), "x").startswith("<svg")
