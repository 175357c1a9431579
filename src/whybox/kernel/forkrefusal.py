"""What the kernel log says of forks that a limit of tasks refused (kernel/cgroup/pids.c).

It says so once for each group, when a fork in it is refused for the first time:

>>> where("cgroup: fork rejected by pids controller in /docker/4f1c")
'/docker/4f1c'
"""

from msgspec import Struct

from whybox.kernel import casualties, kmsg
from whybox.kernel.cgroup import UNIFIED
from whybox.kernel.host import Host
from whybox.kernel.kmsg import Record
from whybox.kernel.target import Target

_SAID = "fork rejected by pids controller in "


class Refusal(Struct, frozen=True, kw_only=True):
    """What the log says of one container."""

    source: str
    line: str | None
    """``None``: nothing."""
    age_seconds: float | None
    covers: bool
    """Whether the log goes back to when the container began."""
    reason: str | None
    """Why it may not be read."""


def where(text: str) -> str:
    """The group in which a fork was refused; empty for any other line."""
    return text.partition(_SAID)[2].strip()


def refusal(host: Host, target: Target) -> Refusal:
    """The last refusal of a container, since this run of it began."""
    said, now = kmsg.log(host), kmsg.now_usec(host)
    start = casualties.start_usec(host, target)
    mine = [record for record in said.records if _is_of(record, target, start)]
    last = mine[-1] if mine else None
    known = last is not None and last.usec is not None and now is not None
    return Refusal(
        source=said.reach.source,
        line=None if last is None else last.text,
        age_seconds=((now or 0) - (last.usec or 0)) / 1e6 if known and last else None,
        covers=said.reach.covers(start),
        reason=said.reach.reason,
    )


def _is_of(record: Record, target: Target, start_usec: int | None) -> bool:
    group = where(record.text) if record.facility == kmsg.KERNEL else ""
    path = target.cgroups.get("pids", target.cgroups.get(UNIFIED))
    if not group or not (casualties.within(group, path) or casualties.bears(group, target.id)):
        return False
    # A group of the same name may have been another run's.
    began = None if start_usec is None else start_usec - casualties.SLACK_USEC
    return record.usec is None or began is None or record.usec >= began
