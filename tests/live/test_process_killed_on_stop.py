"""process/killed_on_stop in boxes: the cures that its lab does not apply, and what inspect says."""

import time

import pytest

from whybox import cases
from whybox.anatomy import anatomy
from whybox.cases.process.killed_on_stop import lab
from whybox.change import Change, StopTimeout, WithInit
from whybox.diagnose import diagnose
from whybox.kernel import finding as container
from whybox.kernel.host import Host
from whybox.lab import workload
from whybox.lab.box import Box
from whybox.lab.cure import change_of
from whybox.lab.lab import Scenario
from whybox.model import Finding, Verdict

CASE = "process/killed_on_stop"


def seen(scenario: Scenario, cure: Change | None = None) -> tuple[Finding, int | None]:
    """What is said of a box that is stopped meanwhile, and how it ended."""
    with Box("stopped") as box:
        if cure is not None:
            box.apply(cure)
        scenario(box)
        host = Host(window_seconds=5.0)
        report = diagnose(host, [box.target()], {CASE: cases.load(CASE)})
        return report.targets[0].findings[0], box.wait(10)


@pytest.mark.parametrize(
    ("scenario", "kind", "status"),
    [(lab.slow, StopTimeout, 0), (lab.deaf, WithInit, 143)],
)
def test_where_time_ran_out_the_printed_cure_is_enough(
    scenario: Scenario, kind: type[Change], status: int
) -> None:
    finding, killed = seen(scenario)
    assert (finding.verdict, killed) == (Verdict.FOUND, 137)
    change = change_of(finding)
    assert isinstance(change, kind)
    cured, ended = seen(scenario, change)
    assert (cured.verdict, ended) == (Verdict.CLEAR, status), cured.summary


def test_an_init_is_no_cure_for_children_that_are_left_behind() -> None:
    """Which is why it is not printed."""
    finding, status = seen(lab.reproduce)
    assert (finding.verdict, status) == (Verdict.FOUND, 0)
    assert all(cure.change != WithInit() for cure in finding.cures)
    with Box("stopped") as box:
        box.init()
        lab.stopped(box, lab.leaving())
        host = Host(window_seconds=3.0)
        report = diagnose(host, [box.target()], {CASE: cases.load(CASE)})
    (still,) = report.targets[0].findings
    assert still.verdict is Verdict.FOUND
    assert f"killed {lab.CHILDREN} processes" in still.summary
    assert "only family (PID 2" in still.summary


def test_inspect_foretells_each_process() -> None:
    with Box("foretold") as box:
        box.stop_timeout(3)
        box.start(lab.abandoning())
        lab.ready(box, 1 + lab.CHILDREN, lab.CHILDREN)
        told = anatomy(Host(), box.target()).stop
    assert told[0] == "SIGTERM to its first process, SIGKILL after 3 s"
    assert told[1].endswith("no default action: killed after 3 s")
    assert [line.split(": ")[1] for line in told[2:]] == [
        "has a handler for SIGTERM, is not told, and is killed when PID 1 has ended"
    ] * lab.CHILDREN


def test_a_healthy_one_is_foretold_nothing() -> None:
    with Box("foretold") as box:
        box.start(workload.handling())
        lab.ready(box, 1, 1)
        told = anatomy(Host(), box.target()).stop
    assert told[1].endswith("handling: has a handler for SIGTERM")


def test_from_inside_as_nobody_it_is_foretold() -> None:
    """PID 1 asks about itself, and says what it learnt by failing."""

    def program() -> None:
        lab.child()
        time.sleep(0.3)
        host = Host(window_seconds=1.2)
        report = diagnose(host, [container.myself(host)], {CASE: cases.load(CASE)})
        raise RuntimeError(report.targets[0].findings[0].summary)

    cases.load(CASE)  # inside there is no library to load it from
    with Box("self") as box:
        box.start(program)
        assert box.wait(30) is not None
        said = box.error() or ""
    assert "does not hear SIGTERM" in said
    assert "1 other with a handler for SIGTERM never gets it" in said
