"""Stopping a box as an engine stops a container."""

import os
import select
import signal
from collections.abc import Iterable

from whybox.change import Change, StopTimeout

#: How long it is given, as with Docker.
SECONDS = 10


def given(seconds: int, cures: Iterable[Change]) -> int:
    """How long it is given, as the cures leave it."""
    cured = [change.seconds for change in cures if isinstance(change, StopTimeout)]
    return cured[-1] if cured else seconds


def stop(pid: int, seconds: int) -> None:
    """SIGTERM to PID 1, and SIGKILL when its time has run out. Raises ProcessLookupError."""
    process = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(process, signal.SIGTERM)
        if not select.select([process], [], [], seconds)[0]:
            signal.pidfd_send_signal(process, signal.SIGKILL)
    finally:
        os.close(process)
