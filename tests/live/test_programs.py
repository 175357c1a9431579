"""Each program of the test image ends, as PID 1, in the way that its name stands for."""

import pytest

from tests.live import footprint
from tests.live.engine import Container, Engine

pytestmark = pytest.mark.docker

ENDINGS = {
    "spin": 0,
    "sig": 0,
    "signalfd": 0,
    "listen 0.0.0.0 80": 0,
    "sigh 2": 0,
    "golike": 2,
    "nosig": 137,
    "ign": 137,
    "blk": 137,
    "threads": 137,
}


@pytest.mark.parametrize(("command", "status"), ENDINGS.items(), ids=str)
def test_stopped_it_ends_with(engine: Engine, image: str, command: str, status: int) -> None:
    container = engine.run(image, *command.split())
    engine.docker("stop", "--time", "1", container.id)
    assert engine.wait_exit(container) == status


@pytest.mark.parametrize(
    ("command", "current", "alive"),
    [
        ("zombie 17", 18, 1),
        ("zombie 17 wait", 1, 1),
        ("orphan 17", 18, 1),
        ("idlethreads 17", 18, 18),
        ("forkleader", 4, 3),
    ],
)
def test_of_its_tasks_so_many_live(
    engine: Engine, image: str, command: str, current: int, alive: int
) -> None:
    """A zombie holds its place in pids.current, and is listed nowhere."""
    container = engine.run(image, *command.split())
    assert footprint.until(lambda: _tasks(container) == (current, alive), 10), _tasks(container)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("memalloc 20", "touched 20 MiB"),
        ("memchild 20", "child exited 0"),
        ("memchild 100", "child killed by signal 9"),
        ("zombie 100", "forked 49 of 100: Resource temporarily unavailable"),
        ("idlethreads 100", "threads 49 of 100: Resource temporarily unavailable"),
    ],
)
def test_within_its_limits_it_says(engine: Engine, image: str, command: str, said: str) -> None:
    limits = ("-m", "64m", "--memory-swap", "64m", "--pids-limit", "50")
    container = engine.run(image, *command.split(), options=limits)
    assert footprint.until(lambda: said in engine.logs(container), 10), engine.logs(container)


def _tasks(container: Container) -> tuple[int, int]:
    """(pids.current, tasks listed) of its cgroup."""
    for cgroup in footprint.cgroups(f"docker/{container.id}"):
        if (cgroup / "pids.current").exists():
            # v1 lists threads in "tasks", v2 in "cgroup.threads".
            listed = next(path for path in cgroup.iterdir() if path.name in LISTS)
            current = int((cgroup / "pids.current").read_text())
            return current, len(listed.read_text().split())
    raise FileNotFoundError("pids.current")


LISTS = ("tasks", "cgroup.threads")
