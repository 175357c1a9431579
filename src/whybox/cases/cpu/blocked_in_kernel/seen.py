"""What was seen of tasks that are blocked in the kernel, and how long they wait."""

from msgspec import Struct

from whybox.kernel import waitsite
from whybox.kernel.blocked import Blocked, Detail, Sampled
from whybox.kernel.blockedfile import Place
from whybox.kernel.waitsite import Kind

#: Blocked for half of the window, each time for a tenth of a second: a person feels that. A disk
#: may take long for each of many requests, and so may a program to start; they are stuck when one
#: takes a second.
LEAST_SHARE = 0.5
LONG_NS = 100_000_000
VERY_LONG_NS = 1_000_000_000

#: What ``wchan`` is where it may not be read.
HIDDEN = "a place that may not be read here"


class Stuck(Struct, frozen=True, kw_only=True):
    """One task that was in D at both looks."""

    tid: int
    comm: str
    site: str | None
    sampled: Sampled | None
    """``None``: seen at the two looks alone."""
    switches: int | None
    """How often it was given a CPU in between."""
    detail: Detail | None
    """``None``: there are too many to look at each."""
    place: Place | None = None
    """The file system that it waits for, where that is what it waits for."""

    @property
    def stack(self) -> tuple[str, ...]:
        """The functions that it is in, as far as they may be read."""
        known = () if self.detail is None else self.detail.stack
        return known or (() if self.site is None else (self.site,))

    @property
    def kind(self) -> Kind:
        """What it waits for."""
        return waitsite.kind(self.stack, None if self.detail is None else self.detail.call)

    @property
    def where(self) -> str:
        """The function that it waits in."""
        return self.site or (self.stack[0] if self.stack else HIDDEN)

    @property
    def named(self) -> str:
        """As a sentence calls it."""
        return f"{self.comm} (pid {self.tid})"

    @property
    def share(self) -> float:
        """Of the window, as far as it was watched: from the two looks alone a half at most."""
        if self.switches == 0:
            return 1.0
        if self.sampled is None:
            return LEAST_SHARE
        return self.sampled.blocked / self.sampled.samples

    @property
    def child_runs(self) -> bool:
        """Whether its vfork child is on its way, and wants nothing but a CPU."""
        child = None if self.detail is None else self.detail.child
        return self.kind == "vfork" and child is not None and child.state == "R"

    def wait_ns(self, elapsed_ns: int) -> float:
        """How long one of its waits lasts, on average, within the window."""
        waits = 1 if self.switches is None else self.switches + 1
        return self.share * elapsed_ns / waits

    def held(self, elapsed_ns: int) -> bool:
        """Whether it waits for longer than tasks do that use a disk or a lock."""
        kind, wait_ns = self.kind, self.wait_ns(elapsed_ns)
        if kind == "freezer" or self.child_runs:
            return False
        if kind == "vfork" or kind in waitsite.STORAGE:
            return wait_ns >= VERY_LONG_NS
        return self.share >= LEAST_SHARE and wait_ns >= LONG_NS


class Observation(Struct, frozen=True, kw_only=True):
    """Every thread at both looks, and those that were blocked at both."""

    elapsed_ns: int
    init_pid: int | None
    inside: bool
    """Whether we look from inside the container, which knows no mount points of the host."""
    threads: int
    left_out: int
    """Threads that were not looked at, because there are too many."""
    running: tuple[int, int]
    """Threads in R at the two looks."""
    blocked: tuple[int, int]
    """Threads in D at the two looks."""
    late: tuple[Blocked, ...]
    """In D at the second look alone."""
    stuck: tuple[Stuck, ...]
    frozen: bool | None
    loadavg: str | None

    @property
    def seconds(self) -> float:
        """How long the window was."""
        return self.elapsed_ns / 1e9
