"""Timing whole commands and calls, in turns with what they are compared with."""

import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from msgspec import Struct


class Took(Struct, frozen=True):
    """One run of something."""

    wall_s: float
    cpu_s: float


def command(words: Sequence[str], environment: Mapping[str, str] | None = None) -> Took:
    """Run a command to its end; its own time and its children's."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    subprocess.run(
        words,
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=_environment(environment or {}),
    )
    wall = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Took(wall, spent)


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    """Ours, but with compiled modules kept, as they are where whybox is installed."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return kept | dict(more)


def call(function: Callable[[], object]) -> Took:
    """Run a function of this process."""
    cpu, wall = time.process_time(), time.perf_counter()
    function()
    return Took(time.perf_counter() - wall, time.process_time() - cpu)


def in_turns(rounds: int, *subjects: Callable[[], Took]) -> tuple[Took, ...]:
    """The median of each subject, run A B A B …, so that a drifting machine is fair to all."""
    for subject in subjects:
        subject()  # the first run fills caches
    runs = [[subject() for subject in subjects] for _ in range(rounds)]
    return tuple(_median([run[n] for run in runs]) for n in range(len(subjects)))


def _median(runs: Sequence[Took]) -> Took:
    return Took(
        statistics.median(run.wall_s for run in runs), statistics.median(run.cpu_s for run in runs)
    )


#: An interpreter that does nothing: the limit of every command written in Python.
EMPTY = (sys.executable, "-c", "pass")
