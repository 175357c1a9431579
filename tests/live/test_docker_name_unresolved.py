"""network/name_unresolved on real Docker containers with a bridge."""

import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.live.engine import Engine
from tests.live.test_docker_cases import (
    Diagnose,
    cured_by_printed_commands,
    diagnose,
    found,
)
from whybox.cases.network.name_unresolved.lab import NAME, known, silent
from whybox.lab import nameserver

__all__ = ["diagnose"]  # a fixture

pytestmark = pytest.mark.docker

CASE = "network/name_unresolved"
GOOD, SILENT = "172.17.0.1", "172.17.255.9"
LOOKUPS = ("sh", "-c", f"trap 'exit 0' TERM; while :; do nslookup {NAME}; sleep 0.3; done")
IDLE = ("sig",)


@pytest.fixture
def servers(engine: Engine) -> Iterator[None]:
    """One nameserver at the bridge that answers, and one that does not."""
    address = ["ip", "address", "add", f"{SILENT}/32", "dev", "docker0"]
    subprocess.run(address, check=True)
    good = nameserver.serving(nameserver.bound(GOOD), known)
    quiet = nameserver.serving(nameserver.bound(SILENT), silent)
    try:
        yield
    finally:
        good()
        quiet()
        subprocess.run([*address[:2], "del", *address[3:]], check=True)


def dns(*addresses: str) -> tuple[str, ...]:
    return tuple(word for address in addresses for word in ("--dns", address))


@pytest.mark.usefixtures("servers")
def test_a_silent_nameserver_before_one_that_works_and_the_printed_command(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    container = engine.run(image, *LOOKUPS, options=dns(SILENT, GOOD))
    findings = diagnose(container, "6s")
    assert found(findings) == {CASE}
    assert f"{SILENT} does not answer" in findings[CASE]["summary"]
    cured_by_printed_commands(engine, findings[CASE])
    time.sleep(6)  # what has begun to wait still waits
    clear = diagnose(container, "2s")[CASE]
    assert clear["verdict"] == "clear", clear["summary"]
    assert "answered in time" in clear["summary"]


@pytest.mark.usefixtures("servers")
def test_a_nameserver_that_works_is_clear(engine: Engine, image: str, diagnose: Diagnose) -> None:
    container = engine.run(image, *LOOKUPS, options=dns(GOOD))
    assert diagnose(container)[CASE]["verdict"] == "clear"


def test_nobody_listens_at_the_bridge(engine: Engine, image: str, diagnose: Diagnose) -> None:
    container = engine.run(image, *LOOKUPS, options=dns(GOOD))
    finding = diagnose(container, "6s")[CASE]
    assert (finding["verdict"], finding["severity"]) == ("found", "critical")
    assert f"{GOOD} refuses: nobody listens at its UDP port 53" in finding["summary"]


@pytest.mark.usefixtures("servers")
def test_a_name_is_asked_for_only_where_a_person_wants_it(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    container = engine.run(image, *IDLE, options=dns(SILENT))
    quiet = diagnose(container)[CASE]
    assert quiet["verdict"] == "clear"
    assert "asked for no name" in quiet["summary"]
    asked = diagnose(container, "2s", "--lookup", NAME)
    assert set(asked) == {CASE}
    assert f"{SILENT} does not answer" in asked[CASE]["summary"]
    works = engine.run(image, *IDLE, options=dns(GOOD))
    assert diagnose(works, "2s", "--lookup", NAME)[CASE]["verdict"] == "clear"


def test_dockers_own_nameserver_is_not_blamed_for_a_silent_one(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    engine.docker("network", "create", "--subnet", "172.30.99.0/24", "made")
    upstream = "172.30.99.1"
    end = nameserver.serving(nameserver.bound(upstream), silent)
    try:
        options = ("--network", "made", *dns(upstream))
        container = engine.run(image, *LOOKUPS, options=options)
        finding = diagnose(container, "6s")[CASE]
        engine.rm(container)
    finally:
        end()
        engine.docker("network", "rm", "made")
    assert finding["verdict"] == "found"
    assert f"Its nameserver {upstream} does not answer" in finding["summary"]
    assert "127.0.0.11, whom its programs ask" in finding["summary"]
