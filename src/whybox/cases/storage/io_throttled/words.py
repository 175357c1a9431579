"""What is said of a container whose IO a limit holds back."""

from typing import TYPE_CHECKING

from whybox.kernel import diskwaits
from whybox.kernel.iothrottle import Throttle
from whybox.model import Evidence, RuledOut

if TYPE_CHECKING:
    from .probe import Reach

_MIB = 1 << 20
#: So much more was written to files than the limit has seen, that it went by another way.
MUCH_ESCAPED = 4 * _MIB


def summary(worst: "Reach", seen: Throttle) -> str:
    """The limit, how near it came, how long its IO was held."""
    return (
        f"{_limit(worst, seen)} is reached: it {_did(worst)}, and {_held(worst, seen)}"
        f"{_also(worst, seen)}."
    )


def _limit(worst: "Reach", seen: Throttle) -> str:
    whose = "Its limit" if worst.level.own else f"The limit of its parent {worst.level.path}"
    what = "reading from" if worst.way == "read" else "writing to"
    return f"{whose} of {rate(worst.limit.value, worst)} for {what} {seen.name(worst.limit.device)}"


def _did(worst: "Reach") -> str:
    own = "did" if worst.level.own else "and its neighbours did"
    return f"{own} {rate(worst.rate, worst)}"


def _held(worst: "Reach", seen: Throttle) -> str:
    kind = worst.kind
    if kind is None or not kind.held:
        return f"its tasks waited {_percent(seen.waited)} of these {seen.seconds:.1f} s for IO"
    return (
        f"{kind.held} of its {kind.count} {worst.way}s were held back, {kind.held_ns / 1e9:.1f} s "
        f"in all in these {seen.seconds:.1f} s, one for up to {kind.longest_ns / 1e6:.0f} ms"
    )


def _also(worst: "Reach", seen: Throttle) -> str:
    escaped = escaped_bytes(worst, seen)
    if not escaped:
        return ""
    return (
        f"; another {escaped / _MIB:.0f} MiB went to the page cache at full speed, which no limit "
        "of cgroup v1 sees: that is why it is unstable"
    )


def escaped_bytes(worst: "Reach", seen: Throttle) -> int:
    """v1: what was written past the limit; 0: little or nothing.

    What is written back later is charged to the root (admin-guide/cgroup-v1/blkio-controller.rst).
    """
    if seen.version != 1 or worst.way != "write":
        return 0
    passed = sum(one.bytes for one in worst.level.uses if one.kind == "write")
    escaped = seen.dirtied_bytes - passed
    return escaped if escaped >= max(MUCH_ESCAPED, passed // 4) else 0


def not_held(nearest: "Reach", seen: Throttle) -> str:
    """Why a limit does not hurt."""
    held = nearest.kind.held_ns / 1e9 if nearest.kind is not None else 0.0
    briefly = f", and held IO back for {held:.2f} s" if held >= 0.005 else ", and held nothing back"
    said = (
        f"{_limit(nearest, seen)} is used by {nearest.share:.0%} ({rate(nearest.rate, nearest)})"
        f"{'' if seen.waits.reason else briefly}"
    )
    if escaped := escaped_bytes(nearest, seen):
        return f"{said}; {escaped / _MIB:.0f} MiB were written past it through the page cache."
    if seen.waited is not None and seen.waited >= 0.1:
        return f"{said}: what its tasks waited for ({_percent(seen.waited)} of the time) is not it."
    return f"{said}."


def in_background(worst: "Reach", seen: Throttle) -> str:
    """What is held back is nobody's wait."""
    return (
        f"{_limit(worst, seen)} is reached by what is written back in the background, and its "
        f"tasks waited {_percent(seen.waited)} of the time for IO."
    )


def evidence(worst: "Reach", seen: Throttle) -> tuple[Evidence, ...]:
    """The limit, what was counted against it, and where IO waited."""
    device = ":".join(map(str, worst.limit.device))
    use = worst.use
    found = [
        Evidence(worst.limit.file, f"{device}: {worst.limit.value} {worst.limit.what} a second"),
        Evidence(
            worst.level.stat_file,
            f"{device} {worst.way}s +{use.count}, +{use.bytes} bytes in {seen.seconds:.2f} s",
        ),
    ]
    if worst.kind is not None and worst.kind.before_buckets:
        found.append(Evidence("block:block_bio_queue, block_rq_issue", _peaks(worst)))
    if seen.pressure_file is not None and seen.waited_usec is not None:
        found.append(Evidence(seen.pressure_file, f"some +{seen.waited_usec} us"))
    if escaped_bytes(worst, seen):
        found.append(Evidence("/proc/PID/io", f"write_bytes +{seen.dirtied_bytes} in all"))
    return tuple(found)


def _peaks(worst: "Reach") -> str:
    kind = worst.kind
    assert kind is not None
    half, last = (_ms(diskwaits.percentile_ns(kind.before_buckets, s)) for s in (0.5, 0.99))
    each = kind.device_ns / max(kind.count, 1) / 1e6
    return (
        f"before the device half of its {worst.way}s waited less than {half}, 99 % less than "
        f"{last}; in the device {each:.2f} ms each"
    )


def _ms(ns: int) -> str:
    return f"{ns / 1e6:.0f} ms" if ns >= 10_000_000 else f"{ns / 1e6:.3g} ms"


def ruled_out(worst: "Reach", seen: Throttle) -> tuple[RuledOut, ...]:
    """The look-alikes."""
    out = [
        RuledOut(
            "storage/copy_up", "that is slow once for each file; this goes on as long as it writes"
        )
    ]
    kind = worst.kind
    if kind is not None and kind.held:
        device = (kind.device_ns + kind.queued_ns) / 1e9
        spent = (
            f"in its queue and in the device all its {worst.way}s spent {device:.2f} s, held back "
            f"by the limit {kind.held_ns / 1e9:.1f} s"
        )
        out += [
            RuledOut("a slow disk", spent),
            RuledOut("storage/io_contended", "a neighbour fills the device's queue, not this one"),
        ]
    return tuple(out)


def rate(value: float, worst: "Reach") -> str:
    """So much a second."""
    if not worst.in_bytes:
        return f"{value:.0f} IOs/s"
    for unit, size in (("MiB", _MIB), ("KiB", 1024)):
        if value >= size:
            return f"{value / size:.1f} {unit}/s"
    return f"{value:.0f} bytes/s"


def _percent(part: float | None) -> str:
    return f"{(part or 0.0) * 100:.0f} %"
