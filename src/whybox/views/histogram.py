"""A histogram of powers of two, for a terminal and as a picture."""

from collections.abc import Sequence

_UNITS = (("ns", 1), ("us", 1_000), ("ms", 1_000_000), ("s", 1_000_000_000))
_BAR = " ▏▎▍▌▋▊▉█"
WIDTH = 40


def duration(ns: float) -> str:
    """A length of time in its own unit.

    >>> duration(950), duration(1500), duration(2_500_000), duration(12_000_000_000)
    ('950 ns', '1.5 us', '2.5 ms', '12 s')
    """
    unit, size = next(
        ((u, s) for u, s in reversed(_UNITS) if ns >= s),
        _UNITS[0],
    )
    value = ns / size
    return f"{value:.0f} {unit}" if value >= 10 or value == int(value) else f"{value:.1f} {unit}"


def size(count: float) -> str:
    """A number of bytes.

    >>> size(512), size(4096), size(5 << 20)
    ('512 B', '4 KiB', '5 MiB')
    """
    for unit, one in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= one:
            value = count / one
            return (
                f"{value:.0f} {unit}"
                if value >= 10 or value == int(value)
                else (f"{value:.1f} {unit}")
            )
    return f"{count:.0f} B"


def lines(buckets: Sequence[int], labels: Sequence[str]) -> list[str]:
    """One line for each bucket from the first to the last that holds something.

    >>> print("\\n".join(lines([0, 2, 4, 0], ["1 us", "2 us", "4 us", "8 us"])))
    2 us     2 ████████████████████
    4 us     4 ████████████████████████████████████████
    """
    held = [n for n, count in enumerate(buckets) if count]
    if not held:
        return []
    most = max(buckets)
    shown = range(held[0], held[-1] + 1)
    label = max(len(labels[n]) for n in shown)
    count = max(max(len(str(buckets[n])) for n in shown), 5)
    return [
        f"{labels[n]:>{label}} {buckets[n]:>{count}} {_bar(buckets[n] / most)}".rstrip()
        for n in shown
    ]


def _bar(share: float) -> str:
    whole, part = divmod(round(share * WIDTH * 8), 8)
    return "█" * whole + (_BAR[part] if part else "")


def powers(first_ns: int, count: int) -> list[str]:
    """Labels of buckets that begin at ``first_ns`` and double.

    >>> powers(1000, 3)
    ['1 us', '2 us', '4 us']
    """
    return [duration(first_ns << n) for n in range(count)]
