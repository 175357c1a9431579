"""A histogram as a picture: one SVG file that needs nothing else, light or dark as its reader is.

Buckets are neighbours on the axis, so the label of each stands at its left edge, where it begins.
"""

from collections.abc import Iterator, Sequence
from html import escape

from whybox.kernel.host import printable

#: In pixels. The frame around the bars is what is left between the margins.
WIDTH, HEIGHT = 960, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 84, 28, 76, 66

#: Names and titles may come from a container.
_LONGEST_TEXT = 160

_STYLE = """
text { font: 13px system-ui, "Segoe UI", "DejaVu Sans", sans-serif; fill: #44505c }
.title { font-size: 19px; font-weight: 600; fill: #16202a }
.value { font-size: 11px; fill: #16202a }
.empty { font-size: 15px }
.ground { fill: #ffffff }
.grid { stroke: #e3e8ed; stroke-width: 1 }
.axis { stroke: #8a96a3; stroke-width: 1 }
.bar { fill: #2f7ed8 }
.bar:hover { fill: #f0883e }
@media (prefers-color-scheme: dark) {
  text { fill: #a8b3bf } .title, .value { fill: #eef2f6 } .ground { fill: #14191f }
  .grid { stroke: #2a323b } .axis { stroke: #66727e } .bar { fill: #58a6ff }
}
"""


def svg(
    buckets: Sequence[int],
    labels: Sequence[str],
    title: str,
    *,
    subtitle: str = "",
    across: str = "length",
    up: str = "count",
) -> str:
    """The picture. ``labels[n]`` is where bucket ``n`` begins; ``across`` and ``up`` name the axes.

    What lies outside the first and the last bucket that hold something is not drawn.
    """
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"'
            f' width="{WIDTH}" height="{HEIGHT}" role="img">',
            f"<title>{text(title)}</title>",
            f"<style>{_STYLE}</style>",
            f'<rect class="ground" width="{WIDTH}" height="{HEIGHT}"/>',
            f'<text class="title" x="{_LEFT}" y="32">{text(title)}</text>',
            f'<text x="{_LEFT}" y="54">{text(subtitle)}</text>',
            *_drawn(buckets, labels, across, up),
            "</svg>\n",
        )
    )


def text(words: str) -> str:
    """Text from anywhere as it may stand in a picture.

    >>> text("a<b\\x1b")
    'a&lt;b\\\\x1b'
    """
    shown = words if len(words) <= _LONGEST_TEXT else words[: _LONGEST_TEXT - 1] + "…"
    return escape(printable(shown))


def _drawn(buckets: Sequence[int], labels: Sequence[str], across: str, up: str) -> Iterator[str]:
    held = [n for n, count in enumerate(buckets) if count]
    if not held:
        yield f'<text class="empty" x="{_LEFT}" y="{HEIGHT / 2:g}">nothing happened</text>'
        return
    shown = range(held[0], held[-1] + 1)
    top = round_up(max(buckets))
    yield from _grid(top)
    yield from _bars([buckets[n] for n in shown], [labels[n] for n in shown], top)
    yield f'<line class="axis" x1="{_LEFT}" y1="{_y(0, top):g}" x2="{WIDTH - _RIGHT}"'
    yield f' y2="{_y(0, top):g}"/>'
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    yield f'<text x="{middle:g}" y="{HEIGHT - 18}" text-anchor="middle">{text(across)}</text>'
    yield f'<text transform="translate(20 {(_TOP + HEIGHT - _BOTTOM) / 2:g}) rotate(-90)"'
    yield f' text-anchor="middle">{text(up)}</text>'


def _grid(top: int) -> Iterator[str]:
    for step in range(5):
        value = top * step / 4
        if value != int(value):
            continue  # nothing happens half a time
        y = _y(value, top)
        yield f'<line class="grid" x1="{_LEFT}" y1="{y:g}" x2="{WIDTH - _RIGHT}" y2="{y:g}"/>'
        yield f'<text x="{_LEFT - 10}" y="{y + 4:g}" text-anchor="end">{value:,.0f}</text>'


def _bars(counts: Sequence[int], labels: Sequence[str], top: int) -> Iterator[str]:
    # A lone bucket would be as wide as the frame.
    step = min((WIDTH - _LEFT - _RIGHT) / len(counts), 120)
    every = max(1, round(52 / step))
    for n, (count, label) in enumerate(zip(counts, labels, strict=True)):
        x, y = _LEFT + n * step, _y(count, top)
        if count:
            yield f'<rect class="bar" x="{x + 1:.1f}" y="{y:.1f}" width="{step - 2:.1f}" rx="2"'
            yield f' height="{max(_y(0, top) - y, 1):.1f}">'
            yield f"<title>from {text(label)} on: {count:,}</title></rect>"
            if step >= 30:
                yield f'<text class="value" x="{x + step / 2:.1f}" y="{y - 5:.1f}"'
                yield f' text-anchor="middle">{short(count)}</text>'
        if n % every == 0:
            yield f'<text x="{x:.1f}" y="{HEIGHT - _BOTTOM + 20}"'
            yield f' text-anchor="middle">{text(label)}</text>'


def _y(value: float, top: int) -> float:
    return HEIGHT - _BOTTOM - (HEIGHT - _BOTTOM - _TOP) * value / top


def round_up(count: int) -> int:
    """The end of an axis that holds the count and is easily read.

    >>> round_up(1), round_up(7), round_up(130), round_up(4001)
    (1, 8, 200, 8000)
    """
    size = 1
    while True:
        for step in (1, 2, 4, 8):
            if step * size >= count:
                return step * size
        size *= 10


def short(count: int) -> str:
    """A number that fits above a bar.

    >>> short(950), short(12_345), short(7_000_000)
    ('950', '12k', '7.0M')
    """
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            value = count / size
            return f"{value:.0f}{unit}" if value >= 10 else f"{value:.1f}{unit}"
    return str(count)
