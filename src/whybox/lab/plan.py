"""What a box shall be: what its scenario asks for, and the cures that win over it."""

import re
from typing import TypeVar

from msgspec import structs

from whybox.change import (
    Change,
    GrantCapabilities,
    HugepageLimit,
    IoLimit,
    OnlyCapabilities,
    OpenFiles,
    RunAsUser,
    ShmSize,
    Sysctl,
    Volume,
    WithInit,
    WithUserNamespace,
)
from whybox.kernel import capability
from whybox.kernel.target import Port
from whybox.lab import limits, stop
from whybox.lab.groups import Groups
from whybox.lab.launch import FIRST_ID, Setup
from whybox.lab.limits import Limits
from whybox.lab.network import Network
from whybox.lab.process import Program, User
from whybox.lab.rootfs import SHM_BYTES, LowerFile, Owner, Rootfs

_C = TypeVar("_C")


class Plan:
    """All that is settled before the start. ``Box`` is one that can be started."""

    def __init__(self, name: str) -> None:
        self.name = re.sub(r"[^A-Za-z0-9_.]+", "-", name)
        """Its id, as ``whybox.kernel.finding`` reads it from the name of its groups."""
        self._own, self._parent = Limits(), Limits()
        self._user: User | None = None
        self._capabilities: int | None = None
        self._no_new_privs = self._init = self._user_namespace = False
        self.wired: Network | None = None
        self._files: list[LowerFile] = []
        self._volumes: dict[str, str | None] = {}
        self.ports: list[Port] = []
        self._sysctls: dict[str, str] = {}
        self._open_files: int | None = None
        self._shm_bytes = SHM_BYTES
        self._place: str | None = None
        self._overlay_options: tuple[str, ...] = ()
        self._stop_seconds = stop.SECONDS
        self.cures: list[Change] = []

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

    def io(self, *limits: IoLimit, parent: IoLimit | None = None) -> None:
        """What it may have of a disk in a second; ``parent`` limits a group around it."""
        self._own = structs.replace(self._own, io=limits)
        self._parent = structs.replace(self._parent, io=() if parent is None else (parent,))

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
        self.wired = network or Network()

    def lower_file(self, path: str, *, bytes: int, mode: int = 0o666) -> None:
        """A file of the image."""
        self._files.append(LowerFile(path=path, bytes=bytes, mode=mode))

    def volume(self, path: str, *, source: str | None = None) -> None:
        """This directory is bind mounted, not the image's; ``source`` is one of the host's."""
        self._volumes[path] = source

    def place(self, directory: str) -> None:
        """What it writes lies below this directory of the host."""
        self._place = directory

    def overlay(self, *options: str) -> None:
        """Options of the mount of its root, such as ``metacopy=on``."""
        self._overlay_options = options

    def port(self, port: int) -> None:
        """This port is meant to be reached."""
        self.ports.append(Port(port=port))

    def keep_caps(self, caps: int) -> None:
        """Root in it keeps these capabilities instead of an engine's default ones."""
        self._capabilities = caps

    def no_new_privs(self) -> None:
        """No program in it gains rights by being executed."""
        self._no_new_privs = True

    def sysctl(self, key: str, value: str) -> None:
        """Set a parameter of its own namespaces, such as ``net.core.somaxconn``."""
        self._sysctls[key] = value

    def settled(self, program: Program, *, pid_namespace: bool) -> Setup:
        """What the scenario wants and the cures make of it."""
        own, parent = limits.cured(self._own, self._parent, self.cures)
        nested = structs.replace(self._parent, swap=False) != Limits()
        if nested:
            parent = limits.outweighing(parent)
        else:
            own = limits.outweighing(own)
        files, shm = self._last_cure(OpenFiles), self._last_cure(ShmSize)
        volumes = {change.path: None for change in self.cures if isinstance(change, Volume)}
        sysctls = dict(
            pair for change in self.cures if isinstance(change, Sysctl) for pair in change.pairs
        )
        shm_bytes = self._shm_bytes if shm is None else shm.bytes
        return Setup(
            name=self.name,
            program=program,
            rootfs=Rootfs(
                self.name,
                self._files,
                self._volumes | volumes,
                shm_bytes,
                place=self._place,
                options=self._overlay_options,
            ),
            groups=Groups(self.name, own, parent if nested else None),
            user=self._settled_user(),
            init=self.has_init,
            user_namespace=self._in_user_namespace(),
            pid_namespace=pid_namespace,
            network=self.wired,
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
        if (only := self._last_cure(OnlyCapabilities)) is not None:
            user = structs.replace(user, capabilities=capability.mask(only.names))
        if (more := self._last_cure(GrantCapabilities)) is not None:
            kept = user.capabilities | capability.mask(more.names)
            user = structs.replace(user, capabilities=kept)
        return structs.replace(user, no_new_privs=self._no_new_privs)

    @property
    def has_init(self) -> bool:
        """Whether its PID 1 is a small init, and the program its child."""
        return self._init or self._has_cure(WithInit)

    def _last_cure(self, kind: type[_C]) -> _C | None:
        return next((one for one in reversed(self.cures) if isinstance(one, kind)), None)

    def _has_cure(self, kind: type[Change]) -> bool:
        return self._last_cure(kind) is not None

    def _in_user_namespace(self) -> bool:
        return self._user_namespace or self._has_cure(WithUserNamespace)

    def owner(self, user: User) -> Owner:
        first = FIRST_ID if self._in_user_namespace() else 0
        return Owner(uid=first + user.uid, gid=first + user.gid)
