"""The way of packets, drawn: a box for each hop, from the container on the left outwards.

One file without any other: no script, no font, no picture from elsewhere.
"""

import re
from collections.abc import Iterator, Sequence
from html import escape

from msgspec import Struct

from whybox.kernel.host import printable

_WIDTH, _HEIGHT, _GAP, _MARGIN, _TOP, _LINE = 190, 64, 46, 20, 64, 15
_MOST_BOXES, _MOST_REASONS, _MOST_LETTERS = 12, 6, 27

#: What no XML may hold, however it is written (https://www.w3.org/TR/xml/#charsets).
_FORBIDDEN = re.compile("[\ud800-\udfff\ufffe\uffff]")

_FILLS = {
    "container": "#dbeafe",
    "wire": "#e0f2fe",
    "bridge": "#dcfce7",
    "host": "#f3f4f6",
    "elsewhere": "#fef3c7",
}
_STYLE = "font-family: Helvetica, Arial, sans-serif; font-size: 12px; fill: #111827"


class Box(Struct, frozen=True, kw_only=True):
    """One hop."""

    title: str
    below: str
    stage: str
    drops: tuple[tuple[int, str], ...]
    """How many packets, and why, the most frequent first."""


def svg(boxes: Sequence[Box], title: str, dropped: int) -> str:
    """The whole picture."""
    shown = boxes[:_MOST_BOXES]
    width = 2 * _MARGIN + max(len(shown), 2) * (_WIDTH + _GAP) - _GAP
    rows = max((len(_reasons(box)) for box in shown), default=0)
    height = _TOP + _HEIGHT + 34 + (rows + 1) * _LINE + _MARGIN
    more = len(boxes) - len(shown)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
        f' viewBox="0 0 {width} {height}" style="{_STYLE}">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        _text(_MARGIN, 24, title, size=15, most=width // 8),
        _text(_MARGIN, 44, _summary(dropped, more), most=width // 6),
        *(line for n, box in enumerate(shown) for line in _box(n, box, last=n == len(shown) - 1)),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _summary(dropped: int, more: int) -> str:
    says = f"{dropped} packets dropped" if dropped else "no packet was dropped"
    return f"{says}; {more} more hops are not drawn" if more else says


def _box(number: int, box: Box, *, last: bool) -> Iterator[str]:
    left, middle = _MARGIN + number * (_WIDTH + _GAP), _TOP + _HEIGHT // 2
    dropped = sum(count for count, _ in box.drops)
    edge = ("#dc2626", 2.5) if dropped else ("#6b7280", 1)
    yield (
        f'<rect x="{left}" y="{_TOP}" width="{_WIDTH}" height="{_HEIGHT}" rx="6"'
        f' fill="{_FILLS.get(box.stage, "#f3f4f6")}" stroke="{edge[0]}" stroke-width="{edge[1]}"/>'
    )
    yield _text(left + 10, _TOP + 24, box.title, size=15, most=20)
    yield _text(left + 10, _TOP + 46, box.below, size=11)
    if not last:
        yield _arrow(left + _WIDTH, middle)
    if dropped:
        under = _TOP + _HEIGHT + 26
        yield _text(left + 10, under, f"✕ {dropped} dropped", size=15, fill="#dc2626")
        for row, line in enumerate(_reasons(box), start=1):
            yield _text(left + 10, under + row * _LINE, line, fill="#b91c1c", size=10, most=34)


def _reasons(box: Box) -> list[str]:
    lines = [f"{count} {why}" for count, why in box.drops[:_MOST_REASONS]]
    more = len(box.drops) - _MOST_REASONS
    return [*lines, f"and {more} more"] if more > 0 else lines


def _arrow(left: int, middle: int) -> str:
    right = left + _GAP - 4
    return (
        f'<path d="M{left + 4} {middle} H{right} m-7 -5 l7 5 l-7 5" fill="none"'
        ' stroke="#6b7280" stroke-width="1.5"/>'
    )


def _text(
    x: int, y: int, text: str, *, size: int = 12, fill: str = "#111827", most: int = _MOST_LETTERS
) -> str:
    whole = _FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", printable(text))
    cut = whole if len(whole) <= most else whole[: most - 1] + "…"
    tip = f"<title>{escape(whole)}</title>" if cut != whole else ""
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" style="font-size: {size}px; fill: {fill}">'
        f"{escape(cut)}{tip}</text>"
    )
