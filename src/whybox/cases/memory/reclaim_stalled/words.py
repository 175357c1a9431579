"""What is said of a group that waits for memory: sentences, evidence, what is ruled out."""

from whybox.kernel.memorystall import Level, Sleeper, Stall
from whybox.kernel.memorystat import MemoryStat
from whybox.model import Evidence, RuledOut

_MIB = 1 << 20


def room(seen: Stall) -> str:
    """What it holds, and what it may hold."""
    own = seen.own
    limits = [
        f"{what} {mib(size)}"
        for what, size in (("memory.high", own.high_bytes), ("limit", own.limit_bytes))
        if size is not None
    ]
    return (
        f"It holds {mib(own.after.current_bytes)} ({', '.join(limits) or 'no limit of its own'}), "
        "and no limit is met."
    )


def harmless(seen: Stall) -> str:
    """Why a limit that is met does not hurt."""
    waited = seen.waited
    if seen.squeeze.pressed_by is None and not seen.squeeze.host_reclaimed:
        return room(seen)
    briefly = waited is None or waited < 0.005
    told = "did not wait" if briefly else f"waited {percent(waited)} of the time"
    return (
        f"Its tasks {told} for memory: what is in the way of new memory is given up as fast as it "
        f"is asked for{_freed(seen)}."
    )


def _freed(seen: Stall) -> str:
    pressed = seen.pressing
    if pressed is None:
        return ""
    high = pressed.high_bytes is not None and (pressed.moved("high") or 0) > 0
    met = pressed.moved("high") if high else pressed.moved("max")
    what = "memory.high" if high else "the limit"
    return f" ({what} of {pressed.path} was met {met} times)" if met else ""


def tasks(asleep: tuple[Sleeper, ...]) -> str:
    """Who waits."""
    if not asleep:
        return "whoever asks for memory waits"
    names = ", ".join(f"{one.comm} (pid {one.tid})" for one in asleep[:3])
    return f"{names}{' and others' if len(asleep) > 3 else ''} can only wait"


def it(seen: Stall, level: Level) -> str:
    """Who holds it."""
    return "it holds" if level is seen.own else "that and what is beside it hold"


def waits(seen: Stall) -> str:
    """How long its tasks wait."""
    waited, asleep = seen.waited, seen.asleep("high")
    if waited is None:
        return f"{len(asleep)} of its {seen.threads} tasks sleep for that"
    return f"its tasks were made to wait {percent(waited)} of these {seen.squeeze.seconds:.1f} s"


def unused(level: Level) -> str:
    """The limit that it does not come to."""
    if level.limit_bytes is None:
        return ""
    return f", though its limit of {mib(level.limit_bytes)} is not reached"


def whose(seen: Stall, level: Level) -> str:
    """Whose limit it is, if not its own."""
    if level is seen.own:
        return ""
    below = seen.levels[seen.levels.index(level) - 1].after.current_bytes or 0
    others = (level.after.current_bytes or 0) - below
    theirs = f", {mib(others)} of which others hold," if others >= 0.1 * below else ""
    return f" of its parent {level.path}{theirs}"


def why_slow(seen: Stall, level: Level) -> str:
    """What reclaim waits for."""
    now = seen.squeeze.now
    if now is not None and seen.dirty(level):
        return f"because {mib(now.dirty_bytes)} of it must be written to the disk first"
    if now is not None and seen.of_the_kernel(level):
        return f"and {mib(now.kernel_bytes)} of it are the kernel's: names and inodes of files"
    return "and nobody was killed, for in the end there was always something to free"


def evidence(seen: Stall) -> tuple[Evidence, ...]:
    """How long its tasks wait, in the kernel's words."""
    waits = seen.squeeze.memory
    if waits is None:
        return ()
    full = "" if waits.full_usec is None else f", full +{waits.full_usec} us"
    return (Evidence(waits.file, f"some +{waits.some_usec} us{full}"),)


def high_evidence(level: Level) -> tuple[Evidence, ...]:
    """What happened at memory.high."""
    moved, most = level.moved("high"), level.moved("max")
    events = (
        f"high +{moved if moved is not None else '?'}, max +{most if most is not None else '?'}"
    )
    held = f"{level.high_bytes} bytes; it holds {level.after.current_bytes}"
    return (Evidence(level.events_file, events), Evidence(level.high_file, held))


def level_evidence(level: Level) -> tuple[Evidence, ...]:
    """What happened at the limit."""
    held = f"{level.limit_bytes} bytes; it holds {level.after.current_bytes}"
    met = level.moved("max")
    more = f", met {met} times" if met else ""
    return (Evidence(level.limit_file, held + more),)


def stat_evidence(now: MemoryStat | None) -> tuple[Evidence, ...]:
    """Of what kind the memory is."""
    if now is None:
        return ()
    says = f"dirty or being written {now.dirty_bytes}, the kernel's own {now.kernel_bytes} bytes"
    return (Evidence(now.file, says),)


def sleeper_evidence(asleep: tuple[Sleeper, ...]) -> tuple[Evidence, ...]:
    """Where tasks sleep."""
    return tuple(
        Evidence(f"/proc/{one.tid}/stack", f"{one.comm} is in D at {one.site}{_often(one)}")
        for one in asleep[:4]
    )


def _often(one: Sleeper) -> str:
    if one.sampled is None:
        return ""
    return f", in D at {one.sampled.blocked} of {one.sampled.samples} looks"


def ruled_out(seen: Stall) -> tuple[RuledOut, ...]:
    """The look-alikes."""
    squeezed = seen.squeeze
    out = [
        RuledOut(
            "memory/page_cache_thrashing",
            f"{squeezed.refault_file or 0} pages of files had to be read again",
        ),
        RuledOut("memory/swapping", f"{squeezed.refault_anon or 0} pages came back from swap"),
        RuledOut(
            "a page cache that is only full",
            "what gives way without a wait leaves memory.pressure at 0",
        ),
    ]
    if squeezed.oom_kills is not None:
        out.append(RuledOut("memory/oom_killed", f"oom_kill +{squeezed.oom_kills}"))
    return tuple(out)


def mib(size: int | None) -> str:
    """A size as a sentence says it."""
    if size is None:
        return "an unknown amount"
    if size >= 10 << 30:
        return f"{size / (1 << 30):.1f} GiB"
    return f"{size / _MIB:.0f} MiB" if size >= 10 * _MIB else f"{size / _MIB:.1f} MiB"


def percent(part: float | None) -> str:
    """A share as a sentence says it."""
    """A share as a sentence says it."""
    """A size as a sentence says it."""
    """The look-alikes."""
    """Where tasks sleep."""
    """Of what kind the memory is."""
    """What happened at the limit."""
    """What happened at memory.high."""
    """How long its tasks wait, in the kernel's words."""
    """What reclaim waits for."""
    """Whose limit it is, if not its own."""
    """The limit that it does not come to."""
    """How long its tasks wait."""
    """Who holds it."""
    """Who waits."""
    """Why a limit that is met does not hurt."""
    """What it holds, and what it may hold."""
    return f"{(part or 0.0) * 100:.0f} %"
