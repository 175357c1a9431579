"""Records of the kernel log as 6.18 and 6.1 print them for one OOM kill."""

from whybox.kernel.kmsg import KERNEL, Record

MIB = 1 << 20


def records(*texts: str, usec: int = 7_399_632_944, facility: int = KERNEL) -> list[Record]:
    """Texts as one burst of records."""
    return [
        Record(seq=100 + n, usec=usec + n, facility=facility, text=text)
        for n, text in enumerate(texts)
    ]


def report(
    *,
    trigger: str = "allocate",
    victim: str = "allocate",
    pid: int = 20041,
    oom_memcg: str | None = "/box",
    task_memcg: str = "/box",
) -> list[str]:
    """The lines of a report that tell something."""
    whose = "global_oom" if oom_memcg is None else f"oom_memcg={oom_memcg}"
    constraint = "NONE" if oom_memcg is None else "MEMCG"
    who = "Out of memory" if oom_memcg is None else "Memory cgroup out of memory"
    usage = [] if oom_memcg is None else ["memory: usage 65536kB, limit 65536kB, failcnt 0"]
    return [
        f"{trigger} invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0",
        f"CPU: 0 UID: 1000 PID: 77 Comm: {trigger} Not tainted 6.18.44 #1 PREEMPT(none) ",
        "Call Trace:",
        *usage,
        f"oom-kill:constraint=CONSTRAINT_{constraint},nodemask=(null),cpuset=/,mems_allowed=0,"
        f"{whose},task_memcg={task_memcg},task={victim},pid={pid},uid=1000",
        f"{who}: Killed process {pid} ({victim}) total-vm:90000kB, anon-rss:65024kB, "
        "file-rss:1024kB, shmem-rss:0kB, UID:1000 pgtables:170kB oom_score_adj:0",
    ]
