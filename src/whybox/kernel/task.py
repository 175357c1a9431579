"""Tasks: ``/proc/PID/{stat,status,io,schedstat,wchan,limits,fd}`` (filesystems/proc.rst).

A task is (pid, start time): a pid alone may belong to somebody else a moment later.
"""

import os

from msgspec import Struct

from whybox.kernel.host import Host, ParseError, decode

#: Clock ticks a second, the unit of the times in ``stat`` (USER_HZ, 100 on every architecture
#: that containers run on, but asked for all the same).
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")

#: include/linux/sched.h
PF_KTHREAD = 0x00200000


class TaskId(Struct, frozen=True, kw_only=True):
    """One task and no other."""

    pid: int
    start_ticks: int
    """When it began, in clock ticks since boot."""


class Stat(Struct, frozen=True, kw_only=True):
    """``/proc/PID/stat``."""

    pid: int
    comm: str
    state: str
    ppid: int
    pgrp: int
    session: int
    flags: int
    majflt: int
    utime_ticks: int
    stime_ticks: int
    num_threads: int
    start_ticks: int

    @property
    def id(self) -> TaskId:
        """Its identity."""
        return TaskId(pid=self.pid, start_ticks=self.start_ticks)


class Status(Struct, frozen=True, kw_only=True):
    """``/proc/PID/status``: the fields that cases read."""

    name: str
    state: str
    tgid: int
    ppid: int
    uid: tuple[int, ...]
    """Real, effective, saved, file system."""
    gid: tuple[int, ...]
    nspid: tuple[int, ...]
    """The pid in every pid namespace from the reader's down to the task's own."""
    threads: int
    sig_pnd: int
    shd_pnd: int
    sig_blk: int
    sig_ign: int
    sig_cgt: int
    cap_inh: int
    cap_prm: int
    cap_eff: int
    cap_bnd: int
    cap_amb: int
    no_new_privs: bool
    seccomp: int | None
    """0 off, 1 strict, 2 filter; ``None`` where the kernel was built without."""
    vm_rss_bytes: int | None
    vm_swap_bytes: int | None


class Io(Struct, frozen=True, kw_only=True):
    """``/proc/PID/io``, bytes."""

    rchar: int
    wchar: int
    read_bytes: int
    write_bytes: int


class Schedstat(Struct, frozen=True, kw_only=True):
    """``/proc/PID/schedstat`` (scheduler/sched-stats.rst)."""

    run_ns: int
    run_delay_ns: int
    """Time on a run queue without a CPU: contention and throttling both count here (measured)."""
    timeslices: int
    """How often it was given a CPU."""


def parse_stat(raw: bytes, file: str = "/proc/PID/stat") -> Stat:
    """Parse ``stat``; the name may hold blanks and brackets, so it ends at the *last* bracket.

    >>> parse_stat(b"7 (a) (b) S 1 7 7 0 -1 4194560 9 8 2 6 5 4 0 0 20 0 3 0 99 8192 1").comm
    'a) (b'
    """
    try:
        opening, closing = raw.index(b"("), raw.rindex(b")")
        rest = raw[closing + 2 :].split()
        numbers = [int(field) for field in rest[1:20]]
    except ValueError:
        raise ParseError(file, decode(raw)) from None
    if len(numbers) < 19:
        raise ParseError(file, decode(raw))
    return Stat(
        pid=int(raw[:opening]),
        comm=decode(raw[opening + 1 : closing]),
        state=decode(rest[0]),
        ppid=numbers[0],
        pgrp=numbers[1],
        session=numbers[2],
        flags=numbers[5],
        majflt=numbers[8],
        utime_ticks=numbers[10],
        stime_ticks=numbers[11],
        num_threads=numbers[16],
        start_ticks=numbers[18],
    )


def stat(host: Host, pid: int) -> Stat:
    """``/proc/PID/stat`` of a process."""
    file = f"/proc/{pid}/stat"
    return parse_stat(host.read(file), file)


def status(host: Host, pid: int | str) -> Status:
    """``/proc/PID/status`` of a process."""
    file = f"/proc/{pid}/status"
    return parse_status(host.text(file), file)


def parse_status(text: str, file: str = "/proc/PID/status") -> Status:
    """Parse ``status``. A zombie has no memory lines; kernels differ in which others they print."""
    said = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
    try:
        return _status(said)
    except (KeyError, ValueError) as error:
        raise ParseError(file, str(error)) from None


def _status(said: dict[str, str]) -> Status:
    return Status(
        name=said["Name"],
        state=said["State"][:1],
        tgid=int(said["Tgid"]),
        ppid=int(said["PPid"]),
        uid=_numbers(said["Uid"]),
        gid=_numbers(said["Gid"]),
        nspid=_numbers(said.get("NSpid", said["Tgid"])),
        threads=int(said["Threads"]),
        sig_pnd=int(said["SigPnd"], 16),
        shd_pnd=int(said["ShdPnd"], 16),
        sig_blk=int(said["SigBlk"], 16),
        sig_ign=int(said["SigIgn"], 16),
        sig_cgt=int(said["SigCgt"], 16),
        cap_inh=int(said["CapInh"], 16),
        cap_prm=int(said["CapPrm"], 16),
        cap_eff=int(said["CapEff"], 16),
        cap_bnd=int(said["CapBnd"], 16),
        cap_amb=int(said.get("CapAmb", "0"), 16),
        no_new_privs=said.get("NoNewPrivs") == "1",
        seccomp=int(said["Seccomp"]) if "Seccomp" in said else None,
        vm_rss_bytes=_kib(said.get("VmRSS")),
        vm_swap_bytes=_kib(said.get("VmSwap")),
    )


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split())


def _kib(text: str | None) -> int | None:
    return None if text is None else int(text.split()[0]) * 1024


def io(host: Host, pid: int) -> Io:
    """``/proc/PID/io``: needs the same user or ptrace rights."""
    file = f"/proc/{pid}/io"
    said = dict(line.split(": ", 1) for line in host.text(file).splitlines())
    try:
        return Io(
            rchar=int(said["rchar"]),
            wchar=int(said["wchar"]),
            read_bytes=int(said["read_bytes"]),
            write_bytes=int(said["write_bytes"]),
        )
    except (KeyError, ValueError) as error:
        raise ParseError(file, str(error)) from None


def schedstat(host: Host, pid: int, tid: int | None = None) -> Schedstat:
    """``schedstat`` of a process' main thread, or of one of its threads."""
    file = f"/proc/{pid}/schedstat" if tid is None else f"/proc/{pid}/task/{tid}/schedstat"
    fields = host.text(file).split()
    if len(fields) < 3:
        raise ParseError(file, " ".join(fields))
    return Schedstat(run_ns=int(fields[0]), run_delay_ns=int(fields[1]), timeslices=int(fields[2]))


def wait_channel(host: Host, pid: int, tid: int | None = None) -> str | None:
    """The kernel function that a task sleeps in; ``None`` if it runs or may not be looked at."""
    file = f"/proc/{pid}/wchan" if tid is None else f"/proc/{pid}/task/{tid}/wchan"
    said = host.optional_text(file)
    return None if said in (None, "", "0") else said


def thread_ids(host: Host, pid: int) -> tuple[int, ...]:
    """The threads of a process."""
    return tuple(sorted(int(name) for name in host.names(f"/proc/{pid}/task")))


def pids(host: Host) -> tuple[int, ...]:
    """All processes that can be seen."""
    return tuple(sorted(int(name) for name in host.names("/proc") if name.isdigit()))


def descriptors(host: Host, pid: int) -> tuple[str, ...]:
    """What the open descriptors of a process point at, such as ``anon_inode:[signalfd]``."""
    found = []
    for name in host.names(f"/proc/{pid}/fd"):
        try:
            found.append(host.link(f"/proc/{pid}/fd/{name}"))
        except OSError:
            continue  # closed while we looked
    return tuple(found)


def is_same(host: Host, task: TaskId) -> bool:
    """Whether the task is still there: the same pid with the same start, not yet reaped."""
    try:
        return stat(host, task.pid).start_ticks == task.start_ticks
    except OSError:
        return False
