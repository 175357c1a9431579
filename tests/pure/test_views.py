"""Views on a literal report: what a person reads, and nothing that a terminal would obey."""

import msgspec
import pytest

from whybox.kernel.target import Exit, Target
from whybox.model import (
    Certainty,
    Cost,
    Cure,
    Diagnosis,
    Evidence,
    Finding,
    Report,
    RuledOut,
    Safety,
    Severity,
    Verdict,
    clear,
    unknown,
)
from whybox.views import json, markdown, text

NASTY = "web\x1b[31m\n\u202e`|"


def report(name: str = "web-1") -> Report:
    """One container with one of everything."""
    throttled = Finding(
        case="cpu/throttled",
        verdict=Verdict.FOUND,
        certainty=Certainty.CONFIRMED,
        severity=Severity.CRITICAL,
        summary=f"It ran out of CPU quota, says {name}.",
        evidence=(Evidence("/sys/fs/cgroup/x/cpu.stat", "nr_throttled +41"),),
        ruled_out=(RuledOut("cpu/starved", "nothing waited"),),
        cures=(
            Cure(
                advice="Allow 0.9 cores.",
                safety=Safety.LOW_RISK,
                commands=("docker update --cpus 0.9 4f1c2a9",),
                verify="whybox diagnose web-1 --case cpu/throttled",
            ),
        ),
    )
    slow = Finding(
        case="cpu/starved",
        verdict=Verdict.FOUND,
        severity=Severity.WARNING,
        summary="It waits.",
        explained_by="cpu/throttled",
    )
    target = Target(
        id="4f1c2a9" + "0" * 57,
        name=name,
        runtime="docker",
        init=None,
        image="nginx:1.25",
        exit=Exit(source="docker inspect", status="exited", exit_code=137),
    )
    return Report(
        version="0",
        window_seconds=5.0,
        cost=Cost(cpu_ms=11.2, reads=40),
        targets=(
            Diagnosis(
                target=target,
                findings=(
                    slow,
                    throttled,
                    clear("fine").of("memory/oom_killed"),
                    unknown("no root").of("storage/copy_up"),
                ),
            ),
        ),
    )


EXPECTED = """\
web-1   docker 4f1c2a900000  nginx:1.25  exited with 137

✗ cpu/throttled   critical, confirmed
  It ran out of CPU quota, says web-1.
    /sys/fs/cgroup/x/cpu.stat   nr_throttled +41
    not cpu/starved: nothing waited
    cure  Allow 0.9 cores.  (low-risk)
          $ docker update --cpus 0.9 4f1c2a9
          then: whybox diagnose web-1 --case cpu/throttled
    └ explains: cpu/starved

! cpu/starved   warning, confirmed
  It waits.
    └ a consequence of cpu/throttled

✓ 1 clear: memory/oom_killed
? 1 unknown: storage/copy_up: no root

one window of 5.0 s, 40 reads, cost 11 ms CPU"""


def test_the_sentence_comes_first_then_evidence_then_the_cure() -> None:
    assert text.report(report(), text.Style()) == EXPECTED


def test_what_only_informs_is_a_sentence_unless_all_is_wanted() -> None:
    told = Finding(
        case="security/root_is_host_root",
        verdict=Verdict.FOUND,
        summary="uid 0 inside is uid 0 outside.",
        evidence=(Evidence("/proc/7/uid_map", "0 0 4294967295"),),
    )
    diagnosed = Diagnosis(target=report().targets[0].target, findings=(told,))
    assert text.diagnosis(diagnosed, text.Style()).splitlines()[2:] == [
        "· security/root_is_host_root   info, confirmed",
        "  uid 0 inside is uid 0 outside.",
    ]
    assert "/proc/7/uid_map" in text.diagnosis(diagnosed, text.Style(), verbose=True)


def test_unknowns_of_one_reason_share_a_line() -> None:
    findings = tuple(unknown("it is dead").of(name) for name in ("a/b", "c/d"))
    diagnosed = Diagnosis(target=report().targets[0].target, findings=findings)
    assert text.diagnosis(diagnosed, text.Style()).splitlines()[-1] == (
        "? 2 unknown: a/b, c/d: it is dead"
    )


def test_the_cause_stands_before_its_consequence_and_both_are_counted() -> None:
    assert [f.case for f in report().targets[0].found()] == ["cpu/throttled", "cpu/starved"]
    assert report().worst() is Severity.CRITICAL


@pytest.mark.parametrize(
    "shown", [text.report(report(NASTY), text.Style()), markdown.report(report(NASTY))]
)
def test_nothing_that_a_terminal_would_obey_gets_through(shown: str) -> None:
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert r"\x1b[31m\n" in shown or r"\\x1b\[31m\\n" in shown


def test_colour_is_only_where_it_is_wanted() -> None:
    assert "\x1b[" in text.report(report(), text.Style(colour=True))
    assert "\x1b[" not in text.report(report(), text.Style(colour=False))


def test_json_is_read_back_as_the_same_report() -> None:
    assert msgspec.json.decode(json.report(report(NASTY)), type=Report) == report(NASTY)


def test_markdown_has_the_command_to_copy() -> None:
    shown = markdown.report(report())
    assert "```\ndocker update --cpus 0.9 4f1c2a9\n```" in shown
    assert "* unknown: storage/copy\\_up" in shown or "* unknown: storage/copy_up" in shown
