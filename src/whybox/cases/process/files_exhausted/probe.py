"""Too many open files: a process at its own limit, a user without inotify, or a machine's table."""

from msgspec import Struct

from whybox.change import HostSysctl, InProgram, OpenFiles
from whybox.kernel import descriptors, inotify
from whybox.kernel.descriptors import NEARLY, Kinds, Table
from whybox.kernel.host import Host
from whybox.kernel.inotify import INSTANCES, WATCHES, Holder, Shortage
from whybox.kernel.target import Target, processes
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
    ago,
    clear,
    unknown,
)
from whybox.needs import living

#: With no more than the first three a process has forbidden itself to open any, as sandboxes do.
SANDBOX = 4
#: Engines and services that raise the limit at all raise it to this.
USUAL = 65_536
#: Fewer of the same kind are no leak.
MANY = 16
#: A process that grew by less in the window is not told to grow.
GROWING = 8
#: As who a container's processes act; no more different users than these are asked about.
MOST_USERS = 4


class Observation(Struct, frozen=True, kw_only=True):
    """The descriptors of the container's processes at both looks, and what they share with all."""

    elapsed_ns: int
    processes: int
    before: tuple[Table, ...]
    after: tuple[Table, ...]
    kinds: Kinds | None = None
    """Of the fullest, where it is nearly full."""
    shortages: tuple[Shortage, ...] = ()
    """Users of the container for whom there is no inotify left."""
    inotify_asked: bool = False
    """Whether each of its users was found to have some, or none."""
    members: tuple[int, ...] = ()
    """The container's processes, where those who hold inotify are told."""
    file_nr: tuple[int, int] | None = None
    nr_open: int | None = None


def observe(host: Host, target: Target) -> Watch[Observation]:
    """Count before and after; look at what they are only where a limit is near."""
    started = host.monotonic_ns()
    before = descriptors.tables(host, processes(host, target))
    yield
    elapsed_ns = host.monotonic_ns() - started
    mine = processes(host, target)
    after = descriptors.tables(host, mine)
    worst = _fullest(after)
    users = _charged(host, after)
    short = _shortages(host, users, after, mine)
    return Observation(
        elapsed_ns=elapsed_ns,
        processes=len(mine),
        before=before,
        after=after,
        kinds=descriptors.kinds(host, worst.id.pid) if worst and _is_near(worst) else None,
        shortages=short,
        inotify_asked=bool(users)
        and all(inotify.instance_room(host, uid).instance for uid in users),
        members=mine if short else (),
        file_nr=descriptors.file_nr(host),
        nr_open=host.optional_number("/proc/sys/fs/nr_open"),
    )


def _charged(host: Host, tables: tuple[Table, ...]) -> tuple[int, ...]:
    """For whom inotify is counted; one process of each user tells of its user namespace."""
    acting = {table.uid: table.id.pid for table in reversed(tables)}
    found = {inotify.charged(host, pid, uid) for uid, pid in list(acting.items())[:MOST_USERS]}
    return tuple(uid for uid in found if uid is not None)


def _shortages(
    host: Host, users: tuple[int, ...], tables: tuple[Table, ...], mine: tuple[int, ...]
) -> tuple[Shortage, ...]:
    watches = inotify.used(host, [table.id.pid for table in tables])
    asked = (inotify.shortage(host, uid, mine, watches=watches) for uid in users)
    return tuple(one for one in asked if one is not None)


def _is_sandbox(table: Table) -> bool:
    return table.soft is not None and table.soft < SANDBOX


def _is_near(table: Table) -> bool:
    return table.share >= NEARLY and not _is_sandbox(table)


def _fullest(tables: tuple[Table, ...]) -> Table | None:
    able = [table for table in tables if not _is_sandbox(table)]
    return max(able, key=lambda table: (table.share, table.count or 0), default=None)


def judge(seen: Observation) -> Finding:
    """Found where the next ``open`` is refused, by whichever of the limits."""
    worst = _fullest(seen.after)
    if worst is not None and _is_near(worst):
        return _full(worst, seen)
    if _machine_is_full(seen):
        return _machine(seen)
    if seen.shortages:
        return _inotify(max(seen.shortages, key=lambda one: _own(one, seen)), seen)
    hidden = next((t for t in seen.after if t.may_be_full and not _is_sandbox(t)), None)
    if hidden is not None:
        return unknown(
            f"The descriptors of {hidden.comm} (pid {hidden.id.pid}) may not be listed from here: "
            f"up to {hidden.at_most} of the {hidden.soft} it may have. Ask as root on the host."
        )
    return _clear(worst, seen)


def _clear(worst: Table | None, seen: Observation) -> Finding:
    if worst is None or worst.count is None or worst.soft is None:
        return clear(f"None of {len(seen.after)} processes is near its limit of open files.")
    name = f"{worst.comm} (pid {worst.id.pid})"
    return clear(
        f"At most {worst.count} of {worst.soft} descriptors are open, by {name}"
        f"{_pace(worst, seen)}.",
        evidence=_counted(worst),
    )


def _growth(table: Table, seen: Observation) -> int | None:
    old = next((one.count for one in seen.before if one.id == table.id), None)
    return None if old is None or table.count is None else table.count - old


def _pace(table: Table, seen: Observation) -> str:
    grown = _growth(table, seen) or 0
    if grown < GROWING or table.count is None or table.soft is None or not seen.elapsed_ns:
        return ""
    seconds = (table.soft - table.count) * seen.elapsed_ns / 1e9 / grown
    until = f", full in {ago(seconds)} at that pace" if table.count < table.soft else ""
    return f", {grown} more than {seen.elapsed_ns / 1e9:.1f} s before{until}"


def _counted(table: Table) -> tuple[Evidence, ...]:
    pid = table.id.pid
    hard = "unlimited" if table.hard is None else table.hard
    return (
        Evidence(f"/proc/{pid}/fd", f"{table.count} descriptors (ls, or its size since 6.2)"),
        Evidence(f"/proc/{pid}/limits", f"Max open files: soft {table.soft}, hard {hard}"),
    )


# A process at its limit.


def _full(worst: Table, seen: Observation) -> Finding:
    full = worst.count is not None and worst.soft is not None and worst.count >= worst.soft
    others = sum(_is_near(table) for table in seen.after) - 1
    more = f", and {others} more of its processes are as full" if others else ""
    what = "opens nothing more" if full else "has almost none left"
    return Finding(
        verdict=Verdict.FOUND,
        certainty=Certainty.CONFIRMED if full else Certainty.LIKELY,
        severity=Severity.CRITICAL if full else Severity.WARNING,
        summary=(
            f"Too many open files: {worst.comm} (pid {worst.id.pid}) {what}, with {worst.count} of "
            f"{worst.soft} descriptors in use{_what(seen.kinds)}{_pace(worst, seen)}{more}."
        ),
        evidence=(*_counted(worst), *_kinds(worst, seen.kinds)),
        ruled_out=_not_shared(seen),
        cures=_cures(worst, seen),
    )


def _what(kinds: Kinds | None) -> str:
    if kinds is None or not kinds.kinds:
        return ""
    name, count = kinds.kinds[0]
    waiting = f", {kinds.close_wait} of these closed by the other end" if kinds.close_wait else ""
    return f", mostly {name} ({count} of {kinds.looked_at} looked at{waiting})"


def _kinds(worst: Table, kinds: Kinds | None) -> tuple[Evidence, ...]:
    if kinds is None:
        return ()
    says = ", ".join(f"{count} {name}" for name, count in kinds.kinds[:6])
    same = f"; {kinds.of_path} times {kinds.path}" if kinds.of_path > 1 else ""
    found = [Evidence(f"/proc/{worst.id.pid}/fd/*", says + same)]
    if kinds.close_wait:
        waiting = f"{kinds.close_wait} of its sockets in state 08 (CLOSE_WAIT)"
        found.append(Evidence(f"/proc/{worst.id.pid}/net/tcp", waiting))
    return tuple(found)


def _not_shared(seen: Observation) -> tuple[RuledOut, ...]:
    found = []
    if seen.inotify_asked and not seen.shortages:
        found.append(RuledOut("inotify", "its users can still make an instance: it was tried"))
    if seen.file_nr is not None:
        now, most = seen.file_nr
        found.append(RuledOut("the machine's table (ENFILE)", f"{now} of {most} files are open"))
    return tuple(found)


def _leak(worst: Table, seen: Observation) -> str | None:
    """Why it looks as if the program does not close what it is done with."""
    kinds = seen.kinds
    if kinds is None:
        return None
    half = max(MANY, kinds.looked_at / 2)
    if kinds.close_wait >= half:
        return (
            f"of {kinds.close_wait} sockets the other end is closed, and it does not close its own"
        )
    if kinds.of_path >= half:
        return f"it holds {kinds.path} open {kinds.of_path} times"
    gone = dict(kinds.kinds).get("deleted files", 0)
    if gone >= half:
        return f"{gone} of its files are deleted, and it holds them still"
    return None


def _cures(worst: Table, seen: Observation) -> tuple[Cure, ...]:
    leak, raised = _leak(worst, seen), _raise(worst, seen)
    if leak is None:
        return (
            raised,
            _in_program("Or let the program hold fewer open: bound its pools and close."),
        )
    mend = f"It looks like a leak: {leak}. Mend that; a larger limit only takes longer to fill."
    return (_in_program(mend), raised)


def _in_program(advice: str) -> Cure:
    return Cure(advice=advice, change=InProgram(advice), safety=Safety.LOW_RISK)


def _raise(worst: Table, seen: Observation) -> Cure:
    used = max(worst.count or 0, worst.soft or 0)
    twice = 1 << (2 * used - 1).bit_length()
    # It is given as both limits: the hard one that others in it may use must not shrink needlessly.
    usual = USUAL if worst.hard is None else min(worst.hard, USUAL)
    enough = max(twice, usual) if worst.hard != worst.soft else twice
    enough = min(enough, seen.nr_open or enough)
    itself = (
        f" The program may do so itself, up to {worst.hard or 'any number'} (setrlimit, ulimit -n)."
        if worst.hard is None or worst.hard > (worst.soft or 0)
        else ""
    )
    return Cure(
        advice=(
            f"Allow each process {enough} descriptors. How many more than {worst.soft} it wants, "
            f"the kernel does not tell: watch the number, and if it grows for ever, it leaks."
            f"{itself}"
        ),
        change=OpenFiles(enough),
        safety=Safety.MUTATING,
    )


# What is shared with others.


def _machine_is_full(seen: Observation) -> bool:
    return seen.file_nr is not None and seen.file_nr[0] >= NEARLY * seen.file_nr[1] > 0


def _machine(seen: Observation) -> Finding:
    now, most = seen.file_nr or (0, 0)
    advice = f"Find who has them open, or allow {2 * most} on the machine."
    mine = sum(table.count or 0 for table in seen.after)
    return Finding(
        verdict=Verdict.FOUND,
        certainty=Certainty.CONFIRMED if now >= most else Certainty.LIKELY,
        severity=Severity.CRITICAL if now >= most else Severity.WARNING,
        summary=(
            f"The machine's table of open files is full: {now} of {most} (ENFILE for all but "
            f"root), {mine} of them by this container."
        ),
        evidence=(Evidence("/proc/sys/fs/file-nr", f"{now} 0 {most}"),),
        ruled_out=(RuledOut("its own limit", _own_limit(seen)),),
        cures=(
            Cure(
                advice=advice,
                change=HostSysctl("fs.file-max", str(2 * most)),
                safety=Safety.MUTATING,
            ),
        ),
    )


def _own_limit(seen: Observation) -> str:
    worst = _fullest(seen.after)
    if worst is None or worst.count is None:
        return "none of its processes is near it"
    return f"the fullest, {worst.comm} (pid {worst.id.pid}), has {worst.count} of {worst.soft}"


def _number(holder: Holder, short: Shortage) -> int:
    return (holder.watches or 0) if short.watches else holder.instances


def _own(short: Shortage, seen: Observation) -> int:
    return sum(_number(one, short) for one in short.holders if one.pid in seen.members)


def _inotify(short: Shortage, seen: Observation) -> Finding:
    own = _own(short, seen)
    known = sum(_number(one, short) for one in short.holders)
    what = "watches" if short.watches else "instances"
    # One that has few, or none, is hurt only when it asks for one: that nobody can see.
    its = own > 0 and 2 * own >= known
    error = (
        "ENOSPC, 'no space left on device'" if short.watches else "EMFILE, 'too many open files'"
    )
    return Finding(
        verdict=Verdict.FOUND,
        certainty=Certainty.CONFIRMED if its else Certainty.LIKELY,
        severity=Severity.WARNING if its else Severity.INFO,
        summary=(
            f"No inotify {what} are left for uid {short.uid}, of {short.limit} for all containers "
            f"with that uid ({error}): {own} are held here{_by(short, seen)}."
        ),
        evidence=_holders(short),
        ruled_out=(RuledOut("its limit of open files", _own_limit(seen)),),
        cures=_more_inotify(short, what),
    )


def _by(short: Shortage, seen: Observation) -> str:
    mine = [one for one in short.holders if one.pid in seen.members]
    others = [one for one in short.holders if one.pid not in seen.members]
    says = ""
    if mine:
        says += f", {_number(mine[0], short)} by {mine[0].comm} (pid {mine[0].pid})"
    if others:
        first = others[0]
        says += f"; {first.comm} (pid {first.pid}) in {first.group} has {_number(first, short)}"
    return says


def _holders(short: Shortage) -> tuple[Evidence, ...]:
    key = WATCHES if short.watches else INSTANCES
    asked = f"asked for one more as uid {short.uid}: refused"
    file = "fdinfo/* (inotify wd:…)" if short.watches else "fd/* (anon_inode:inotify)"
    return (
        Evidence("inotify_add_watch(2)" if short.watches else "inotify_init1(2)", asked),
        Evidence(f"/proc/sys/{key.replace('.', '/')}", str(short.limit)),
        *(
            Evidence(f"/proc/{one.pid}/{file}", f"{_number(one, short)}, {one.comm} in {one.group}")
            for one in short.holders[:5]
        ),
    )


def _more_inotify(short: Shortage, what: str) -> tuple[Cure, ...]:
    key, limit = (WATCHES if short.watches else INSTANCES), short.limit or 128
    most = next(iter(short.holders), None)
    whose = "" if most is None else f" {most.comm} (pid {most.pid}) has {_number(most, short)}:"
    return (
        Cure(
            advice=f"Allow each user {2 * limit} inotify {what}, on the whole machine.",
            change=HostSysctl(key, str(2 * limit)),
            safety=Safety.MUTATING,
        ),
        _in_program(
            f"Or let the program make fewer, one instance with many watches.{whose} if that grows "
            "for ever, it leaks. A uid of its own gives a container a count of its own."
        ),
    )


CASE = Case(
    title="Too many open files",
    question='Why "too many open files"?',
    question_zh="为什么打开文件失败?",
    lesson="+",
    needs=(living,),
    observation=Observation,
    observe=observe,
    judge=judge,
)
