"""storage/copy_up on real Docker containers: an entrypoint that changes modes and names."""

import pytest

from tests.live.engine import Container, Engine
from tests.live.image import MANY_FILES
from tests.live.test_docker_cases import Diagnose, Findings, diagnose, start_seconds

__all__ = ["diagnose", "start_seconds"]  # fixtures

pytestmark = pytest.mark.docker

CASE = "storage/copy_up"


def _entrypoint(engine: Engine, image: str, slack: float, command: str, *options: str) -> Container:
    """It changes something once whybox watches."""
    script = f"trap 'exit 0' TERM; sleep {2 + slack:.0f}; {command}; sleep 600 & wait"
    return engine.run(image, "sh", "-c", script, options=options)


def _diagnosed(diagnose: Diagnose, container: Container, slack: float) -> Findings:
    return diagnose(container, f"{6 + slack:.0f}s", "--case", CASE)


def test_new_modes_for_the_files_of_the_image_and_the_same_on_a_volume(
    engine: Engine, image: str, diagnose: Diagnose, start_seconds: float
) -> None:
    slack = 2 * start_seconds
    container = _entrypoint(engine, image, slack, "chmod -R 700 /many")
    finding = _diagnosed(diagnose, container, slack)[CASE]
    assert finding["verdict"] == "found"
    assert f"{MANY_FILES} files of the image were copied up" in finding["summary"]
    (command,) = finding["cures"][0]["commands"]
    assert command.startswith(f"docker run -v {container.name}-many:/many ")
    # A named volume is filled from the image when it is first used.
    cured = _entrypoint(engine, image, slack, "chmod -R 700 /many", "-v", "modes-many:/many")
    assert _diagnosed(diagnose, cured, slack)[CASE]["verdict"] == "clear"
    assert engine.exec(cured, "ls", "-l", "/many/000").stdout.startswith("-rwx------")


def test_another_name_for_a_large_file_copies_it_too_and_only_once(
    engine: Engine, image: str, diagnose: Diagnose, start_seconds: float
) -> None:
    slack = 2 * start_seconds
    container = _entrypoint(engine, image, slack, "mv /big /bigger; mv /bigger /biggest")
    finding = _diagnosed(diagnose, container, slack)[CASE]
    assert finding["verdict"] == "found"
    assert "/biggest, 64 MiB" in finding["summary"]
