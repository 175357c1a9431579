"""What became of the labs, kept between one run and the next."""

import os
from pathlib import Path

import pytest

from whybox.lab import proofs
from whybox.lab.prove import Proof, Step

CASE = "cpu/throttled"
BROKEN = Step(scenario="healthy", ok=False, says="found cpu/throttled")


@pytest.fixture(autouse=True)
def _directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHYBOX_STATE_DIR", str(tmp_path / "state"))


def test_nothing_is_known_before_the_first_proof() -> None:
    assert proofs.here() == {}


@pytest.mark.parametrize(
    ("proof", "state", "says"),
    [
        (Proof(case=CASE, proved=True), "proved", ""),
        (Proof(case=CASE, proved=False, impossible="no IPVS"), "cannot here", "no IPVS"),
        (
            Proof(case=CASE, proved=False, healthy=BROKEN),
            "not proved",
            "healthy: found cpu/throttled",
        ),
    ],
)
def test_the_outcome_is_told_with_its_reason(proof: Proof, state: str, says: str) -> None:
    proofs.keep(proof)
    kept = proofs.here()[CASE]
    assert (kept.state, kept.says, kept.kernel) == (state, says, os.uname().release)


def test_the_last_proof_counts_and_others_stay() -> None:
    proofs.keep(Proof(case="cpu/starved", proved=True))
    proofs.keep(Proof(case=CASE, proved=False, healthy=BROKEN))
    proofs.keep(Proof(case=CASE, proved=True))
    states = {name: outcome.state for name, outcome in proofs.here().items()}
    assert states == {"cpu/starved": "proved", CASE: "proved"}
    assert [file.name for file in proofs.path().parent.iterdir()] == ["proofs.json"]


def test_another_kernels_proof_is_none_here(monkeypatch: pytest.MonkeyPatch) -> None:
    proofs.keep(Proof(case=CASE, proved=True))
    real = os.uname()
    other = os.uname_result((real.sysname, real.nodename, "5.10.0", real.version, real.machine))
    monkeypatch.setattr(os, "uname", lambda: other)
    assert proofs.here() == {}


def test_a_broken_file_is_as_good_as_none() -> None:
    proofs.path().parent.mkdir(parents=True)
    proofs.path().write_text("[{")
    assert proofs.here() == {}
    proofs.keep(Proof(case=CASE, proved=True))
    assert set(proofs.here()) == {CASE}
