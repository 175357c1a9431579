"""Whether a container's tasks waited lately: what makes a sensor worth its cost."""

import os
from collections.abc import Iterable

from whybox.kernel import blocked, cgroup, task
from whybox.kernel.host import Host, ParseError
from whybox.kernel.pressure import Resource, pressure
from whybox.kernel.target import Target

#: Per cent of the last ten seconds; or of all its life so far, for one that has just begun.
_LEAST_AVERAGE, _LEAST_SHARE = 0.5, 0.01


def lately(host: Host, target: Target, resources: Iterable[Resource]) -> bool:
    """Whether they waited for one of these by their pressure files, or are in D now."""
    if blocked.look(host, target).blocked:
        return True
    unified = cgroup.unified(host, target.cgroups)
    if unified is None or unified.path == "/":
        return False
    age = _age_usec(host, target)
    texts = (host.optional_text(unified.file(f"{what}.pressure")) for what in resources)
    return any(pressed(text or "", age) for text in texts)


def pressed(text: str, age_usec: float | None) -> bool:
    """Whether a pressure file tells of waits in the last ten seconds, or since a young start.

    >>> pressed("some avg10=0.00 avg60=0.00 avg300=0.00 total=9", 1e9)
    False
    >>> pressed("some avg10=0.00 avg60=0.00 avg300=0.00 total=900000", 1e6)
    True
    """
    words = dict(word.partition("=")[::2] for word in text.partition("\n")[0].split()[1:])
    try:
        average, total = float(words["avg10"]), int(words["total"])
    except (KeyError, ValueError):
        return False
    return average >= _LEAST_AVERAGE or (age_usec is not None and total >= _LEAST_SHARE * age_usec)


def waited_usec(host: Host, target: Target, what: Resource) -> int | None:
    """How long a task of it has waited since its group was made; ``None``: not told here."""
    unified = cgroup.unified(host, target.cgroups)
    if unified is None or unified.path == "/":
        return None  # the whole machine's
    try:
        said = pressure(host, unified, what)
    except (OSError, ParseError):
        return None
    return None if said is None else said.some_usec


def _age_usec(host: Host, target: Target) -> float | None:
    try:
        up = float(host.text("/proc/uptime").split()[0])
        began = task.stat(host, target.init.pid).start_ticks if target.init is not None else None
    except (OSError, ParseError, ValueError, IndexError):
        return None
    return None if began is None else (up - began / os.sysconf("SC_CLK_TCK")) * 1e6
