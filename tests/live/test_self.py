"""``whybox diagnose self``, inside of the container that is ill, as a user without any right.

What can be seen from there is judged, and the rest is unknown with its reason: never is all well
where it is not, and never is something wrong where all is well.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

import whybox
from tests.live.tracing import PATIENCE_SECONDS
from whybox import cases
from whybox.kernel.host import Host
from whybox.lab import workload
from whybox.lab.box import Box, BoxError
from whybox.lab.lab import Breaks
from whybox.lab.prove import impossible, load

AREAS = ("process", "cpu", "memory")
NAMES = [name for name in cases.names() if name.split("/")[0] in AREAS]
OURS = os.environ.get("WHYBOX_VM") == "1"
#: What the box gets to see of ours, wherever that is and whoever may enter there: whybox, what it
#: stands on, and Python itself.
VOLUMES = {
    "/opt/whybox/source": Path(whybox.__file__).parents[1],
    "/opt/whybox/libraries": Path(msgspec.__file__).parents[1],
    "/opt/whybox/python": Path(sys.base_prefix),
}
OF_THE_STOP = ("process/killed_on_stop",)
PYTHON = f"/opt/whybox/python/bin/{Path(sys.executable).resolve().name}"


def asking(window_seconds: float) -> Callable[[], None]:
    """Asks, and writes the answer to a file."""

    def ask() -> None:
        answer = os.open("/tmp/answer", os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(answer, 1)
        os.dup2(os.open("/tmp/complaint", os.O_WRONLY | os.O_CREAT, 0o600), 2)
        words = ("diagnose", "self", "--window", f"{window_seconds}s", "-o", "json")
        paths = "/opt/whybox/source:/opt/whybox/libraries"
        environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": paths, "HOME": "/tmp"}
        os.execve(PYTHON, (PYTHON, "-m", "whybox", *words), environment)

    return ask


def asked(box: Box, window_seconds: float) -> dict[str, dict[str, Any]]:
    """The findings by case, as told inside."""
    inside = Path(f"/proc/{box.pid}/root/tmp")
    try:
        box.run(asking(window_seconds))
    except BoxError as error:
        pytest.skip(f"nothing more can be started in it: {error}")
    until = time.monotonic() + PATIENCE_SECONDS
    while True:
        text = (inside / "answer").read_bytes() if (inside / "answer").exists() else b""
        if text.endswith(b"}\n"):
            break
        complaint = inside / "complaint"
        assert time.monotonic() < until, complaint.read_text() if complaint.exists() else "silence"
        time.sleep(0.1)
    (target,) = msgspec.json.decode(text)["targets"]
    return {finding["case"]: finding for finding in target["findings"]}


def furnish(box: Box) -> None:
    """Put whybox into it."""
    for path, source in VOLUMES.items():
        box.volume(path, source=str(source))


def ill(name: str, box: Box) -> None:
    """The box of a lab with whybox in it, its trouble made."""
    lab = load(name)
    if lab.breaks is Breaks.KERNEL and not OURS:
        pytest.skip("it can harm the machine: make vm VMTESTS=tests/live runs it")
    if (reason := impossible(lab, Host(), may_break_kernel=OURS)) is not None:
        pytest.skip(reason)
    furnish(box)
    if name in OF_THE_STOP:
        pytest.skip("what a stop does ends who asks inside as well")
    lab.reproduce(box)
    if box.wait(0) is not None:
        pytest.skip("of a container that has ended nothing is left inside")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_wrong_is_found_or_unknown_and_says_why(name: str) -> None:
    with Box("self") as box:
        ill(name, box)
        own = asked(box, load(name).window_seconds)[name]
    assert own["verdict"] in ("found", "unknown"), own["summary"]
    assert own["summary"]
    if own["verdict"] == "found":
        assert own["evidence"]


@pytest.mark.timeout(300)
def test_where_all_is_well_nothing_is_found() -> None:
    with Box("self") as box:
        furnish(box)
        box.start(workload.idle())  # one that wants a CPU may rightly wait for others
        told = asked(box, 2.0)
    assert set(told) == set(cases.names())
    wrong = [f for f in told.values() if f["verdict"] == "found" and f["severity"] != "info"]
    assert not wrong
    assert all(f["summary"] for f in told.values())
