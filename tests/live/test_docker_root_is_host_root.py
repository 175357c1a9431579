"""security/root_is_host_root on real containers: who counts as root, and what makes it matter."""

import time
from pathlib import Path

import pytest

from tests.live.engine import Engine
from tests.live.test_docker_cases import Diagnose, diagnose

__all__ = ["diagnose"]  # a fixture

pytestmark = pytest.mark.docker

CASE = "security/root_is_host_root"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--user", "1000"), "uid 1000 in root's group 0, though a setuid program"),
        (("--user", "1000:1000"), "uid 1000, though a setuid program"),
        (
            ("--user", "1000:1000", "--security-opt", "no-new-privileges"),
            "it runs as uid 1000.",
        ),
    ],
)
def test_another_user_is_clear_and_the_sentence_says_what_is_left(
    engine: Engine, image: str, diagnose: Diagnose, options: tuple[str, ...], expected: str
) -> None:
    container = engine.run(image, "sig", options=options)
    time.sleep(0.5)
    finding = diagnose(container, "0.5s")[CASE]
    assert finding["verdict"] == "clear"
    assert expected in finding["summary"]


@pytest.mark.parametrize(
    ("options", "severity", "expected"),
    [
        ((), "info", "It runs as root: uid 0 inside is uid 0 outside."),
        (("--cap-drop", "ALL"), "info", "uid 0 inside is uid 0 outside"),
        (("--cap-add", "SYS_ADMIN"), "warning", "SYS_ADMIN"),
        (("--security-opt", "seccomp=unconfined"), "warning", "no system call is filtered"),
        (("-v", "/etc:/host"), "warning", "the host's /etc is mounted at /host, writable"),
        (("-v", "/etc:/host:ro"), "info", "uid 0 inside is uid 0 outside"),
        (("--pid", "host"), "warning", "the host's pid namespace"),
    ],
)
def test_root_and_what_makes_it_matter(
    engine: Engine,
    image: str,
    diagnose: Diagnose,
    options: tuple[str, ...],
    severity: str,
    expected: str,
) -> None:
    container = engine.run(image, "sig", options=options)
    time.sleep(0.5)
    finding = diagnose(container, "0.5s")[CASE]
    assert (finding["verdict"], finding["severity"]) == ("found", severity)
    assert expected in finding["summary"]


def test_the_printed_user_makes_it_clear(engine: Engine, image: str, diagnose: Diagnose) -> None:
    container = engine.run(image, "sig")
    time.sleep(0.5)
    (command,) = diagnose(container, "0.5s")[CASE]["cures"][0]["commands"]
    assert command.startswith("docker run --user 1000:1000 ")
    cured = engine.run(image, "sig", options=("--user", "1000:1000"))
    time.sleep(0.5)
    assert diagnose(cured, "0.5s")[CASE]["verdict"] == "clear"


def test_an_engines_socket_in_it(
    engine: Engine, image: str, diagnose: Diagnose, tmp_path: Path
) -> None:
    socket = tmp_path / "docker.sock"
    socket.touch()
    options = ("-v", f"{socket}:/var/run/docker.sock:ro")
    container = engine.run(image, "sig", options=options)
    time.sleep(0.5)
    finding = diagnose(container, "0.5s")[CASE]
    assert finding["severity"] == "warning"
    assert "the engine's socket" in finding["summary"]
