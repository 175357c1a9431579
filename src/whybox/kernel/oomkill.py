"""One kill by the OOM killer, as ``kernel/oom.py`` finds it in the kernel log, or as it was seen.

The kernel log may be unreadable, overwritten, or hold reports back when there are many; a BPF
sensor on ``oom:mark_victim`` sees all kills of a window.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING

from msgspec import Struct

from whybox.kernel import cgroup
from whybox.kernel.cgroup import Group
from whybox.kernel.host import Host
from whybox.kernel.target import Target

if TYPE_CHECKING:
    from whybox.kernel.sensors.oom import Killed, Kills

#: The sensor's name in ``Host.sensor``: all targets share one.
SENSOR = "oom"

#: So many groups inside of a container are looked at for the one that was full.
_MOST_GROUPS = 1000


class Consumer(Struct, frozen=True, kw_only=True):
    """The process that held most when the kill was decided."""

    pid: int
    comm: str
    rss_bytes: int


class Kernel(Struct, frozen=True, kw_only=True):
    """What the kernel itself kept for a group, in bytes; ``None``: this report does not say."""

    total: int | None = None
    """v1: ``kmem``; v2: ``kernel``. Neither holds the buffers of network sockets."""
    page_tables: int | None = None
    slab: int | None = None
    """Names and inodes of files, buffers of local sockets, and all small objects."""
    stacks: int | None = None
    sockets: int | None = None
    """Buffers of network sockets."""

    @property
    def parts(self) -> tuple[tuple[int, str], ...]:
        """Each with its word, and what is in none of them."""
        named = (
            (self.page_tables or 0, "page tables"),
            (self.slab or 0, "kernel objects (slab)"),
            (self.stacks or 0, "kernel stacks"),
            (self.sockets or 0, "socket buffers"),
        )
        inside = sum(size for size, word in named if word != "socket buffers")
        return (*named, (max((self.total or 0) - inside, 0), "other kernel memory"))


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
    held_kernel: "Kernel | None" = None
    """And of the kernel on its behalf, where the report tells."""
    anon_rss_bytes: int | None = None
    file_rss_bytes: int | None = None
    shmem_rss_bytes: int | None = None
    oom_score_adj: int | None = None
    global_oom: bool = False
    oom_group: bool = False
    """The whole group was killed, as its ``memory.oom.group`` asks."""
    largest: Consumer | None = None
    witnessed: bool = False
    """Whether the sensor saw it happen in this window."""
    logged: bool = True
    """Whether the kernel log tells of it."""

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

    @property
    def marked(self) -> str:
        """What the sensor saw of it, in one line."""
        full = f"{self.oom_memcg} at {_kb(self.usage_bytes)} of {_kb(self.limit_bytes)}"
        where = "no group above it was full" if self.global_oom else full
        return (
            f"pid={self.victim_pid} comm={self.victim_comm} anon-rss={_kb(self.anon_rss_bytes)} "
            f"shmem-rss={_kb(self.shmem_rss_bytes)}, while {self.trigger_comm} "
            f"(pid {self.trigger_pid}) asked for memory; {where}"
        )


class Witness(Struct, frozen=True, kw_only=True):
    """The kills of one window as they were seen, or why none could be."""

    reason: str | None = None
    attached: "Kills | None" = None
    slot: int = 0
    groups: Mapping[int, Group] = {}
    """The container's group of the memory controller and those above it, by their ids."""

    @property
    def complete(self) -> bool:
        """Whether nothing was lost."""
        return self.attached is not None and self.attached.lost == 0

    def kills(self, host: Host) -> tuple[OomKill, ...]:
        """The container's own so far, oldest first."""
        if self.attached is None:
            return ()
        own = [killed for killed in self.attached.all() if killed.slot == self.slot]
        return tuple(witnessed(host, killed, self.groups) for killed in own)


@contextmanager
def watch(host: Host, target: Target) -> Iterator[Witness]:
    """The kills of this window in a container, by a sensor that all who watch share."""
    if host.window_seconds <= 0:
        yield Witness(reason="nothing can be killed in a window of no length")
        return
    from whybox.kernel.sensors import oom as sensor  # loads libbpf: only for a window

    manager = host.sensor(SENSOR, lambda: sensor.attached(host))
    try:
        attached = manager.__enter__()
    except OSError as error:
        yield Witness(reason=error.strerror or str(error))
        return
    try:
        yield _watching(host, target, attached)
    finally:
        manager.__exit__(None, None, None)


def _watching(host: Host, target: Target, attached: "Kills") -> Witness:
    try:
        slot = attached.scope.add(host, target)
    except OSError as error:
        return Witness(reason=error.strerror or str(error))
    return Witness(attached=attached, slot=slot, groups=groups(host, target))


def groups(host: Host, target: Target) -> dict[int, Group]:
    """The container's group of the memory controller and those above it, by their ids."""
    own = target.group(host, "memory")
    found: dict[int, Group] = {}
    for group in () if own is None else own.lineage():
        try:
            found[host.inode(group.directory)] = group
        except OSError:
            continue  # it was removed just now
    return found


def witnessed(host: Host, killed: "Killed", groups: Mapping[int, Group]) -> OomKill:
    """What the sensor saw, with the groups' paths."""
    v1 = any(group.version == 1 for group in groups.values())
    over = killed.over(v1)
    task = killed.levels[0].id if killed.levels else 0
    return OomKill(
        usec=killed.at_ns // 1000,
        victim_pid=killed.victim_pid,
        victim_comm=killed.victim_comm,
        constraint=None if over is None else "MEMCG",
        oom_memcg=None if over is None else _path(host, over.id, groups),
        task_memcg=_path(host, task, groups),
        trigger_comm=killed.trigger_comm,
        trigger_pid=killed.trigger_tid,
        limit_bytes=None if over is None else over.limit_bytes,
        usage_bytes=None if over is None else over.usage_bytes,
        swap_usage_bytes=None if over is None else over.swap_usage_bytes,
        swap_limit_bytes=None if over is None else over.swap_limit_bytes,
        anon_rss_bytes=killed.anon_rss_bytes,
        file_rss_bytes=killed.file_rss_bytes,
        shmem_rss_bytes=killed.shmem_rss_bytes,
        oom_score_adj=killed.score_adj,
        global_oom=over is None,
        witnessed=True,
        logged=False,
    )


def _path(host: Host, id: int, groups: Mapping[int, Group]) -> str | None:
    """The path of a group by its id: one of these, or one inside of the first."""
    if id in groups:
        return groups[id].path
    if not groups:
        return None
    own = next(iter(groups.values()))
    for directory in islice(cgroup.below(host, own.directory), _MOST_GROUPS):
        try:
            if host.inode(directory) == id:
                return own.path.rstrip("/") + directory.removeprefix(own.directory)
        except OSError:
            continue
    return None


def _kb(size: int | None) -> str:
    return "unknown" if size is None else f"{size // 1024}kB"
