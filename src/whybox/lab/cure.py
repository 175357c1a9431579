"""Applying the very change that was printed: to the running box, or to a new one."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from whybox.change import Change, InNetwork, InProgram
from whybox.lab.box import Box
from whybox.lab.lab import Lab
from whybox.model import Finding


def new_box(case: str) -> Box:
    """A box for one case's lab."""
    return Box(case.replace("/", "-"))


def change_of(finding: Finding) -> Change | None:
    """The first cure that is a change: it must be sufficient."""
    return next((cure.change for cure in finding.cures if cure.change is not None), None)


@contextmanager
def treated(case: str, lab: Lab, box: Box, change: Change) -> Iterator[Box]:
    """The box in which the cure is at work: the same one, or a new one of the same lab."""
    if isinstance(change, InNetwork | InProgram):
        box.close()
        with new_box(case) as fresh:
            (lab.cured or lab.healthy)(fresh)
            yield fresh
    elif box.wait(0) is None and box.apply(change):
        time.sleep(lab.settle_seconds)
        yield box
    else:
        box.close()
        with new_box(case) as fresh:
            fresh.apply(change)
            lab.reproduce(fresh)
            yield fresh
