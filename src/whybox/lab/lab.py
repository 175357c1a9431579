"""A lab: the simplest program that makes one trouble, in a disposable container.

A scenario gets a box that has not been started, sets what it needs and starts a program in it:

    def reproduce(box: Box) -> None:
        box.cpu(cores=0.2)
        box.start(workload.burn)
"""

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import TypeAlias

from msgspec import Struct

from whybox.kernel.host import Host
from whybox.lab.box import Box
from whybox.model import Finding

Scenario: TypeAlias = Callable[[Box], None]


class Breaks(StrEnum):
    """What a lab can harm."""

    BOX = "box"
    """Only its own control groups and namespaces: safe on a host."""
    KERNEL = "kernel"
    """The machine: only in a VM, or when its user insists."""


class Lab(Struct, frozen=True, kw_only=True):
    """How one case is made on purpose, and what must not be taken for it."""

    healthy: Scenario
    """The same kind of program without the trouble: must be clear."""
    reproduce: Scenario
    """Must be found, and nothing else, save ``also``."""
    look_alikes: Mapping[str, Scenario]
    """States that a careless tool would call the same: must not be found."""
    cured: Scenario | None = None
    """The changed program or network, where the cure is that (``InProgram``, ``InNetwork``)."""
    numbers: Callable[[Finding], str | None] | None = None
    """What is wrong with the known numbers in the finding, or ``None``."""
    variants: Mapping[str, Scenario] = {}
    """Other ways into the same trouble: each must be found."""
    also: tuple[str, ...] = ()
    """Cases that are rightly found beside this one."""
    breaks: Breaks = Breaks.BOX
    needs: tuple[Callable[[Host], str | None], ...] = ()
    """Why this kernel cannot make the trouble, or ``None``."""
    window_seconds: float = 2.0
    settle_seconds: float = 0.0
    """How long what began before the cure goes on after it."""
