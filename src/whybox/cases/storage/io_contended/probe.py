"""A neighbour fills the disk that the container uses: its IO waits behind theirs.

Decided by how long its own IO waited in the queue and in the device while others had theirs in it;
never by how much a neighbour does, since a disk that keeps up makes nobody wait.
"""

from whybox.change import IoLimit
from whybox.kernel import diskwaits, iocontention, waiting
from whybox.kernel.host import Host
from whybox.kernel.iocontention import Contention, Disk
from whybox.kernel.iorivals import Rival
from whybox.kernel.iothrottle import numbered
from whybox.kernel.target import Target
from whybox.model import (
    Case,
    Certainty,
    Cure,
    Finding,
    Safety,
    Severity,
    Verdict,
    Watch,
    clear,
    unknown,
)
from whybox.needs import living, own_group

from . import words
from .queue import Queue, queue

#: It waits for IO so much of the window, at the disk and by its tasks.
LEAST_WAIT, CRITICAL_WAIT = 0.1, 0.5
#: One IO of its takes as long as this on average: less is what a disk takes.
LEAST_EACH_NS = 1_000_000
#: The same of all IOs of a disk, where its own are not told apart: large ones take longer.
LEAST_DISK_NS = 2_000_000
#: Others did so much of all that the disk did, and one of them so much that it is named.
LEAST_OTHERS, LEAST_RIVAL = 0.5, 0.25
#: So many IOs of others were in the disk's queue at a time.
LEAST_QUEUE = 1.0
#: In a shorter window a moment looks like a state.
SHORTEST_SECONDS = 0.5
#: A neighbour is to have so much of what it takes now: what a disk can do changes with what is
#: asked of it (a quarter was not always enough, measured in an emulated machine).
LEFT = 0.1


def observe(host: Host, target: Target) -> Watch[Contention]:
    """Read every group's counters before and after, if its tasks wait for IO; watch its own IO."""
    worth = waiting.lately(host, target, ("io",))
    with diskwaits.watch(host, target, worth=worth) as waits:
        start = iocontention.begin(host, target, worth=worth)
        yield
        return iocontention.end(host, target, start, waits())


def judge(seen: Contention) -> Finding:
    """Found where its IO waits at a disk whose queue others fill, one of whom is known."""
    if not seen.worth:
        return clear("Its tasks do not wait for a disk.")
    if seen.seconds < SHORTEST_SECONDS:
        return unknown("whose IO its own waits for takes a window to see: ask with --window 2s")
    if seen.waited is not None and seen.waited < LEAST_WAIT:
        return clear(f"Its tasks waited {seen.waited:.0%} of the time for IO.")
    if not seen.disks:
        return clear("It used no disk in this window.")
    queues = [queue(seen, disk) for disk in seen.disks]
    worst = max(queues, key=lambda one: (one.wait_share, one.others))
    if seen.waits.reason is not None:
        return _by_counters(worst, seen)
    if worst.held_share >= 0.5:
        return clear(
            f"What its IO on {worst.disk.name} waited for is its own limit: see "
            "storage/io_throttled.",
            evidence=words.evidence(worst, seen),
        )
    if worst.wait_share < LEAST_WAIT or worst.each_ns < LEAST_EACH_NS:
        return clear(words.quick(worst, seen), evidence=words.evidence(worst, seen))
    if not _crowded(worst):
        return clear(words.alone(worst, seen), evidence=words.evidence(worst, seen))
    return _found(worst, seen, Certainty.CONFIRMED)


def _crowded(it: Queue) -> bool:
    """Whether others fill the disk's queue."""
    return it.others >= LEAST_OTHERS and it.others_queue >= LEAST_QUEUE


def _by_counters(worst: Queue, seen: Contention) -> Finding:
    if not _crowded(worst):
        return clear(words.alone(worst, seen), evidence=words.evidence(worst, seen))
    if seen.waited is None or worst.disk_each_ns < LEAST_DISK_NS:
        return unknown(
            f"Others do {worst.others:.0%} of what {worst.disk.name} does; whether its own IO "
            f"waits for that is not told here ({seen.waits.reason}): ask as root on the host.",
            evidence=words.evidence(worst, seen),
        )
    return _found(worst, seen, Certainty.LIKELY)


def _found(worst: Queue, seen: Contention, certainty: Certainty) -> Finding:
    named = [one for one in worst.disk.rivals if worst.share(one) >= LEAST_RIVAL]
    if not named or named[0].cached:
        certainty = Certainty.LIKELY
    wait = seen.waited if seen.waited is not None else worst.wait_share
    return Finding(
        verdict=Verdict.FOUND,
        certainty=certainty,
        severity=Severity.CRITICAL if wait >= CRITICAL_WAIT else Severity.WARNING,
        summary=words.summary(worst, seen, named),
        evidence=words.evidence(worst, seen),
        ruled_out=words.ruled_out(worst, seen),
        cures=_cures(worst, seen, named),
    )


def _cures(worst: Queue, seen: Contention, named: list[Rival]) -> tuple[Cure, ...]:
    apart = Cure(
        advice=(
            "Or give one of them a disk of its own. Where the kernel shares by weight (the bfq "
            "scheduler, or io.cost on v2), give this container a larger one: io.weight, "
            "docker run --blkio-weight."
        ),
        safety=Safety.INSPECT,
    )
    if not named or named[0].cached or named[0].path is None:
        who = named[0].name if named else "others"
        advice = (
            f"Let {who} write less at a time, or with ionice -c 3 under bfq: no limit of a group "
            "holds it back here. On v2 what is written back is limited as well."
        )
        return (Cure(advice=advice, safety=Safety.INSPECT), apart)
    return (_limit(worst.disk, named[0], seen.seconds), apart)


def _limit(disk: Disk, rival: Rival, seconds: float) -> Cure:
    writes = rival.write_bytes >= rival.read_bytes
    takes = (rival.write_bytes if writes else rival.read_bytes) / seconds
    value = max(int(takes * LEFT), 1 << 16)
    return Cure(
        advice=(
            f"Let {rival.name} have {words.mib(value)} a second of {disk.name}, a tenth of what "
            "it takes now: then the disk keeps up."
        ),
        change=IoLimit(
            device=numbered(disk.device),
            what="write bytes" if writes else "read bytes",
            value=value,
            cgroup=rival.path,
        ),
        safety=Safety.MUTATING,
    )


CASE = Case(
    title="A neighbour fills its disk",
    question="Which neighbour eats my disk?",
    question_zh="谁占用了我的磁盘带宽?",
    lesson="13",
    needs=(living, own_group("blkio")),
    observation=Contention,
    observe=observe,
    judge=judge,
    explains=("cpu/blocked_in_kernel", "storage/write_stalled"),
)
