"""What a container's memory is, in one sentence."""

from whybox.kernel.memorystat import MemoryStat
from whybox.kernel.squeeze import Level, Squeeze

MIB = 1 << 20


def state(seen: Squeeze, now: MemoryStat) -> str:
    """What it holds, of what kind, and how much of it is needed."""
    limited = [level for level in seen.levels if level.limit_bytes is not None]
    level = seen.pressed_by or (limited[0] if limited else None)
    own = seen.levels[0]
    if level is None:
        held = f"It holds {mib(own.current_bytes)} and has no memory limit"
    elif level is own:
        held = f"It holds {mib(own.current_bytes)} of {mib(own.limit_bytes)}"
    else:
        held = (
            f"It holds {mib(own.current_bytes)}; with others its parent {level.path} holds "
            f"{mib(level.current_bytes)} of {mib(level.limit_bytes)}"
        )
    room = "Full, and harmless: " if level is not None and level.full and _roomy(now, own) else ""
    held = held[0].lower() + held[1:] if room else held
    at_most = " at most" if now.slab_reclaimable_bytes is None and _knows_kernel(now) else ""
    needs = f"It really needs{at_most} {mib(now.needed_bytes)}{_needs(now)}"
    return f"{room}{held}: {_kinds(now)}. {needs}."


def _knows_kernel(now: MemoryStat) -> bool:
    return (now.kernel_bytes or 0) >= 4 * MIB


def _roomy(now: MemoryStat, own: Level) -> bool:
    """Whether a fifth of it at least would give way to something better."""
    slab = now.kernel_bytes if now.slab_reclaimable_bytes is None else 0
    return now.reclaimable_bytes + (slab or 0) >= (own.current_bytes or 0) // 5


def _kinds(now: MemoryStat) -> str:
    cache = f"{mib(now.file_bytes)} are page cache"
    if now.reclaimable_bytes >= MIB:
        cache += f", of which {mib(now.reclaimable_bytes)} can be given up at once"
    kinds = [cache if now.file_bytes >= MIB else "there is no page cache to speak of"]
    for size, what in (
        (now.dirty_bytes, "must be written to the disk first"),
        (now.shmem_bytes, "are tmpfs and shared memory, which only deleting frees"),
        (now.anon_bytes, "are its own data"),
        (now.kernel_bytes, f"are the kernel's for it{_slab(now)}"),
    ):
        if (size or 0) >= 4 * MIB:
            kinds.append(f"{mib(size)} {what}")
    return ", ".join(kinds)


def _slab(now: MemoryStat) -> str:
    if now.slab_reclaimable_bytes is None:
        return ", names and inodes of files among them, which can be given up"
    return f", {mib(now.slab_reclaimable_bytes)} of it names and inodes, which can be given up"


def _needs(now: MemoryStat) -> str:
    parts = [
        f"{mib(size)} {what}"
        for size, what in (
            (now.anon_bytes, "anonymous"),
            (now.shmem_bytes, "shared"),
            (now.locked_bytes, "locked"),
        )
        if size >= MIB // 10
    ]
    return f" ({', '.join(parts)}, the rest the kernel's)" if parts else ""


def mib(size: int | None) -> str:
    """A size as people read it."""
    if size is None:
        return "an unknown amount"
    if size >= 10 << 30:
        return f"{size / (1 << 30):.1f} GiB"
    return f"{size / MIB:.0f} MiB" if size >= 10 * MIB else f"{size / MIB:.1f} MiB"


def percent(part: float) -> str:
    """A part of a whole."""
    return f"{part * 100:.0f} %" if part >= 0.1 else f"{part * 100:.1f} %"
