"""The real engine and image, and the rule for what a machine cannot offer."""

import os
import signal
from collections.abc import Iterator

import pytest

from tests.live import image as test_image
from tests.live.engine import Engine, missing


def require(reason: str | None) -> None:
    """Skip for that reason, if there is one; with WHYBOX_LIVE=1 nothing may be skipped."""
    if reason and os.environ.get("WHYBOX_LIVE") == "1":
        pytest.fail(reason, pytrace=False)
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="session", autouse=True)
def _root() -> None:
    require("needs root" if os.geteuid() else None)


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_is_heard() -> None:
    """A shell's background ignores it (sh(1)), and so would all that the tests start there."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests prove is no news to who uses this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WHYBOX_STATE_DIR", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """One Docker engine for the whole run."""
    require(missing())
    with Engine() as engine:
        yield engine


@pytest.fixture(scope="session")
def image(engine: Engine) -> str:
    """The name of the test image, which the engine has."""
    require(test_image.missing())
    return test_image.load(engine)


@pytest.fixture(autouse=True)
def _no_container_outlives_its_test(request: pytest.FixtureRequest) -> Iterator[None]:
    # Those of fixtures with a wider scope were there before, and stay.
    engines = [request.getfixturevalue("engine")] if "engine" in request.fixturenames else []
    there = [len(engine.started) for engine in engines]
    yield
    for engine, before in zip(engines, there, strict=True):
        engine.rm(*engine.started[before:])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How a test failed that passed when it was tried once more: nobody would see it else."""
    for report in terminalreporter.getreports("rerun"):
        terminalreporter.write_sep("_", f"failed at first: {report.nodeid}")
        terminalreporter.write_line(report.longreprtext)
