"""The first change to a file of the image copies all of it: copies that landed in this window."""

import os
from contextlib import nullcontext

from msgspec import Struct

from whybox.change import Change, InProgram, Volume
from whybox.kernel import overlay, surplus, upper
from whybox.kernel.copies import NOT_WATCHED, Call, Calls, Copies, copied, in_container, watch
from whybox.kernel.host import Host, printable
from whybox.kernel.mountinfo import mounts, root_mount
from whybox.kernel.surplus import Accounts, Writer, Written
from whybox.kernel.target import Target
from whybox.kernel.upper import WORTH_BYTES, CopiedUp, Watched
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

MIB = 1 << 20
#: One call that takes as long as this is felt.
SLOW_NS = 20_000_000
#: So much in one window is felt even when no single file is large.
MUCH_BYTES = 16 * MIB
#: So many files, each copied and synced for a new mode or owner, are felt: 1.2 ms each (measured).
MANY_FILES = 100
MANY_NS = 50_000_000
MOST_MOUNTS = 16


class Observation(Struct, frozen=True, kw_only=True):
    """Every writable overlay mount, before and after, and the processes' own accounts."""

    init_pid: int
    root_fstype: str | None
    mounts: tuple[Watched, ...]
    written: Written
    calls: Calls = NOT_WATCHED
    """The system calls that copied, where they can be watched."""


def observe(host: Host, target: Target) -> Watch[Observation]:
    """Walk the upper directories before and after, and read what each process wrote."""
    init = target.init
    if init is None:
        raise OSError("it is not running")
    seen = mounts(host, init.pid)
    root = root_mount(seen)
    mounted = overlay.overlays(seen)[:MOST_MOUNTS]
    with watch(host, target) if mounted else nullcontext(Calls) as copying:
        before = [(o, upper.begin(host, o)) for o in mounted]
        accounts = surplus.accounts(host, target) if mounted else Accounts()
        yield
        after = surplus.accounts(host, target) if mounted else Accounts()
        return Observation(
            init_pid=init.pid,
            root_fstype=None if root is None else root.fstype,
            mounts=tuple(upper.end(host, o, begun) for o, begun in before),
            written=surplus.written(host, accounts, after),
            calls=copying(),
        )


def _hurts(copies: Copies) -> bool:
    """Whether somebody felt it."""
    much = copies.copied_bytes >= MUCH_BYTES and copies.took_ns >= SLOW_NS
    # Without a sync, small copies cost next to nothing: 100 chmods in 28 ms (measured).
    synced = not copies.watched.mount.volatile
    many = synced and copies.count > MANY_FILES and copies.took_ns >= MANY_NS
    return much or many or any(map(_is_slow, copies.files))


def _is_slow(file: CopiedUp) -> bool:
    took = file.took_ns
    least = MUCH_BYTES if took is None else WORTH_BYTES
    return file.contents_bytes >= least and (took is None or took >= SLOW_NS)


def judge(seen: Observation) -> Finding:
    """Found where copies of whole files ended, or were under way, in this window."""
    if not seen.mounts:
        return _no_overlay(seen.root_fstype)
    copies = [c for c in _all_copies(seen) if _hurts(c)]
    if copies:
        return _found(max(copies, key=lambda c: c.copied_bytes), seen)
    copying = next((w for w in seen.written.writers if w.copying), None)
    if copying is not None:
        return _under_way(copying, seen)
    reasons = [_suspicion(seen), *(_reason(watched, seen.calls) for watched in seen.mounts)]
    reason = next((r for r in reasons if r is not None), None)
    if reason is not None:
        return unknown(reason)
    return clear(_harmless(seen))


def _no_overlay(fstype: str | None) -> Finding:
    if fstype is None:
        return unknown("its mount table shows no root file system")
    if "overlay" in fstype and fstype != "overlay":
        return unknown(f"its root is {fstype}, a program that copies where the kernel cannot see")
    return clear(f"It has no writable overlay mount (its root is {fstype}): nothing is copied up.")


def _all_copies(seen: Observation) -> list[Copies]:
    return [copied(watched, seen.written, seen.calls) for watched in seen.mounts]


def _reason(watched: Watched, calls: Calls) -> str | None:
    """Why nothing can be said of this mount."""
    after = watched.after
    if watched.reason is not None:
        return watched.reason
    if after is None:
        return "in a window of 0 s no file can be seen being copied: ask with --window 5s"
    if after.incomplete is not None:
        return f"{watched.mount.upperdir} could not be seen whole: {after.incomplete}"
    doubtful = [f for f in after.unmarked if calls.of(watched, f) is None]
    if doubtful:
        return (
            f"{doubtful[0].path} is new there, and may be a copy or written anew: the kernel "
            "marks no copy of a file with several names"
        )
    return None


def _suspicion(seen: Observation) -> str | None:
    """A copy may be under way: a stack that never slept does not show where its task is."""
    writer = next(iter(seen.written.writers), None)
    if writer is None or writer.surplus_bytes < max(MUCH_BYTES, 100 * writer.wchar):
        return None
    taken = [w.before.free_bytes - w.after.free_bytes for w in seen.mounts if w.before and w.after]
    if 2 * max(taken, default=0) < writer.surplus_bytes:
        return None
    return (
        f"{_size(writer.surplus_bytes)} were written for {printable(writer.comm)} but not by it, "
        "and no copy is complete: one may be under way, ask again with a longer --window"
    )


def _harmless(seen: Observation) -> str:
    landed = [f for copies in _all_copies(seen) for f in copies.files]
    if landed:
        size = _size(sum(f.contents_bytes for f in landed))
        took = sum(f.took_ns or 0 for f in landed) / 1e6
        return f"{_files(len(landed))} of {size} copied up in this window, in {took:.0f} ms."
    if any(w.after.count for w in seen.mounts if w.after is not None):
        return "Files of the image were written anew in this window, or copied too fast to be felt."
    return f"No file was copied up in this window{_history(seen)}."


def _history(seen: Observation) -> str:
    earlier = [(w.before, f) for w in seen.mounts if w.before for f in w.before.files]
    if not earlier:
        return ""
    since = min(before.began_ns - (f.btime_ns or f.landed_ns) for before, f in earlier)
    count = sum(w.before.count for w in seen.mounts if w.before)
    size = _size(sum(f.contents_bytes for _, f in earlier))
    last = "which was" if count == 1 else "the last"
    return (
        f"; {_files(count)} of {size} copied up before it, {last} {ago(since / 1e9)} ago: that "
        "happens once a file, and slows nothing now"
    )


def _found(copies: Copies, seen: Observation) -> Finding:
    # Whoever is not on any account may have written the contents himself.
    exact = copies.accounted or not copies.large
    return Finding(
        verdict=Verdict.FOUND,
        certainty=Certainty.CONFIRMED if exact else Certainty.LIKELY,
        severity=Severity.WARNING,
        summary=_summary(copies),
        evidence=_evidence(copies, seen),
        ruled_out=_ruled_out(copies),
        cures=_cures(copies),
    )


def _summary(copies: Copies) -> str:
    total = f"{_size(copies.copied_bytes)} in {copies.took_ns / 1e9:.2f} s"
    large = copies.large
    if not large:
        return (
            f"{copies.count} files of the image were copied up in this window, {total}: the first "
            "change to a file of the image, its mode or owner too, copies all of it."
        )
    first = in_container(copies.watched, large[0])
    what = first if len(large) == 1 else f"{len(large)} files such as {first}"
    return (
        f"The first change to a file of the image copied all of it: {what}, {total}, "
        "within the call that opened or changed it. Once a file: the next change is fast."
    )


def _evidence(copies: Copies, seen: Observation) -> tuple[Evidence, ...]:
    mount = copies.watched.mount
    files = tuple(
        Evidence(f"{mount.upperdir}/{f.path}", _landing(copies.watched, f))
        for f in copies.files[:3]
    )
    said = f"{mount.mountpoint} is overlay, upperdir={mount.upperdir}"
    where = Evidence(f"/proc/{seen.init_pid}/mountinfo", said)
    return (*files, where, *_called(copies, seen.calls), *_accounted(seen.written.writers))


def _called(copies: Copies, calls: Calls) -> tuple[Evidence, ...]:
    """The calls that copied the largest files."""
    made = [calls.of(copies.watched, file) for file in copies.files[:3]]
    return tuple(Evidence("raw_syscalls:sys_exit", _call(one)) for one in made if one is not None)


def _call(call: Call) -> str:
    return (
        f"{call.comm} {call.pid}: {call.name} of {call.path} took {call.took_ns / 1e6:.0f} ms, "
        f"and had {call.written_bytes} bytes written that it did not give"
    )


def _landing(watched: Watched, file: CopiedUp) -> str:
    marked = watched.after is None or file not in watched.after.unmarked
    mark = f"{watched.mount.xattr}origin is set" if marked else "over a file with several names"
    lasted = "" if file.took_ns is None else f", in place {file.took_ns / 1e6:.0f} ms after birth"
    of = "" if file.lower_bytes is None else f", {file.lower_bytes} bytes of the layer below"
    return f"{mark}{of}{lasted}; now {file.size_bytes} bytes"


def _accounted(writers: tuple[Writer, ...]) -> tuple[Evidence, ...]:
    return tuple(
        Evidence(
            f"/proc/{w.pid}/io",
            f"{printable(w.comm)}: write_bytes +{w.write_bytes} while wchar +{w.wchar}",
        )
        for w in writers[:2]
    )


def _ruled_out(copies: Copies) -> tuple[RuledOut, ...]:
    again = "those slow every write; what was copied is never copied again"
    return (
        RuledOut("new files of the container", f"they carry no {copies.watched.mount.xattr}origin"),
        RuledOut("storage/io_throttled, a slow disk, a program that syncs", again),
        RuledOut("copies of the past", "only files that landed in this window are counted"),
    )


def _cures(copies: Copies) -> tuple[Cure, ...]:
    directory = _directory(copies)
    change: Change = Volume(directory)
    advice = f"Keep {directory} on a volume: there the first write is like every other."
    if directory == "/":
        change = InProgram("write to files of its own below a volume, not to those of the image")
        advice = "Move what is written into a directory of its own, and keep that on a volume."
    elsewhere = (
        "Or keep changing data out of the image, and set modes and owners in the same Dockerfile "
        "step that makes the files (COPY --chown); for chmod and chown alone, the mount option "
        "metacopy=on copies no contents."
    )
    return (
        Cure(advice=advice, change=change, safety=Safety.MUTATING),
        Cure(advice=elsewhere, safety=Safety.INSPECT),
    )


def _directory(copies: Copies) -> str:
    """The deepest directory that holds them all, or where that is ``/``, the largest file's."""
    files = tuple(filter(_is_slow, copies.files)) or copies.files
    directories = [os.path.dirname(in_container(copies.watched, f)) for f in files]
    shared = os.path.commonpath(directories)
    return directories[0] if shared == "/" else shared


def _under_way(writer: Writer, seen: Observation) -> Finding:
    advice = (
        "Keep what is written on a volume, out of the image. Ask again to see which file it is."
    )
    stack = Evidence(f"/proc/{writer.pid}/task/*/stack", "it is inside ovl_copy_up_flags")
    return Finding(
        verdict=Verdict.FOUND,
        severity=Severity.WARNING,
        summary=(
            f"A file of the image is being copied up for {printable(writer.comm)}, "
            f"{_size(writer.surplus_bytes)} so far, within the call that opened or changed it."
        ),
        evidence=(stack, *_accounted(seen.written.writers)),
        ruled_out=(RuledOut("its own writing", f"that was {writer.wchar} bytes in this window"),),
        cures=(Cure(advice=advice, safety=Safety.INSPECT),),
    )


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"


def _size(size: int) -> str:
    if size < 1024:
        return f"{size} bytes"
    return f"{size / MIB:.0f} MiB" if size >= MIB else f"{size / 1024:.0f} KiB"


CASE = Case(
    title="The first write copies the whole file",
    question="Why are file operations slow in my container?",
    question_zh="我在容器中读写文件怎么变慢了?",
    lesson="11",
    needs=(living,),
    observation=Observation,
    observe=observe,
    judge=judge,
)
