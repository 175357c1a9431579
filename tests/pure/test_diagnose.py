"""The loop: one window for all, every watch closed, errors become unknown."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from msgspec import Struct, structs

from whybox.diagnose import diagnose
from whybox.kernel.host import Host, ParseError
from whybox.kernel.target import Target
from whybox.kernel.task import TaskId
from whybox.model import (
    AnyCase,
    Case,
    Evidence,
    Finding,
    RuledOut,
    Severity,
    Verdict,
    Watch,
    clear,
)

DEAD = Target(id="x", name="x", runtime="docker", init=None)
LIVING = structs.replace(DEAD, init=TaskId(pid=1, start_ticks=1))


class Seen(Struct, frozen=True):
    """An observation of these tests."""

    value: int


def found(seen: Seen) -> Finding:
    return Finding(
        verdict=Verdict.FOUND,
        summary=f"saw {seen.value}",
        severity=Severity.WARNING,
        evidence=(Evidence("/a/file", "says so"),),
    )


def case(
    observe: Callable[[Host, Target], Watch[Seen]],
    judge: Callable[[Seen], Finding] = found,
    explains: tuple[str, ...] = (),
) -> AnyCase:
    return Case(
        title="t",
        question="q?",
        question_zh="问",
        lesson="+",
        observation=Seen,
        observe=observe,
        judge=judge,
        explains=explains,
    )


def sees(value: int) -> Callable[[Host, Target], Watch[Seen]]:
    def observe(host: Host, target: Target) -> Watch[Seen]:
        yield
        return Seen(value)

    return observe


def no_wait(seconds: float) -> None:
    """A window in which no time passes."""


def test_all_cases_share_one_window() -> None:
    waits: list[float] = []
    order: list[str] = []

    def watch(name: str) -> Callable[[Host, Target], Watch[Seen]]:
        def observe(host: Host, target: Target) -> Watch[Seen]:
            order.append(f"start {name}")
            yield
            order.append(f"end {name}")
            return Seen(1)

        return observe

    def wait(seconds: float) -> None:
        order.append("wait")
        waits.append(seconds)

    cases = {"a/one": case(watch("one")), "a/two": case(watch("two"))}
    report = diagnose(Host(window_seconds=3), [LIVING, DEAD], cases, wait=wait)
    assert waits == [3]
    # The living one has gone meanwhile (no such process), so only the other's watches end.
    assert order == ["start one", "start two"] * 2 + ["wait", "end one", "end two"]
    assert len(report.targets) == 2
    diagnose(Host(window_seconds=3), [DEAD], cases, wait=wait)
    assert waits == [3], "the dead do nothing that could be watched"


def test_a_refused_read_before_the_window_is_unknown_with_the_reason() -> None:
    def observe(host: Host, target: Target) -> Watch[Seen]:
        host.read("/nonexistent/file")
        yield
        return Seen(1)

    report = diagnose(Host(), [DEAD], {"a/b": case(observe)}, wait=no_wait)
    finding = report.targets[0].findings[0]
    assert finding.verdict is Verdict.UNKNOWN
    assert finding.summary == "/nonexistent/file: No such file or directory"


def test_a_malformed_file_after_the_window_is_unknown_with_the_line() -> None:
    def observe(host: Host, target: Target) -> Watch[Seen]:
        yield
        raise ParseError("/sys/x", "nonsense")

    report = diagnose(Host(), [DEAD], {"a/b": case(observe)}, wait=no_wait)
    assert "nonsense" in report.targets[0].findings[0].summary


def test_one_case_that_cannot_look_does_not_stop_another() -> None:
    def refuses(host: Host, target: Target) -> Watch[Seen]:
        raise PermissionError(13, "Permission denied", "/proc/1/ns/pid")
        yield

    cases = {"a/refused": case(refuses), "a/sees": case(sees(7))}
    findings = diagnose(Host(), [DEAD], cases, wait=no_wait).targets[0].findings
    assert [f.verdict for f in findings] == [Verdict.UNKNOWN, Verdict.FOUND]
    assert findings[1].summary == "saw 7"


def test_a_bug_in_a_case_is_not_swallowed() -> None:
    def broken(host: Host, target: Target) -> Watch[Seen]:
        yield
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        diagnose(Host(), [DEAD], {"a/b": case(broken)}, wait=no_wait)


def test_ctrl_c_closes_every_watch_and_detaches_its_sensor() -> None:
    detached: list[str] = []

    @contextmanager
    def sensor() -> Iterator[str]:
        try:
            yield "attached"
        finally:
            detached.append("sensor")

    def observe(host: Host, target: Target) -> Watch[Seen]:
        with host.sensor("s", sensor) as attached:
            assert attached == "attached"
            yield
        return Seen(1)

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    cases = {"a/one": case(observe), "a/two": case(observe)}
    with pytest.raises(KeyboardInterrupt):
        diagnose(Host(window_seconds=1), [LIVING], cases, wait=interrupted)
    assert detached == ["sensor"]


def test_a_shared_sensor_is_attached_once() -> None:
    attached: list[int] = []

    @contextmanager
    def sensor() -> Iterator[None]:
        attached.append(1)
        yield

    def observe(host: Host, target: Target) -> Watch[Seen]:
        with host.sensor("s", sensor):
            yield
        return Seen(1)

    diagnose(Host(), [DEAD, DEAD], {"a/b": case(observe), "a/c": case(observe)}, wait=no_wait)
    assert attached == [1]


def test_a_missing_need_is_the_reason() -> None:
    def need(host: Host, target: Target) -> str | None:
        return "this kernel has no such thing"

    needy = case(sees(1))
    cases: dict[str, AnyCase] = {
        "a/b": Case(
            title=needy.title,
            question=needy.question,
            question_zh=needy.question_zh,
            lesson=needy.lesson,
            observation=Seen,
            observe=needy.observe,
            judge=needy.judge,
            needs=(need,),
        )
    }
    finding = diagnose(Host(), [DEAD], cases, wait=no_wait).targets[0].findings[0]
    assert (finding.verdict, finding.summary) == (
        Verdict.UNKNOWN,
        "this kernel has no such thing",
    )


def test_a_consequence_stands_under_its_cause() -> None:
    cases = {
        "a/result": case(sees(2)),
        "a/cause": case(sees(1), explains=("a/result", "a/other")),
        "a/other": case(sees(3), judge=lambda seen: clear("nothing")),
    }
    diagnosis = diagnose(Host(), [DEAD], cases, wait=no_wait).targets[0]
    by_name = {f.case: f.explained_by for f in diagnosis.findings}
    assert by_name == {"a/result": "a/cause", "a/cause": None, "a/other": None}
    assert [f.case for f in diagnosis.found()] == ["a/cause", "a/result"]


def test_of_a_chain_of_causes_it_is_the_first_and_a_circle_ends() -> None:
    chain = {
        "first": case(sees(1), explains=("second",)),
        "second": case(sees(2), explains=("third",)),
        "third": case(sees(3)),
        "a": case(sees(4), explains=("b",)),
        "b": case(sees(5), explains=("a",)),
    }
    (diagnosis,) = diagnose(Host(), [DEAD], chain, wait=no_wait).targets
    told = {f.case: f.explained_by for f in diagnosis.findings}
    assert told == {"first": None, "second": "first", "third": "first", "a": "b", "b": "a"}


def test_what_a_finding_rules_out_is_not_its_cause() -> None:
    def alone(seen: Seen) -> Finding:
        return structs.replace(found(seen), ruled_out=(RuledOut("cause", "it was not there"),))

    both = {"cause": case(sees(1), explains=("effect",)), "effect": case(sees(2), alone)}
    (diagnosis,) = diagnose(Host(), [DEAD], both, wait=no_wait).targets
    assert [f.explained_by for f in diagnosis.findings] == [None, None]


def test_an_observe_that_yields_twice_is_a_bug() -> None:
    def twice(host: Host, target: Target) -> Watch[Seen]:
        yield
        yield
        return Seen(1)

    with pytest.raises(RuntimeError, match="yielded twice"):
        diagnose(Host(), [DEAD], {"a/b": case(twice)}, wait=no_wait)
