"""Stacks as pictures: a flame graph that needs nothing but itself, and what other tools read.

A stack is the name of a process, its frames from the outermost on, and a weight. Names come from
inside containers: every one is made printable and escaped before it stands in a picture.
"""

import colorsys
import html as markup
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol
from zlib import crc32

from msgspec import Struct

from whybox.kernel.host import printable
from whybox.views.flamepage import PAGE, SCRIPT, SEARCH, STYLE

WIDTH, MARGIN, TOP, BOTTOM, ROW = 1200, 16, 78, 44, 19
_INNER = WIDTH - 2 * MARGIN
#: Narrower frames are not drawn, and no more than so many.
_NARROWEST = 0.4
_MOST_FRAMES = 15_000
_MOST_DEPTH = 300
_NAME_CHARACTERS = 160
_CHARACTER = 6.7

_MARK = re.compile(r"_\[[kji]\]$")
#: What no XML document may hold, besides the control characters that ``printable`` spells out.
_FORBIDDEN = re.compile("[\ud800-\udfff\ufffe\uffff]")


class Weighed(Protocol):
    """A stack, as answers have it."""

    @property
    def process(self) -> str: ...
    @property
    def frames(self) -> tuple[str, ...]: ...
    @property
    def weight(self) -> int: ...


class Unit(Struct, frozen=True, kw_only=True):
    """What weights are."""

    speedscope: str
    """``none``, ``microseconds``."""
    shown: Callable[[int], str]
    """A weight in words."""
    hues: tuple[tuple[str, float], ...] = ()
    """Frames with a hue of their own (0 to 1), such as what stands for a state."""


class Node:
    """One box of the picture."""

    __slots__ = ("below", "name", "weight")

    def __init__(self, name: str) -> None:
        self.name = name
        self.weight = 0
        self.below: dict[str, Node] = {}


class _Box(Struct, frozen=True, kw_only=True):
    """Where a node is drawn: ``left`` and ``share`` are parts of the whole width."""

    node: Node
    depth: int
    left: float
    share: float


def safe(name: str) -> str:
    r"""A name as it may stand in markup.

    >>> safe("a<b>&\x1b")
    'a&lt;b&gt;&amp;\\x1b'
    """
    shown = _FORBIDDEN.sub("?", printable(name))
    if len(shown) > _NAME_CHARACTERS:
        shown = shown[: _NAME_CHARACTERS - 1] + "…"
    return markup.escape(shown)


def collapsed(stacks: Iterable[Weighed]) -> str:
    """The format of flamegraph.pl: a line for each stack, the names between semicolons."""
    lines = []
    for stack in stacks:
        names = (_plain(name) for name in (stack.process, *stack.frames))
        lines.append(f"{';'.join(names)} {stack.weight}\n")
    return "".join(lines)


def _plain(name: str) -> str:
    return printable(name).replace(";", ":") or "?"


def speedscope(stacks: Sequence[Weighed], title: str, unit: Unit) -> str:
    """The file format of speedscope.app."""
    numbers: dict[str, int] = {}
    samples = []
    for stack in stacks:
        names = (printable(name) for name in (stack.process, *stack.frames))
        samples.append([numbers.setdefault(name, len(numbers)) for name in names])
    weights = [stack.weight for stack in stacks]
    profile = {
        "type": "sampled",
        "name": printable(title),
        "unit": unit.speedscope,
        "startValue": 0,
        "endValue": sum(weights),
        "samples": samples,
        "weights": weights,
    }
    file = {
        "$schema": "https://www.speedscope.app/file-format-schema.json",
        "name": printable(title),
        "exporter": "whybox",
        "activeProfileIndex": 0,
        "shared": {"frames": [{"name": name} for name in numbers]},
        "profiles": [profile],
    }
    return json.dumps(file, ensure_ascii=True) + "\n"


def svg(stacks: Iterable[Weighed], title: str, unit: Unit) -> str:
    """A flame graph as one SVG file: hover, click to zoom, search."""
    search = SEARCH.format(x=WIDTH - MARGIN - 240)
    script = f"<script><![CDATA[{SCRIPT}]]></script>"
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + _drawn(stacks, title, unit, search + script)


def html(stacks: Iterable[Weighed], title: str, unit: Unit) -> str:
    """The same as one page."""
    picture = _drawn(stacks, title, unit, "")
    return PAGE.format(title=safe(title), picture=picture, script=SCRIPT)


def _drawn(stacks: Iterable[Weighed], title: str, unit: Unit, inside: str) -> str:
    root = tree(stacks)
    boxes = list(_boxes(root))
    rows = max((box.depth for box in boxes), default=0) + 1
    height = TOP + rows * ROW + BOTTOM
    drawn = "".join(_box(box, root.weight, height, unit) for box in boxes)
    return (
        f'<svg class="flame" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"'
        f' width="{WIDTH}" height="{height}" data-inner="{_INNER}" data-margin="{MARGIN}">'
        f"<title>{safe(title)}</title><style>{STYLE}</style>"
        f'<rect class="back" width="{WIDTH}" height="{height}"/>'
        f'<text class="title" x="{MARGIN}" y="32">{safe(title)}</text>'
        f'<text class="sub" x="{MARGIN}" y="54">{safe(unit.shown(root.weight))}</text>'
        f"{_legend(root, unit)}"
        f'<g class="frames">{drawn}</g>'
        f'<text class="sub detail" x="{MARGIN}" y="{height - 16}"> </text>'
        f'<text class="sub matched" x="{WIDTH - MARGIN}" y="{height - 16}"'
        f' text-anchor="end"> </text>{inside}</svg>\n'
    )


def tree(stacks: Iterable[Weighed]) -> Node:
    """All stacks in one, merged where they begin alike."""
    root = Node("all")
    for stack in stacks:
        root.weight += stack.weight
        node = root
        for name in (stack.process, *stack.frames)[:_MOST_DEPTH]:
            node = node.below.setdefault(name, Node(name))
            node.weight += stack.weight
    return root


def _boxes(root: Node) -> Iterator[_Box]:
    """Level by level, so that what is left out of too large a picture is the innermost."""
    level = [_Box(node=root, depth=0, left=0.0, share=1.0)] if root.weight else []
    drawn = 0
    while level and drawn < _MOST_FRAMES:
        yield from level[: _MOST_FRAMES - drawn]
        drawn += len(level)
        level = [below for box in level for below in _below(box)]


def _below(box: _Box) -> Iterator[_Box]:
    left = box.left
    for node in sorted(box.node.below.values(), key=lambda node: (-node.weight, node.name)):
        share = box.share * node.weight / box.node.weight
        if share * _INNER >= _NARROWEST:
            yield _Box(node=node, depth=box.depth + 1, left=left, share=share)
        left += share


def _box(box: _Box, whole: int, height: int, unit: Unit) -> str:
    name = _MARK.sub("", box.node.name)
    x, width = MARGIN + box.left * _INNER, box.share * _INNER
    y = height - BOTTOM - (box.depth + 1) * ROW
    told = f"{name} — {unit.shown(box.node.weight)}, {100 * box.node.weight / whole:.2f} %"
    shown = safe(_fitting(printable(name), width))
    return (
        f'<g class="f" data-x="{box.left:.6f}" data-w="{box.share:.6f}" data-d="{box.depth}"'
        f' data-n="{safe(name)}"><title>{safe(told)}</title>'
        f'<rect x="{x:.2f}" y="{y}" width="{max(width - 0.6, 0.3):.2f}" height="{ROW - 1}" rx="2"'
        f' fill="{colour(box.node.name, box.depth, unit)}"/>'
        f'<text x="{x + 4:.2f}" y="{y + 13}">{shown}</text></g>'
    )


def _fitting(name: str, width: float) -> str:
    room = int((width - 8) / _CHARACTER)
    if room < 3:
        return ""
    return name if len(name) <= room else name[: room - 1] + "…"


def colour(name: str, depth: int, unit: Unit) -> str:
    """By what a frame is; those of one kind differ a little, the same name never."""
    chance = crc32(name.encode("utf-8", "replace")) / 0xFFFFFFFF
    if depth <= 1:
        hue, saturation, light = 0.6, 0.10, 0.80
    elif (own := dict(unit.hues).get(name)) is not None:
        hue, saturation, light = own, 0.62, 0.76
    elif name.endswith("_[k]"):
        hue, saturation, light = 0.555 + 0.075 * chance, 0.62, 0.70 + 0.08 * chance
    elif name.endswith("_[j]"):
        hue, saturation, light = 0.28 + 0.12 * chance, 0.42, 0.68
    elif name.startswith("["):
        hue, saturation, light = 0.10, 0.16, 0.74 + 0.06 * chance
    else:
        hue, saturation, light = 0.035 + 0.09 * chance, 0.86, 0.66 + 0.06 * chance
    red, green, blue = colorsys.hls_to_rgb(hue, light, saturation)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"


_KINDS = (("user space", "f"), ("kernel", "f_[k]"), ("JIT", "f_[j]"), ("no name", "[f]"))


def _legend(root: Node, unit: Unit) -> str:
    """The kinds of frames that are there."""
    names = set(_names(root, 0))
    kinds = [(label, name) for label, name in _KINDS if any(_alike(n, name) for n in names)]
    kinds += [(name, name) for name, _ in unit.hues if name in names]
    drawn, x = [], float(MARGIN + 330)
    for label, name in kinds:
        fill = colour(name, 2, unit)
        drawn.append(f'<rect x="{x:.0f}" y="44" width="12" height="12" rx="2" fill="{fill}"/>')
        drawn.append(f'<text class="sub" x="{x + 17:.0f}" y="54">{safe(label)}</text>')
        x += 17 + 6.2 * len(label) + 22
    return "".join(drawn)


def _names(node: Node, depth: int) -> Iterator[str]:
    for below in node.below.values():
        if depth:
            yield below.name
        if depth < _MOST_DEPTH:
            yield from _names(below, depth + 1)


def _alike(name: str, kind: str) -> bool:
    """Whether a frame is of a kind, of which one is given."""
    if kind == "f":
        return not name.startswith("[") and not _MARK.search(name)
    return name.startswith("[") if kind.startswith("[") else name.endswith(kind[1:])
