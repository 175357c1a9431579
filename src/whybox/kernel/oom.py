r"""What the OOM killer said: its reports among the records of the kernel log.

A report is some eighty records (mm/oom_kill.c: dump_header, dump_oom_victim, __oom_kill_process):
who asked for memory, what the group held, every candidate, then

>>> said = "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=b,mems_allowed=0,"
>>> said += "oom_memcg=/pod,task_memcg=/pod/b,task=a,b,pid=7,uid=0"
>>> context(said)
Context(constraint='MEMCG', oom_memcg='/pod', task_memcg='/pod/b', comm='a,b', pid=7)

and ``Memory cgroup out of memory: Killed process 7 (a,b) total-vm:…``. Only ten reports in five
seconds are written in full; of a further victim only that last line is, without a group.
"""

import os
import re
from collections.abc import Callable, Iterable

from msgspec import Struct, structs

from whybox.kernel import kmsg
from whybox.kernel.host import Host
from whybox.kernel.kmsg import KERNEL, Record
from whybox.kernel.oomkill import Consumer as Consumer
from whybox.kernel.oomkill import Kernel
from whybox.kernel.oomkill import OomKill as OomKill

#: page_counter_max in kB: "no limit" (PAGE_COUNTER_MAX is LONG_MAX / PAGE_SIZE).
_UNLIMITED_KB = 1 << 52
#: Reports that were begun and never ended (the victim was already exiting) are forgotten.
_MOST_OPEN = 8
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

_INVOKED = re.compile(r"(?P<comm>.*) invoked oom-killer: gfp_mask=", re.DOTALL)
_CPU = re.compile(r"CPU: \d+ (?:UID: \d+ )?PID: (?P<pid>\d+) Comm: (?P<rest>.*)", re.DOTALL)
_USAGE = re.compile(
    r"(?P<what>memory|memory\+swap|swap|kmem): usage (\d+)kB, limit (\d+)kB, failcnt"
)
_STATS = re.compile(r"Memory cgroup stats for (?P<path>/.*?):(?: |$)", re.DOTALL)
_STAT = re.compile(r"(?P<name>[a-z_]+) (?P<value>\d+)")
#: The table of candidates; its columns differ between kernels and are named in its head.
_TASKS = re.compile(r"\[ *pid *\] +(?P<columns>.*)")
_TASK = re.compile(r"\[ *(?P<pid>\d+)\] +(?P<columns>.*)", re.DOTALL)
_CONTEXT = re.compile(
    r"oom-kill:constraint=(?:CONSTRAINT_)?(?P<constraint>[A-Z_]+),.*?,mems_allowed=[\d,-]*,"
    # The name of a cpuset is one component and cannot hold the slash that a path begins with.
    r"(?:oom_memcg=(?=/)|global_oom,task_memcg=(?=/))(?P<rest>.*)",
    re.DOTALL,
)
_VICTIM = re.compile(r",task=(?P<comm>.*),pid=(?P<pid>\d+),uid=\d+$", re.DOTALL)
_KILLED = re.compile(
    r"(?P<who>Memory cgroup out of memory|Out of memory[^:]*): Killed process (?P<pid>\d+) "
    # A task may be called ") total-vm:1kB": the last one is the kernel's.
    r"\((?P<comm>.*)\),? total-vm:\d+kB, anon-rss:(?P<anon>\d+)kB, file-rss:(?P<file>\d+)kB"
    r"(?:, shmem-rss:(?P<shmem>\d+)kB)?(?:.* oom_score_adj:(?P<adj>-?\d+))?",
    re.DOTALL,
)
_GROUP = re.compile(
    r"Tasks in (?P<path>/.*) are going to be killed due to memory\.oom\.group set$", re.DOTALL
)


class Context(Struct, frozen=True):
    """The one-line summary of a report."""

    constraint: str
    oom_memcg: str | None
    task_memcg: str
    comm: str | None
    pid: int | None


def kills(host: Host) -> tuple[OomKill, ...]:
    """Every kill that the kernel log still tells of, oldest first."""
    return host.remembered("oom", lambda: parse(kmsg.log(host).records))


def parse(records: Iterable[Record]) -> tuple[OomKill, ...]:
    """Find the reports among the records."""
    reader = _Reader()
    for one in records:
        if one.facility == KERNEL:
            reader.take(one)
    return tuple(reader.kills)


def context(text: str, comm: str | None = None) -> Context | None:
    """Parse the ``oom-kill:`` line. Names in it may hold commas, and even its own keys.

    Where the victim's name is known, it tells where the paths end.
    """
    match = _CONTEXT.match(text)
    if match is None:
        return None
    named = _VICTIM if comm is None else re.compile(_VICTIM.pattern.replace(".*", re.escape(comm)))
    victim = named.search(text) or _VICTIM.search(text)
    rest = match["rest"] if victim is None else match["rest"].removesuffix(victim[0])
    limited = text[: match.start("rest")].endswith("oom_memcg=")
    oom_memcg, task_memcg = _split(rest) if limited else (None, rest)
    return Context(
        match["constraint"],
        oom_memcg,
        task_memcg,
        None if victim is None else victim["comm"],
        None if victim is None else int(victim["pid"]),
    )


def _split(rest: str) -> tuple[str, str]:
    """Both paths: the second is the first or below it, wherever the key between them seems to be.

    That also keeps a container, which may name its own groups, from speaking of another's.
    """
    key = ",task_memcg="
    at = rest.find(key)
    while at >= 0:
        upper, lower = rest[:at], rest[at + len(key) :]
        if lower == upper or lower.startswith(upper + "/"):
            return upper, lower
        at = rest.find(key, at + 1)
    return rest, rest  # cut off, as very long lines are: it is the first path or below it


class _Report:
    """A report that was begun and not yet ended."""

    def __init__(self, trigger_comm: str | None) -> None:
        self.trigger_comm = trigger_comm
        self.trigger_pid: int | None = None
        self.usage: tuple[int, int | None] | None = None
        self.swap: tuple[int, int | None] | None = None
        self.kmem: int | None = None
        self.stats_path: str | None = None
        self.stats: dict[str, int] = {}
        self.columns: list[str] | None = None
        self.largest: Consumer | None = None
        self.line: str | None = None
        self.context: Context | None = None

    def holds(self, *names: str) -> int | None:
        """The first of these keys that was said."""
        return next((self.stats[name] for name in names if name in self.stats), None)

    def kernel(self) -> Kernel | None:
        """What the kernel itself kept; v1 tells the sum alone."""
        slab = self.holds("slab")
        if slab is None and "slab_unreclaimable" in self.stats:
            slab = self.stats["slab_unreclaimable"] + self.stats.get("slab_reclaimable", 0)
        said = Kernel(
            total=self.holds("kernel") if self.kmem is None else self.kmem,
            page_tables=self.holds("pagetables"),
            slab=slab,
            stacks=self.holds("kernel_stack"),
            sockets=self.holds("sock"),
        )
        return None if said == Kernel() else said

    def told(self, kill: OomKill) -> OomKill:
        """The kill with all that its report says of it."""
        said = context(self.line or "", kill.victim_comm)
        usage, limit = self.usage or (None, None)
        swap_usage, swap_limit = self.swap or (None, None)
        # 6.18 on v1 says it as v1 does (measured); without ``total_`` groups below are left out.
        shmem = self.holds("total_shmem", "shmem")
        file = self.holds("total_cache", "file")
        return structs.replace(
            kill,
            constraint=None if said is None else said.constraint,
            oom_memcg=None if said is None else said.oom_memcg,
            task_memcg=None if said is None else said.task_memcg,
            global_oom=kill.global_oom if said is None else said.oom_memcg is None,
            trigger_comm=self.trigger_comm,
            trigger_pid=self.trigger_pid,
            usage_bytes=usage,
            limit_bytes=limit,
            swap_usage_bytes=swap_usage,
            swap_limit_bytes=swap_limit,
            held_anon_bytes=self.holds("total_rss", "anon"),
            # tmpfs is counted among the files as well.
            held_file_bytes=None if file is None else max(file - (shmem or 0), 0),
            held_shmem_bytes=shmem,
            held_kernel=self.kernel(),
            largest=self.largest,
        )


class _Reader:
    """Ties records to reports.

    ``oom_lock`` lets one CPU report at a time, but other messages come in between, and lines get
    lost; so a record goes to the oldest report that still lacks it and does not contradict it.
    """

    def __init__(self) -> None:
        self.kills: list[OomKill] = []
        self._open: list[_Report] = []
        self._stats: _Report | None = None
        self._tasks: _Report | None = None
        self._unfinished: _Report | None = None
        self._group: OomKill | None = None

    def take(self, record: Record) -> None:
        """One record in the order of the log."""
        text = record.text
        if self._unfinished is not None and text.startswith(","):
            self._names_victim((self._unfinished.line or "") + text)
            return
        # Most records are about something else.
        likely = "oom" in text or "ut of memory" in text
        if likely and (self._begins(text) or self._names_victim(text) or self._ends(record)):
            return
        if self._open:
            self._describes(text)

    def _begins(self, text: str) -> bool:
        if (match := _INVOKED.match(text)) is None:
            return False
        self._open = [*self._open[1 - _MOST_OPEN :], _Report(match["comm"])]
        self._group = None
        return True

    def _describes(self, text: str) -> None:
        if (match := _USAGE.match(text)) is not None:
            self._uses(match["what"], int(match[2]) * 1024, int(match[3]))
        elif (match := _CPU.match(text)) is not None:
            self._triggered(int(match["pid"]), match["rest"])
        elif (match := _STATS.match(text)) is not None:
            self._stats = self._first(lambda r: r.usage is not None and r.stats_path is None)
            if self._stats is not None:
                self._stats.stats_path = match["path"]
        elif (match := _TASKS.match(text)) is not None:
            self._stats, self._tasks = None, self._first(lambda r: r.columns is None)
            if self._tasks is not None:
                self._tasks.columns = match["columns"].split()
        elif self._stats is not None:
            self._held(self._stats, text)
        elif self._tasks is not None and (match := _TASK.match(text)) is not None:
            self._ran(self._tasks, int(match["pid"]), match["columns"])

    def _first(self, fits: Callable[[_Report], bool]) -> _Report | None:
        return next((report for report in self._open if fits(report)), None)

    def _triggered(self, pid: int, rest: str) -> None:
        # Any warning has such a line: the name must be the one that invoked the killer.
        report = self._first(
            lambda r: r.trigger_pid is None and rest.startswith(f"{r.trigger_comm} ")
        )
        if report is not None:
            report.trigger_pid = pid

    def _uses(self, what: str, usage_bytes: int, limit_kb: int) -> None:
        said = usage_bytes, None if limit_kb >= _UNLIMITED_KB else limit_kb * 1024
        if what == "memory":
            report = self._first(lambda r: r.usage is None)
            if report is not None:
                report.usage = said
            return
        if what == "kmem":
            report = self._first(lambda r: r.usage is not None and r.kmem is None)
            if report is not None:
                report.kmem = usage_bytes
            return
        report = self._first(lambda r: r.usage is not None and r.swap is None)
        if report is not None:
            report.swap = said

    def _held(self, report: _Report, text: str) -> None:
        # 5.10 and 6.1: one record of many lines, cut off at 1 KiB; 6.18: a record each (measured).
        for line in text.splitlines():
            if match := _STAT.fullmatch(line):
                report.stats.setdefault(match["name"], int(match["value"]))

    def _ran(self, report: _Report, pid: int, row: str) -> None:
        columns = report.columns or []
        said = dict(zip(columns, row.split(None, len(columns) - 1), strict=False))
        if not said.get("rss", "").isdigit() or "name" not in said:
            return
        rss_bytes = int(said["rss"]) * _PAGE_BYTES
        if report.largest is None or rss_bytes > report.largest.rss_bytes:
            report.largest = Consumer(pid=pid, comm=said["name"], rss_bytes=rss_bytes)

    def _names_victim(self, text: str) -> bool:
        if not text.startswith("oom-kill:"):
            return False
        self._stats = self._tasks = self._group = None
        said = context(text)
        report = self._unfinished or self._chosen(said)
        self._unfinished = None
        report.line, report.context = text, said
        if said is None or said.pid is None:
            self._unfinished = report  # printed piece by piece: another message may cut it in two
        return True

    def _chosen(self, said: Context | None) -> _Report:
        """The report that this line closes: about the same group, or the oldest that may be it."""
        path = None if said is None else said.oom_memcg
        report = self._first(lambda r: r.line is None and r.stats_path == path)
        report = report or self._first(
            lambda r: r.line is None and (said is None or r.stats_path is None)
        )
        if report is None:
            report = _Report(None)
            self._open.append(report)
        return report

    def _ends(self, record: Record) -> bool:
        if (match := _GROUP.match(record.text)) is not None:
            self._whole_group(match["path"])
        elif (match := _KILLED.match(record.text)) is not None:
            self._killed(record, match)
        elif " is already exiting. Skip killing the task" in record.text and self._open:
            self._open.pop()
        else:
            return False
        return True

    def _killed(self, record: Record, match: re.Match[str]) -> None:
        pid = int(match["pid"])
        kill = OomKill(
            usec=record.usec,
            seq=record.seq,
            victim_pid=pid,
            victim_comm=match["comm"],
            anon_rss_bytes=_kib(match["anon"]),
            file_rss_bytes=_kib(match["file"]),
            shmem_rss_bytes=_kib(match["shmem"]),
            oom_score_adj=None if match["adj"] is None else int(match["adj"]),
            global_oom=match["who"].startswith("Out of memory"),
        )
        report = self._report_of(pid)
        if report is not None:
            self._open.remove(report)
            self.kills.append(report.told(kill))
        elif self._group is not None and _at_once(self.kills[-1], kill):
            self._one_more(kill, self._group)
        else:
            self.kills.append(kill)

    def _report_of(self, pid: int) -> _Report | None:
        exact = self._first(lambda r: r.context is not None and r.context.pid == pid)
        # A line that was cut off before it came to the pid.
        return exact or self._first(lambda r: r.line is not None and _nameless(r.context))

    def _whole_group(self, path: str) -> None:
        if self.kills:
            first = self.kills[-1]
            # Where the report itself was held back, the path is all that tells whose they are.
            self._group = structs.replace(
                first, oom_group=True, task_memcg=first.task_memcg or path
            )
            self.kills[-1] = self._group

    def _one_more(self, kill: OomKill, first: OomKill) -> None:
        # The first victim is named a second time where it is not gone yet.
        if kill.victim_pid == first.victim_pid:
            return
        same = {
            name: getattr(first, name)
            for name in OomKill.__struct_fields__
            if getattr(kill, name) is None
        }
        self.kills.append(structs.replace(kill, **same, oom_group=True))


def _at_once(one: OomKill, other: OomKill) -> bool:
    """Whether so close that it is the same killing, which holds ``oom_lock`` to its end."""
    return one.usec is None or other.usec is None or other.usec - one.usec < 1_000_000


def _nameless(said: Context | None) -> bool:
    return said is None or said.pid is None


def _kib(text: str | None) -> int | None:
    return None if text is None else int(text) * 1024
