"""security/privileged_needlessly on real Docker containers."""

import shlex
import time

import pytest

from tests.live.engine import Engine
from tests.live.test_docker_cases import Diagnose, diagnose, found
from whybox.kernel import capability, task
from whybox.kernel.host import Host

__all__ = ["diagnose"]  # a fixture

pytestmark = pytest.mark.docker

CASE = "security/privileged_needlessly"
#: What leads out, and more: as much as is had where --privileged itself is refused.
MANY = ("SYS_ADMIN", "SYS_PTRACE", "NET_ADMIN", "SYS_NICE", "IPC_LOCK", "SYSLOG", "DAC_READ_SEARCH")
OPEN = ("--security-opt", "seccomp=unconfined")


def adding(*names: str) -> tuple[str, ...]:
    return tuple(word for name in names for word in ("--cap-add", name))


def forever(command: str) -> tuple[str, str, str]:
    """A shell that does it again and again, and ends at once when told to."""
    return "sh", "-c", f"trap 'exit 0' TERM; while :; do {command}; sleep 0.2; done"


GIVES_AWAY = forever("touch /tmp/f; chown 1000 /tmp/f; chown 0 /tmp/f")


def test_many_rights_for_a_program_that_changes_owners(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    options = (*adding(*MANY), *OPEN)
    container = engine.run(image, *GIVES_AWAY, options=options)
    time.sleep(1)
    finding = diagnose(container)[CASE]
    assert finding["verdict"] == "found", finding["summary"]
    assert "(CHOWN)" in finding["summary"]
    assert any("Seccomp 0" in evidence["says"] for evidence in finding["evidence"])
    (command,) = finding["cures"][0]["commands"]
    assert command.startswith("docker run --cap-drop ALL --cap-add CHOWN ")
    # The very options that are printed, and its program still does what it did.
    smaller = tuple(shlex.split(command)[2:6])
    cured = engine.run(image, *GIVES_AWAY, options=smaller)
    time.sleep(1)
    findings = diagnose(cured)
    assert findings[CASE]["verdict"] == "clear"
    assert "security/permission_denied" not in found(findings)


def test_sys_admin_that_is_used_and_one_that_is_not(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    options = adding("SYS_ADMIN")
    mounts = engine.run(image, *forever("hostname box"), options=options)
    idle = engine.run(image, *forever(":"), options=options)
    time.sleep(1)
    assert diagnose(mounts)[CASE]["verdict"] == "clear"
    finding = diagnose(idle)[CASE]
    assert finding["verdict"] == "found"
    assert "SYS_ADMIN was not needed" in finding["summary"]


def test_a_device_and_a_directory_of_the_hosts_are_told_as_used_or_not(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    given = ("--device", "/dev/kmsg:/dev/log0", "-v", "/etc:/etc-of-host")
    options = (*adding(*MANY), *given)
    container = engine.run(image, *forever("cat /etc-of-host/hostname"), options=options)
    time.sleep(1)
    finding = diagnose(container)[CASE]
    assert "/dev/log0" in finding["summary"]
    assert "/etc-of-host" not in finding["summary"]
    said = {evidence["source"]: evidence["says"] for evidence in finding["evidence"]}
    (mount,) = (says for source, says in said.items() if source.endswith("/etc-of-host"))
    assert "the host's /etc, used" in mount


@pytest.mark.parametrize(
    "options",
    [(), ("--cap-drop", "ALL"), ("--user", "1000:1000"), adding("NET_ADMIN"), OPEN],
    ids=["ordinary", "nothing", "user", "one", "unfiltered"],
)
def test_an_ordinary_container_is_not_privileged(
    engine: Engine, image: str, diagnose: Diagnose, options: tuple[str, ...]
) -> None:
    container = engine.run(image, *forever(":"), options=options)
    time.sleep(0.5)
    finding = diagnose(container, "1s")[CASE]
    assert finding["verdict"] == "clear", finding["summary"]


def test_privileged_itself_where_the_kernel_gives_it(
    engine: Engine, image: str, diagnose: Diagnose
) -> None:
    mine = task.status(Host(), "self").cap_bnd
    if not mine & capability.mask(["SYS_RESOURCE"]):
        pytest.skip(
            "root without CAP_SYS_RESOURCE: the engine cannot give all; "
            "make vm VMTESTS=tests/live runs it"
        )
    container = engine.run(image, *GIVES_AWAY, options=("--privileged",))
    time.sleep(1)
    finding = diagnose(container)[CASE]
    assert finding["verdict"] == "found"
    assert "as good as privileged" in finding["summary"]
    assert any("writable" in evidence["says"] for evidence in finding["evidence"])
