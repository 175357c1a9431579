"""network/sysctl_not_inherited on real Docker containers with a bridge, and on new namespaces."""

import subprocess
import threading
from collections.abc import Iterator

import pytest

from tests.live.engine import Engine
from tests.live.test_docker_cases import (
    Diagnose,
    cured_by_printed_commands,
    diagnose,
    found,
)
from whybox.kernel import netsysctl
from whybox.kernel.libc import CLONE_NEWNET, unshare

__all__ = ["diagnose"]  # a fixture

CASE = "network/sysctl_not_inherited"
KEY = "net.ipv4.tcp_fin_timeout"
ASK = ("--sysctl", KEY)


@pytest.fixture
def changed_host() -> Iterator[None]:
    """The machine's own parameter, put back afterwards."""
    before = _sysctl("-n", KEY)
    _sysctl("-w", f"{KEY}=17")
    try:
        yield
    finally:
        _sysctl("-w", f"{KEY}={before}")


def _sysctl(*words: str) -> str:
    done = subprocess.run(["sysctl", *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.mark.docker
@pytest.mark.usefixtures("changed_host")
def test_the_hosts_change_is_missed_and_the_printed_command(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    container = engine.run(image, "listen", "0.0.0.0", "8080")
    findings = diagnose(container, "1s")
    assert found(findings) == {CASE}
    assert f"{KEY} is 17 there and 60 in the container" in findings[CASE]["summary"]
    cured_by_printed_commands(engine, findings[CASE])
    assert diagnose(container, "0s")[CASE]["verdict"] == "clear"


@pytest.mark.docker
@pytest.mark.usefixtures("changed_host")
def test_what_the_container_was_given_and_the_hosts_network_are_not(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    given = engine.run(image, "listen", "0.0.0.0", "8080", options=("--sysctl", f"{KEY}=17"))
    assert diagnose(given, "0s")[CASE]["verdict"] == "clear"
    other = engine.run(image, "listen", "0.0.0.0", "8080", options=("--sysctl", f"{KEY}=20"))
    clear = diagnose(other, "0s")[CASE]
    assert clear["verdict"] == "clear"
    assert f"{KEY} is 20, on the host 17" in clear["summary"]
    hosts = engine.run(image, "sig", options=("--network", "host"))
    assert diagnose(hosts, "0s")[CASE]["verdict"] == "clear"


@pytest.mark.docker
def test_an_ordinary_container_is_clear_and_one_parameter_is_explained(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    container = engine.run(image, "listen", "0.0.0.0", "8080")
    assert diagnose(container, "0s")[CASE]["verdict"] == "clear"
    same = diagnose(container, "0s", *ASK)
    assert set(same) == {CASE}
    assert "Inside it cannot be written (EROFS)" in same[CASE]["summary"]
    machine = diagnose(container, "0s", "--sysctl", "net.core.netdev_max_backlog")[CASE]
    assert machine["verdict"] == "clear"
    assert "one for the whole machine" in machine["summary"]
    refused = engine.exec(container, "sh", "-c", f"echo 9 > /proc/sys/{KEY.replace('.', '/')}")
    assert "Read-only file system" in refused.stderr


def test_a_new_namespace_begins_with_the_defaults_that_are_judged_by() -> None:
    found: dict[str, netsysctl.Value] = {}

    def look() -> None:
        unshare(CLONE_NEWNET)
        found.update(netsysctl.values((*netsysctl.DEFAULTS, *netsysctl.SHARES, _EHASH)))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join(30)
    assert "core/somaxconn" in found
    said = found.pop(_EHASH, None)
    ehash = None if said is None or said.text is None else int(said.text)
    wrong = {
        key: value.text
        for key, value in found.items()
        if (known := netsysctl.defaults(key, ehash)) and value.text not in known
    }
    assert not wrong


_EHASH = "ipv4/tcp_ehash_entries"
