"""Real copies on a real overlay: what the upper directory tells, and what the program measured."""

import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from whybox.kernel import overlay, upper
from whybox.kernel.host import Host
from whybox.kernel.mountinfo import mounts
from whybox.kernel.overlay import Overlay
from whybox.kernel.upper import CopiedUp, Upper
from whybox.lab.box import Box

BYTES = 16 << 20
PATH = "/data/big"


def changed(change: Callable[[str], None]) -> tuple[Overlay, Upper, float]:
    """Change the file of an image in a box, once; and the milliseconds that the call took."""
    with Box("overlay") as box:
        box.lower_file(PATH, bytes=BYTES)

        def program() -> None:
            while not os.path.exists("/tmp/go"):
                time.sleep(0.01)
            began = time.monotonic()
            change(PATH)
            Path("/tmp/took.new").write_text(f"{(time.monotonic() - began) * 1000}")
            os.rename("/tmp/took.new", "/tmp/took")
            time.sleep(60)

        box.start(program)
        host, inside = Host(), Path(f"/proc/{box.pid}/root/tmp")
        mount = next(o for o in overlay.overlays(mounts(host, box.pid)) if o.mountpoint == "/")
        survey = upper.survey(host, mount)
        (inside / "go").touch()
        deadline = time.monotonic() + 60
        while not (inside / "took").exists() and time.monotonic() < deadline:
            assert box.wait(0.02) is None, box.error()
        return (
            mount,
            upper.landed(host, mount, survey),
            float((inside / "took").read_text()),
        )


def append(path: str) -> None:
    with open(path, "ab") as file:
        file.write(b"x")


def open_only(path: str) -> None:
    os.close(os.open(path, os.O_RDWR))


def truncate(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))


def only(after: Upper) -> CopiedUp:
    (file,) = after.files
    return file


def shorten(path: str) -> None:
    os.truncate(path, BYTES - 1)


def give_away(path: str) -> None:
    os.chown(path, os.getuid(), os.getgid())


def map_shared(path: str) -> None:
    with open(path, "r+b") as file:
        mmap.mmap(file.fileno(), 4096).close()


def close_to_others(path: str) -> None:
    os.chmod(path, 0o600)


@pytest.mark.parametrize(
    "change",
    [append, open_only, close_to_others, give_away, os.utime, shorten, map_shared],
)
def test_a_copy_is_told_with_its_size_and_lasts_no_longer_than_the_call(
    change: Callable[[str], None],
) -> None:
    _, after, took_ms = changed(change)
    file = only(after)
    assert file.path == PATH[1:]
    assert file.lower_bytes == BYTES
    assert file.took_ns is not None
    # The clock of a file system moves once a tick: 10 ms at HZ=100.
    assert file.took_ns / 1e6 <= took_ms + 10
    assert file.took_ns / 1e6 >= took_ms / 3 - 10


def renamed(path: str) -> None:
    os.rename(path, f"{path}.old")


def named_again(path: str) -> None:
    os.link(path, f"{path}.too")


@pytest.mark.parametrize("change", [renamed, named_again])
def test_a_file_that_gets_another_name_is_copied_and_told_once(
    change: Callable[[str], None],
) -> None:
    _, after, _ = changed(change)
    assert (after.count, only(after).size_bytes) == (1, BYTES)


def test_opening_with_truncation_marks_a_file_that_holds_nothing() -> None:
    _, after, _ = changed(truncate)
    assert only(after).size_bytes == 0


def test_a_new_file_and_a_removed_one_carry_no_mark() -> None:
    _, own, _ = changed(lambda path: append("/data/own"))
    _, removed, _ = changed(os.unlink)
    assert own.files == removed.files == ()


def test_the_upper_directory_of_a_box_that_has_gone_is_an_obstacle() -> None:
    mount, _, _ = changed(append)
    assert "cannot be seen" in str(overlay.obstacle(Host(), mount))
