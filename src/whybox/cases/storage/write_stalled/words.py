"""What is said of writes that took long: how many, how long, and where they were."""

from whybox.kernel.iothrottle import numbered
from whybox.kernel.slowwrites import Slow
from whybox.model import Evidence, RuledOut

from .observation import Observation, Place

_MIB = 1 << 20

_WHERE: dict[Place, str] = {
    "quota": "held back by its limit on disk IO",
    "reclaim": "freeing memory first",
    "dirty": "paused since too much is not yet written (balance_dirty_pages)",
    "journal": "waiting for a commit of the file system's journal",
    "device": "in the disk's queue and in the disk",
    "lock": "waiting for another task that writes",
    "elsewhere": "elsewhere in the kernel",
    "cpu": "waiting for a CPU",
    "running": "running",
}


def summary(seen: Observation, cause: Place) -> str:
    """How many writes, how long, and where."""
    return f"{_slow(seen)}: {shares(seen)}{_why(seen, cause)}."


def _slow(seen: Observation) -> str:
    slow = seen.slow()
    total, longest = sum(one.took_ns for one in slow), max(one.took_ns for one in slow)
    count = sum(one.count for one in seen.writes.ordinary) + sum(not one.over for one in slow)
    are = "1 write of it was" if len(slow) == 1 else f"{len(slow)} of its {count} writes were"
    return (
        f"{are} slow, {total / 1e9:.2f} s in all in these {seen.seconds:.1f} s and one of them "
        f"{longest / 1e6:.0f} ms, {_half(seen)}"
    )


def _half(seen: Observation) -> str:
    kinds = {one.kind for one in seen.slow()}
    half = [one for one in seen.writes.ordinary if one.kind in kinds and one.count]
    if not half:
        return "and it is not over"
    most = max(half, key=lambda one: one.count)
    return f"where half of its {most.kind}s take less than {ms(most.half_ns)}"


def shares(seen: Observation) -> str:
    """Where the time of the slow writes went: it adds up to all of it."""
    places = seen.places()
    total = max(sum(places.values()), 1)
    ranked = sorted(places.items(), key=lambda item: -item[1])
    told = [f"{spent / total:.0%} {_WHERE[place]}" for place, spent in ranked if spent * 50 > total]
    rest = 1 - sum(spent for _, spent in ranked if spent * 50 > total) / total
    return ", ".join(told) + (f", {rest:.0%} in other places" if rest >= 0.005 else "")


def _why(seen: Observation, cause: Place) -> str:
    held, room = seen.held(), seen.room
    if cause == "quota" and held is not None:
        number = numbered(held.limit.device)
        disk = seen.names.get(number, number)
        whose = "its" if held.cgroup is None else f"the parent {held.cgroup}'s"
        return f" ({whose} limit of {held.limit.value} {held.limit.what} a second for {disk})"
    if cause in ("reclaim", "dirty") and room is not None:
        whose = "" if room.own else f" of its parent {room.path}"
        dirty = "" if room.dirty_bytes is None else f", {mib(room.dirty_bytes)} of it dirty"
        held_now = f"{mib(room.current_bytes)} of the limit of {mib(room.limit_bytes)}{whose}"
        return f" ({held_now} are used{dirty})"
    return ""


def quick(seen: Observation) -> str:
    """No write was slow, or few."""
    count = sum(one.count for one in seen.writes.ordinary)
    if not count:
        return "It wrote to no file in this window."
    slow = seen.slow()
    if not slow:
        return f"None of its {count} writes to files was slow; {_typical(seen)}."
    longest = max(one.took_ns for one in slow)
    return (
        f"{len(slow)} of its {count} writes to files took longer than most, up to "
        f"{longest / 1e6:.0f} ms: too few to be felt."
    )


def _typical(seen: Observation) -> str:
    told = (f"half of its {o.kind}s take less than {ms(o.half_ns)}" for o in seen.writes.ordinary)
    return ", ".join(told)


def elsewhere(seen: Observation) -> str:
    """They were slow for what is no matter of storage."""
    places = seen.places()
    cpu = places.get("cpu", 0) + places.get("running", 0)
    more = (
        "see cpu/throttled and cpu/starved"
        if 2 * cpu >= sum(places.values())
        else "see cpu/blocked_in_kernel"
    )
    return f"{_slow(seen)}, but not for storage: {shares(seen)}; {more}."


def evidence(seen: Observation) -> tuple[Evidence, ...]:
    """The longest writes, and the pressure."""
    found = [Evidence("raw_syscalls:sys_enter, sys_exit; sched:sched_switch", _typical(seen))]
    if not seen.writes.ordinary:
        found = []
    found += [Evidence(f"tid {one.tid}", _one(one)) for one in seen.slow()[:3]]
    held = seen.held()
    if held is not None:
        says = f"{held.share:.0%} of what its writes waited at the disk they were held back"
        if seen.disks_writing == ():
            says = "no write of it came to a disk in this window, and none is in flight at any"
        found.append(Evidence(held.limit.file, says))
    for what, usec in (("io", seen.io_usec), ("memory", seen.memory_usec)):
        if usec is not None:
            found.append(Evidence(f"{what}.pressure", f"some +{usec} us"))
    return tuple(found)


def _one(one: Slow) -> str:
    ranked = sorted(one.parts.items(), key=lambda item: -item[1])
    parts = ", ".join(f"{part} {ms(spent)}" for part, spent in ranked if spent >= 1_000_000)
    over = "" if one.over else ", and is not over"
    at = f"; at {one.where}" if one.where else ""
    return f"{one.comm}: {one.call} took {ms(one.took_ns)}{over}: {parts}{at}"


def ruled_out(seen: Observation, cause: Place) -> tuple[RuledOut, ...]:
    """The look-alikes."""
    places = seen.places()
    total = max(sum(places.values()), 1)

    def part(*names: Place) -> str:
        return f"{sum(places.get(name, 0) for name in names) / total:.0%} of the time"

    out = [
        RuledOut("cpu/throttled, cpu/starved", f"{part('cpu')} they were ready to run"),
        RuledOut("storage/copy_up", "that is in open(2) or truncate(2), and not in write(2)"),
    ]
    if cause != "quota" and seen.held() is None:
        out.append(RuledOut("storage/io_throttled", "no limit held any of its writes back"))
    if 10 * places.get("reclaim", 0) < total:
        out.append(RuledOut("memory/reclaim_stalled", f"{part('reclaim')} they freed memory"))
    return tuple(out)


def ms(ns: int) -> str:
    """A length of time.

    >>> ms(64_000), ms(20_500_000)
    ('0.064 ms', '20 ms')
    """
    return f"{ns / 1e6:.0f} ms" if ns >= 10_000_000 else f"{ns / 1e6:.3g} ms"


def mib(size: int) -> str:
    """A size."""
    return f"{size / _MIB:.0f} MiB"
