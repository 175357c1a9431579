"""Every lab proves its case on this kernel: the same driver as ``whybox prove``."""

import os

import pytest

from tests.live.conftest import require
from whybox import cases
from whybox.kernel.host import Host
from whybox.lab.prove import impossible, load, prove

#: Whether this is a virtual machine of ours (vm/tree.py): there labs may break the kernel.
OURS = os.environ.get("WHYBOX_VM") == "1"


@pytest.mark.timeout(600 if OURS else 300)
@pytest.mark.parametrize("name", cases.names())
def test_the_lab_proves_its_case(name: str) -> None:
    lab = load(name)
    reason = impossible(lab, Host(), may_break_kernel=OURS)
    if reason is not None and not OURS:
        pytest.skip(f"{reason}; make vm runs it")
    require(reason)  # whatever one kernel cannot do, that one can
    proof = prove(name, lab, {known: cases.load(known) for known in cases.names()})
    assert proof.proved, "\n".join(proof.failures)
