"""A disposable container, made of nothing but namespaces and control groups.

    with Box("busy") as box:
        box.cpu(cores=0.5)
        box.start(workload.burn())
        print(box.target())

What is set before the start comes first from the scenario; a cure that was applied before the
start wins over it. The host's own files, network and groups stay as they were. A box belongs to
the thread that started it: it dies with that thread, and so with its process.
"""

import itertools
import os
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Self

from msgspec import structs

from whybox.change import Change, InNetwork, InProgram, ListenOn, Nameservers, OpenFiles
from whybox.kernel.host import Host
from whybox.kernel.target import Exit, Target, described, processes
from whybox.lab import groups, launch, limits, machine, network, resolver, rootfs, stop
from whybox.lab.groups import Groups
from whybox.lab.launch import Ended, Joined, Launched, Setup
from whybox.lab.network import Network
from whybox.lab.plan import Plan
from whybox.lab.process import BoxError, Line, Program
from whybox.lab.rootfs import Rootfs

__all__ = ["Box", "BoxError", "Network", "Program"]

#: A killed PID 1 takes a moment to go, and longer if a task of its is in the kernel.
PATIENCE_SECONDS = 10.0

_numbers = itertools.count(1)
_swept: set[int] = set()


class Box(Plan):
    """One container: set up, started, looked at, changed, closed."""

    def __init__(self, name: str = "box") -> None:
        super().__init__(f"{name}-{os.getpid()}-{next(_numbers)}")
        self.pid = 0
        """PID 1 as the host calls it; 0 before the start."""
        self.groups: Groups | None = None
        self.closing = ExitStack()
        """What is done before its processes are ended."""
        self._rootfs: Rootfs | None = None
        self._setup: Setup | None = None
        self._launched: Launched | None = None
        self._joined: list[Joined] = []
        self._target: Target | None = None
        self._started_ns = 0
        self._ended: Ended | None = None
        self._errors: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def start(self, program: Program, *, clone_pid_namespace: bool = True) -> None:
        """Start it; comes back when PID 1 is about to run ``program``."""
        if self._setup is not None:
            raise BoxError(f"box {self.name} was started before")
        _sweep_once()
        self._setup = setup = self.settled(program, pid_namespace=clone_pid_namespace)
        self.groups, self._rootfs = setup.groups, setup.rootfs
        machine.set_sysctls(self.cures, self.closing)
        try:
            self._rootfs.create(self.owner(setup.user))
            self.groups.create()
            self._started_ns = time.time_ns()
            self._launched = launch.launch(setup, self._apply_network_cures)
            self.pid = self._launched.pid
            self._target = self._described()
        except BaseException:
            self.close()
            raise

    def run(self, program: Program) -> int:
        """One more process inside, as ``docker exec``; its pid as the host calls it."""
        setup = self._running()
        self._joined.append(launch.join(setup, self.pid, program))
        return self._joined[-1].pid

    def shell(self, argv: Sequence[str]) -> int:
        """Run a command inside on the caller's terminal; its exit status."""
        return launch.shell(self._running(), self.pid, argv)

    def apply(self, change: Change) -> bool:
        """Change the living box; False if that takes a new one.

        Before the start it is remembered, and wins over what the scenario sets.
        """
        if isinstance(change, InNetwork | InProgram | ListenOn):
            return False
        if self._launched is None or self.groups is None:
            self.cures.append(change)
            return True
        if network.concerns(change):
            return network.apply(change, box=self.pid, node=self._node())
        if isinstance(change, Nameservers):
            return resolver.use(self.pid, change.use)
        if isinstance(change, OpenFiles):
            return limits.allow_files(processes(Host(), self.target()), change.limit)
        return machine.apply(change, self.pid, self.closing) or self.groups.apply(change)

    def target(self) -> Target:
        """What whybox is asked about; when PID 1 has ended, what is left of it."""
        if self._target is None:
            raise BoxError(f"box {self.name} was not started")
        ended = self._look(0)
        if ended is None:
            with suppress(OSError):
                self._target = self._described()
                return self._target
            ended = self._look(PATIENCE_SECONDS)
        return structs.replace(self._target, init=None, exit=self._exit(ended))

    def wait(self, timeout: float) -> int | None:
        """How PID 1 ended (128 and the signal's number, if it was one), or ``None``: it runs."""
        ended = self._look(timeout)
        return None if ended is None else ended.status

    def signal(self, signum: int) -> None:
        """Send PID 1 a signal from outside."""
        self._running()
        os.kill(self.pid, signum)

    def pause(self) -> None:
        """Freeze it, as ``docker pause``."""
        self._running()
        assert self.groups is not None
        self.groups.freeze()

    def stop(self) -> None:
        """Stop it as an engine does: SIGTERM to PID 1, SIGKILL when its time has run out."""
        stop.stop(self.pid, stop.given(self._stop_seconds, self.cures))

    def error(self) -> str | None:
        """What its programs raised, if they did."""
        for line in self._lines():
            while said := line.hear(0):
                self._errors.append(said.partition(" ")[2])
        return "\n".join(self._errors) or None

    def close(self) -> None:
        """End it and remove all of it. Again: nothing."""
        try:
            self.closing.close()
        finally:  # what could not be put back is told; it keeps nothing else from being removed
            self._remove()

    def _remove(self) -> None:
        left = [*self._close_processes()]
        if self.groups is not None:
            left += self.groups.remove()
        if self._rootfs is not None:
            left += self._rootfs.remove()
        if left:
            raise BoxError(f"box {self.name} left behind: " + ", ".join(left))
        self.groups = self._rootfs = None

    def _apply_network_cures(self, pid: int, shim: int) -> None:
        for change in filter(network.concerns, self.cures):
            network.apply(change, box=pid, node=None if self.wired is None else shim)

    def _node(self) -> int | None:
        return None if self.wired is None or self._launched is None else self._launched.shim

    def _running(self) -> Setup:
        if self._setup is None or self._launched is None or self._look(0) is not None:
            raise BoxError(f"box {self.name} does not run")
        return self._setup

    def _described(self) -> Target:
        found = described(Host(), self.pid, id=self.name, runtime="whybox")
        return structs.replace(
            found,
            ports=tuple(self.ports),
            created_at_ns=self._started_ns,
            stop_seconds=stop.given(self._stop_seconds, self.cures),
        )

    def _look(self, seconds: float) -> Ended | None:
        if self._ended is None and self._launched is not None:
            self._ended = self._launched.ended(seconds)
        return self._ended

    def _exit(self, ended: Ended | None) -> Exit:
        return Exit(
            source=f"whybox box {self.name}",
            status="exited" if ended is not None else "running",
            exit_code=None if ended is None else ended.status,
            started_at_ns=self._started_ns,
            finished_at_ns=None if ended is None else ended.at_ns,
        )

    def _close_processes(self) -> list[str]:
        launched = self._launched
        if launched is None:
            return []
        if self._look(0) is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        if self.groups is not None:
            self.groups.kill()
        left = [] if self._look(PATIENCE_SECONDS) else [f"process {self.pid}"]
        self.error()
        for child in (launched.shim, *(joined.helper for joined in self._joined)):
            if left:
                os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        for line in (launched.from_shim, *self._lines()):
            line.close()
        self._launched, self._joined = None, []
        return left

    def _lines(self) -> list[Line]:
        box = [] if self._launched is None else [self._launched.from_box]
        return [*box, *(joined.line for joined in self._joined)]


def _sweep_once() -> None:
    """Clear up after dead labs, once a process."""
    if os.getpid() not in _swept:
        _swept.add(os.getpid())
        groups.sweep()
        rootfs.sweep()
