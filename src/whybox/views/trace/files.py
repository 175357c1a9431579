"""File operations as lines, histograms and a picture."""

from collections.abc import Iterator

from whybox.trace.files import BUCKETS, Answer, CopyUp, Kind, Operation
from whybox.views import histogram_svg
from whybox.views.histogram import duration, lines, powers, size

#: So many copies and files are named.
MOST_NAMED = 10


def event(event: Operation) -> str:
    """One operation."""
    said = f"{event.at_ns / 1e9:.6f} {event.comm} {event.pid}: {event.call} {event.path}"
    said += f" took {duration(event.took_ns)}"
    if event.copied_bytes is not None:
        unseen = "" if event.confirmed else " (by its account)"
        return f"{said}: copied {size(event.copied_bytes)} of the image{unseen}"
    moved = [
        f"{size(count)} {what}"
        for count, what in ((event.read_bytes, "read"), (event.written_bytes, "written"))
        if count
    ]
    failed = "" if event.error is None else f", FAILED: {event.error}"
    return said + (f": {', '.join(moved)}" if moved else "") + failed


def answer(answer: Answer) -> list[str]:
    """What was copied, and what was slow."""
    return [*_copies(answer), *_slow(answer)]


def _copies(answer: Answer) -> Iterator[str]:
    if not answer.copies:
        yield "no file of the image was copied"
        return
    files = "1 file" if answer.copies == 1 else f"{answer.copies} files"
    yield (
        f"{files} of the image copied on the first change, {size(answer.copied_bytes)} in "
        f"{duration(answer.copying_ns)}:"
    )
    yield from (f"  {_copy(one)}" for one in answer.copied[:MOST_NAMED])
    if answer.copies > MOST_NAMED:
        yield f"  and {answer.copies - MOST_NAMED} more"


def _copy(one: CopyUp) -> str:
    took = "" if one.took_ns is None else f" in {duration(one.took_ns)}"
    who = "" if one.pid is None else f", {one.call} by {one.comm} {one.pid}"
    return f"{one.path}: {size(one.bytes)}{took}{who}"


def _slow(answer: Answer) -> Iterator[str]:
    if not answer.kinds:
        if answer.slower_ns:
            yield f"no operation took {duration(answer.slower_ns)} or longer"
        return
    yield f"operations of {duration(answer.slower_ns)} and longer:"
    for kind in answer.kinds:
        yield f"  {_kind(kind)}"
        yield from (f"    {line}" for line in lines(kind.buckets, powers(1000, BUCKETS)))
    yield "on these files:"
    for file in answer.files[:MOST_NAMED]:
        longest = "" if file.count == 1 else f", {duration(file.longest_ns)} at most"
        yield f"  {duration(file.sum_ns):>8} in {file.count:>5}  {file.path}{longest}"
    others = sum(file.count for file in answer.files[MOST_NAMED:]) + answer.others
    if others:
        yield f"  and {others} operations on others"


def _kind(kind: Kind) -> str:
    failed = f", {kind.errors} FAILED" if kind.errors else ""
    return (
        f"{kind.count} {kind.operation}: {duration(kind.sum_ns)} in all, "
        f"{duration(kind.longest_ns)} at most{failed}"
    )


def _svg(answer: Answer, title: str) -> str:
    """All kinds together."""
    buckets = [sum(column) for column in zip(*(k.buckets for k in answer.kinds), strict=True)]
    return histogram_svg.svg(
        buckets,
        powers(1000, len(buckets)),
        title,
        subtitle=f"file operations of {duration(answer.slower_ns)} and longer",
        across="length",
        up="operations",
    )


PICTURES = {"svg": _svg}
