"""A program changes large files of its image, one after the other, each for the first time."""

import os
import signal
import time
from collections.abc import Callable

from whybox.lab import workload
from whybox.lab.box import Box, Program
from whybox.lab.lab import Lab
from whybox.model import Finding

BYTES = 32 << 20
FILES = 8
SMALL_FILES = 400
SMALL_BYTES = 100
DIRECTORY = "/data"
EVERY_SECONDS = 0.7

_PATHS = tuple(f"{DIRECTORY}/big{number}" for number in range(FILES))


def one_by_one(change: Callable[[str], None]) -> Program:
    """Changes one file of the image every 0.7 s, until there are no more."""

    def program() -> Program:
        _end_on_term()
        for path in _PATHS:
            time.sleep(EVERY_SECONDS)
            change(path)
        return workload.idle()

    return program


def again_and_again(act: Callable[[], None]) -> Program:
    """Does the same every 0.7 s."""

    def program() -> None:
        _end_on_term()
        while True:
            time.sleep(EVERY_SECONDS)
            act()

    return program


def second_changes() -> Program:
    """Changes every file once, says so, and then goes on changing them."""

    def program() -> None:
        _end_on_term()
        for path in _PATHS:
            append(path)
        os.mkdir("/tmp/changed")
        while True:
            for path in _PATHS:
                append(path)
                time.sleep(0.1)

    return program


def chmod_storm() -> Program:
    """Gives one small file of the image after the other a new mode."""

    def program() -> Program:
        _end_on_term()
        time.sleep(EVERY_SECONDS)
        for number in range(SMALL_FILES):
            os.chmod(f"{DIRECTORY}/{number}", 0o600)
            time.sleep(0.002)
        return workload.idle()

    return program


def append(path: str) -> None:
    """One byte."""
    with open(path, "ab") as file:
        file.write(b"x")


def open_only(path: str) -> None:
    """Opened for writing, and closed: that is enough."""
    os.close(os.open(path, os.O_RDWR))


def close_to_others(path: str) -> None:
    """Only the mode changes, but all is copied."""
    os.chmod(path, 0o600)


def rewrite(path: str) -> None:
    """Opening truncates the file, so there is nothing to copy."""
    with open(path, "wb") as file:
        file.write(bytes(BYTES))


def read(path: str) -> None:
    """Reads all of it from the lower layer."""
    with open(path, "rb") as file:
        while file.read(1 << 20):
            pass


def write_own() -> None:
    """A large file of its own, new each time."""
    with open("/tmp/own", "wb") as file:
        file.write(bytes(2 * BYTES))
    os.unlink("/tmp/own")


def sync_own() -> None:
    """Many small writes, each of them synced."""
    with open("/tmp/own", "ab") as file:
        for _ in range(20):
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())


def grow(path: str) -> None:
    """A small file of the image becomes a large one by what the program writes itself."""
    with open(path, "ab") as file:
        file.write(bytes(BYTES))


def _end_on_term() -> None:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))


def _image(box: Box, size: int = BYTES) -> None:
    for path in _PATHS:
        box.lower_file(path, bytes=size)


def _changing(change: Callable[[str], None], size: int = BYTES) -> Callable[[Box], None]:
    def scenario(box: Box) -> None:
        _image(box, size)
        box.start(one_by_one(change))

    return scenario


def _own(act: Callable[[], None]) -> Callable[[Box], None]:
    def scenario(box: Box) -> None:
        box.start(again_and_again(act))

    return scenario


def _on_a_volume(box: Box) -> None:
    box.volume(DIRECTORY)
    _image(box)
    box.start(one_by_one(append))


def _second(box: Box) -> None:
    _image(box)
    box.start(second_changes())
    while not os.path.exists(f"/proc/{box.pid}/root/tmp/changed") and box.wait(0) is None:
        time.sleep(0.05)


def _storm(box: Box) -> None:
    for number in range(SMALL_FILES):
        box.lower_file(f"{DIRECTORY}/{number}", bytes=SMALL_BYTES)
    box.start(chmod_storm())


def _numbers(finding: Finding) -> str | None:
    """Every file that was copied was copied whole: a large one, or one of the small ones."""
    landed = [e.says for e in finding.evidence if "origin is set" in e.says]
    sizes = {f" {size} bytes of the layer below" for size in (BYTES, SMALL_BYTES)}
    whole = [said for said in landed if any(size in said for size in sizes)]
    return None if landed and whole == landed else f"not copied whole: {landed}"


LAB = Lab(
    healthy=_own(sync_own),
    reproduce=_changing(append),
    look_alikes={
        "a large new file, which the program writes itself": _own(write_own),
        "the second change to files that were copied before": _second,
        "the first change to files on a volume": _on_a_volume,
        "files of the image are only read": _changing(read),
        "files of the image are removed: a whiteout copies nothing": _changing(os.unlink),
        "files of the image are truncated and written anew": _changing(rewrite),
        "small files of the image grow large": _changing(grow, size=SMALL_BYTES),
    },
    variants={
        "opened for writing, and nothing written": _changing(open_only),
        "a new mode for large files": _changing(close_to_others),
        "a new mode for hundreds of small files": _storm,
    },
    numbers=_numbers,
    window_seconds=3.0,
)
