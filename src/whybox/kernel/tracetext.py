r"""What ``trace_pipe`` prints, parsed. Pure, and safe from the names in it.

A task may call itself anything of up to 15 bytes, a line feed or ``x pid=1 res=1`` included, and
the kernel prints that as it is (measured on 6.18). So the text is not cut into lines: a record
begins where a head stands that is longer than any name, and its fields are found with the event's
own format.

>>> format = b'print fmt: "comm=%s pid=%d res=%d", REC->comm, REC->pid, REC->res\n'
>>> raw = b"            bash-7  [000] d..1.  16.250000: signal: comm=x pid=1 res=1 pid=8 res=0\n"
>>> [record.event({"signal": layout(format)}).fields["pid"] for record in records(raw)]
['8']
"""

import re
from collections.abc import Iterator, Mapping

from msgspec import Struct

from whybox.kernel.host import decode

#: The name is printed to this width (``%16s-%-7d``) and is shorter than that.
_NAME_WIDTH = 16

#: From the pid up to the event's name. A task's name cannot forge this: it is too long for one.
_HEAD = re.compile(
    rb"-(?P<pid>\d+) +(?:\([ \d-]+\) +)?\[(?P<cpu>\d{3,})\] \S+ +(?P<seconds>\d+\.\d{6}): "
    rb"(?P<name>\w+): "
)
_LOST = re.compile(rb"^CPU:\d+ \[LOST (?:(\d+) )?EVENTS\]\n", re.MULTILINE)

_PRINTED = re.compile(rb'^print fmt: "((?:[^"\\]|\\.)*)"', re.MULTILINE)
#: Not compiled beforehand, which takes 2 ms: only who reads events as text needs it.
_CONVERSION = (
    rb"(?P<prefix>(?:(?P<key>[a-zA-Z_]\w*)(?:=|: ?))?)%[-+ #0-9.*]*(?P<kind>p\w*|[a-zA-Z]+)"
)

#: How to read the fields of one kind of event; ``None``: its format is beyond us.
Layout = re.Pattern[bytes] | None


class Event(Struct, frozen=True, kw_only=True):
    """One thing that happened, and the task in whose context it did."""

    comm: str
    """A cached name: of the task's past perhaps, and whatever the task calls itself."""
    pid: int
    """The thread's pid in the host's pid namespace."""
    cpu: int
    seconds: float
    """Of the monotonic clock."""
    name: str
    fields: dict[str, str]
    """Empty where the text did not fit the event's own format."""


class Record(Struct, frozen=True, kw_only=True):
    """One printed record, before its fields are looked at."""

    raw: bytes
    comm: bytes
    pid: int
    cpu: int
    seconds: float
    name: str
    body: bytes

    def event(self, layouts: Mapping[str, Layout]) -> Event:
        """The same with its fields."""
        return Event(
            comm=decode(self.comm),
            pid=self.pid,
            cpu=self.cpu,
            seconds=self.seconds,
            name=self.name,
            fields=_fields(self.body, layouts.get(self.name)),
        )


def records(raw: bytes) -> Iterator[Record]:
    """Every record in what ``trace_pipe`` printed."""
    # What was lost is told by ``lost_events``; here it would hide in the record before it.
    text = _LOST.sub(b"", raw)
    heads = list(_HEAD.finditer(text))
    for head, following in zip(heads, [*heads[1:], None], strict=False):
        begin = max(0, head.start() - _NAME_WIDTH)
        end = len(text) if following is None else max(head.end(), following.start() - _NAME_WIDTH)
        yield Record(
            raw=text[begin:end].removesuffix(b"\n"),
            comm=text[begin : head.start()].lstrip(b" "),
            pid=int(head["pid"]),
            cpu=int(head["cpu"]),
            seconds=float(head["seconds"]),
            name=decode(head["name"]),
            body=text[head.end() : end].removesuffix(b"\n"),
        )


def lost_events(raw: bytes) -> int:
    """How many events the kernel says were overwritten; an unknown number counts as one."""
    return sum(int(lost[1] or 1) for lost in _LOST.finditer(raw))


def layout(format: bytes) -> Layout:
    """How to read an event's fields, from its ``format`` file."""
    printed = _PRINTED.search(format)
    if printed is None:
        return None
    pattern, at = b"", 0
    named: set[bytes | None] = set()
    for part in re.finditer(_CONVERSION, printed[1]):
        pattern += re.escape(printed[1][at : part.start()])
        pattern += _group(part, new=part["key"] not in named)
        named.add(part["key"])
        at = part.end()
    return re.compile(pattern + re.escape(printed[1][at:]) + rb"\Z", re.DOTALL)


def _group(part: re.Match[bytes], *, new: bool) -> bytes:
    kind = part["kind"][-1:]
    value = rb"-?\d+" if kind in b"diu" else rb"(?:0x)?[0-9a-f]+" if kind in b"xX" else rb".*"
    named = b"?P<" + part["key"] + b">" if part["key"] and new else b"?:"
    return re.escape(part["prefix"]) + b"(" + named + value + b")"


def _fields(body: bytes, layout: Layout) -> dict[str, str]:
    found = None if layout is None else layout.match(body)
    return {} if found is None else {k: decode(v) for k, v in found.groupdict().items()}
