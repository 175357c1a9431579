"""Killed by the OOM killer: the victim was in this container, and whose memory had run out.

Told by the kernel log and by a sensor on ``oom:mark_victim``, then by the group's counters, then by
the engine's record; never by an exit status of 137, which every SIGKILL leaves.
"""

from whybox.kernel import casualties, kmsg, oomkill
from whybox.kernel.host import Host
from whybox.kernel.target import Target
from whybox.model import Case, Finding, Watch, clear, unknown

from .counted import counted
from .recorded import dead
from .told import found, past
from .words import blind, counters, mib, no_line

Observation = casualties.Casualties


def observe(host: Host, target: Target) -> Watch[Observation]:
    """Watch the kills; read the counters before and after, and the kernel log once, at the end."""
    if target.alive and target.runtime != "self" and casualties.path_of(target) in (None, "/"):
        raise OSError("it has no memory control group of its own")
    before = casualties.lineage(host, target.group(host, "memory"))
    with kmsg.mark(host) as mark, oomkill.watch(host, target) as witness:
        yield
        new_seq = mark.first_after()
        return casualties.tally(host, target, before, new_seq, witness)


def judge(seen: Observation) -> Finding:
    """Found where a kill stands: in this window, or at a limit that was not raised since."""
    last = seen.last()
    if last is not None:
        return found(last, seen)
    unlogged = counted(seen)
    if unlogged is not None:
        return unlogged
    if seen.ended:
        return dead(seen)
    return past(seen.kills[-1], seen) if seen.kills else _nothing(seen)


def _nothing(seen: Observation) -> Finding:
    own = seen.own
    if own is None or own.oom_kill != 0:
        if seen.log.covers(seen.start_usec) and not seen.nameless:
            return clear("Nothing in it was OOM-killed since it began.", evidence=no_line(seen))
        return unknown(f"Whether anything in it was OOM-killed cannot be told: {blind(seen)}.")
    room = "."
    if own.under_oom and own.kill_disabled:
        room = "; at its limit it waits, as the OOM killer is switched off for it (under_oom 1)."
    elif own.current_bytes is not None and own.limit_bytes is not None:
        full = own.current_bytes > 0.9 * own.limit_bytes
        cache = ", which page cache alone can bring about" if full else ""
        room = f"; it holds {mib(own.current_bytes)} of {mib(own.limit_bytes)}{cache}."
    return clear(f"Nothing in it was OOM-killed{room}", evidence=counters(seen))


CASE = Case(
    title="Killed by the OOM killer",
    question="Why was my container killed?",
    question_zh="为什么我的容器被杀掉了?",
    lesson="08",
    observation=Observation,
    observe=observe,
    judge=judge,
    outlives=True,
)
