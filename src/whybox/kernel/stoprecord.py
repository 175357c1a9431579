"""What an engine recorded of a stop: its events ``kill signal=15``, ``kill signal=9``, ``die``.

They are the engine's own doings, so for what *it* sent they are good evidence; what the kernel or
somebody on the host sent leaves none, and who else was in the container neither (measured).

    kill signal=15, die exitCode=0, stop                  it ended by itself
    kill signal=15, kill signal=9, die exitCode=137, stop its grace period ran out
    kill signal=9, die exitCode=137                       docker kill, docker rm -f
    kill signal=9, die exitCode=137, stop                 its stop signal is SIGKILL
    die exitCode=137                                      somebody else's SIGKILL, or its own status
"""

import re

from msgspec import Struct

from whybox.kernel import signals
from whybox.kernel.target import Exit

_KILL = re.compile(r"kill signal=(\S+)")
_DIE = re.compile(r"die exitCode=(\d+)")


class Record(Struct, frozen=True, kw_only=True):
    """One life of a container, as its engine told of it."""

    whole: bool
    """Whether the events go back to its start: an engine remembers only so many."""
    asked: int | None = None
    """The first signal but SIGKILL that the engine sent."""
    killed: bool = False
    """Whether the engine sent SIGKILL."""
    gap_seconds: float | None = None
    """From that signal to SIGKILL, or to its end where there was no SIGKILL."""
    stopped: bool = False
    """Whether it was a stop, and not a kill by hand."""
    oom: bool = False
    status: int | None = None
    """With which it ended."""

    @property
    def timed_out(self) -> bool:
        """Whether it was asked, and killed since it did not end."""
        return self.asked is not None and self.killed and self.status in (137, None)


def record(exit: Exit) -> Record:
    """Its last life.

    >>> events = ("start", "kill signal=15", "kill signal=9", "die exitCode=137", "stop")
    >>> said = record(Exit(source="", status="exited", exit_code=137, events=events))
    >>> said.asked, said.killed, said.stopped, said.timed_out
    (15, True, True, True)
    """
    timed = len(exit.events) == len(exit.events_at_ns)
    stamps: tuple[int | None, ...] = exit.events_at_ns if timed else (None,) * len(exit.events)
    life = list(zip(exit.events, stamps, strict=True))
    starts = [n for n, (event, _) in enumerate(life) if event == "start"]
    life = life[starts[-1] :] if starts else life
    kills = [(signals.number(m[1]), at) for event, at in life if (m := _KILL.match(event))]
    ends = [at for event, at in life if _DIE.match(event)]
    asked = next(((s, at) for s, at in kills if s not in (None, signals.KILL)), None)
    killed = next((at for s, at in kills if s == signals.KILL), _NEVER)
    said = {event.split(" ")[0] for event, _ in life}
    until = killed if killed != _NEVER else next(iter(ends), None)
    return Record(
        whole=bool(starts),
        asked=None if asked is None else asked[0],
        killed=killed != _NEVER,
        gap_seconds=None if asked is None else _gap(asked[1], until),
        stopped="stop" in said,
        oom="oom" in said or exit.oom_killed is True,
        status=exit.exit_code,
    )


#: No event has this stamp.
_NEVER = -1


def _gap(begin_ns: int | None, end_ns: int | None) -> float | None:
    return None if begin_ns is None or end_ns is None else max(0, end_ns - begin_ns) / 1e9
