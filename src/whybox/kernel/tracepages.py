r"""Pages of a trace buffer as the kernel keeps them (``trace_pipe_raw``). Pure.

A page has a time and how much of it is in use, then records: a word that tells the length and how
much later than the one before it is, and the event's fields at the places that its ``format`` file
tells (include/linux/ring_buffer.h, ``struct ring_buffer_event``). No names are in it but those that
an event holds, so a task cannot forge anything by what it calls itself.

>>> event = struct.pack("=HBBiQi", 11, 0, 0, 42, 0xffffffff81000000, 0)
>>> page = struct.pack("=QQI", 1000, 4 + len(event), 7 << 5 | len(event) // 4) + event
>>> [(record.at, record.kind, record.pid) for record in parsed(page).records]
[(1007, 11, 42)]
"""

import re
import struct
from collections.abc import Iterator, Mapping

from msgspec import Struct

_HEAD = struct.Struct("=QQ")
_WORD = struct.Struct("=I")
_COMMON = struct.Struct("=HBBi")

#: kernel/trace/ring_buffer.c, ``RB_MISSED_EVENTS`` and ``RB_MISSED_STORED``.
_MISSED, _MISSED_STORED = 1 << 31, 1 << 30
_LENGTH = _MISSED_STORED - 1

#: ``enum ring_buffer_type``.
_LONGEST_SHORT, _PADDING, _TIME_EXTEND, _TIME_STAMP = 28, 29, 30, 31
_TIME_SHIFT = 27

#: The upper bits of a time that an absolute stamp leaves out (``TS_MSB``).
_TIME_TOP = 0xF8 << 56

_FIELD = re.compile(r"\tfield:[^;]*?(\w+)(?:\[\d*\])?;\toffset:(\d+);\tsize:(\d+);\tsigned:([01]);")
_ID = re.compile(r"^ID: (\d+)$", re.MULTILINE)
_CODES = {1: "b", 2: "h", 4: "i", 8: "q"}


class Record(Struct, frozen=True, kw_only=True):
    """One event."""

    at: int
    """By the instance's clock: of ``mono``, nanoseconds."""
    kind: int
    """The number of its event."""
    pid: int
    """The thread's, by the host."""
    body: bytes
    """All its fields, the common ones included."""


class Page(Struct, frozen=True, kw_only=True):
    """One page."""

    records: list[Record]
    lost: int
    """Events that were overwritten before it; an unknown number counts as one."""


class Format(Struct, frozen=True, kw_only=True):
    """Where the fields of one event are, from its ``format`` file."""

    kind: int
    fields: Mapping[str, tuple[int, str]]
    """By name: the place, and how ``struct`` calls the type."""

    def get(self, body: bytes, name: str) -> int | None:
        """A field, or ``None`` where this kernel's event has none such."""
        if name not in self.fields:
            return None
        place, code = self.fields[name]
        if place + struct.calcsize(code) > len(body):
            return None
        value: int = struct.unpack_from(code, body, place)[0]
        return value


def format(text: str) -> Format:
    r"""Parse a ``format`` file.

    >>> text = "ID: 11\n\tfield:unsigned long func;\toffset:8;\tsize:8;\tsigned:0;\n"
    >>> format(text)
    Format(kind=11, fields={'func': (8, '=Q')})
    """
    number = _ID.search(text)
    fields = {
        name: (int(place), "=" + (code if signed == "1" else code.upper()))
        for name, place, size, signed in _FIELD.findall(text)
        if (code := _CODES.get(int(size))) is not None
    }
    return Format(kind=-1 if number is None else int(number[1]), fields=fields)


def parsed(page: bytes) -> Page:
    """The records of one page; of a torn one, those that are whole."""
    if len(page) < _HEAD.size:
        return Page(records=[], lost=0)
    at, commit = _HEAD.unpack_from(page)
    end = min(_HEAD.size + (commit & _LENGTH), len(page))
    lost = 0
    if commit & _MISSED:
        stored = commit & _MISSED_STORED and end + 8 <= len(page)
        lost = int.from_bytes(page[end : end + 8], "little") if stored else 1
    return Page(records=list(_records(page, end, at)), lost=lost)


def _records(page: bytes, end: int, at: int) -> Iterator[Record]:
    place = _HEAD.size
    while place + _WORD.size <= end:
        (word,) = _WORD.unpack_from(page, place)
        kind, delta = word & 31, word >> 5
        begin = place + _WORD.size
        if 0 < kind <= _LONGEST_SHORT:
            place, at = begin + 4 * kind, at + delta
            if place <= end:
                yield _record(page[begin:place], at)
            continue
        if begin + _WORD.size > end or (kind == _PADDING and not delta):
            return
        (more,) = _WORD.unpack_from(page, begin)
        place = begin + _WORD.size
        if kind == _TIME_EXTEND:
            at += delta + (more << _TIME_SHIFT)
        elif kind == _TIME_STAMP:
            at = at & _TIME_TOP | delta + (more << _TIME_SHIFT)
        else:  # its length is in a word of its own, and counts that word
            place = begin + max(more, _WORD.size)
            at += 0 if kind == _PADDING else delta
            if kind == 0 and place <= end:
                yield _record(page[begin + _WORD.size : place], at)


def _record(body: bytes, at: int) -> Record:
    if len(body) < _COMMON.size:
        return Record(at=at, kind=-1, pid=0, body=b"")
    kind, _, _, pid = _COMMON.unpack_from(body)
    return Record(at=at, kind=kind, pid=pid, body=body)
