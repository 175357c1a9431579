"""Every fault of a container's way, made for real: the hop that whybox names, and how fast."""

import os
import shlex
import time

import pytest
from msgspec import structs

from tests.live import networks
from tests.live.conftest import require
from tests.live.faults import FAULTS, Fault, World, broken
from whybox.cases.network.path_broken.probe import CASE
from whybox.diagnose import diagnose
from whybox.kernel.host import Host
from whybox.model import Finding, Verdict
from whybox.runtimes.commands import with_commands

#: The kernel gives up a neighbour after three requests, a second apart; the first one tells enough.
WINDOW_SECONDS = 1.2
SLOWEST_SECONDS = 3.0
#: Whether this is a virtual machine of ours (vm/tree.py), where all is slower too.
OURS = os.environ.get("WHYBOX_VM") == "1"


def asked(world: World, fault: Fault, to: str) -> Finding:
    """``whybox diagnose --to``."""
    address, _, port = to.rpartition(":")
    host = Host(window_seconds=WINDOW_SECONDS, to=(address, int(port)))
    cases = {"network/path_broken": structs.replace(CASE, needs=())}
    report = diagnose(host, [world.target(fault.who)], cases)
    (finding,) = with_commands(report, host).targets[0].findings
    return finding


def cured(world: World, fault: Fault, finding: Finding) -> None:
    """Run the printed commands of the first cure at the host, and look again."""
    commands = finding.cures[0].commands
    host = "machine" if fault.machine else "h"
    for command in commands:
        world.run(f"{host} sh -c {shlex.quote(command)}")
    if commands:
        again = asked(world, fault, fault.to)
        assert again.verdict is Verdict.CLEAR, f"after {commands}: {again.summary}"


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_named_by_its_hop(name: str) -> None:
    require(networks.unmet_need())
    fault = FAULTS[name]
    if fault.machine and not OURS:
        pytest.skip("it would change the whole machine; make vm VMTESTS=tests/live runs it")
    with broken(fault) as world:
        began = time.monotonic()
        finding = asked(world, fault, fault.to)
        took = time.monotonic() - began
        said = f"{finding.verdict}: {finding.summary}"
        if fault.names:
            assert finding.verdict is Verdict.FOUND, said
            for word in fault.names:
                assert word in finding.summary, f"{word!r} is not in: {said}"
            cured(world, fault, finding)
        else:
            assert finding.verdict is Verdict.CLEAR, said
    assert OURS or took < SLOWEST_SECONDS
