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
import re
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Self, TypeVar

from msgspec import structs

from whybox.change import (
    Change,
    HugepageLimit,
    InProgram,
    ListenOn,
    OpenFiles,
    RunAsUser,
    ShmSize,
    Sysctl,
    Volume,
    WithInit,
    WithUserNamespace,
)
from whybox.kernel.host import Host
from whybox.kernel.target import Exit, Port, Target, described, processes
from whybox.lab import groups, launch, limits, machine, network, rootfs, stop
from whybox.lab.groups import Groups
from whybox.lab.launch import FIRST_ID, Ended, Joined, Launched, Setup
from whybox.lab.limits import Limits
from whybox.lab.network import Network
from whybox.lab.process import BoxError, Line, Program, User
from whybox.lab.rootfs import SHM_BYTES, LowerFile, Owner, Rootfs

__all__ = ["Box", "BoxError", "Network", "Program"]

#: A killed PID 1 takes a moment to go, and longer if a task of its is in the kernel.
PATIENCE_SECONDS = 10.0

_C = TypeVar("_C")
_numbers = itertools.count(1)
_swept: set[int] = set()


class Box:
    """One container: set up, started, looked at, changed, closed."""

    def __init__(self, name: str = "box") -> None:
        plain = re.sub(r"[^A-Za-z0-9_.]+", "-", name)
        self.name = f"{plain}-{os.getpid()}-{next(_numbers)}"
        """Its id, as ``whybox.kernel.finding`` reads it from the name of its groups."""
        self.pid = 0
        """PID 1 as the host calls it; 0 before the start."""
        self.groups: Groups | None = None
        self.closing = ExitStack()
        """What is done before its processes are ended."""
        self._own, self._parent = Limits(), Limits()
        self._user: User | None = None
        self._capabilities: int | None = None
        self._no_new_privs = self._init = self._user_namespace = False
        self._network: Network | None = None
        self._files: list[LowerFile] = []
        self._volumes: dict[str, str | None] = {}
        self._ports: list[Port] = []
        self._sysctls: dict[str, str] = {}
        self._open_files: int | None = None
        self._shm_bytes = SHM_BYTES
        self._stop_seconds = stop.SECONDS
        self._cures: list[Change] = []
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

    def cpu(
        self,
        *,
        cores: float | None = None,
        burst_usec: int | None = None,
        parent_cores: float | None = None,
        cpus: str | None = None,
        shares: int | None = None,
    ) -> None:
        """Limit its CPU; ``parent_cores`` limits a group around it."""
        self._own = structs.replace(
            self._own, cores=cores, burst_usec=burst_usec, cpus=cpus, shares=shares
        )
        self._parent = structs.replace(self._parent, cores=parent_cores)

    def memory(
        self,
        *,
        limit_bytes: int | None = None,
        parent_limit_bytes: int | None = None,
        swap: bool = False,
        kill: bool = True,
    ) -> None:
        """Limit its memory; ``kill`` False keeps the OOM killer away, on v1 alone."""
        self._own = structs.replace(self._own, limit_bytes=limit_bytes, swap=swap, kill=kill)
        self._parent = structs.replace(self._parent, limit_bytes=parent_limit_bytes, swap=swap)

    def memory_high(self, bytes: int, *, parent_bytes: int | None = None) -> None:
        """Above so much the kernel slows it down; v2 alone."""
        self._own = structs.replace(self._own, high_bytes=bytes)
        self._parent = structs.replace(self._parent, high_bytes=parent_bytes)

    def swap(self, *, bytes: int | None = None, swappiness: int | None = None) -> None:
        """It may swap, so much at most; ``swappiness`` is v1's alone."""
        self._own = structs.replace(self._own, swap=True, swap_bytes=bytes, swappiness=swappiness)

    def huge_pages(
        self, own: HugepageLimit | None = None, *, parent: HugepageLimit | None = None
    ) -> None:
        """How much it may hold in huge pages; ``parent`` limits a group around it."""
        self._own = structs.replace(self._own, huge=own)
        self._parent = structs.replace(self._parent, huge=parent)

    def pids(self, *, limit: int | None = None, parent_limit: int | None = None) -> None:
        """How many tasks it may have; ``parent_limit`` limits a group around it."""
        self._own = structs.replace(self._own, pids=limit)
        self._parent = structs.replace(self._parent, pids=parent_limit)

    def open_files(self, limit: int) -> None:
        """How many files each of its processes may have open (RLIMIT_NOFILE)."""
        self._open_files = limit

    def shm(self, bytes: int) -> None:
        """How much ``/dev/shm`` may hold."""
        self._shm_bytes = bytes

    def stop_timeout(self, seconds: int) -> None:
        """How long it is given to end when it is stopped."""
        self._stop_seconds = seconds

    def pause(self) -> None:
        """Freeze it, as ``docker pause``."""
        self._running()
        assert self.groups is not None
        self.groups.freeze()

    def user(self, uid: int, gid: int) -> None:
        """As whom its program runs."""
        self._user = User(uid=uid, gid=gid)

    def init(self) -> None:
        """PID 1 is a small init, and the program is its child."""
        self._init = True

    def user_namespace(self) -> None:
        """Its ids are others than the host's, and the program runs as 0."""
        self._user_namespace = True

    def network(self, network: Network | None = None) -> None:
        """Wire it to a bridge on a node of its own."""
        self._network = network or Network()

    def lower_file(self, path: str, *, bytes: int, mode: int = 0o666) -> None:
        """A file of the image."""
        self._files.append(LowerFile(path=path, bytes=bytes, mode=mode))

    def volume(self, path: str, *, source: str | None = None) -> None:
        """This directory is bind mounted, not the image's; ``source`` is one of the host's."""
        self._volumes[path] = source

    def port(self, port: int) -> None:
        """This port is meant to be reached."""
        self._ports.append(Port(port=port))

    def keep_caps(self, caps: int) -> None:
        """Root in it keeps these capabilities instead of an engine's default ones."""
        self._capabilities = caps

    def no_new_privs(self) -> None:
        """No program in it gains rights by being executed."""
        self._no_new_privs = True

    def sysctl(self, key: str, value: str) -> None:
        """Set a parameter of its own namespaces, such as ``net.core.somaxconn``."""
        self._sysctls[key] = value

    def start(self, program: Program, *, clone_pid_namespace: bool = True) -> None:
        """Start it; comes back when PID 1 is about to run ``program``."""
        if self._setup is not None:
            raise BoxError(f"box {self.name} was started before")
        _sweep_once()
        self._setup = setup = self._settled(program, clone_pid_namespace)
        self.groups, self._rootfs = setup.groups, setup.rootfs
        machine.set_sysctls(self._cures, self.closing)
        try:
            self._rootfs.create(self._owner(setup.user))
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
        if isinstance(change, InProgram | ListenOn):
            return False
        if self._launched is None or self.groups is None:
            self._cures.append(change)
            return True
        if network.concerns(change):
            return network.apply(change, box=self.pid, node=self._node())
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

    def stop(self) -> None:
        """Stop it as an engine does: SIGTERM to PID 1, SIGKILL when its time has run out."""
        stop.stop(self.pid, stop.given(self._stop_seconds, self._cures))

    def error(self) -> str | None:
        """What its programs raised, if they did."""
        for line in self._lines():
            while said := line.hear(0):
                self._errors.append(said.partition(" ")[2])
        return "\n".join(self._errors) or None

    def close(self) -> None:
        """End it and remove all of it. Again: nothing."""
        self.closing.close()
        left = [*self._close_processes()]
        if self.groups is not None:
            left += self.groups.remove()
        if self._rootfs is not None:
            left += self._rootfs.remove()
        if left:
            raise BoxError(f"box {self.name} left behind: " + ", ".join(left))
        self.groups = self._rootfs = None

    def _settled(self, program: Program, pid_namespace: bool) -> Setup:
        """What the scenario wants and the cures make of it."""
        own, parent = limits.cured(self._own, self._parent, self._cures)
        nested = structs.replace(self._parent, swap=False) != Limits()
        files, shm = self._last_cure(OpenFiles), self._last_cure(ShmSize)
        volumes = {change.path: None for change in self._cures if isinstance(change, Volume)}
        sysctls = {change.key: change.value for change in self._cures if isinstance(change, Sysctl)}
        shm_bytes = self._shm_bytes if shm is None else shm.bytes
        return Setup(
            name=self.name,
            program=program,
            rootfs=Rootfs(self.name, self._files, self._volumes | volumes, shm_bytes),
            groups=Groups(self.name, own, parent if nested else None),
            user=self._settled_user(),
            init=self._init or self._has_cure(WithInit),
            user_namespace=self._in_user_namespace(),
            pid_namespace=pid_namespace,
            network=self._network,
            sysctls=tuple((self._sysctls | sysctls).items()),
            open_files=self._open_files if files is None else files.limit,
        )

    def _settled_user(self) -> User:
        inside = User(uid=0, gid=0) if self._in_user_namespace() else User()
        user = self._user or inside
        if (cure := self._last_cure(RunAsUser)) is not None:
            user = User(uid=cure.uid, gid=cure.gid)
        if self._capabilities is not None:
            user = structs.replace(user, capabilities=self._capabilities)
        return structs.replace(user, no_new_privs=self._no_new_privs)

    def _last_cure(self, kind: type[_C]) -> _C | None:
        return next((one for one in reversed(self._cures) if isinstance(one, kind)), None)

    def _has_cure(self, kind: type[Change]) -> bool:
        return self._last_cure(kind) is not None

    def _in_user_namespace(self) -> bool:
        return self._user_namespace or self._has_cure(WithUserNamespace)

    def _owner(self, user: User) -> Owner:
        first = FIRST_ID if self._in_user_namespace() else 0
        return Owner(uid=first + user.uid, gid=first + user.gid)

    def _apply_network_cures(self, pid: int, shim: int) -> None:
        for change in filter(network.concerns, self._cures):
            network.apply(change, box=pid, node=None if self._network is None else shim)

    def _node(self) -> int | None:
        return None if self._network is None or self._launched is None else self._launched.shim

    def _running(self) -> Setup:
        if self._setup is None or self._launched is None or self._look(0) is not None:
            raise BoxError(f"box {self.name} does not run")
        return self._setup

    def _described(self) -> Target:
        found = described(Host(), self.pid, id=self.name, runtime="whybox")
        return structs.replace(
            found,
            ports=tuple(self._ports),
            created_at_ns=self._started_ns,
            stop_seconds=stop.given(self._stop_seconds, self._cures),
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
