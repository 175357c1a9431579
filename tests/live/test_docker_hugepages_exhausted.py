"""memory/hugepages_exhausted on real Docker containers."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.engine import Container, Engine
from tests.live.test_docker_cases import (
    Diagnose,
    cured_by_printed_commands,
    diagnose,
    found,
)
from whybox.kernel.cgroup import membership_of, unified
from whybox.kernel.host import Host

__all__ = ["diagnose"]  # a fixture

pytestmark = pytest.mark.docker

CASE = "memory/hugepages_exhausted"
POOL = Path("/proc/sys/vm/nr_hugepages")


@pytest.fixture
def pool() -> Iterator[Path]:
    """The machine's pool, which is put back as it was."""
    before = POOL.read_text()
    yield POOL
    POOL.write_text(before)


def limit(container: Container) -> Path:
    """The file of its limit; an engine that sets none may not have switched the controller on."""
    host = Host()
    group = unified(host, membership_of(host, container.pid))
    assert group is not None
    for above in reversed(list(group.lineage())[1:]):
        Path(above.file("cgroup.subtree_control")).write_text("+hugetlb")
    return Path(group.file("hugetlb.2MB.max"))


def test_an_empty_pool_and_the_printed_command(
    engine: Engine, image: str, diagnose: Diagnose, pool: Path
) -> None:
    pool.write_text("0")
    container = engine.run(image, "hugetouch", "16")
    findings = diagnose(container)
    assert found(findings) == {CASE}
    assert "wanted 8 huge pages of 2 MiB" in findings[CASE]["summary"]
    assert "hugetouch" in findings[CASE]["summary"]
    cured_by_printed_commands(engine, findings[CASE])
    assert pool.read_text().strip() == "8"
    assert found(diagnose(container)) == set()


def test_a_limit_of_its_group_and_the_printed_command(
    engine: Engine, image: str, diagnose: Diagnose, pool: Path
) -> None:
    pool.write_text("24")
    container = engine.run(image, "hugetouch", "16")
    limit(container).write_text(str(8 << 20))
    findings = diagnose(container)
    assert found(findings) == {CASE}
    assert findings[CASE]["severity"] == "critical"
    assert "its own limit of 8 MiB" in findings[CASE]["summary"]
    cured_by_printed_commands(engine, findings[CASE])
    assert limit(container).read_text().strip() == str(16 << 20)
    assert found(diagnose(container)) == set()


def test_huge_pages_that_fit_are_clear_and_the_dead_unknown(
    engine: Engine, image: str, diagnose: Diagnose, pool: Path
) -> None:
    pool.write_text("24")
    container = engine.run(image, "hugetouch", "16", options=("--memory", "32m"))
    assert diagnose(container)[CASE]["verdict"] == "clear"
    engine.docker("kill", container.id)
    engine.wait_exit(container)
    assert diagnose(container, "0s")[CASE]["verdict"] == "unknown"
