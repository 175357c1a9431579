"""The functions of an ELF file (elf(5)), which may be anybody's: huge, broken, or made to harm.

Nothing is mapped, since a file that is cut meanwhile would kill us (SIGBUS); every table that is
read is bounded; and names are read only when asked for, so the file is kept open.
"""

import os
import stat
import struct
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from typing import Any

from msgspec import Struct

from whybox.kernel.host import c_string

#: Symbols, and functions in ``.eh_frame``; more are not read. A large server has some 100,000.
MOST_SYMBOLS = 1_000_000
_MOST_SECTIONS = 4096
_MOST_SEGMENTS = 256
_MOST_FRAME_BYTES = 64 << 20
_NAME_BYTES = 512

_PT_LOAD, _PF_X = 1, 1
_STT_FUNC, _STT_GNU_IFUNC = 2, 10
_SYMBOL64, _SYMBOL32 = struct.Struct("<IBBHQQ"), struct.Struct("<IIIBBH")
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_HEADER32 = struct.Struct("<16sHHIIIIIHHHHHH")

#: Encoding of pointers in ``.eh_frame``: relative to where they are, 4 bytes with a sign
#: (DW_EH_PE_pcrel | DW_EH_PE_sdata4). Compilers write no other on the 64-bit architectures.
_PCREL_SDATA4 = 0x1B


class Segment(Struct, frozen=True, kw_only=True):
    """What of the file is loaded where."""

    offset: int
    size: int
    address: int
    executable: bool


class Functions(Struct, frozen=True, kw_only=True):
    """Where functions begin, in order, and how long they are."""

    starts: "array[int]"
    sizes: "array[int]"
    names: "array[int]"
    """Where each name is in the table of strings; empty where there are no names."""

    def at(self, address: int) -> int | None:
        """The number of the function that holds the address."""
        found = bisect_right(self.starts, address) - 1
        # Another one at the same place, or one inside, may be shorter: a few are tried.
        for index in range(found, max(found - 4, -1), -1):
            if address < self.starts[index] + self.sizes[index]:
                return index
        return None


def ordered(rows: list[tuple[int, int, int]]) -> Functions:
    """By their addresses; rows are address, size, and where the name is."""
    rows.sort()
    return Functions(
        starts=array("Q", (row[0] for row in rows)),
        sizes=array("Q", (row[1] for row in rows)),
        names=array("Q", (row[2] for row in rows)),
    )


class ElfSymbols:
    """One file, opened by whoever made this; closed with ``close``."""

    def __init__(self, descriptor: int) -> None:
        """Read its tables. Raises OSError where it is no ELF file that can be read."""
        self._descriptor = descriptor
        self._strings = 0
        self._symbols = self._unwound = ordered([])
        self.segments: tuple[Segment, ...] = ()
        self.build_id: str | None = None
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(22, "not a regular file")
        self._check()
        with os.fdopen(os.dup(descriptor), "rb") as file:
            try:
                self._read(file)
            except OSError:
                raise
            except Exception as error:  # noqa: BLE001 -- a parser given hostile data
                raise OSError(22, f"not a sound ELF file: {type(error).__name__}") from None

    @property
    def named(self) -> bool:
        """Whether it has the names of functions."""
        return bool(self._symbols.starts)

    def address(self, offset: int) -> int | None:
        """The address, as the file counts, of what is at an offset in the file."""
        for segment in self.segments:
            if segment.offset <= offset < segment.offset + segment.size:
                return offset - segment.offset + segment.address
        return None

    def name(self, address: int) -> str | None:
        """The function at an address as the file counts."""
        found = self._symbols.at(address)
        if found is None:
            return None
        raw = os.pread(self._descriptor, _NAME_BYTES, self._strings + self._symbols.names[found])
        return c_string(raw) or None

    def start(self, address: int) -> int:
        """Where the function begins that holds the address, if the file tells; or the address."""
        found = self._unwound.at(address)
        return address if found is None else self._unwound.starts[found]

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _check(self) -> None:
        """Refuse what would have the parser read for ever."""
        raw = os.pread(self._descriptor, _HEADER.size, 0)
        if len(raw) < _HEADER32.size or raw[:4] != b"\x7fELF" or raw[5] != 1:
            raise OSError(22, "not an ELF file of this machine's byte order")
        wide = raw[4] == 2
        if wide and len(raw) < _HEADER.size:
            raise OSError(22, "cut ELF file")
        header = _HEADER.unpack(raw) if wide else _HEADER32.unpack(raw[: _HEADER32.size])
        segments, section_bytes, sections = header[10], header[11], header[12]
        # No section at all, but a place for them: their number is elsewhere and has no bounds.
        if not sections and header[6]:
            raise OSError(22, "ELF file with countless sections")
        if segments > _MOST_SEGMENTS or sections > _MOST_SECTIONS or section_bytes > 256:
            raise OSError(22, "ELF file with too many sections")

    def _read(self, file: Any) -> None:
        from elftools.elf.elffile import ELFFile

        elf = ELFFile(file)
        self.segments = tuple(
            Segment(
                offset=one["p_offset"],
                size=one["p_filesz"],
                address=one["p_vaddr"],
                executable=bool(one["p_flags"] & _PF_X),
            )
            for one in elf.iter_segments(type="PT_LOAD")
        )
        self.build_id = self._build_id(elf)
        sections = list(_sections(elf, file))
        for kind in ("SHT_SYMTAB", "SHT_DYNSYM"):
            for section in sections:
                if section["sh_type"] == kind and not self.named:
                    self._take_symbols(elf, section, sections)
        self._take_frames(sections, sections[elf["e_shstrndx"]] if sections else None)

    def _take_symbols(self, elf: Any, section: Any, sections: list[Any]) -> None:
        layout = _SYMBOL64 if elf.elfclass == 64 else _SYMBOL32
        count = min(section["sh_size"] // layout.size, MOST_SYMBOLS)
        raw = os.pread(self._descriptor, count * layout.size, section["sh_offset"])
        self._strings = sections[section["sh_link"]]["sh_offset"]
        ends = [one["sh_addr"] + one["sh_size"] for one in sections]
        self._symbols = ordered(list(closed(list(symbols(raw, layout)), ends)))

    def _take_frames(self, sections: list[Any], names: Any) -> None:
        for one in sections:
            if not 0 < one["sh_size"] <= _MOST_FRAME_BYTES:
                continue
            name = os.pread(self._descriptor, 10, names["sh_offset"] + one["sh_name"])
            if name == b".eh_frame\0":
                raw = os.pread(self._descriptor, one["sh_size"], one["sh_offset"])
                self._unwound = ordered(list(unwound(raw, one["sh_addr"])))

    def _build_id(self, elf: Any) -> str | None:
        for segment in elf.iter_segments(type="PT_NOTE"):
            raw = os.pread(self._descriptor, min(segment["p_filesz"], 4096), segment["p_offset"])
            found = build_id(raw)
            if found is not None:
                return found
        return None


def _sections(elf: Any, file: Any) -> Iterator[Any]:
    """The headers of its sections alone: making sections of them reads what those tell to."""
    from elftools.common.utils import struct_parse

    for number in range(elf["e_shnum"]):
        place = elf["e_shoff"] + number * elf["e_shentsize"]
        yield struct_parse(elf.structs.Elf_Shdr, file, stream_pos=place)


def symbols(raw: bytes, layout: struct.Struct) -> Iterator[tuple[int, int, int, int]]:
    """Address, size, place of the name and section of every function in a table of symbols."""
    wide = layout is _SYMBOL64
    whole = len(raw) // layout.size * layout.size
    for row in layout.iter_unpack(raw[:whole]):
        name, info, section, address, size = (
            (row[0], row[1], row[3], row[4], row[5])
            if wide
            else (row[0], row[3], row[5], row[1], row[2])
        )
        if section and address and info & 15 in (_STT_FUNC, _STT_GNU_IFUNC):
            yield address, size, name, section


def closed(
    rows: list[tuple[int, int, int, int]], ends: list[int]
) -> Iterator[tuple[int, int, int]]:
    """Address, size and place of the name; what tells no size ends with the next or its section.

    >>> list(closed([(16, 0, 1, 1), (32, 4, 2, 1), (48, 0, 3, 1)], [0, 56]))
    [(16, 16, 1), (32, 4, 2), (48, 8, 3)]
    """
    rows.sort()
    for number, (address, size, name, section) in enumerate(rows):
        if not size and section < len(ends):
            following = rows[number + 1][0] if number + 1 < len(rows) else ends[section]
            size = max(min(following, ends[section]) - address, 0)
        yield address, size & 0xFFFFFFFFFFFFFFFF, name


def build_id(notes: bytes) -> str | None:
    """The build id among the notes of a file (NT_GNU_BUILD_ID), in hexadecimal digits.

    >>> build_id(bytes.fromhex("04000000 02000000 03000000 474e5500 c0de0000"))
    'c0de'
    """
    at = 0
    while at + 12 <= len(notes):
        name_size, size, kind = struct.unpack_from("<III", notes, at)
        name = at + 12
        content = name + (name_size + 3 & ~3)
        if kind == 3 and notes[name : name + 4] == b"GNU\0":
            return notes[content : content + min(size, 64)].hex()
        at = content + (size + 3 & ~3)
    return None


def unwound(raw: bytes, base: int) -> Iterator[tuple[int, int, int]]:
    """Address and size of every function for which ``.eh_frame`` tells how to unwind it.

    Stripping leaves it in the file: so functions without a name can still be told apart.
    (Linux Standard Base, "Exception Frames".)
    """
    at, found = 0, 0
    encodings: dict[int, bool] = {}
    while at + 8 <= len(raw) and found < MOST_SYMBOLS:
        size, back = struct.unpack_from("<II", raw, at)
        if size in (0, 0xFFFFFFFF):
            at += 4
            continue
        if not back:
            encodings[at] = _relative(raw[at + 8 : at + 4 + size])
        elif encodings.get(at + 4 - back) and at + 16 <= len(raw):
            start, length = struct.unpack_from("<iI", raw, at + 8)
            found += 1
            yield (base + at + 8 + start) & 0xFFFFFFFFFFFFFFFF, length, 0
        at += 4 + size


def _relative(entry: bytes) -> bool:
    """Whether the functions of that common entry are named by the usual encoding."""
    version, _, rest = entry[:1], *entry[1:].partition(b"\0")[::2]
    augmentation = entry[1:].partition(b"\0")[0]
    if version not in (b"\1", b"\3") or not augmentation.startswith(b"z"):
        return False
    rest = _skipped(_skipped(_skipped(_skipped(rest))))  # alignments, register, length
    for letter in augmentation[1:]:
        if letter == ord("R"):
            return rest[:1] == bytes((_PCREL_SDATA4,))
        # P: an encoding and a pointer of it; L: an encoding; S, B: nothing.
        rest = rest[{ord("P"): 1 + _pointer_size(rest), ord("L"): 1}.get(letter, 0) :]
    return False


def _skipped(data: bytes) -> bytes:
    """What follows a number of variable length (LEB128)."""
    at = 0
    while at < len(data) and data[at] & 0x80:
        at += 1
    return data[at + 1 :]


def _pointer_size(data: bytes) -> int:
    return {2: 2, 3: 4, 4: 8, 10: 2, 11: 4, 12: 8}.get(data[0] & 15 if data else 0, 8)
