"""A listener's accept queue is full: the kernel drops connections that the program did not take.

Told by TcpExt ListenOverflows of its network namespace, and by what was dropped at each listener.
ListenDrops alone is not it: it grows as well where no way leads back to who asks.
"""

from whybox.change import HostSysctl, InProgram, Sysctl, Unpause
from whybox.kernel import overflow
from whybox.kernel.acceptqueue import Look, Queue, look
from whybox.kernel.host import Host
from whybox.kernel.overflow import Overflow, Queues
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

SOMAXCONN = "net.core.somaxconn"
#: A longer queue is a power of two between these.
LEAST, MOST = 128, 65535


def observe(host: Host, target: Target) -> Watch[Observation]:
    """Look at the queues twice; then, where one of them is suspect, find out whose it is."""
    before, reason = _look(host, target)
    yield
    after, late = (None, reason) if before is None else _look(host, target)
    suspect = () if before is None or after is None else overflow.suspects(before, after)
    inodes = [queue.inode for queue, _, _ in suspect if queue.inode is not None]
    return Queues(
        before=before,
        after=after,
        owners=owners(host, target, inodes) if inodes else None,
        reason=reason or late,
        shared=target.own("net") is False,
        inside=target.runtime == "self",
    )


def _look(host: Host, target: Target) -> tuple[Look | None, str | None]:
    try:
        return look(host, target), None
    except OSError as error:
        return None, error.strerror or str(error)


def judge(seen: Observation) -> Finding:
    """Found where connections were turned away in this window, or are turned away until it ends."""
    if seen.before is None or seen.after is None:
        return unknown(f"its accept queues cannot be seen: {seen.reason}")
    found = overflow.overflows(seen)
    if found:
        return _found(found[0], found[1:], seen)
    if overflow.grown(seen, "overflows") > 0:
        return _nobodys(seen)
    quiet = overflow.stuck(seen)
    return _stuck(quiet[0], seen) if quiet else _clear(seen)


def _nobodys(seen: Observation) -> Finding:
    """An accept queue of the namespace overflowed, and none of those that are there now is it."""
    count = overflow.grown(seen, "overflows")
    others = overflow.anothers(seen)
    if others:
        ports = ", ".join(f"port {one.port} (uid {one.uid})" for one in others[:3])
        return clear(
            f"{count} connections found the accept queue of {ports} full, which is another's: no "
            "process of this container has that socket.",
            evidence=_counted(seen),
        )
    if seen.shared:
        return clear(
            f"{count} connections found an accept queue full, and none was one of its listeners'.",
            evidence=_counted(seen),
        )
    ports = ", ".join(map(str, overflow.gone(seen)))
    where = f"port {ports}, which is not listened on any more" if ports else "who is gone"
    return Finding(
        verdict=Verdict.FOUND,
        severity=Severity.WARNING,
        certainty=Certainty.LIKELY,
        summary=f"{count} connections found an accept queue full: that of {where}.",
        evidence=_counted(seen),
        cures=(_accept("keep the listener open, and accept without a pause"),),
    )


def _found(worst: Overflow, others: tuple[Overflow, ...], seen: Observation) -> Finding:
    also = "".join(f"; so was that of port {one.queue.port}" for one in others[:3])
    count = overflow.grown(seen, "overflows")
    return Finding(
        verdict=Verdict.FOUND,
        severity=Severity.CRITICAL if worst.kept_full else Severity.WARNING,
        summary=(
            f"{count} connections found the accept queue of port {worst.queue.port} full: "
            f"{_queue(worst.queue)}, {_why(worst, seen)}{also}."
        ),
        evidence=_evidence(worst, seen),
        ruled_out=_ruled_out(worst, seen),
        cures=_cures(worst, seen),
    )


def _stuck(worst: Overflow, seen: Observation) -> Finding:
    return Finding(
        verdict=Verdict.FOUND,
        severity=Severity.WARNING,
        certainty=Certainty.LIKELY,
        summary=(
            f"The accept queue of port {worst.queue.port} is full and stays full: "
            f"{_queue(worst.queue)}, {_why(worst, seen)}. Nobody came in this window; of those who "
            f"came before, {worst.queue.drops} were turned away, and so is the next."
        ),
        evidence=_evidence(worst, seen),
        ruled_out=_ruled_out(worst, seen),
        cures=_cures(worst, seen),
    )


def _queue(queue: Queue) -> str:
    return f"{queue.waiting} wait and {queue.room} + 1 may"


def _why(worst: Overflow, seen: Observation) -> str:
    who = _name(worst)
    if seen.owners is not None and seen.owners.frozen:
        return f"and {who} accepts none since the container is paused"
    if worst.owner is not None and worst.owner.stopped:
        return f"and {who} accepts none since it is stopped (SIGSTOP)"
    if _accepts_none(worst, seen):
        return f"and {who} accepted none of them in this window"
    if worst.kept_full:
        return f"and {who} accepts more slowly than they come"
    return f"and more came at once than it holds before {who} could accept them"


def _name(worst: Overflow) -> str:
    return "the program" if worst.owner is None else f"{worst.owner.comm} (pid {worst.owner.pid})"


def _accepts_none(worst: Overflow, seen: Observation) -> bool:
    if not worst.kept_full:
        return False
    if worst.same_wait is not None:
        return worst.same_wait
    return overflow.accepted(seen) == 0


def _evidence(worst: Overflow, seen: Observation) -> tuple[Evidence, ...]:
    queue = worst.queue
    said = f"LISTEN {queue.address}:{queue.port} Recv-Q {queue.waiting} Send-Q {queue.room}"
    if worst.dropped is not None:
        said += f", dropped at it +{worst.dropped} (d{queue.drops})"
    somaxconn = None if seen.after is None else seen.after.somaxconn
    own = () if somaxconn is None else (Evidence(SOMAXCONN, str(somaxconn)),)
    return (*_counted(seen), Evidence("ss -lntm (in its network namespace)", said), *own)


def _counted(seen: Observation) -> tuple[Evidence, ...]:
    counts = overflow.counts(seen.after)
    said = (
        f"TcpExt ListenOverflows +{overflow.grown(seen, 'overflows')} (of {counts.overflows}), "
        f"ListenDrops +{overflow.grown(seen, 'drops')} (of {counts.drops})"
    )
    return (Evidence("/proc/PID/net/netstat", said),)


def _ruled_out(worst: Overflow, seen: Observation) -> tuple[RuledOut, ...]:
    cookies, refused = overflow.grown(seen, "cookies"), overflow.grown(seen, "refused")
    return (
        RuledOut(
            "a full SYN queue (half-open connections)",
            f"TCPReqQFullDoCookies +{cookies}, TCPReqQFullDrop +{refused}; what overflowed are "
            "connections that were complete",
        ),
        RuledOut(
            "requests that are dropped for another reason",
            "those count in ListenDrops and not in ListenOverflows",
        ),
        RuledOut("a port that nobody listens on", f"port {worst.queue.port} is in state LISTEN"),
    )


def _cures(worst: Overflow, seen: Observation) -> tuple[Cure, ...]:
    if seen.owners is not None and seen.owners.frozen:
        return (Cure(advice="Let it run on.", change=Unpause(), safety=Safety.MUTATING),)
    if worst.owner is not None and worst.owner.stopped:
        kill = f"kill -CONT {worst.owner.pid}"
        do = f"let {_name(worst)} go on"
        return (
            Cure(
                advice=f"L{do[1:]}.",
                change=InProgram(do),
                commands=(kill,),
                safety=Safety.MUTATING,
            ),
        )
    longer = _longer(worst, seen)
    if _accepts_none(worst, seen):
        do = (
            f"find out what {_name(worst)} waits for instead of accepting on port "
            f"{worst.queue.port}: whybox trace hot, or a stack of it; a longer queue only hides it"
        )
        return (_accept(do),)
    if worst.kept_full:
        do = (
            "accept faster than they come: more workers, or a loop that accepts and hands over; a "
            "longer queue alone fills up as well"
        )
        return (_accept(do), longer)
    return (longer,)


def _accept(do: str) -> Cure:
    return Cure(advice=f"{do[0].upper()}{do[1:]}.", change=InProgram(do), safety=Safety.MUTATING)


def _longer(worst: Overflow, seen: Observation) -> Cure:
    """The limit that is the smaller one: the program's backlog or the namespace's somaxconn."""
    room = worst.queue.room
    enough = _enough(room + overflow.grown(seen, "overflows"))
    somaxconn = None if seen.after is None else seen.after.somaxconn
    if somaxconn is None or room < somaxconn:
        since = " (or somaxconn was raised after it had begun to listen: then restart it)"
        do = f"call listen() with a backlog of {min(enough, somaxconn or enough)} instead of {room}"
        return Cure(
            advice=f"Let {_name(worst)} {do}{since if somaxconn else ''}.",
            change=InProgram(do),
            safety=Safety.MUTATING,
        )
    key, value = SOMAXCONN, str(enough)
    return Cure(
        advice=(
            f"Its queue is as long as {SOMAXCONN} allows: raise it before the program begins to "
            f"listen, which is when it is read, and let the program ask for as much (its backlog)."
        ),
        change=HostSysctl(key, value) if seen.shared else Sysctl(key, value, at_start=True),
        safety=Safety.MUTATING,
    )


def _enough(wanted: int) -> int:
    """The next power of two.

    >>> _enough(30), _enough(700), _enough(10**6)
    (128, 1024, 65535)
    """
    return min(MOST, max(LEAST, 1 << (wanted - 1).bit_length()))


def _clear(seen: Observation) -> Finding:
    """No accept queue overflowed; what looks like it is named."""
    counts = overflow.counts(seen.after)
    said = ["No connection found an accept queue full."]
    if counts.overflows:
        said.append(f"{counts.overflows} did before this window.")
    said += [
        f"That of port {one.queue.port} is full, but nobody was turned away yet."
        for one in overflow.brimming(seen)[:2]
    ]
    cookies, refused = overflow.grown(seen, "cookies"), overflow.grown(seen, "refused")
    if cookies:
        said.append(
            f"{cookies} times the SYN queue (half-open connections) was full, and a cookie was "
            "answered: that loses nobody."
        )
    if refused:
        said.append(
            f"{refused} times the SYN queue (half-open connections) was full and the request was "
            "dropped: net.ipv4.tcp_syncookies=1 would answer a cookie."
        )
    other = overflow.grown(seen, "drops") - refused
    if other > 0:
        said.append(
            f"{other} requests were dropped for another reason (ListenDrops without "
            "ListenOverflows): mostly there is no way back to who asks."
        )
    return clear(" ".join(said), evidence=_counted(seen))


CASE = Case(
    title="Its accept queue is full, so connections are dropped",
    question="Why are connections to it dropped?",
    question_zh="为什么连接容器会被丢弃?",
    lesson="16",
    needs=(living,),
    observation=Observation,
    observe=observe,
    judge=judge,
)
