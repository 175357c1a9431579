"""Every lab proves its case on this kernel: the same driver as ``whybox prove``."""

import pytest

from tests.live.conftest import require
from whybox import cases
from whybox.kernel.host import Host
from whybox.lab.prove import impossible, load, prove


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", cases.names())
def test_the_lab_proves_its_case(name: str) -> None:
    lab = load(name)
    require(impossible(lab, Host(), may_break_kernel=False))
    proof = prove(name, lab, {known: cases.load(known) for known in cases.names()})
    assert proof.proved, "\n".join(proof.failures)
