"""A send queue that does not move: it is over its limit, and so the kernel refuses to cut it.

Told by the same Send-Q and the same segments out at both ends of the window, while TcpExt
TCPWqueueTooBig grows. That the peer has no room is excluded, for then it is the peer that does not
read, and so is a queue that moves.
"""

from whybox.change import InProgram
from whybox.kernel import sendstall
from whybox.kernel.host import Host
from whybox.kernel.sendqueue import Look, look
from whybox.kernel.sendstall import Queue, Queues, queues
from whybox.kernel.socketowner import owners
from whybox.kernel.target import Target
from whybox.model import (
    Case,
    Certainty,
    Cure,
    Evidence,
    Finding,
    RuledOut,
    Safety,
    Severity,
    Verdict,
    Watch,
    clear,
    unknown,
)
from whybox.needs import living

Observation = Queues

#: So many of them are asked whose they are.
MOST_OWNED = 500


def observe(host: Host, target: Target) -> Watch[Observation]:
    """Look at the queues twice, and find out whose those are that were not empty both times."""
    before, reason = _look(host, target)
    yield
    after, late = (None, reason) if before is None else _look(host, target)
    both = () if before is None or after is None else tuple(sendstall.pairs(before, after))
    inodes = [one.inode for _, one in both[:MOST_OWNED] if one.inode is not None]
    return Queues(
        before=before,
        after=after,
        owners=owners(host, target, inodes) if inodes else None,
        reason=reason or late,
        shared=target.own("net") is False,
    )


def _look(host: Host, target: Target) -> tuple[Look | None, str | None]:
    try:
        return look(host, target), None
    except OSError as error:
        return None, error.strerror or str(error)


def judge(seen: Observation) -> Finding:
    """Found where a queue over its limit stood still, or crawled, while the kernel refused."""
    if seen.before is None or seen.after is None:
        return unknown(f"its send queues cannot be seen: {seen.reason}")
    mine = queues(seen)
    refused = sendstall.too_big(seen)
    suspect = [one for one in mine if one.over and not one.closed_window]
    stuck = [one for one in suspect if one.still]
    slow = [one for one in suspect if one.crawls and one.unanswered]
    if refused and (stuck or slow):
        return _found((stuck or slow)[0], len(stuck or slow) - 1, seen, bool(stuck))
    if refused is None and stuck:
        return unknown(
            f"{_what(stuck[0])} stands still and is over its limit, but whether the kernel refused "
            "to cut it is not counted: TCPWqueueTooBig came with Linux 5.2"
        )
    return _clear(mine, seen)


def _what(one: Queue) -> str:
    who = "" if one.owner is None else f" of {one.owner.comm} (pid {one.owner.pid})"
    return f"The connection {one.after.local} to {one.after.remote}{who}"


def _found(worst: Queue, others: int, seen: Observation, stuck: bool) -> Finding:
    its, also = worst.after, f" So it is with {others} more." if others else ""
    how = (
        f"{its.queue_bytes} bytes and {its.unacked} segments wait, and none was acknowledged"
        if stuck
        else f"of {its.queue_bytes} bytes {worst.acked_bytes} were acknowledged"
    )
    return Finding(
        verdict=Verdict.FOUND,
        severity=Severity.CRITICAL if stuck else Severity.WARNING,
        certainty=Certainty.CONFIRMED if stuck else Certainty.LIKELY,
        summary=(
            f"{_what(worst)} {'is stuck' if stuck else 'crawls'}: {how} in this window, and "
            f"{sendstall.too_big(seen)} times the kernel refused to cut a segment, since the queue "
            f"takes {its.memory_bytes} bytes of memory and its limit is {its.limit_bytes}.{also}"
        ),
        evidence=_evidence(worst, seen),
        ruled_out=_ruled_out(worst, seen),
        cures=_cures(worst, seen),
    )


def _evidence(worst: Queue, seen: Observation) -> tuple[Evidence, ...]:
    was, its = worst.before, worst.after
    wmem = () if seen.after is None else seen.after.wmem
    return (
        Evidence(
            "/proc/PID/net/netstat",
            f"TcpExt TCPWqueueTooBig +{sendstall.too_big(seen)}, "
            f"TCPTimeouts +{sendstall.grown(seen, 'timeouts')}",
        ),
        Evidence(
            "ss -tinm (in its network namespace)",
            f"Send-Q {was.queue_bytes}, then {its.queue_bytes}; unacked {was.unacked}, then "
            f"{its.unacked}; sacked {its.sacked}, lost {its.lost}; skmem w{its.memory_bytes} "
            f"tb{its.limit_bytes}; rto {its.rto_usec // 1000} ms, {its.timeouts} timeouts in a row",
        ),
        Evidence("net.ipv4.tcp_wmem", " ".join(map(str, wmem))),
    )


def _ruled_out(worst: Queue, seen: Observation) -> tuple[RuledOut, ...]:
    its = worst.after
    window = "no probe is unanswered" if its.peer_window is None else f"{its.peer_window} bytes"
    cuts = sendstall.grown(seen, "cuts_failed")
    return (
        RuledOut("a peer that does not read (zero window)", f"the peer has room: {window}"),
        RuledOut(
            "a lost path alone",
            "then the kernel sends the rest of what was lost again; here it refuses to, and what "
            "the peer said it has (SACK) cannot be noted",
        ),
        RuledOut("packets too large for the path", f"FragFails +{cuts}"),
        RuledOut("a queue that is merely long", "what moves is acknowledged, and this is not"),
    )


def _cures(worst: Queue, seen: Observation) -> tuple[Cure, ...]:
    kernel = Cure(
        advice=(
            "A kernel before commit b617158dc096 (in v5.3), or a 4.14 or 4.19 with the SACK fixes "
            "of June 2019 and without it, does not recover from this at all: update it."
        ),
        safety=Safety.INSPECT,
    )
    if sendstall.grown(seen, "pressures") > 0 and not _set_by_program(worst, seen):
        return (_memory(), kernel)
    do = (
        "leave SO_SNDBUF alone, so that the kernel fits it to the connection (net.ipv4.tcp_wmem), "
        "or set it before the first byte and never to less than is in flight"
    )
    program = Cure(
        advice=f"Let the program {do}; what is stuck now ends with its connection.",
        change=InProgram(do),
        safety=Safety.MUTATING,
    )
    return (program, kernel)


def _set_by_program(worst: Queue, seen: Observation) -> bool:
    """The kernel by itself begins with the default, and under pressure halves what is queued."""
    wmem = () if seen.after is None else seen.after.wmem
    return len(wmem) > 1 and worst.after.limit_bytes < wmem[1]


def _memory() -> Cure:
    return Cure(
        advice=(
            "TCP came under memory pressure and cut the limits of its queues: raise "
            "net.ipv4.tcp_mem (in pages) of the host, or find who holds the memory "
            "(/proc/net/sockstat, TCP mem)."
        ),
        safety=Safety.INSPECT,
    )


def _clear(mine: tuple[Queue, ...], seen: Observation) -> Finding:
    """No queue is stuck for this reason; what looks like it is named, with whose fault it is."""
    said = []
    still = [one for one in mine if one.still]
    closed = [one for one in still if one.closed_window]
    lost = [one for one in still if not one.closed_window and one.unanswered]
    if closed:
        said.append(
            f"{_what(closed[0])} stands still{_more(closed)}, with {closed[0].after.queue_bytes} "
            "bytes: the window of the peer is closed. Its program does not read; nothing is wrong "
            "here."
        )
    if lost:
        said.append(
            f"{_what(lost[0])} stands still{_more(lost)}, with {lost[0].after.queue_bytes} bytes: "
            "nothing of it is acknowledged, so it is lost on the way or the peer is gone "
            "(network/packets_lost, and the MTU of the path)."
        )
    refused = sendstall.too_big(seen)
    if refused:
        said.append(
            f"{refused} times the kernel refused to cut a segment (TCPWqueueTooBig), but what is "
            "queued moves."
        )
    if not said:
        said.append(
            "What its connections have in their send queues moves."
            if mine
            else "No connection of it had something in its send queue all the time."
        )
    return clear(" ".join(said), evidence=_counters(seen))


def _more(found: list[Queue]) -> str:
    return f" and {len(found) - 1} more" if len(found) > 1 else ""


def _counters(seen: Observation) -> tuple[Evidence, ...]:
    told = f"TcpExt TCPWqueueTooBig +{sendstall.too_big(seen)}"
    return (Evidence("/proc/PID/net/netstat", told),)


CASE = Case(
    title="A send queue stands still, over its limit",
    question="Why does the send queue pile up?",
    question_zh="为什么发送队列报文积压?",
    lesson="Q",
    needs=(living,),
    observation=Observation,
    observe=observe,
    judge=judge,
)
