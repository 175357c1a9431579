"""A way that was walked as a picture: one SVG file that needs nothing else, light or dark.

Each namespace on the way is a column, in the order in which it is met; the way there goes down on
the left side of the columns, the answer comes below it. The first hop that is broken is crossed.
"""

from collections.abc import Iterator
from itertools import pairwise

from whybox.model import Hop
from whybox.views.histogram_svg import text

#: In pixels.
COLUMN, ROW, TOP, LEFT = 330, 46, 96, 20
#: What fits into a column.
LONGEST_NAME, LONGEST_WORDS, LONGEST_TITLE = 38, 46, 60

_STYLE = """
text { font: 13px system-ui, "Segoe UI", "DejaVu Sans", sans-serif; fill: #44505c }
.title { font-size: 19px; font-weight: 600; fill: #16202a }
.where { font-weight: 600; fill: #16202a }
.says { font-size: 11px }
.ground { fill: #ffffff }
.space { fill: #f4f7fa; stroke: #d5dde5 }
.way { stroke: #2f7ed8; stroke-width: 2; fill: none }
.back { stroke-dasharray: 5 4 }
.hop { fill: #2f7ed8 }
.broken { fill: #d1242f }
@media (prefers-color-scheme: dark) {
  text { fill: #a8b3bf } .title, .where { fill: #eef2f6 } .ground { fill: #14191f }
  .space { fill: #1b222a; stroke: #2a323b } .way { stroke: #58a6ff }
  .hop { fill: #58a6ff } .broken { fill: #f85149 }
}
"""


def svg(hops: tuple[Hop, ...], title: str) -> str:
    """The picture."""
    columns = {where: place for place, where in enumerate(dict.fromkeys(h.where for h in hops))}
    width = 2 * LEFT + COLUMN * max(len(columns), 1)
    height = TOP + ROW * (len(hops) + 1)
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
            f' width="{width}" height="{height}" role="img">',
            f"<title>{text(title)}</title>",
            f"<style>{_STYLE}</style>",
            f'<rect class="ground" width="{width}" height="{height}"/>',
            f'<text class="title" x="{LEFT}" y="32">{text(_cut(title, LONGEST_TITLE))}</text>',
            *_spaces(columns, height),
            *_lines(hops, columns),
            *_hops(hops, columns),
            "</svg>\n",
        )
    )


def _spaces(columns: dict[str, int], height: int) -> Iterator[str]:
    for where, place in columns.items():
        x = LEFT + place * COLUMN
        yield (
            f'<rect class="space" x="{x + 4}" y="52" width="{COLUMN - 8}"'
            f' height="{height - 64}" rx="8"/>'
        )
        yield f'<text class="where" x="{x + 16}" y="74">{text(where)}</text>'


def _place(hop: Hop, row: int, columns: dict[str, int]) -> tuple[int, int]:
    return LEFT + columns[hop.where] * COLUMN + 26, TOP + row * ROW


def _lines(hops: tuple[Hop, ...], columns: dict[str, int]) -> Iterator[str]:
    for row, (one, other) in enumerate(pairwise(hops)):
        x, y = _place(one, row, columns)
        to_x, to_y = _place(other, row + 1, columns)
        kind = "way back" if other.back else "way"
        yield f'<path class="{kind}" d="M{x} {y} V{(y + to_y) // 2} H{to_x} V{to_y}"/>'


def _hops(hops: tuple[Hop, ...], columns: dict[str, int]) -> Iterator[str]:
    for row, hop in enumerate(hops):
        x, y = _place(hop, row, columns)
        kind = "broken" if hop.broken else "hop"
        yield f'<circle class="{kind}" cx="{x}" cy="{y}" r="{9 if hop.broken else 6}"/>'
        if hop.broken:
            yield f'<path d="M{x - 4} {y - 4} l8 8 m0 -8 l-8 8" stroke="#fff" stroke-width="2"/>'
        yield f"<g><title>{text(f'{hop.name}: {hop.says}')}</title>"
        yield f'<text x="{x + 18}" y="{y - 2}">{text(_cut(hop.name, LONGEST_NAME))}</text>'
        says = text(_cut(hop.says, LONGEST_WORDS))
        yield f'<text class="says" x="{x + 18}" y="{y + 13}">{says}</text></g>'


def _cut(words: str, longest: int) -> str:
    return words if len(words) <= longest else f"{words[: longest - 1]}…"
