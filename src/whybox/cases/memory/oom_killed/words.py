"""What all of the case's sentences are made of: sizes, counters, and how much more would do."""

import math

from whybox.change import InProgram, MemoryLimit
from whybox.kernel.casualties import Casualties, within
from whybox.model import Certainty, Cure, Evidence, Finding, Safety, Verdict

Observation = Casualties

_MIB = 1 << 20
#: How much more was wanted than the limit, nothing tells; twice is often enough.
ENOUGH = 2
STEP_BYTES = 64 * _MIB

WAY_OUT = "ask as root on the host, where the kernel log can be read"
_LESS = (
    "Make it want less: cap heap, workers and caches below the limit, count what it writes to "
    "tmpfs and /dev/shm as well, or find the leak."
)
CAP = Cure(advice=_LESS, change=InProgram(_LESS), safety=Safety.INSPECT)


def mib(size: int | None) -> str:
    if size is None:
        return "an unknown amount"
    return f"{size / _MIB:.0f} MiB" if size >= 10 * _MIB else f"{size / _MIB:.1f} MiB"


def counters(seen: Observation) -> tuple[Evidence, ...]:
    own = seen.own
    if own is None or own.oom_kill is None:
        return ()
    events = "" if own.oom is None else f", oom {own.oom}"
    return (Evidence(own.events_file, f"oom_kill {own.oom_kill} (+{seen.fresh}){events}"),)


def raised(
    path: str | None, limit: int | None, peak: int | None, seen: Observation
) -> tuple[Cure, ...]:
    wanted = max(ENOUGH * (limit or 0), (peak or 0) * 5 // 4)
    enough = math.ceil(wanted / STEP_BYTES) * STEP_BYTES
    if limit is None or enough > (seen.total_bytes or enough):
        return (CAP,)  # more than the machine has
    inner = path != seen.path and within(path or "", seen.path)
    advice = (
        f"Allow {mib(enough)}. The kernel does not tell how much more it wanted than "
        f"{mib(limit)}: watch the peak under the same load, and leave it a margin."
    )
    change = MemoryLimit(enough, cgroup=path if inner or not seen.is_own(path) else None)
    return Cure(advice=advice, change=change, safety=Safety.LOW_RISK), CAP


def times(n: int) -> str:
    return "once" if n == 1 else f"{n} times"


def no_line(seen: Observation) -> tuple[Evidence, ...]:
    return (Evidence(seen.log.source, f"no oom-kill line with task_memcg={seen.path or seen.id}"),)


def blind(seen: Observation) -> str:
    if seen.log.reason is not None:
        return f"{seen.log.reason}; {WAY_OUT}"
    if seen.nameless:
        return f"of {seen.nameless} kills the kernel log does not say whose (too many at once)"
    return "the kernel log does not reach back that far; keep it, with journald or syslog"


def likely_clear(summary: str, evidence: tuple[Evidence, ...] = ()) -> Finding:
    return Finding(
        verdict=Verdict.CLEAR, certainty=Certainty.LIKELY, summary=summary, evidence=evidence
    )
