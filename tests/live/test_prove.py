"""The prover is itself tested: a broken judge, a lab that leaves something, a crash midway."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from msgspec import structs

from tests.live.users import as_nobody
from whybox import cases
from whybox.change import CpuQuota
from whybox.kernel.host import Host
from whybox.lab import workload
from whybox.lab.box import Box
from whybox.lab.lab import Breaks, Lab
from whybox.lab.prove import Proof, impossible, load, prove
from whybox.lab.residue import traces
from whybox.model import AnyCase, Cure, Finding, Safety, Verdict, clear, unknown

NAME = "cpu/throttled"
CASE = cases.load(NAME)
#: The real lab without the scenarios that these tests do not need.
LAB = structs.replace(load(NAME), look_alikes={}, variants={}, window_seconds=1.0)


def judged_by(judge: Callable[[object], Finding]) -> dict[str, AnyCase]:
    """The case with another judge."""
    return {NAME: structs.replace(CASE, judge=judge)}


def proof(lab: Lab = LAB, known: dict[str, AnyCase] | None = None) -> Proof:
    return prove(NAME, lab, known or {NAME: CASE})


def test_a_true_lab_of_a_true_case_is_proved() -> None:
    seen = proof()
    assert seen.proved, seen.failures
    assert seen.residue == ()
    assert seen.reproduced[0].found == (NAME,)


def test_a_judge_that_never_finds_is_caught() -> None:
    seen = proof(known=judged_by(lambda _: clear("all is well")))
    assert not seen.proved
    assert any("reproduced: clear" in failure for failure in seen.failures)
    assert any("no finding to cure" in failure for failure in seen.failures)


def test_a_judge_that_always_finds_is_caught() -> None:
    always = Finding(
        verdict=Verdict.FOUND,
        summary="always",
        cures=(Cure(advice="more", safety=Safety.LOW_RISK, change=CpuQuota(2.0)),),
    )
    seen = proof(structs.replace(LAB, numbers=None), judged_by(lambda _: always))
    assert not seen.proved
    assert any(failure.startswith("healthy: found") for failure in seen.failures)
    assert any("cured by" in failure for failure in seen.failures)


def test_unknown_is_not_clear() -> None:
    seen = proof(known=judged_by(lambda _: unknown("no idea")))
    assert any(failure.startswith("healthy: unknown") for failure in seen.failures)


def test_a_wrong_number_is_caught() -> None:
    seen = proof(structs.replace(LAB, numbers=lambda finding: "17 expected"))
    assert seen.failures[0] == "reproduced: 17 expected"


def test_a_finding_beside_the_expected_one_is_caught() -> None:
    beside = Finding(verdict=Verdict.FOUND, summary="me too")
    other = structs.replace(CASE, judge=lambda seen: beside)
    known = {NAME: CASE, "cpu/beside": other}
    seen = proof(known=known)
    assert any("also found cpu/beside: me too" in failure for failure in seen.failures)
    assert proof(structs.replace(LAB, also=("cpu/beside",)), known).proved


def test_a_cure_that_does_not_help_is_caught() -> None:
    def too_little(seen: object) -> Finding:
        finding = CASE.judge(seen)
        weak = Cure(advice="a bit", safety=Safety.LOW_RISK, change=CpuQuota(0.25))
        return structs.replace(finding, cures=(weak,)) if finding.cures else finding

    seen = proof(known=judged_by(too_little))
    assert any(failure.startswith("cured by CpuQuota") for failure in seen.failures)


def test_a_lab_that_crashes_fails_alone_and_leaves_nothing() -> None:
    before = traces()

    def crashes(box: Box) -> None:
        box.start(workload.idle())
        raise ZeroDivisionError("midway")

    seen = proof(structs.replace(LAB, healthy=crashes))
    assert seen.failures == ("healthy: the lab crashed: ZeroDivisionError: midway",)
    assert traces() == before


def test_what_a_lab_leaves_behind_is_named() -> None:
    tree = next(iter(Path("/sys/fs/cgroup").glob("pids")), Path("/sys/fs/cgroup"))
    left = tree / "whybox-left-behind"

    def litters(box: Box) -> None:
        left.mkdir()
        box.start(workload.idle())

    try:
        seen = proof(structs.replace(LAB, healthy=litters))
        assert not seen.proved
        assert seen.residue == (f"cgroup {left}",)
    finally:
        left.rmdir()


def test_a_lab_that_breaks_the_kernel_wants_to_be_meant() -> None:
    dangerous = structs.replace(LAB, breaks=Breaks.KERNEL)
    assert "--i-mean-it" in (impossible(dangerous, Host(), may_break_kernel=False) or "")
    assert impossible(dangerous, Host(), may_break_kernel=True) is None


def test_ctrl_c_in_the_middle_leaves_nothing() -> None:
    before = traces()
    prover = subprocess.Popen(
        [sys.executable, "-m", "whybox", "prove", NAME],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    # What another living process made is not ours to miss; so the groups themselves are looked at.
    _until(lambda: any(Path("/sys/fs/cgroup").glob(f"**/whybox-cpu-throttled-{prover.pid}-*")))
    time.sleep(0.5)
    prover.send_signal(signal.SIGINT)
    _, said = prover.communicate(timeout=60)
    assert prover.returncode == 130
    assert said.splitlines()[-1] == "whybox: interrupted"
    _until(lambda: not traces() - before)


def _until(true: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_prove_tells_its_matrix_as_json_and_by_its_exit_status() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "whybox", "prove", NAME, "-o", "json"],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout
    assert '"proved": true' in done.stdout
    assert '"look_alikes"' in done.stdout


def test_without_root_it_is_one_sentence() -> None:
    done = as_nobody("prove", NAME)
    assert (done.returncode, done.stdout) == (3, "")
    assert "as root" in done.stderr
