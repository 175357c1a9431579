"""``python -m tests.live.objects``: what becomes of every BPF program on the running kernel.

Prints one JSON document: each object of each sensor, loaded and attached for real, and the live
tests of each question, run (``--quick``: not run). ``python -m tests.kernels`` gathers it from all
kernels into ``docs/kernels.md``.
"""

import importlib
import os
import pkgutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from msgspec import Struct

from whybox.kernel import sensors
from whybox.kernel.bpf import objects
from whybox.kernel.bpf.objects import Spec
from whybox.kernel.host import Host

HERE = Path(__file__).parent


class Program(Struct, frozen=True, kw_only=True):
    """One program of an object."""

    name: str
    section: str
    state: str
    """``attached``, or why it is not."""


class Loaded(Struct, frozen=True, kw_only=True):
    """One object."""

    name: str
    programs: tuple[Program, ...]
    refused: str | None
    """Why the kernel does not take it; then it does what the next says."""
    falls_back: str


class Tested(Struct, frozen=True, kw_only=True):
    """The live tests of one question: the right numbers."""

    passed: int
    failed: int
    skipped: int


class Kernel(Struct, frozen=True, kw_only=True):
    """One kernel."""

    release: str
    objects: tuple[Loaded, ...]
    questions: dict[str, Tested]


def specs() -> Iterator[tuple[str, Spec]]:
    """Every object that some sensor knows, by name; one in a lesser form has that with it."""
    for module in pkgutil.iter_modules(sensors.__path__):
        found = vars(importlib.import_module(f"{sensors.__name__}.{module.name}"))
        for constant, spec in found.items():
            if isinstance(spec, Spec):
                form = "" if constant == "SPEC" else f" ({constant.lower()})"
                yield spec.name + form, spec


def loaded(name: str, spec: Spec) -> Loaded:
    """Load and attach it, for real."""
    host = Host()
    try:
        with objects.loaded(host, spec, perf_hz=49) as object:
            choice = object.choice
    except OSError as error:
        reason = str(error.strerror or error)
        return Loaded(name=name, programs=(), refused=reason, falls_back=spec.falls_back)
    programs = [Program(name=n, section=s, state=_state(s)) for n, s in choice.taken.items()]
    programs += [Program(name=n, section="", state=lack) for n, lack in choice.left.items()]
    return Loaded(name=name, programs=tuple(programs), refused=None, falls_back=spec.falls_back)


def _state(section: str) -> str:
    return "attached when asked" if objects.chosen_later(section) else "attached"


class _Outcomes:
    """Counts the tests of each module."""

    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """One phase of one test."""
        name = Path(report.nodeid.split("::")[0]).stem.removeprefix("test_trace_")
        counts = self.counts.setdefault(name, Counter())
        if report.when == "call" or report.outcome != "passed":
            counts[report.outcome] += 1


def questions() -> dict[str, Tested]:
    """Run the tests of all questions."""
    outcomes = _Outcomes()
    files = sorted(str(file) for file in HERE.glob("test_trace_*.py"))
    stdout = os.dup(1)
    os.dup2(2, 1)  # what pytest prints is not part of the document
    try:
        pytest.main(["-q", "-p", "no:cacheprovider", *files], plugins=[outcomes])
    finally:
        os.dup2(stdout, 1)
    return {
        name: Tested(passed=counts["passed"], failed=counts["failed"], skipped=counts["skipped"])
        for name, counts in outcomes.counts.items()
    }


def main() -> None:
    """Print it."""
    kernel = Kernel(
        release=os.uname().release,
        objects=tuple(loaded(*one) for one in specs()),
        questions={} if sys.argv[1:] == ["--quick"] else questions(),
    )
    sys.stdout.write("\n" + msgspec.json.encode(kernel).decode() + "\n")


if __name__ == "__main__":
    main()
