"""Pressure stall information: ``cpu.pressure`` and its kin (Documentation/accounting/psi.rst).

>>> parse("some avg10=41.00 avg60=1.00 avg300=0.00 total=123\\nfull avg10=0 total=7").some_usec
123
"""

from typing import Literal

from msgspec import Struct

from whybox.kernel.cgroup import Group
from whybox.kernel.host import Host, ParseError

Resource = Literal["cpu", "io", "memory"]


class Pressure(Struct, frozen=True, kw_only=True):
    """Time lost to one resource since the group was made."""

    file: str
    some_usec: int
    """At least one task waited."""
    full_usec: int | None
    """No task got on."""


def parse(text: str, file: str = "pressure") -> Pressure:
    """Parse a pressure file; ``full`` is missing from cpu pressure before v5.13."""
    totals: dict[str, int] = {}
    for line in text.splitlines():
        kind, _, rest = line.partition(" ")
        total = rest.rpartition("total=")[2]
        if not total.isdigit():
            raise ParseError(file, line)
        totals[kind] = int(total)
    if "some" not in totals:
        raise ParseError(file, text)
    return Pressure(file=file, some_usec=totals["some"], full_usec=totals.get("full"))


def pressure(host: Host, unified: Group | None, resource: Resource) -> Pressure | None:
    """The pressure in a group of the v2 tree; there on hybrid machines too (measured)."""
    if unified is None:
        return None
    file = unified.file(f"{resource}.pressure")
    text = host.optional_text(file)
    return None if text is None else parse(text, file)
