"""One kill by the OOM killer, as ``kernel/oom.py`` finds it in the kernel log."""

from msgspec import Struct


class Consumer(Struct, frozen=True, kw_only=True):
    """The process that held most when the kill was decided."""

    pid: int
    comm: str
    rss_bytes: int


class OomKill(Struct, frozen=True, kw_only=True):
    """One process that the OOM killer ended; ``None`` is what the log does not tell."""

    usec: int | None
    """On the clock of the log."""
    victim_pid: int
    """As the host counts."""
    victim_comm: str
    seq: int | None = None
    constraint: str | None = None
    """``MEMCG``: a limit; ``NONE``, ``CPUSET``, ``MEMORY_POLICY``: the machine or its nodes."""
    oom_memcg: str | None = None
    """The group whose limit was reached; none where the machine ran out."""
    task_memcg: str | None = None
    """The group that the victim was in."""
    trigger_comm: str | None = None
    """Who asked for the memory that was not there; often not the victim."""
    trigger_pid: int | None = None
    """The thread's id."""
    limit_bytes: int | None = None
    usage_bytes: int | None = None
    swap_usage_bytes: int | None = None
    """v1: memory and swap together; v2: swap."""
    swap_limit_bytes: int | None = None
    held_anon_bytes: int | None = None
    """What the whole group held: of processes, of files, of tmpfs and shared memory."""
    held_file_bytes: int | None = None
    held_shmem_bytes: int | None = None
    anon_rss_bytes: int | None = None
    file_rss_bytes: int | None = None
    shmem_rss_bytes: int | None = None
    oom_score_adj: int | None = None
    global_oom: bool = False
    oom_group: bool = False
    """The whole group was killed, as its ``memory.oom.group`` asks."""
    largest: Consumer | None = None

    @property
    def by_swap(self) -> bool:
        """v1: whether memory and swap together were at their limit, and memory alone was not."""
        usage, limit = self.usage_bytes, self.limit_bytes
        swap, swap_limit = self.swap_usage_bytes, self.swap_limit_bytes
        if usage is None or limit is None or swap is None or swap_limit is None:
            return False
        return usage < 0.95 * limit <= swap_limit <= swap

    @property
    def another_asked(self) -> bool:
        """Whether the victim is not the one for whom there was no memory."""
        asked, died = (self.trigger_pid, self.trigger_comm), (self.victim_pid, self.victim_comm)
        return self.trigger_comm is not None and asked != died

    @property
    def said(self) -> tuple[str, ...]:
        """Its lines in the log, as far as they are known; ``dmesg | grep`` finds them."""
        limit = "global_oom" if self.oom_memcg is None else f"oom_memcg={self.oom_memcg}"
        killed = (
            f"Killed process {self.victim_pid} ({self.victim_comm}) "
            f"anon-rss:{_kb(self.anon_rss_bytes)}, file-rss:{_kb(self.file_rss_bytes)}, "
            f"shmem-rss:{_kb(self.shmem_rss_bytes)}"
        )
        lines = {
            f"{self.trigger_comm} invoked oom-killer (pid {self.trigger_pid})": self.trigger_comm,
            f"memory: usage {_kb(self.usage_bytes)}, limit {_kb(self.limit_bytes)}": (
                self.usage_bytes
            ),
            f"oom-kill:constraint=CONSTRAINT_{self.constraint},{limit},"
            f"task_memcg={self.task_memcg},task={self.victim_comm},pid={self.victim_pid}": (
                self.constraint
            ),
            killed: self.victim_pid,
        }
        return tuple(line for line, known in lines.items() if known is not None)


def _kb(size: int | None) -> str:
    return "unknown" if size is None else f"{size // 1024}kB"
