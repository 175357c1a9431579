"""What it means: one folder a case, ``<area>/<name>/{probe.py, lab.py, README.md}``.

A case is found by its folder; nothing lists them, so adding one touches no other file.
"""

from functools import cache
from glob import glob
from importlib import import_module
from os import path

from whybox.model import AnyCase, Case

AREAS = ("process", "cpu", "memory", "storage", "network", "security")

_HERE = path.dirname(__file__)


@cache
def names(area: str | None = None) -> tuple[str, ...]:
    """The permanent names of all cases, or of one area's: by area in the catalogue's order."""
    return tuple(
        f"{a}/{path.basename(path.dirname(probe))}"
        for a in AREAS
        if area in (None, a)
        for probe in sorted(glob(f"{_HERE}/{a}/*/probe.py"))
    )


def load(name: str) -> AnyCase:
    """Import one case by its name."""
    if name not in names():
        raise KeyError(name)
    case: object = import_module(f"whybox.cases.{name.replace('/', '.')}.probe").CASE
    if not isinstance(case, Case):
        raise TypeError(f"{name}: CASE is not a Case")
    return case


def readme(name: str) -> str:
    """Where the explanation of a case is."""
    return path.join(_HERE, name, "README.md")
