"""The page cache at its limit: harmless as a rule; thrashing when what it gives up is read again.

Decided by refaults (``workingset_refault_file``) over one window with a limit that is met, and by
how long tasks waited; never by usage, nor by ``memory.events max``, which a file that is read once
moves as well (419 times, measured).
"""

import math

from msgspec import Struct

from whybox.change import Change, InProgram, MemoryHigh, MemoryLimit
from whybox.kernel import reading, squeeze
from whybox.kernel.host import Host
from whybox.kernel.memorystat import MemoryStat
from whybox.kernel.reading import File, Reading
from whybox.kernel.squeeze import PAGE_BYTES, Level, Squeeze
from whybox.kernel.target import Target
from whybox.model import (
    Case,
    Certainty,
    Cure,
    Evidence,
    Finding,
    RuledOut,
    Safety,
    Severity,
    Verdict,
    Watch,
    clear,
    unknown,
)
from whybox.needs import living, own_group
from whybox.remedies import FREE_HOST_MEMORY

from .words import MIB, mib, percent, state

#: Less than this is read again by any program that sleeps for a while.
LEAST_RATE = MIB
#: Tasks that wait for less of the time notice nothing.
LEAST_WAIT = 0.01
#: Waiting for the disk also has other reasons: it must be more of it.
LEAST_IO_WAIT = 0.05
CRITICAL_WAIT = 0.2
#: Without a word of waiting: a quarter of the limit is read again every second.
HEAVY = 0.25
#: Of a limit that is full of what cannot be given up there is no cache left to speak of.
NO_CACHE = 0.9
MARGIN = 1.1
STEP_BYTES = 8 * MIB

_STREAM = (
    "Or read without keeping: what is read once through needs no cache (O_DIRECT, "
    "posix_fadvise(POSIX_FADV_DONTNEED) behind the reader), and one pass for all questions is "
    "better than a pass for each."
)


class Observation(Struct, frozen=True, kw_only=True):
    """How the memory was pressed, and who read what meanwhile."""

    squeeze: Squeeze
    reading: Reading = Reading()
    """Empty where nothing was read again."""


def observe(host: Host, target: Target) -> Watch[Observation]:
    """Read counters before and after; look at files only where they come back."""
    start = squeeze.begin(host, target)
    before = reading.accounts(host, target) if start.full else {}
    yield
    seen = squeeze.end(host, target, start)
    if not _is_much(seen) or not seen.pressed:
        return Observation(squeeze=seen)
    after = reading.accounts(host, target)
    return Observation(squeeze=seen, reading=reading.reading(host, before, after))


def _is_much(seen: Squeeze) -> bool:
    return (seen.refault_file or 0) * PAGE_BYTES >= LEAST_RATE * seen.seconds


def judge(seen: Observation) -> Finding:
    """Found where the cache that was given up had to be read again, so much that it hurts."""
    squeezed = seen.squeeze
    if squeezed.now is None:
        return unknown("its memory.stat cannot be read: is the memory controller switched on?")
    if squeezed.refault_file is None and squeezed.pressed_by is not None:
        return unknown(
            "its limit is met, but this kernel does not count by group what had to be read again "
            "(memory.stat has no workingset_refault_file): compare the throughput at a higher limit"
        )
    if squeezed.pressed_by is not None and squeezed.seconds < 0.2:
        return unknown(
            f"{state(squeezed, squeezed.now)} Whether anything is read again takes a window to "
            "see: ask with --window 2s"
        )
    other = None if not _is_much(squeezed) else _other_cause(seen, squeezed.now)
    if other is not None:
        return clear(other, evidence=_evidence(seen))
    certainty = _thrashing(seen)
    if certainty is None:
        return _harmless(seen, squeezed.now)
    return _found(seen, certainty)


def _other_cause(seen: Observation, now: MemoryStat) -> str | None:
    """Why what was read again is not the page cache's trouble."""
    squeezed = seen.squeeze
    again = f"{mib(_refaulted(squeezed))} were read again"
    level = squeezed.pressed_by
    if not squeezed.pressed:
        return f"{again}, but no limit is met and the host has memory: the cache is warming up."
    if (squeezed.refault_anon or 0) > (squeezed.refault_file or 0):
        return f"{again}, but more came back from swap: see memory/swapping."
    if level is None or level is not squeezed.levels[0]:
        return None
    if now.needed_bytes < NO_CACHE * (level.limit_bytes or math.inf):
        return None
    rest = f"what cannot be given up is {mib(now.needed_bytes)} of {mib(level.limit_bytes)}"
    if level.soft:
        return f"{again}, mostly programs: {rest}, memory.high; see memory/reclaim_stalled."
    if squeezed.oom_kills:
        return f"{again}, mostly programs: {rest}; see memory/oom_killed."
    return None


def _thrashing(seen: Observation) -> Certainty | None:
    """How certain it is that reading again hurts; ``None``: it does not."""
    squeezed = seen.squeeze
    if not _is_much(squeezed):
        return None
    waited, disk = squeezed.waited(squeezed.memory), squeezed.waited(squeezed.io)
    if waited is not None and waited >= LEAST_WAIT:
        return Certainty.CONFIRMED
    level = squeezed.pressed_by
    share = _refaulted(squeezed) / squeezed.seconds / ((level and level.limit_bytes) or math.inf)
    if share >= HEAVY:
        return Certainty.LIKELY if waited is None else Certainty.CONFIRMED
    if disk is not None and disk >= LEAST_IO_WAIT and _mostly_again(seen):
        return Certainty.LIKELY
    if waited is None and (squeezed.majfault or 0) * PAGE_BYTES >= LEAST_RATE * squeezed.seconds:
        return Certainty.LIKELY
    return None


def _mostly_again(seen: Observation) -> bool:
    return 2 * _refaulted(seen.squeeze) >= seen.reading.read_bytes


def _refaulted(seen: Squeeze) -> int:
    return (seen.refault_file or 0) * PAGE_BYTES


# Not found: what the memory is, in one sentence.


def _harmless(seen: Observation, now: MemoryStat) -> Finding:
    return clear(f"{state(seen.squeeze, now)} {_unread(seen)}", evidence=_evidence(seen))


def _unread(seen: Observation) -> str:
    squeezed = seen.squeeze
    window = f"in these {squeezed.seconds:.1f} s"
    pages = squeezed.refault_file or 0
    again = f"{mib(pages * PAGE_BYTES)} had to be read again" if pages else "Nothing was read again"
    waited = squeezed.waited(squeezed.memory)
    if waited is None or waited < LEAST_WAIT:
        return f"{again} {window}."
    why = "while memory was reclaimed"
    if squeezed.now is not None and squeezed.now.dirty_bytes >= MIB:
        why = "for what must be written to the disk first"
    return f"{again} {window}; its tasks waited {percent(waited)} of the time {why}."


# Found.


def _found(seen: Observation, certainty: Certainty) -> Finding:
    squeezed = seen.squeeze
    waited = max(squeezed.waited(squeezed.memory) or 0, squeezed.waited(squeezed.io) or 0)
    return Finding(
        verdict=Verdict.FOUND,
        certainty=certainty,
        severity=Severity.CRITICAL if waited >= CRITICAL_WAIT else Severity.WARNING,
        summary=(
            f"It reads the same pages of files again and again: {mib(_refaulted(squeezed))} that "
            f"had been pushed out of memory came back in these {squeezed.seconds:.1f} s"
            f"{_waited(squeezed)}. {_whose(squeezed)}{_names(seen)}."
        ),
        evidence=_evidence(seen),
        ruled_out=_ruled_out(seen),
        cures=_cures(seen),
    )


def _waited(seen: Squeeze) -> str:
    """Pages that were not long enough in memory to count as used are waited for as the disk's."""
    waits = (seen.waited(seen.memory) or 0, "memory"), (seen.waited(seen.io) or 0, "the disk")
    share, what = max(waits)
    if share < LEAST_WAIT:
        return ""
    return f", and its tasks waited {percent(share)} of the time for {what}"


def _whose(seen: Squeeze) -> str:
    level = seen.pressed_by
    if level is None:
        return "No limit of it is met: it is the host that is short of memory"
    what = "memory.high" if level.soft else "memory limit"
    limit = f"{what} of {mib(level.limit_bytes)}"
    if level is not seen.levels[0]:
        return f"The {limit} of its parent {level.path}{_others(seen, level)} is too small"
    needed = 0 if seen.now is None else seen.now.needed_bytes
    return f"Its own {limit}, {mib(needed)} of which cannot give way, is too small"


def _others(seen: Squeeze, parent: Level) -> str:
    """What the parent's other children hold: the limit may be spent by a neighbour."""
    below = seen.levels[seen.levels.index(parent) - 1]
    others = (parent.current_bytes or 0) - (below.current_bytes or 0)
    share = others >= 0.1 * (parent.limit_bytes or math.inf)
    return f", {mib(others)} of which others hold," if share else ""


def _reread(seen: Observation) -> tuple[File, ...]:
    """The files that are worth a name: those that are not all in memory."""
    least = sum(file.missing_bytes for file in seen.reading.files) // 20
    return tuple(file for file in seen.reading.files if file.missing_bytes > max(least, MIB))


def _names(seen: Observation) -> str:
    files = _reread(seen)
    if not files:
        readers = ", ".join(f"{r.comm} (pid {r.pid})" for r in seen.reading.readers[:3])
        return f"; those who read are {readers}" if readers else ""
    said = [f"{f.path} ({mib(f.size_bytes)}, {mib(f.cached_bytes)} cached)" for f in files[:3]]
    more = f" and {len(files) - 3} more" if len(files) > 3 else ""
    return f" for {', '.join(said)}{more}, which {files[0].comm} (pid {files[0].pid}) reads"


def _evidence(seen: Observation) -> tuple[Evidence, ...]:
    squeezed = seen.squeeze
    if squeezed.now is None:
        return ()
    counted = f"workingset_refault_file +{squeezed.refault_file} pages"
    if squeezed.majfault is not None:
        counted += f", pgmajfault +{squeezed.majfault}"
    found = [Evidence(squeezed.now.file, counted)]
    for waits in (squeezed.memory, squeezed.io):
        if waits is not None:
            full = "" if waits.full_usec is None else f", full +{waits.full_usec} us"
            found.append(Evidence(waits.file, f"some +{waits.some_usec} us{full}"))
    level = squeezed.pressed_by
    if level is not None:
        met = f", met {level.met} times" if level.met else ""
        holds = f"it holds {level.current_bytes}{met}"
        found.append(Evidence(level.file, f"{level.limit_bytes} bytes; {holds}"))
    elif squeezed.host_reclaimed:
        found.append(Evidence("/proc/vmstat", f"pgsteal +{squeezed.host_reclaimed} pages"))
    found += [
        Evidence(f"/proc/{reader.pid}/io", f"read_bytes +{reader.read_bytes} ({reader.comm})")
        for reader in seen.reading.readers
    ]
    return tuple(found)


def _ruled_out(seen: Observation) -> tuple[RuledOut, ...]:
    squeezed = seen.squeeze
    out = [
        RuledOut(
            "a full page cache that is only full",
            f"what gives way unused is never read again: {squeezed.refault_file} pages were",
        ),
        RuledOut("memory/swapping", f"{squeezed.refault_anon or 0} pages came back from swap"),
    ]
    if squeezed.oom_kills is not None:
        out.append(RuledOut("memory/oom_killed", f"oom_kill +{squeezed.oom_kills}"))
    if squeezed.pressed_by is not None and squeezed.host_reclaimed is not None:
        reclaimed = f"the host reclaimed {squeezed.host_reclaimed} pages for itself"
        out.append(RuledOut("a host short of memory", reclaimed))
    return tuple(out)


# The cure: how much more would be enough.


def _cures(seen: Observation) -> tuple[Cure, ...]:
    stream = Cure(advice=_STREAM, change=InProgram(_STREAM), safety=Safety.INSPECT)
    level, squeezed = seen.squeeze.pressed_by, seen.squeeze
    if level is None or level.limit_bytes is None:
        return (FREE_HOST_MEMORY, stream)
    enough, known = _enough(seen, level, level.limit_bytes)
    wanted = math.ceil(enough * MARGIN / STEP_BYTES) * STEP_BYTES
    if wanted > 0.9 * (squeezed.total_bytes or math.inf):
        return (stream,)
    return (_raise(level, level is squeezed.levels[0], wanted, known), stream)


def _enough(seen: Observation, level: Level, limit: int) -> tuple[int, bool]:
    """How much memory would hold all of it, and whether that is known and not only guessed."""
    files = _reread(seen)
    missing = sum(file.missing_bytes for file in files)
    again = _refaulted(seen.squeeze)
    # What was not read through in the window need not all be wanted.
    if not (missing and seen.reading.steady and missing <= max(4 * again, limit)):
        return limit + max(min(again, limit), min(missing, again)), False
    if level is not seen.squeeze.levels[0] or seen.squeeze.now is None:
        return limit + missing, True
    all_of_it = seen.squeeze.now.needed_bytes + sum(file.size_bytes for file in files)
    return max(min(limit + missing, all_of_it), limit), True


def _raise(level: Level, own: bool, wanted: int, known: bool) -> Cure:
    who = "it" if own else f"its parent {level.path}"
    why = (
        "then all that it reads stays in memory, and nothing is read again"
        if known
        else "how much it reads in all is not known: look again, and raise it until it is clear"
    )
    cgroup = None if own else level.path
    kind: Change = (
        MemoryHigh(wanted, cgroup=cgroup) if level.soft else MemoryLimit(wanted, cgroup=cgroup)
    )
    advice = f"Allow {who} {mib(wanted)}: {why}."
    return Cure(advice=advice, change=kind, safety=Safety.LOW_RISK)


CASE = Case(
    title="The page cache does not fit and is read again and again",
    question="Why is memory always at the limit?",
    question_zh="为什么我的容器内存使用量总是在临界点?",
    lesson="09",
    needs=(living, own_group("memory")),
    observation=Observation,
    observe=observe,
    judge=judge,
    explains=(
        "memory/reclaim_stalled",
        "cpu/blocked_in_kernel",
        "storage/write_stalled",
        "storage/io_throttled",
    ),
)
