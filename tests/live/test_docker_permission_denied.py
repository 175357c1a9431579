"""security/permission_denied on real Docker containers."""

import subprocess
import time
from pathlib import Path

import pytest

from tests.live.engine import Engine
from tests.live.test_docker_cases import (
    Diagnose,
    cured_by_printed_commands,
    diagnose,
    found,
)

__all__ = ["diagnose"]  # a fixture

pytestmark = pytest.mark.docker

CASE = "security/permission_denied"
USER = ("--user", "1000:1000")


def forever(command: str) -> tuple[str, str, str]:
    """A shell that tries it again and again, and ends at once when told to."""
    return "sh", "-c", f"trap 'exit 0' TERM; while :; do {command}; sleep 0.3; done"


def test_a_volume_of_roots_and_the_printed_chown(
    engine: Engine, image: str, diagnose: Diagnose, tmp_path: Path
) -> None:
    volume = ("-v", f"{tmp_path}:/data")
    container = engine.run(image, *forever("echo x > /data/file"), options=(*USER, *volume))
    time.sleep(1)
    findings = diagnose(container)
    assert CASE in found(findings)
    assert "/data belongs to 0:0" in findings[CASE]["summary"]
    assert "(EACCES)" in findings[CASE]["summary"]
    cured_by_printed_commands(engine, findings[CASE])
    time.sleep(1)
    after = diagnose(container)[CASE]
    assert after["verdict"] == "clear", after["summary"]
    assert (tmp_path / "file").stat().st_uid == 1000


@pytest.mark.parametrize(
    ("command", "options", "expected"),
    [
        (
            "echo x > /mine/file",
            ("--tmpfs", "/mine:uid=1000,mode=755", "--cap-drop", "ALL"),
            "root without DAC_OVERRIDE",
        ),
        ("mount -t tmpfs none /mnt", (), "the seccomp profile refuses mount"),
        (
            "mount -t tmpfs none /tmp",
            ("--security-opt", "seccomp=unconfined"),
            "takes the capability SYS_ADMIN",
        ),
        ("touch /file", ("--read-only",), "/ (overlay) is mounted read-only here"),
        ("echo 1 > /proc/sys/vm/swappiness", (), "/proc/sys (proc) is mounted read-only here"),
        (
            "cp /bin/busybox /tmp/true; /tmp/true",
            ("--tmpfs", "/tmp"),
            "/tmp (tmpfs) is mounted noexec",
        ),
        (
            "nc -l -p 80",
            (*USER, "--sysctl", "net.ipv4.ip_unprivileged_port_start=1024"),
            "port 80 is below 1024",
        ),
        ("chown 1000 /data", ("--cap-drop", "CHOWN"), "takes CHOWN"),
        ("mknod /tmp/k c 1 11; cat /tmp/k", (), "devices controller"),
        ("cat /shut/file", (*USER, "--tmpfs", "/shut:mode=700"), "/shut belongs to 0:0"),
    ],
)
def test_every_gate_is_told_from_the_others(
    engine: Engine,
    image: str,
    diagnose: Diagnose,
    command: str,
    options: tuple[str, ...],
    expected: str,
) -> None:
    container = engine.run(image, *forever(command), options=options)
    time.sleep(1)
    finding = diagnose(container)[CASE]
    assert finding["verdict"] == "found", finding["summary"]
    assert expected in finding["summary"]


def test_an_immutable_file_binds_root_too(engine: Engine, image: str, diagnose: Diagnose) -> None:
    directory = engine.directory / "immutable"
    directory.mkdir()
    file = directory / "file"
    file.write_text("x")
    subprocess.run(["chattr", "+i", file], check=True)
    try:
        volume = ("-v", f"{directory}:/data")
        container = engine.run(image, *forever("echo y > /data/file"), options=volume)
        time.sleep(1)
        summary = diagnose(container)[CASE]["summary"]
        assert "/data/file is immutable" in summary
        assert "(EPERM)" in summary
    finally:
        subprocess.run(["chattr", "-i", file], check=True)


def test_a_program_that_seccomp_lets_pass_once_the_call_is_allowed(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    options = ("--cap-add", "SYS_ADMIN", "--security-opt", "seccomp=unconfined")
    mounts = forever("mount -t tmpfs none /tmp && umount /tmp")
    container = engine.run(image, *mounts, options=options)
    time.sleep(1)
    assert diagnose(container)[CASE]["verdict"] == "clear"


@pytest.mark.parametrize(
    "command",
    [
        "test -w /etc/passwd || true",
        "ls -l /root /proc/1/fd; true",
        "nice -n -5 true",
        "find / -xdev -name nothing -maxdepth 2; true",
        "cat /nowhere; true",
        "ps; true",
    ],
)
def test_what_is_asked_or_done_without_is_no_trouble(
    engine: Engine, image: str, diagnose: Diagnose, command: str
) -> None:
    container = engine.run(image, *forever(command), options=USER)
    time.sleep(1)
    finding = diagnose(container)[CASE]
    assert finding["verdict"] == "clear", finding["summary"]
