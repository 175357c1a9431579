"""Names of the kernel's functions (``/proc/kallsyms``), and what a frame of a stack is called."""

import re
from array import array
from bisect import bisect_right
from collections.abc import Iterable

from msgspec import Struct

from whybox.kernel.host import Host

SYMBOLS = "/proc/kallsyms"

_SCHEDULER = "__sched_text_start", "__sched_text_end"

#: Far more than any kernel has; a line is shorter than this.
_MOST_LINES = 2_000_000
_LINE_BYTES = 1024

#: No function of the kernel is longer: what lies behind the last one of a module is not its.
_LONGEST_FUNCTION = 1 << 20


class Frame(Struct, frozen=True, kw_only=True):
    """One function in a stack."""

    name: str
    """``nginx_worker``, or ``[nginx+0x1a2b]`` where the file tells no name."""
    file: str
    """``libc.so.6``, ``kernel``, a module's name, ``jit``, ``""``: unknown."""
    kernel: bool = False
    named: bool = True
    """Whether it is the name of a function."""


class KernelSymbols:
    """The functions of the running kernel and its modules, read when one is first asked for."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._starts: array[int] | None = None
        self._names: list[str] = []
        self._scheduler = (0, 0)

    def frame(self, address: int) -> Frame:
        """The function at an address."""
        starts = self._table()
        at = bisect_right(starts, address) - 1
        if at < 0 or address - starts[at] > _LONGEST_FUNCTION:
            return Frame(name=f"[{address:#x}]", file="kernel", kernel=True, named=False)
        name, _, module = self._names[at].partition("\t")
        return Frame(name=name, file=module.strip("[]") or "kernel", kernel=True)

    def waits(self, address: int) -> bool:
        """Whether it is in the scheduler, or in a lock or the like that waits by it.

        The kernel keeps these functions apart, to name who called them (``in_sched_functions``,
        kernel/sched/core.c, which ``/proc/PID/wchan`` goes by).
        """
        self._table()
        return self._scheduler[0] <= address < self._scheduler[1]

    def _table(self) -> "array[int]":
        if self._starts is None:
            try:
                with open(self._host.path(SYMBOLS), encoding="ascii", errors="replace") as file:
                    self._starts, self._names = functions(_lines(file))
            except OSError:
                self._starts = array("Q")
            self._scheduler = (self._start(_SCHEDULER[0]), self._start(_SCHEDULER[1]))
        return self._starts

    def _start(self, name: str) -> int:
        """Where a function begins; 0: there is none of that name."""
        if self._starts is None or name not in self._names:
            return 0
        return self._starts[self._names.index(name)]


def hidden(host: Host) -> str | None:
    """Why functions of the kernel have no names here, or ``None`` (sysctl/kernel.rst)."""
    if host.optional_text("/proc/sys/kernel/kptr_restrict") == "2":
        return "the kernel hides its addresses (kernel.kptr_restrict is 2): no names of its own"
    return None


def _lines(file: Iterable[str]) -> Iterable[str]:
    return (line[:_LINE_BYTES] for line, _ in zip(file, range(_MOST_LINES), strict=False))


def functions(lines: Iterable[str]) -> tuple["array[int]", list[str]]:
    r"""The functions of kallsyms in the order of their addresses; a module follows after a tab.

    >>> functions(["ffff20 t b\t[ext4]\n", "ffff10 T a\n", "ffff18 D data\n"])
    (array('Q', [16776976, 16776992]), ['a', 'b\t[ext4]'])
    """
    found = []
    for line in lines:
        address, kind, name = (*line.rstrip("\n").split(" ", 2), "", "")[:3]
        if kind in _CODE and address.strip("0"):
            found.append((int(address, 16), name))
    found.sort()
    return array("Q", (address for address, _ in found)), [name for _, name in found]


#: Types of symbols that are code (nm(1)).
_CODE = frozenset("tTwW")


def plain(name: str) -> str:
    """A name of C++ or Rust as in the source where that is easy; any other as it stands.

    >>> plain("_ZN3foo3barEv"), plain("_ZN4core3fmt5write17h0123456789abcdefE"), plain("_Z4burni")
    ('foo::bar', 'core::fmt::write', 'burn')
    >>> plain("_ZNSt6vectorIiE4pushEi"), plain("memcpy")
    ('_ZNSt6vectorIiE4pushEi', 'memcpy')
    """
    if name.startswith("_ZN"):
        parts, rest = _parts(name[3:].lstrip("KVrRO"))
        if parts and rest.startswith("E"):
            return "::".join(part for part in parts if not _HASH.fullmatch(part))
    elif name.startswith("_Z") and name[2:3].isdigit():
        parts, rest = _parts(name[2:], most=1)
        if parts and not rest.startswith("I"):
            return parts[0]
    return name


#: The last part of a name of Rust's older scheme.
_HASH = re.compile(r"h[0-9a-f]{16}")
_SIZE = re.compile(r"[1-9]\d{0,3}")


def _parts(text: str, most: int = 32) -> tuple[list[str], str]:
    """Names, each after its length, at the front of a mangled one; and what follows."""
    parts: list[str] = []
    while len(parts) < most and (size := _SIZE.match(text)):
        end = size.end() + int(size[0])
        if end > len(text):
            return [], text
        parts.append(_unescaped(text[size.end() : end]))
        text = text[end:]
    return parts, text


def _unescaped(part: str) -> str:
    """Rust's older scheme spells out what an assembler does not take."""
    for short, meant in (("$LT$", "<"), ("$GT$", ">"), ("$u20$", " "), ("..", "::")):
        part = part.replace(short, meant)
    return part
