"""What each CPU of the machine did: ``/proc/stat`` (filesystems/proc.rst).

>>> parse("cpu  9 0 0 9\\ncpu1 50 0 25 300 5 2 3 15 0 0\\nintr 4")[1].steal_ticks
15
"""

from collections.abc import Mapping

from msgspec import Struct

from whybox.kernel.host import Host, ParseError
from whybox.kernel.task import TICKS_PER_SECOND

_FILE = "/proc/stat"
_TICK_NS = 1_000_000_000 // TICKS_PER_SECOND


class Times(Struct, frozen=True, kw_only=True):
    """One CPU since boot, in clock ticks."""

    idle_ticks: int
    """Without a task, waiting for disks or not."""
    interrupt_ticks: int
    """In interrupts and soft interrupts."""
    steal_ticks: int
    """Kept away by the hypervisor; 0 where there is none."""


class Used(Struct, frozen=True, kw_only=True):
    """One CPU over a window."""

    cpu: int
    busy_ns: int
    """By whomever, the hypervisor left out."""
    interrupt_ns: int
    steal_ns: int
    idle_ns: int


def parse(text: str) -> dict[int, Times]:
    """Each CPU by its number; those that are offline are not there."""
    found = {}
    for line in text.splitlines():
        name, *fields = line.split()
        if not name.startswith("cpu") or name == "cpu":
            continue
        try:
            ticks = [int(field) for field in fields]
            found[int(name[3:])] = Times(
                idle_ticks=ticks[3] + ticks[4],
                interrupt_ticks=ticks[5] + ticks[6],
                steal_ticks=ticks[7],
            )
        except (ValueError, IndexError):
            raise ParseError(_FILE, line) from None
    return found


def times(host: Host) -> dict[int, Times]:
    """All CPUs since boot; empty where the file may not be read."""
    text = host.optional_text(_FILE)
    return {} if text is None else parse(text)


def used(
    before: Mapping[int, Times], after: Mapping[int, Times], elapsed_ns: int
) -> tuple[Used, ...]:
    """Each CPU over a window of that length.

    Idle time is measured and the rest is counted by ticks, so being busy is not being idle.
    """
    found = []
    for cpu in sorted(before.keys() & after.keys()):
        then, now = before[cpu], after[cpu]
        idle = _ns(now.idle_ticks - then.idle_ticks, elapsed_ns)
        steal = _ns(now.steal_ticks - then.steal_ticks, elapsed_ns - idle)
        found.append(
            Used(
                cpu=cpu,
                busy_ns=elapsed_ns - idle - steal,
                interrupt_ns=_ns(now.interrupt_ticks - then.interrupt_ticks, elapsed_ns),
                steal_ns=steal,
                idle_ns=idle,
            )
        )
    return tuple(found)


def _ns(ticks: int, most: int) -> int:
    """The file's numbers may go back a little, and count what began before the window."""
    return min(max(ticks * _TICK_NS, 0), most)
