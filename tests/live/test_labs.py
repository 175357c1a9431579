"""Every lab proves its case on this kernel: the same driver as ``whybox prove``.

In a virtual machine of ours only the cases of the lab's area judge it; ``make proof`` has all of
them judge, on both kernels.
"""

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
    proof = prove(name, lab, {known: cases.load(known) for known in judges(name)})
    assert proof.proved, "\n".join(proof.failures)


def judges(name: str) -> list[str]:
    """All cases; emulated, where their looking takes most of the time, those of the same area."""
    area = name.split("/")[0]
    return [known for known in cases.names() if not OURS or known.split("/")[0] == area]
