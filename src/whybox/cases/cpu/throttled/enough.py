"""How much a program that works in peaks needs in one period, from what a quota made of them.

A peak that fits into one period's quota is not stopped. The period's timer runs on after a peak
until a period was idle (kernel/sched/fair.c, ``do_sched_cfs_period_timer``): so each peak leaves
two periods in which nothing was stopped, its last and the idle one, and their number tells how many
peaks there were (measured on 6.18: 10 peaks, 40 periods, 20 of them stopped). A peak that begins so
late in a period that it cannot spend the quota of that one leaves three (measured on 6.18: 9 peaks
out of step with the periods, 30 periods, 7 of them stopped).
"""

import math

from msgspec import Struct

#: More than a mean peak: they are not all alike, and run queues take the quota in slices.
MARGIN = 1.2

#: Peaks of one size explain the stops that there were as well as this, or they are not alike.
ALIKE = 0.6


class Peaks(Struct, frozen=True, kw_only=True):
    """Peaks that are alike."""

    work_usec: int
    """CPU time in each."""
    quota_usec: int
    period_usec: int

    @property
    def cores(self) -> float:
        """A quota that pays for a whole peak in one period."""
        return self.work_usec * MARGIN / self.period_usec

    @property
    def burst_usec(self) -> int:
        """What must have been saved for a peak besides one quota, in whole milliseconds."""
        return math.ceil((self.work_usec * MARGIN - self.quota_usec) / 1000) * 1000


def peaks(
    *,
    periods: int,
    throttled: int,
    used_usec: int,
    quota_usec: int,
    period_usec: int,
    wide: int,
) -> Peaks | None:
    """Of a program that works on ``wide`` CPUs at once.

    ``None`` where it is not known, or peaks of one size are not what happened.

    >>> peaks(periods=30, throttled=7, used_usec=717_000, quota_usec=50_000, period_usec=100_000,
    ...       wide=2).work_usec
    66245
    """
    # In step with the periods none of them is late, and of peaks at any time this share. Which it
    # was is not known: half way between is less wrong than MARGIN adds, up to 1.6 cores of two.
    late = min(1.0, quota_usec / wide / period_usec)
    number = (periods - throttled) / (2 + late / 2)
    if number < 1 or throttled < 1:
        return None
    work = used_usec / number
    stops = number * (math.ceil(work / quota_usec) - 1)
    if not ALIKE * throttled <= stops <= throttled / ALIKE:
        return None
    return Peaks(work_usec=round(work), quota_usec=quota_usec, period_usec=period_usec)


def tenths(cores: float) -> float:
    """Rounded up, but for what a sum of fractions leaves.

    >>> tenths(1.1999999), tenths(1.2000001), tenths(1.21)
    (1.2, 1.2, 1.3)
    """
    return math.ceil(round(cores * 10, 4)) / 10
