"""storage/disk_filled on real Docker containers, whose engine has a small disk of its own."""

import io
import os
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live import image as test_image
from tests.live.conftest import require
from tests.live.engine import Container, Engine, missing
from tests.live.test_docker_cases import (
    Diagnose,
    cured_by_printed_commands,
    diagnose,
    found,
)
from whybox.lab.disk import Disk

__all__ = ["diagnose"]  # a fixture

pytestmark = pytest.mark.docker

CASE = "storage/disk_filled"
IMAGE = "whybox-small:1"
DISK_MIB = 64
#: Writes until it is refused, again and again, and waits.
FILL = "dd if=/dev/zero of={0}/large bs=1M count=24; dd if=/dev/zero of={0}/rest bs=1M; "
AND_ON = "while :; do echo more > {0}/more; sleep 0.1; done"
TRAP = "trap 'exit 0' TERM; "


class OnSmallDisk(Engine):
    """An engine that keeps its images, containers, logs and volumes on a disk of 64 MiB."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self.place = place

    def _command(self) -> tuple[str, ...]:
        command = list(super()._command())
        command[command.index("--data-root") + 1] = f"{self.place}/data"
        return tuple(command)


@pytest.fixture(scope="module")
def disk() -> Iterator[Disk]:
    made = Disk(f"docker-{os.getpid()}-0", mib=DISK_MIB)
    yield made
    made.remove()


@pytest.fixture(scope="module")
def engine(disk: Disk) -> Iterator[Engine]:
    require(missing())
    with OnSmallDisk(disk.mountpoint) as engine:
        yield engine


@pytest.fixture(scope="module")
def image(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A busybox and nothing else: the disk is small."""
    require(test_image.missing())
    path = tmp_path_factory.mktemp("image") / "busybox.tar"
    _archive(path)
    engine.docker("import", "--change", "ENV PATH=/bin", str(path), IMAGE)
    return IMAGE


def _archive(path: Path) -> None:
    busybox = test_image.BUSYBOX.read_bytes()
    with tarfile.open(path, "w") as tar:
        for name in ("bin", "data", "dev", "etc", "proc", "sys", "tmp"):
            member = tarfile.TarInfo(name)
            member.type, member.mode = tarfile.DIRTYPE, 0o1777
            tar.addfile(member)
        program = tarfile.TarInfo("bin/busybox")
        program.mode, program.size = 0o755, len(busybox)
        tar.addfile(program, io.BytesIO(busybox))
        for name in ("sh", "dd", "rm", "sleep", "yes", "echo", "mkdir", "cat"):
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)


def _until_full(disk: Disk, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while os.statvfs(disk.mountpoint).f_bavail and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(0.5)


def _filling(engine: Engine, image: str, directory: str, *options: str) -> Container:
    script = TRAP + (FILL + AND_ON).format(directory)
    return engine.run(image, "sh", "-c", script, options=options)


def test_what_a_container_writes_into_its_own_layer(
    engine: Engine, image: str, diagnose: Diagnose, disk: Disk
) -> None:
    container = _filling(engine, image, "/tmp")
    _until_full(disk)
    findings = diagnose(container)
    assert found(findings) == {CASE}
    finding = findings[CASE]
    assert "Most of it is the writable layer" in finding["summary"]
    assert "/tmp/large (24 MiB)" in finding["summary"]
    (command,) = finding["cures"][0]["commands"]
    assert command.startswith("docker run --tmpfs /tmp:size=64m ")
    engine.rm(container)
    bounded = _filling(engine, image, "/tmp", "--tmpfs", "/tmp:size=8m")
    time.sleep(1)
    assert diagnose(bounded)[CASE]["verdict"] == "clear"


def test_what_a_container_says_and_its_engine_keeps(
    engine: Engine, image: str, diagnose: Diagnose, disk: Disk
) -> None:
    line = "x" * 4000
    container = engine.run(image, "sh", "-c", f"{TRAP}yes {line} & wait")
    _until_full(disk)
    finding = diagnose(container, "2s", "--case", CASE)[CASE]
    assert finding["verdict"] == "found"
    assert "Most of it is the log in " in finding["summary"]
    assert f"{container.id}-json.log (" in finding["summary"]
    (command,) = finding["cures"][0]["commands"]
    assert command.startswith("docker run --log-opt max-size=10m --log-opt max-file=3 ")
    engine.rm(container)
    kept = ("--log-opt", "max-size=1m", "--log-opt", "max-file=3")
    bounded = engine.run(image, "sh", "-c", f"{TRAP}yes {line} & wait", options=kept)
    time.sleep(3)
    assert diagnose(bounded, "1s", "--case", CASE)[CASE]["verdict"] == "clear"


def test_what_lies_on_a_volume_and_who_else_suffers(
    engine: Engine, image: str, diagnose: Diagnose, disk: Disk
) -> None:
    # On a full disk the engine starts nothing.
    beside = engine.run(image, "sh", "-c", TRAP + AND_ON.format("/tmp"))
    container = _filling(engine, image, "/data", "-v", "store:/data")
    _until_full(disk)
    finding, other = diagnose(container)[CASE], diagnose(beside)[CASE]
    engine.rm(container, beside)
    engine.docker("volume", "rm", "store")
    assert finding["verdict"] == "found"
    assert "Most of it is the volume store, at /data" in finding["summary"]
    assert other["verdict"] == "found"
    assert "Not by this container" in other["summary"]
    assert f"Docker {container.id[:12]} holds" in other["summary"]
    assert "the volume store" in other["summary"]


def test_a_removed_file_that_is_held_and_the_printed_command(
    engine: Engine, image: str, diagnose: Diagnose, disk: Disk
) -> None:
    held = "exec 5>/data/log; dd if=/dev/zero bs=1M >&5; rm /data/log; "
    container = engine.run(image, "sh", "-c", TRAP + held + AND_ON.format("/data"))
    _until_full(disk)
    findings = diagnose(container)
    assert found(findings) == {CASE}
    assert "a file that has no name any more, /data/log" in findings[CASE]["summary"]
    cured_by_printed_commands(engine, findings[CASE])
    assert diagnose(container, "1s")[CASE]["verdict"] == "clear"


def test_a_full_tmpfs_says_the_same_and_is_no_disk(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    container = _filling(engine, image, "/data", "--tmpfs", "/data:size=4m")
    time.sleep(1)
    finding = diagnose(container)[CASE]
    assert finding["verdict"] == "clear"
    assert "a tmpfs, which is memory" in finding["summary"]
