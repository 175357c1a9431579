"""Swapping: memory that was put away is wanted again at once, and tasks wait for it.

Decided by what comes back (``workingset_refault_anon``) over one window while a limit is met, and
by how long tasks waited; never by how much lies in swap, which may never be asked for again.
"""

import math
from typing import TypeAlias

from msgspec import Struct, structs

from whybox.change import MemoryHigh, MemoryLimit, SwapLimit, Swappiness
from whybox.kernel import squeeze, swap
from whybox.kernel.host import Host
from whybox.kernel.squeeze import PAGE_BYTES, Level, Squeeze
from whybox.kernel.swap import Device, Holder, Rules
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

_MIB = 1 << 20
LEAST_RATE = _MIB
#: Tasks that wait for less of the time notice nothing.
LEAST_WAIT = 0.05
CRITICAL_WAIT = 0.2
#: What is wanted changes, and what is in swap is only what was put away until now.
MARGIN = 1.2
STEP_BYTES = 8 * _MIB


class Observation(Struct, frozen=True, kw_only=True):
    """How the memory was pressed, and what swap there is."""

    squeeze: Squeeze
    version: int
    devices: tuple[Device, ...] | None
    """``None``: this kernel was built without swap."""
    rules: Rules
    swapped_in: int | None = None
    """Pages, of the whole machine, in the window (``pswpin``)."""
    swapped_out: int | None = None
    zswap: bool = False
    holders: tuple[Holder, ...] = ()

    @property
    def free_bytes(self) -> int:
        """What is free of the machine's swap."""
        return sum(one.size_bytes - one.used_bytes for one in self.devices or ())

    @property
    def held_bytes(self) -> int | None:
        """What of the container lies in swap."""
        now, own = self.squeeze.now, self.squeeze.levels[0]
        return own.swap_current_bytes if now is None or now.swap_bytes is None else now.swap_bytes


_Refusal: TypeAlias = tuple[str, str]


def observe(host: Host, target: Target) -> Watch[Observation]:
    """Read the counters before and after; ask the processes only where something came back."""
    start = squeeze.begin(host, target)
    moved = {name: squeeze.vmstat(host).get(name) for name in ("pswpin", "pswpout")}
    yield
    seen = squeeze.end(host, target, start)
    now = squeeze.vmstat(host)
    return Observation(
        squeeze=seen,
        version=start.group.version,
        devices=swap.devices(host),
        rules=swap.rules(host, start.group),
        swapped_in=_more(moved["pswpin"], now.get("pswpin")),
        swapped_out=_more(moved["pswpout"], now.get("pswpout")),
        zswap=swap.zswap(host),
        holders=swap.holders(host, target) if _is_much(seen) else (),
    )


def _more(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else max(after - before, 0)


def _is_much(seen: Squeeze) -> bool:
    return _came_back(seen) >= LEAST_RATE * seen.seconds


def _came_back(seen: Squeeze) -> int:
    """Bytes; where a kernel does not count what comes from swap, all faults that waited."""
    pages = seen.majfault if seen.refault_anon is None else seen.refault_anon
    return (pages or 0) * PAGE_BYTES


def judge(seen: Observation) -> Finding:
    """Found where what was put away was wanted again, and was waited for."""
    squeezed = seen.squeeze
    if not seen.devices:
        return clear(_without(seen), evidence=(_swaps(seen),))
    if squeezed.now is None:
        return unknown("its memory.stat cannot be read: is the memory controller switched on?")
    if seen.held_bytes and squeezed.pressed_by is not None and squeezed.seconds < 0.2:
        return unknown(
            f"{_mib(seen.held_bytes)} of it lie in swap; whether it waits for them takes a window "
            "to see: ask with --window 2s"
        )
    harmless = _harmless(seen)
    if harmless is not None:
        finding = clear(f"{harmless} {_allowed(seen)}{_killed(seen)}", evidence=_evidence(seen))
        return structs.replace(finding, ruled_out=_refused(seen))
    return _found(seen)


def _harmless(seen: Observation) -> str | None:
    """What is in swap, if nobody is hurt by it."""
    squeezed, window = seen.squeeze, f"in these {seen.squeeze.seconds:.1f} s"
    held = seen.held_bytes
    lies = "Nothing of it lies in swap." if not held else f"{_mib(held)} of it lie in swap"
    again = _mib(_came_back(squeezed))
    if not _is_much(squeezed):
        if not held:
            return lies
        return (
            f"{lies} and stay there: {_came_back(squeezed) // PAGE_BYTES} pages came back {window}."
        )
    lies = "" if not held else f"{lies}; "
    if not squeezed.pressed:
        return f"{lies}{again} came back {window}, but no limit is met: what is wanted comes back."
    files = (squeezed.refault_file or 0) * PAGE_BYTES
    if files >= _came_back(squeezed):
        return (
            f"{lies}{again} came back {window}, but {_mib(files)} of files were read again: "
            "see memory/page_cache_thrashing."
        )
    if squeezed.oom_kills and (_forbidden(seen) or _short(seen)):
        return f"{lies}{again} came back {window}, and what found no room there was OOM-killed."
    waited = squeezed.waited(squeezed.memory)
    if waited is not None and waited < LEAST_WAIT:
        share = f"{waited * 100:.1f} %"
        return f"{lies}{again} came back {window}, and its tasks waited {share} of the time for it."
    return None


# Whether it can use swap at all.


def _without(seen: Observation) -> str:
    if seen.devices is None:
        return "This kernel was built without swap, so it cannot use any."
    limits = "memory.memsw" if seen.version == 1 else "memory.swap.max"
    return (
        f"There is no swap on this host, so it cannot use any, and {limits} means nothing: what "
        "does not fit its memory limit ends in an OOM kill."
    )


def _allowed(seen: Observation) -> str:
    no = _forbidden(seen)
    if no is not None:
        return f"It may not swap: {no[0]}."
    rooms = [
        one.swap_limit_bytes for one in seen.squeeze.levels if one.swap_limit_bytes is not None
    ]
    some = f"up to {_mib(min(rooms))} of" if rooms else "all of"
    return f"It may use {some} the swap here: {_places(seen)}."


def _places(seen: Observation) -> str:
    said = [f"{one.path}, {_mib(one.size_bytes)} ({one.kind})" for one in seen.devices or ()]
    zswap = ", behind zswap" if seen.zswap else ""
    return f"{'; '.join(said[:3])}{zswap}"


def _forbidden(seen: Observation) -> _Refusal | None:
    """Why it may not swap at all, and the file that says so."""
    for level in seen.squeeze.levels:
        if level.swap_limit_bytes == 0:
            whose = "" if level is seen.squeeze.levels[0] else f" of its parent {level.path}"
            file = _limit_file(seen, level)
            if seen.version == 1:
                return f"the limit of memory and swap together{whose} is the one of memory", file
            return f"memory.swap.max{whose} is 0", file
    if seen.rules.swappiness == 0:
        machine = "" if seen.version == 1 else " of the machine"
        return f"swappiness{machine} is 0", seen.rules.swappiness_file
    return None


def _limit_file(seen: Observation, level: Level) -> str:
    name = "memory.memsw.limit_in_bytes" if seen.version == 1 else "memory.swap.max"
    return f"{level.file.rpartition('/')[0]}/{name}"


def _short(seen: Observation) -> _Refusal | None:
    """Why it may not swap any more."""
    level = next((one for one in seen.squeeze.levels if _is_used_up(one)), None)
    if level is not None:
        word = "limit of memory and swap together" if seen.version == 1 else "memory.swap.max"
        room = (
            f"{_mib(level.swap_current_bytes)} of {_mib(level.swap_limit_bytes)} of swap are used"
        )
        return f"its {word} is reached: {room}", _limit_file(seen, level)
    if seen.version == 1 and seen.squeeze.oom_kills_ever:
        # v1 does not count refusals: a limit that is lower than what is free may have been met.
        return _little(seen)
    if seen.rules.refused and seen.rules.events_file:
        many = f"swap was refused to it {seen.rules.refused} times (swap.events fail)"
        return many, seen.rules.events_file
    return None


def _little(seen: Observation) -> _Refusal | None:
    for level in seen.squeeze.levels:
        room = level.swap_limit_bytes
        if room is not None and room < seen.free_bytes:
            left = f"its limit of memory and swap together leaves it only {_mib(room)} of swap"
            return left, _limit_file(seen, level)
    return None


def _is_used_up(level: Level) -> bool:
    used, limit = level.swap_current_bytes, level.swap_limit_bytes
    return used is not None and limit is not None and used >= squeeze.FULL * limit


def _killed(seen: Observation) -> str:
    """What an OOM kill has to do with swap: it is the kill that is found, by memory/oom_killed."""
    kills, why = seen.squeeze.oom_kills_ever, _forbidden(seen) or _short(seen)
    if not kills or why is None or not seen.free_bytes:
        return ""
    times = "once" if kills == 1 else f"{kills} times"
    return (
        f" It was OOM-killed {times} though {_mib(seen.free_bytes)} of swap are free, as {why[0]}: "
        "see memory/oom_killed, and allow it more memory, or swap."
    )


def _refused(seen: Observation) -> tuple[RuledOut, ...]:
    why = _forbidden(seen) or _short(seen)
    return () if why is None else (RuledOut("swap that it could still use", f"{why[1]}: {why[0]}"),)


# Found.


def _found(seen: Observation) -> Finding:
    squeezed = seen.squeeze
    waited = squeezed.waited(squeezed.memory)
    sure = waited is not None and squeezed.refault_anon is not None
    for_it = "" if waited is None else f", and its tasks waited {waited * 100:.0f} % of the time"
    return Finding(
        verdict=Verdict.FOUND,
        certainty=Certainty.CONFIRMED if sure else Certainty.LIKELY,
        severity=Severity.CRITICAL if (waited or 0) >= CRITICAL_WAIT else Severity.WARNING,
        summary=(
            f"It is slow because it swaps: {_mib(_came_back(squeezed))} came back from swap in "
            f"these {squeezed.seconds:.1f} s{for_it}. {_whose(squeezed)}; {_mib(seen.held_bytes)} "
            f"of it lie in swap{_names(seen)}, on {_places(seen)}."
        ),
        evidence=_evidence(seen),
        ruled_out=_ruled_out(seen),
        cures=_cures(seen),
    )


def _whose(seen: Squeeze) -> str:
    level = seen.pressed_by
    if level is None:
        return "No limit of it is met: it is the host that is short of memory"
    what = "memory.high" if level.soft else "memory limit"
    if level is seen.levels[0]:
        return f"Its own {what} of {_mib(level.limit_bytes)} is too small"
    return f"The {what} of {_mib(level.limit_bytes)} of its parent {level.path} is too small"


def _names(seen: Observation) -> str:
    said = [f"{one.comm} (pid {one.pid}) {_mib(one.swap_bytes)}" for one in seen.holders]
    return f", of {', '.join(said)}" if said else ""


def _mib(size: int | None) -> str:
    if size is None:
        return "an unknown amount"
    if size >= 10 << 30:
        return f"{size / (1 << 30):.1f} GiB"
    return f"{size / _MIB:.0f} MiB" if size >= 10 * _MIB else f"{size / _MIB:.1f} MiB"


def _swaps(seen: Observation) -> Evidence:
    if seen.devices is None:
        return Evidence(swap.FILE, "there is no such file")
    said = [
        f"{d.path} {d.type} {d.size_bytes >> 10} kB, {d.used_bytes >> 10} used"
        for d in seen.devices
    ]
    return Evidence(swap.FILE, "; ".join(said[:3]) or "no line but the first")


def _evidence(seen: Observation) -> tuple[Evidence, ...]:
    squeezed = seen.squeeze
    found = [_swaps(seen)]
    if squeezed.now is not None:
        back = f"workingset_refault_anon +{squeezed.refault_anon} pages"
        found.append(Evidence(squeezed.now.file, f"{back}, pgmajfault +{squeezed.majfault}"))
    if squeezed.memory is not None:
        said = f"some +{squeezed.memory.some_usec} us, full +{squeezed.memory.full_usec} us"
        found.append(Evidence(squeezed.memory.file, said))
    level = squeezed.pressed_by
    if level is not None:
        found.append(Evidence(level.file, f"{level.limit_bytes}; it holds {level.current_bytes}"))
    host = f"pswpin +{seen.swapped_in}, pswpout +{seen.swapped_out}: of the whole machine"
    found.append(Evidence("/proc/vmstat", host))
    return tuple(found)


def _ruled_out(seen: Observation) -> tuple[RuledOut, ...]:
    squeezed = seen.squeeze
    anon, file = squeezed.refault_anon, squeezed.refault_file
    idle = f"what nobody wants stays there: {_came_back(squeezed) // PAGE_BYTES} pages came back"
    out = [
        RuledOut("memory that lies in swap idle", idle),
        RuledOut("memory/page_cache_thrashing", f"{file} pages of files came back, {anon} of swap"),
    ]
    if squeezed.oom_kills is not None:
        out.append(RuledOut("memory/oom_killed", f"oom_kill +{squeezed.oom_kills}"))
    if squeezed.pressed_by is not None and squeezed.host_reclaimed is not None:
        reclaimed = f"the host reclaimed {squeezed.host_reclaimed} pages for itself"
        out.append(RuledOut("a host short of memory", reclaimed))
    return tuple(out)


def _cures(seen: Observation) -> tuple[Cure, ...]:
    level = seen.squeeze.pressed_by
    if level is None or level.limit_bytes is None:
        return (FREE_HOST_MEMORY,)
    own = level is seen.squeeze.levels[0]
    swapped = (seen.held_bytes if own else level.swap_current_bytes) or 0
    wanted = math.ceil((level.limit_bytes + swapped) * MARGIN / STEP_BYTES) * STEP_BYTES
    if wanted > 0.9 * (seen.squeeze.total_bytes or math.inf):
        return (FREE_HOST_MEMORY, _no_swap(seen, own, level))
    cgroup = None if own else level.path
    who = "it" if own else f"its parent {level.path}"
    raised = MemoryHigh(wanted, cgroup=cgroup) if level.soft else MemoryLimit(wanted, cgroup=cgroup)
    advice = (
        f"Allow {who} {_mib(wanted)}: {_mib(level.limit_bytes)}, and the {_mib(swapped)} that lie "
        "in swap, with a margin."
    )
    raise_limit = Cure(advice=advice, change=raised, safety=Safety.LOW_RISK)
    return (raise_limit, _no_swap(seen, own, level))


def _no_swap(seen: Observation, own: bool, level: Level) -> Cure:
    advice = (
        "Or let it fail fast instead of slow: without swap it is never slow for this reason, but "
        "what does not fit is OOM-killed."
    )
    cgroup = None if own else level.path
    change = Swappiness(0) if seen.version == 1 else SwapLimit(0, cgroup=cgroup)
    return Cure(advice=advice, change=change, safety=Safety.DESTRUCTIVE)


CASE = Case(
    title="It waits for memory that is in swap",
    question="Can my container use swap, and is that why it is slow?",
    question_zh="容器可以使用 Swap 空间吗?",
    lesson="10",
    needs=(living, own_group("memory")),
    observation=Observation,
    observe=observe,
    judge=judge,
    explains=("memory/reclaim_stalled", "memory/page_cache_thrashing", "cpu/blocked_in_kernel"),
)
