"""The names of a few functions of the kernel by their addresses, without keeping all of them.

``/proc/kallsyms`` is sorted by address as far as the kernel itself goes; its modules come after.
Where many addresses are asked for, ``symbols.KernelSymbols`` is quicker.
"""

from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping

from whybox.kernel.host import Host
from whybox.kernel.symbols import SYMBOLS

#: No function of the kernel is longer than this.
_LONGEST_FUNCTION = 1 << 20


def names(host: Host, addresses: Collection[int]) -> Mapping[int, str]:
    """The function that each address is in; those that are not known are left out."""
    if not addresses:
        return {}
    try:
        # Not through the host, which would keep ten megabytes.
        with open(host.path(SYMBOLS), "rb") as file:
            said = file.read()
    except OSError:
        return {}
    return found(said, addresses)


def found(said: bytes, addresses: Iterable[int]) -> dict[int, str]:
    r"""The functions by the text of ``/proc/kallsyms``.

    >>> found(b"1000 T a\n2000 t b\n3000 t c\n9000 t d\t[m]\n8000 t e\t[m]\n", (0x2010, 0x8001))
    {8208: 'b', 32769: 'e'}
    """
    modules = said.find(b"\t[")
    core = len(said) if modules < 0 else said.rfind(b"\n", 0, modules) + 1
    rest = sorted(_lines(said[core:]))
    starts = [start for start, _ in rest]
    result = {}
    for address in addresses:
        candidates = (_before(said, core, address), _nearest(rest, starts, address))
        near = max((one for one in candidates if one is not None), default=None)
        if near is not None and address - near[0] <= _LONGEST_FUNCTION:
            result[address] = near[1].decode("ascii", "replace")
    return result


def _lines(text: bytes) -> Iterable[tuple[int, bytes]]:
    for line in text.splitlines():
        words = line.split(None, 3)
        if len(words) >= 3:
            yield int(words[0], 16), words[2]


def _nearest(
    rest: list[tuple[int, bytes]], starts: list[int], address: int
) -> tuple[int, bytes] | None:
    at = bisect_right(starts, address) - 1
    return rest[at] if at >= 0 else None


def _before(said: bytes, end: int, address: int) -> tuple[int, bytes] | None:
    """The last line of the sorted part whose address is not beyond this one."""
    low, high = 0, end
    best: tuple[int, bytes] | None = None
    while low < high:
        middle = said.rfind(b"\n", 0, (low + high) // 2) + 1
        if middle < low:
            middle = low
        stop = said.find(b"\n", middle, end)
        stop = end if stop < 0 else stop
        words = said[middle:stop].split(None, 3)
        if len(words) < 3:
            return best
        start = int(words[0], 16)
        if start <= address:
            best, low = (start, words[2]), stop + 1
        else:
            high = middle
    return best
