"""The cpu controller: ``cpu.stat``, ``cpu.max`` (v2), ``cpu.cfs_*`` and ``cpuacct.usage`` (v1).

Documentation/scheduler/sched-bwc.rst and admin-guide/cgroup-v2.rst. One group's word:

>>> parse_stat("cpu.stat", "nr_periods 41\\nnr_throttled 40\\nthrottled_time 2000").nr_throttled
40
>>> parse_max("50000 100000").quota_usec, parse_max("max 100000").quota_usec
(50000, None)
"""

import os

from msgspec import Struct, structs

from whybox.kernel.cgroup import Group, keyed
from whybox.kernel.host import Host, ParseError


class Stat(Struct, frozen=True, kw_only=True):
    """How often and how long a group with a quota was stopped, since it was made."""

    file: str
    nr_periods: int
    """Enforcement periods in which the group had something to run."""
    nr_throttled: int
    throttled_usec: int
    """Summed over run queues: more than the wall clock with several threads (measured)."""
    nr_bursts: int | None = None
    burst_usec: int | None = None


class Max(Struct, frozen=True, kw_only=True):
    """The quota of a group."""

    file: str
    quota_usec: int | None
    period_usec: int
    burst_usec: int | None = None

    @property
    def cores(self) -> float | None:
        """The quota as a number of CPUs."""
        return None if self.quota_usec is None else self.quota_usec / self.period_usec


def parse_stat(file: str, text: str) -> Stat | None:
    """``None`` where the controller is not enabled: such a ``cpu.stat`` has only usage times."""
    said = keyed(file, text)
    if "nr_periods" not in said:
        return None
    # v1 counts nanoseconds under another name than v2's microseconds.
    v1 = "throttled_time" in said
    burst = said.get("burst_time", None)
    return Stat(
        file=file,
        nr_periods=said["nr_periods"],
        nr_throttled=said["nr_throttled"],
        throttled_usec=said["throttled_time"] // 1000 if v1 else said["throttled_usec"],
        nr_bursts=said.get("nr_bursts"),
        burst_usec=said.get("burst_usec") if burst is None else burst // 1000,
    )


def parse_max(text: str, file: str = "cpu.max") -> Max:
    """Parse v2's ``cpu.max``: quota and period in microseconds."""
    quota, _, period = text.strip().partition(" ")
    try:
        return Max(
            file=file,
            quota_usec=None if quota == "max" else int(quota),
            period_usec=int(period),
        )
    except ValueError:
        raise ParseError(file, text) from None


def stat(host: Host, group: Group) -> Stat | None:
    """``cpu.stat`` of one group; ``None`` at the root and where the controller is off."""
    file = group.file("cpu.stat")
    text = host.optional_text(file)
    return None if text is None else parse_stat(file, text)


def local_stopped_usec(host: Host, group: Group) -> int | None:
    """How long a group's own run queues stood still, whoever's quota it was.

    ``cpu.stat.local``: ``throttled_time`` (v1, ns) or ``throttled_usec``; there on 6.18, not on
    6.1 (measured).
    """
    file = group.file("cpu.stat.local")
    text = host.optional_text(file)
    said = {} if text is None else keyed(file, text)
    v1 = said.get("throttled_time")
    return said.get("throttled_usec") if v1 is None else v1 // 1000


def max_(host: Host, group: Group) -> Max | None:
    """The quota of one group; ``None`` where it cannot have one (the root)."""
    if group.version == 1:
        return _max_v1(host, group)
    text = host.optional_text(group.file("cpu.max"))
    if text is None:
        return None
    said = parse_max(text, group.file("cpu.max"))
    burst = host.optional_number(group.file("cpu.max.burst"))
    return structs.replace(said, burst_usec=burst)


def _max_v1(host: Host, group: Group) -> Max | None:
    quota = host.optional_number(group.file("cpu.cfs_quota_us"))
    period = host.optional_number(group.file("cpu.cfs_period_us"))
    if quota is None or period is None:
        return None
    return Max(
        file=group.file("cpu.cfs_quota_us"),
        quota_usec=None if quota < 0 else quota,
        period_usec=period,
        burst_usec=host.optional_number(group.file("cpu.cfs_burst_us")),
    )


def usage_usec(host: Host, cpuacct: Group) -> int | None:
    """CPU time used by the group and all below it: of ``group(…, "cpuacct")`` on either version."""
    if cpuacct.version == 1:
        used = host.optional_number(cpuacct.file("cpuacct.usage"))
        return None if used is None else used // 1000
    text = host.optional_text(cpuacct.file("cpu.stat"))
    return None if text is None else keyed(cpuacct.file("cpu.stat"), text).get("usage_usec")


def online(host: Host) -> int:
    """How many CPUs the machine runs on."""
    text = host.optional_text("/sys/devices/system/cpu/online")
    return count_list(text) if text else os.cpu_count() or 1


def count_list(text: str) -> int:
    """How many CPUs a list such as ``0-3,8`` names.

    >>> count_list("0-3,8")
    5
    """
    total = 0
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        total += int(last or first) - int(first) + 1
    return total
