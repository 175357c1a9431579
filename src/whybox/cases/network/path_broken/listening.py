"""Whether somebody listens where others are meant to come in."""

from msgspec import structs

from whybox.change import InProgram
from whybox.kernel import netview
from whybox.kernel.netview import View
from whybox.model import Evidence, Finding, RuledOut, Severity, Verdict, clear, unknown

from . import told

LOOK_ALIKE = {True: "a program that does not listen", False: "one that listens on loopback only"}


def judged(ports: tuple[int, ...], before: View | None, view: View, way_out: Finding) -> Finding:
    """To a stranger both faults look the same: a reset, which is ECONNREFUSED at once."""
    if ports and view.near.listeners is None:
        return unknown("this kernel does not tell who listens: its module tcp_diag is missing")
    where = {port: netview.listening(view.near, port) for port in ports}
    wrong = {port: ", ".join(found) for port, found in where.items() if found is not None}
    if wrong:
        resets = told.moved(before, view, "Tcp.OutRsts")
        return _unheard(wrong, resets, way_out.ruled_out)
    if not ports or way_out.verdict is not Verdict.CLEAR:
        return way_out
    return clear(f"{way_out.summary} It listens on its {told.published(ports)}.")


def _unheard(
    wrong: dict[int, str], resets: Evidence | None, sound: tuple[RuledOut, ...]
) -> Finding:
    faults = " and ".join(
        f"listens on {at} only at port {port}" if at else f"does not listen on port {port}"
        for port, at in wrong.items()
    )
    port, at = next(iter(wrong.items()))
    everywhere = "[::]" if at == "0.0.0.0" else "0.0.0.0"
    do = f"listen on {everywhere}:{port}" + (f" instead of {at}" if at else "")
    other = f"it does, on {at}" if at else "no socket listens on that port at all"
    found = told.broken(
        f"It {faults}: who comes in by its {told.published(tuple(wrong))} is refused.",
        *(told.inside(f"ss -ltn sport = :{p}", where or "no socket") for p, where in wrong.items()),
        resets,
        cure=told.cure(f"Let the program {do}.", InProgram(do)),
        severity=Severity.WARNING,
    )
    return structs.replace(found, ruled_out=(*sound, RuledOut(LOOK_ALIKE[bool(at)], other)))
