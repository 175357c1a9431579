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


def chmod_storm(count: int = SMALL_FILES) -> Program:
    """Gives one small file of the image after the other a new mode."""

    def program() -> Program:
        _end_on_term()
        time.sleep(EVERY_SECONDS)
        for number in range(count):
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


def other_names(path: str) -> None:
    """Another name in the same directory, or a second one, by turns."""
    if int(path[-1]) % 2:
        os.rename(path, f"{path}.old")
    else:
        os.link(path, f"{path}.too")


def close_to_others(path: str) -> None:
    """Only the mode changes, but all is copied."""
    os.chmod(path, 0o600)


def rewrite(path: str) -> None:
    """Opening truncates the file, so there is nothing to copy."""
    with open(path, "wb") as file:
        file.write(bytes(BYTES))


def read_or_remove(path: str) -> None:
    """Reads all of it from the lower layer, or covers it by a whiteout, by turns."""
    if int(path[-1]) % 2:
        os.unlink(path)
        return
    os.stat(path)
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


def make_own() -> None:
    """A large file of its own, and hundreds of small ones with a new mode for each."""
    write_own()
    for number in range(SMALL_FILES):
        path = f"/tmp/{number}"
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT))
        os.chmod(path, 0o600)
        os.unlink(path)


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


def _with(act: Callable[[Box], None], *options: str) -> Callable[[Box], None]:
    """The same on a root that is mounted with these options."""

    def scenario(box: Box) -> None:
        box.overlay(*options)
        act(box)

    return scenario


def _under_reclaim(box: Box) -> None:
    """It writes more than it may hold in memory: every write is slow, not only the first."""
    box.memory(limit_bytes=24 << 20)
    box.start(again_and_again(make_own))


def _few(box: Box) -> None:
    """Twenty small files get a new mode: 1 ms each, and nobody feels it."""
    for number in range(20):
        box.lower_file(f"{DIRECTORY}/{number}", bytes=SMALL_BYTES)
    box.start(chmod_storm(20))


def _storm(box: Box) -> None:
    for number in range(SMALL_FILES):
        box.lower_file(f"{DIRECTORY}/{number}", bytes=SMALL_BYTES)
    box.start(chmod_storm())


def _numbers(finding: Finding) -> str | None:
    """Every file that was copied was copied whole: a large one, or one of the small ones."""
    landed = [e.says for e in finding.evidence if "origin is set" in e.says]
    sizes = {f" {size} bytes of the layer below" for size in (BYTES, SMALL_BYTES)}
    # Under another name the file of the layer below is not found again.
    sizes.add(f"ms after birth; now {BYTES} bytes")
    whole = [said for said in landed if any(size in said for size in sizes)]
    return None if landed and whole == landed else f"not copied whole: {landed}"


LAB = Lab(
    healthy=_own(sync_own),
    reproduce=_changing(append),
    look_alikes={
        "new files, which the program writes itself and waits for memory": _under_reclaim,
        "the second change to files that were copied before": _second,
        "the first change to files on a volume": _on_a_volume,
        "files of the image are read, or removed by a whiteout": _changing(read_or_remove),
        "files of the image are truncated and written anew": _changing(rewrite),
        "small files of the image grow large": _changing(grow, size=SMALL_BYTES),
        "a new mode for a few small files": _few,
        "a new mode where contents are not copied": _with(
            _changing(close_to_others), "metacopy=on"
        ),
        "hundreds of small files, and nothing is synced": _with(_storm, "volatile"),
    },
    variants={
        "opened for writing, and nothing written": _changing(open_only),
        "a new mode for large files": _changing(close_to_others),
        "other names for large files": _changing(other_names),
        "a new mode for hundreds of small files": _storm,
    },
    numbers=_numbers,
    window_seconds=1.5,
)
