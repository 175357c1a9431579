"""What tracing costs: the CPU time of a loop in a container, with and without somebody looking.

Every figure is a ratio to the loop alone, run just before and just after, so a drifting machine
is fair to all. The twins do the same as far as they can, bpftrace and libbpf-tools: who
waits behind whom, or whether a right was the task's own, they do not tell.
"""

import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from msgspec import Struct

from bench import timing
from whybox.kernel import cpu, task
from whybox.kernel.host import Host
from whybox.lab import workload
from whybox.lab.box import Box

WHYBOX = str(Path(sys.executable).with_name("whybox"))
LOOP = Path(__file__).parent / "programs" / "loop.c"
ROUNDS = int(os.environ.get("WHYBOX_BENCH_ROUNDS", "5"))

#: A tracer says nothing when its programs are attached; ours does, in its first line.
SETTLING_SECONDS = 2.0
MOST_SECONDS = 120


class Tracer(Struct, frozen=True, kw_only=True):
    """One who looks."""

    name: str
    words: tuple[str, ...]
    needs: str | None = None
    """The program it is."""


class Subject(Struct, frozen=True, kw_only=True):
    """One question on one loop."""

    question: str
    loop: tuple[str, ...]
    """What runs in the box; ``{loop}`` is our program."""
    twins: tuple[Tracer, ...]
    target: float | None = None
    """The ratio to the loop alone that is promised; ``None``: cheaper than the twins."""
    memory_bytes: int | None = None
    network: bool = False


def bpftrace(script: str) -> Tracer:
    """A script; ``CGROUP`` in it is the box's. It looks for tracefs where that is not mounted."""
    mount = 'mount -t tracefs tracefs /sys/kernel/tracing; exec "$@"'
    words = ("unshare", "--mount", "sh", "-c", mount, "sh", "bpftrace", "-e", script)
    return Tracer(name="bpftrace", words=words, needs="bpftrace")


def tool(name: str, *words: str) -> Tracer:
    """One of libbpf-tools."""
    return Tracer(name=f"libbpf-tools {name}", words=(f"/usr/sbin/{name}", *words), needs=name)


_SYSCALLS = (
    "tracepoint:raw_syscalls:sys_enter /cgroup == CGROUP/ { @at[tid] = nsecs; @id[tid] = args->id }"
    " tracepoint:raw_syscalls:sys_exit /@at[tid]/ { $d = nsecs - @at[tid]; @calls[@id[tid]] ="
    " count(); @ns[@id[tid]] = hist($d); @errors[@id[tid], args->ret < 0] = count();"
    " delete(@at[tid]); delete(@id[tid]) }"
)
_RUNQUEUE = (
    "tracepoint:sched:sched_wakeup, tracepoint:sched:sched_wakeup_new { @q[args->pid] = nsecs }"
    " tracepoint:sched:sched_switch { if (args->prev_state == 0) { @q[args->prev_pid] = nsecs }"
    " $at = @q[args->next_pid]; if ($at) { @us = hist((nsecs - $at) / 1000) }"
    " delete(@q[args->next_pid]) }"
)
_BLOCKED = (
    "tracepoint:sched:sched_switch { if (args->prev_state != 0 && cgroup == CGROUP) {"
    " @at[args->prev_pid] = nsecs; @stack[args->prev_pid] = kstack; } $at = @at[args->next_pid];"
    " if ($at) { @ns[@stack[args->next_pid]] = sum(nsecs - $at); delete(@at[args->next_pid]);"
    " delete(@stack[args->next_pid]) } }"
)
_FILES = (
    "tracepoint:syscalls:sys_enter_openat, tracepoint:syscalls:sys_enter_open /cgroup == CGROUP/"
    " { @at[tid] = nsecs; @name[tid] = str(args->filename) }"
    " tracepoint:syscalls:sys_exit_openat, tracepoint:syscalls:sys_exit_open /@at[tid]/"
    " { @ns[@name[tid]] = hist(nsecs - @at[tid]); delete(@at[tid]); delete(@name[tid]) }"
)
_DISK = (
    "tracepoint:block:block_bio_queue /cgroup == CGROUP/"
    " { @born[args->dev, args->sector] = nsecs; @who[args->dev, args->sector] = comm }"
    " tracepoint:block:block_rq_issue /@born[args->dev, args->sector]/"
    " { @at[args->dev, args->sector] = nsecs }"
    " tracepoint:block:block_rq_complete /@at[args->dev, args->sector]/"
    " { $at = @at[args->dev, args->sector]; $born = @born[args->dev, args->sector];"
    " @device[args->dev, args->rwbs] = hist((nsecs - $at) / 1000);"
    " @wait[args->dev, args->rwbs] = hist(($at - $born) / 1000);"
    " @longest[args->dev, args->rwbs] = max(nsecs - $born);"
    " @bytes[args->dev, args->rwbs] = hist(args->nr_sector * 512);"
    " @done[args->dev, args->rwbs] = sum(args->nr_sector * 512);"
    " delete(@at[args->dev, args->sector]); delete(@born[args->dev, args->sector]);"
    " delete(@who[args->dev, args->sector]) }"
)
_PACKETS = (
    "tracepoint:skb:kfree_skb { $skb = (struct sk_buff *)args->skbaddr; $device = $skb->dev;"
    " @[args->reason, ksym(args->location), args->protocol, $device->ifindex,"
    " $device->nd_net.net->ns.inum] = count() }"
    " tracepoint:tcp:tcp_retransmit_skb { @again[args->sport, args->dport] = count() }"
)
_SOFTIRQ = (
    "tracepoint:irq:softirq_entry { @at[cpu] = nsecs } tracepoint:irq:softirq_exit /@at[cpu]/"
    " { @ns[args->vec] = hist(nsecs - @at[cpu]); delete(@at[cpu]) }"
    " tracepoint:timer:timer_expire_entry { @t[cpu] = nsecs; @f[cpu] = args->function }"
    " tracepoint:timer:timer_expire_exit /@t[cpu]/ { @timer[@f[cpu]] = sum(nsecs - @t[cpu]);"
    " delete(@t[cpu]) }"
)
_RECLAIM = (
    "tracepoint:vmscan:mm_vmscan_memcg_reclaim_begin,"
    " tracepoint:vmscan:mm_vmscan_direct_reclaim_begin /cgroup == CGROUP/ { @at[tid] = nsecs }"
    " tracepoint:vmscan:mm_vmscan_memcg_reclaim_end,"
    " tracepoint:vmscan:mm_vmscan_direct_reclaim_end"
    " /@at[tid]/ { @us = hist((nsecs - @at[tid]) / 1000); delete(@at[tid]) }"
    " tracepoint:writeback:balance_dirty_pages /cgroup == CGROUP/ { @ms = hist(args->pause) }"
)
_EXEC = (
    "tracepoint:sched:sched_process_exec /cgroup == CGROUP/"
    ' { printf("%d %s %s\\n", pid, comm, str(args->filename)) }'
    " tracepoint:syscalls:sys_enter_execve /cgroup == CGROUP/ { join(args->argv) }"
    ' tracepoint:syscalls:sys_exit_execve /args->ret < 0/ { printf("%d %d\\n", pid, args->ret) }'
)
_SIGNALS = (
    "tracepoint:signal:signal_generate /cgroup == CGROUP/"
    ' { printf("%d %d %d %s %d\\n", pid, args->pid, args->sig, comm, args->result) }'
)

_PIPE = ("taskset", "-c", "1", "perf", "bench", "sched", "pipe", "-l", "60000")

SUBJECTS = (
    Subject(
        question="runqueue",
        loop=_PIPE,
        twins=(bpftrace(_RUNQUEUE), tool("runqlat", "100")),
        target=1.07,
    ),
    Subject(question="blocked", loop=_PIPE, twins=(bpftrace(_BLOCKED), tool("offcputime", "100"))),
    Subject(
        question="hot",
        loop=("{loop}", "spin", "1200000"),
        twins=(
            bpftrace("profile:hz:199 /cgroup == CGROUP/ { @[ustack, kstack, comm] = count() }"),
        ),
    ),
    Subject(
        question="syscalls",
        loop=("{loop}", "syscalls", "400000"),
        twins=(bpftrace(_SYSCALLS), tool("syscount", "-L")),
    ),
    Subject(
        question="capabilities",
        loop=("{loop}", "denials", "400000"),
        twins=(
            bpftrace(
                "tracepoint:raw_syscalls:sys_enter /cgroup == CGROUP/ { @call[tid] = args->id }"
                " tracepoint:capability:cap_capable /cgroup == CGROUP/"
                " { @[@call[tid], args->cap, args->ret, comm, kstack(9)] = count() }"
            ),
        ),
    ),
    Subject(question="signals", loop=("{loop}", "signals", "100000"), twins=(bpftrace(_SIGNALS),)),
    Subject(
        question="files",
        loop=("{loop}", "opens", "200000"),
        twins=(bpftrace(_FILES), tool("opensnoop")),
    ),
    Subject(
        question="exec",
        loop=("{loop}", "execs", "1500"),
        twins=(bpftrace(_EXEC), tool("execsnoop")),
    ),
    Subject(
        question="packets",
        loop=("{loop}", "packets", "100000"),
        twins=(bpftrace(_PACKETS),),
        network=True,
    ),
    Subject(
        question="softirq",
        loop=("{loop}", "packets", "100000"),
        twins=(bpftrace(_SOFTIRQ), tool("softirqs", "-d", "100", "1")),
        network=True,
    ),
    Subject(
        question="disk",
        loop=("{loop}", "writes", "20000"),
        twins=(bpftrace(_DISK), tool("biolatency", "100")),
    ),
    Subject(
        question="reclaim",
        loop=("{loop}", "pages", "1500"),
        twins=(bpftrace(_RECLAIM),),
        memory_bytes=64 << 20,
    ),
)


class Result(Struct, frozen=True, kw_only=True):
    """What one tracer cost on one loop."""

    question: str
    tracer: str
    ratio: float
    lowest: float
    highest: float
    programs_ms: float | None = None
    """What its BPF programs took in one loop; ``None``: this kernel does not tell."""
    target: str = ""

    def cells(self) -> tuple[str, ...]:
        """The row as text."""
        spread = (f"{value:.2f}" for value in (self.ratio, self.lowest, self.highest))
        programs = "" if self.programs_ms is None else f"{self.programs_ms:.1f}"
        return (self.question, self.tracer, *spread, programs, self.target)


def measure(subjects: Sequence[Subject] = SUBJECTS) -> Iterator[Result]:
    """All of them; a twin that is not installed, or does not run here, is left out and said so."""
    with tempfile.TemporaryDirectory(prefix="whybox-bench-", dir="/opt") as folder:
        program = str(Path(folder, "loop"))
        subprocess.run(["gcc", "-O1", "-static", "-w", "-o", program, str(LOOP)], check=True)
        os.chmod(folder, 0o755)
        for subject in subjects:
            yield from _measured(subject, program)


def _measured(subject: Subject, program: str) -> Iterator[Result]:
    words = [word.format(loop=program) for word in subject.loop]
    with Box("bench") as box:
        if subject.memory_bytes is not None:
            box.memory(limit_bytes=subject.memory_bytes)
        if subject.network:
            box.network()
        box.start(workload.idle())
        tracers = [_ours(subject, box), *(t for t in subject.twins if _is_there(t))]
        found = _costs(box, words, tracers)
    twin = next((found[t.name] for t in tracers if t.name == "bpftrace"), None)
    yield _result(subject, tracers[0], found["whybox"], _target(subject, found["whybox"], twin))
    yield from (_result(subject, one, found[one.name]) for one in tracers[1:])


def _target(subject: Subject, ours: "Costs", twin: "Costs | None") -> str:
    """What was promised, and whether it is kept. The twins' overhead is judged by what their
    programs take, where that is known: of little of it a ratio says little."""
    if subject.target is not None:
        return _kept(ours.ratio, subject.target)
    if twin is None or not twin.ratios:
        return ""
    if ours.programs_ms is not None and twin.programs_ms is not None:
        return _kept(ours.programs_ms, twin.programs_ms, " ms")
    return _kept(ours.ratio, twin.ratio)


def _kept(value: float, target: float, unit: str = "") -> str:
    return f"{'✓' if value <= target else '✗'} ≤ {target:.2f}{unit}"


class Costs(Struct, frozen=True, kw_only=True):
    """One tracer's on one loop."""

    ratios: tuple[float, ...]
    programs_ms: float | None

    @property
    def ratio(self) -> float:
        """The median."""
        return statistics.median(self.ratios) if self.ratios else float("nan")


def _result(subject: Subject, tracer: Tracer, costs: Costs, target: str = "") -> Result:
    return Result(
        question=subject.question,
        tracer=tracer.name,
        ratio=costs.ratio,
        lowest=min(costs.ratios, default=float("nan")),
        highest=max(costs.ratios, default=float("nan")),
        programs_ms=costs.programs_ms,
        target=target,
    )


def _ours(subject: Subject, box: Box) -> Tracer:
    asks = ("trace", subject.question, f"whybox://{box.name}", "--for", f"{MOST_SECONDS}s")
    return Tracer(name="whybox", words=(WHYBOX, *asks))


def _is_there(tracer: Tracer) -> bool:
    found = (
        tracer.needs is None or shutil.which(tracer.needs, path="/usr/sbin:/usr/bin") is not None
    )
    if not found:
        print(f"{tracer.name} is not installed, and is left out", file=sys.stderr)
    return found


def _costs(box: Box, words: Sequence[str], tracers: Sequence[Tracer]) -> dict[str, Costs]:
    _cost(box, words)  # the first run fills caches
    ratios = _ratios(box, words, tracers)
    return {
        tracer.name: Costs(
            ratios=tuple(ratios[tracer.name]), programs_ms=_in_programs(box, words, tracer)
        )
        for tracer in tracers
    }


def _ratios(box: Box, words: Sequence[str], tracers: Sequence[Tracer]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {tracer.name: [] for tracer in tracers}
    for _ in range(ROUNDS):
        before = _cost(box, words)
        for tracer in tracers:
            with _looking(tracer, box) as looks:
                traced = _cost(box, words) if looks() else None
            after = _cost(box, words)
            if traced is not None:
                found[tracer.name].append(traced / ((before + after) / 2))
            before = after
    return found


def _in_programs(box: Box, words: Sequence[str], tracer: Tracer) -> float | None:
    """What all BPF programs of the machine took in one more loop, which is timed by the kernel."""
    with _looking(tracer, box) as looks, timing.timed() as told:
        _cost(box, words)
        spent = told()
        return spent / 1e6 if spent is not None and looks() else None


def _cost(box: Box, words: Sequence[str]) -> int:
    """CPU microseconds that the box used for one loop."""
    host = Host()
    group = box.target().group(host, "cpuacct")
    assert group is not None
    before = cpu.usage_usec(host, group)
    pid = box.run(_become(tuple(words)))
    while not _ended(pid):
        time.sleep(0.01)
    host.next_moment()
    after = cpu.usage_usec(host, group)
    assert before is not None
    assert after is not None
    return after - before


def _ended(pid: int) -> bool:
    try:
        return task.stat(Host(), pid).state == "Z"
    except OSError:
        return True


def _become(words: tuple[str, ...]) -> Callable[[], None]:
    def program() -> None:
        os.execvp(words[0], words)

    return program


@contextmanager
def _looking(tracer: Tracer, box: Box) -> Iterator[Callable[[], bool]]:
    """The tracer at work; what is yielded tells whether it still is."""
    host = Host()
    unified = box.target().group(host, "")
    cgroup = "0" if unified is None else str(host.inode(unified.directory))
    words = [word.replace("CGROUP", cgroup) for word in tracer.words]
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(words, stdout=output, stderr=subprocess.DEVNULL)
        try:
            time.sleep(SETTLING_SECONDS)
            yield lambda: process.poll() is None
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
