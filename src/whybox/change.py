"""Changes that cure, in the resource's own terms.

Each runtime says the same change in its own commands, and the lab's box applies that very change:
what is printed is what was proved. A new kind of change is a class here, a line in each runtime
that can say it, and a line in the box.
"""

from typing import Literal, TypeAlias

from msgspec import Struct


class CpuQuota(Struct, frozen=True, tag=True):
    """May use this many cores, averaged over each period; ``None``: no quota."""

    cores: float | None
    cgroup: str | None = None
    """The group, as ``/proc/PID/cgroup`` names it, when it is an ancestor's quota."""


class CpuBurst(Struct, frozen=True, tag=True):
    """May save up this much unused quota and spend it in a later period."""

    burst_usec: int


class MemoryLimit(Struct, frozen=True, tag=True):
    """May hold this much memory."""

    bytes: int
    cgroup: str | None = None
    """The group, as ``/proc/PID/cgroup`` names it, when it is an ancestor's limit."""


class MemoryHigh(Struct, frozen=True, tag=True):
    """Is slowed down only above this much memory; ``None``: never. v2 alone."""

    bytes: int | None
    cgroup: str | None = None


class SwapLimit(Struct, frozen=True, tag=True):
    """May hold this much in swap, besides its memory; ``None``: as much as there is."""

    bytes: int | None
    cgroup: str | None = None


class Swappiness(Struct, frozen=True, tag=True):
    """How readily its anonymous memory is swapped, 0 to 200. v1 alone."""

    value: int


class HugepageLimit(Struct, frozen=True, tag=True):
    """May hold so many bytes in huge pages of this size."""

    bytes: int
    page_bytes: int
    cgroup: str | None = None
    reserved: bool = False
    """It may reserve so much too, which ``mmap`` asks for (``rsvd``)."""


class CpuWeight(Struct, frozen=True, tag=True):
    """Its share of a CPU that others want as well, in v1's word: 1024 is ordinary."""

    shares: int
    cgroup: str | None = None


class CpuSet(Struct, frozen=True, tag=True):
    """May run on these CPUs, such as ``0-3,6``."""

    cpus: str
    cgroup: str | None = None


class PidsLimit(Struct, frozen=True, tag=True):
    """May have this many tasks; ``None``: no limit."""

    limit: int | None
    cgroup: str | None = None


class IoLimit(Struct, frozen=True, tag=True):
    """May have this much of one disk in a second; ``None``: no limit."""

    device: str
    """Major and minor number of the whole disk: ``8:0``."""
    what: Literal["read bytes", "write bytes", "read IOs", "write IOs"]
    value: int | None
    cgroup: str | None = None


class OpenFiles(Struct, frozen=True, tag=True):
    """Each of its processes may have this many files open (RLIMIT_NOFILE)."""

    limit: int


class ShmSize(Struct, frozen=True, tag=True):
    """``/dev/shm`` may hold this much."""

    bytes: int


class HostSysctl(Struct, frozen=True, tag=True):
    """A parameter of the whole machine."""

    key: str
    value: str


class Sysctl(Struct, frozen=True, tag=True):
    """A parameter of its own namespaces, such as ``kernel.shmmni`` of its IPC namespace."""

    key: str
    value: str
    at_start: bool = False
    """What was made before keeps the old value: it must be there when the program starts."""
    also: tuple[tuple[str, str], ...] = ()
    """More of them, which only together are the cure."""

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """All of them, each with its value."""
        return ((self.key, self.value), *self.also)


class Unpause(Struct, frozen=True, tag=True):
    """Let a paused container run on."""


class ThawFilesystem(Struct, frozen=True, tag=True):
    """Let a frozen file system take writes again."""

    mountpoint: str
    """As the host sees it."""


class StopTimeout(Struct, frozen=True, tag=True):
    """Is given this long to end by itself when it is stopped."""

    seconds: int


class WithInit(Struct, frozen=True, tag=True):
    """Run the program under an init that forwards signals and reaps orphans."""


class RunAsUser(Struct, frozen=True, tag=True):
    """Run as a user who is nobody on the host."""

    uid: int
    gid: int


class WithUserNamespace(Struct, frozen=True, tag=True):
    """Map the container's root to an unprivileged user of the host."""


class Volume(Struct, frozen=True, tag=True):
    """Keep this directory on a volume instead of in the image."""

    path: str


class EmptyFile(Struct, frozen=True, tag=True):
    """Cut a file off to nothing, so that it gives its room back; who has it open keeps it open."""

    path: str
    """As the host sees it, such as ``/proc/7/fd/5``."""


class LogLimit(Struct, frozen=True, tag=True):
    """Its engine keeps so much of what it says: so many files of so many bytes."""

    bytes: int
    files: int


class LayerLimit(Struct, frozen=True, tag=True):
    """What it writes outside of its volumes may take so much."""

    bytes: int
    directory: str
    """Where it writes: bounded alone, where the whole layer cannot be."""
    quota: bool
    """Whether the file system beneath can bound the whole layer (xfs with ``pquota``)."""


class VolumeLimit(Struct, frozen=True, tag=True):
    """One of its volumes, an ``emptyDir``, may hold so much."""

    name: str
    bytes: int


class ProjectQuota(Struct, frozen=True, tag=True):
    """A directory's project may have so many bytes and files; ``None``: as many as it has."""

    id: int
    mountpoint: str
    """Of the file system, as the host sees it."""
    fstype: str
    bytes: int | None = None
    files: int | None = None


class FileAccess(Struct, frozen=True, tag=True):
    """Give a file of the container to somebody, or change its mode; ``None``: leave it so."""

    path: str
    """From the container's root, without links."""
    uid: int | None = None
    gid: int | None = None
    mode: int | None = None


class GrantCapabilities(Struct, frozen=True, tag=True):
    """Hold these capabilities besides those that it has."""

    names: tuple[str, ...]


class OnlyCapabilities(Struct, frozen=True, tag=True):
    """Hold these capabilities and no others, and of devices these beside everybody's."""

    names: tuple[str, ...]
    devices: tuple[str, ...] = ()
    """Paths such as ``/dev/fuse``."""


class SeccompProfile(Struct, frozen=True, tag=True):
    """The seccomp profile lets these calls pass and no others."""

    names: tuple[str, ...]


class AllowSystemCalls(Struct, frozen=True, tag=True):
    """The seccomp profile lets these calls pass."""

    names: tuple[str, ...]


class MountOption(Struct, frozen=True, tag=True):
    """Mount something of the container with this option: ``rw``, ``exec``, ``dev``, ``suid``."""

    mountpoint: str
    option: str


class LinkUp(Struct, frozen=True, tag=True):
    """Switch an interface on; in the container, or at the host's end."""

    interface: str
    in_container: bool = True
    gateway: str | None = None
    """The default route that the kernel dropped with the link, to be put back."""


class AddAddress(Struct, frozen=True, tag=True):
    """Give an interface of the container an address, such as ``10.0.0.2/24``."""

    interface: str
    address: str
    gateway: str | None = None
    """The default route that cannot be without an address, to be put back."""


class DefaultRoute(Struct, frozen=True, tag=True):
    """Send what is not for the container's own network to this gateway."""

    gateway: str
    interface: str


class JoinBridge(Struct, frozen=True, tag=True):
    """Plug the host's end of the container's interface into a bridge."""

    interface: str
    bridge: str


class LinkMtu(Struct, frozen=True, tag=True):
    """The largest packet that an interface takes: the container's, or its host end."""

    interface: str
    bytes: int
    in_container: bool = True


class NoQueue(Struct, frozen=True, tag=True):
    """Take the queueing discipline (tc) off an interface, the container's or its host end."""

    interface: str
    in_container: bool = True


class IpForward(Struct, frozen=True, tag=True):
    """Let the host forward packets between its interfaces."""


class FilterRule(Struct, frozen=True, tag=True):
    """Take a packet filter's rule away, or let a chain's policy accept."""

    table: str
    """``nft FAMILY TABLE`` or ``iptables TABLE``."""
    chain: str
    number: int
    """Its place from 1; 0: the chain's policy."""
    handle: int | None = None
    in_container: bool = False


class Nameservers(Struct, frozen=True, tag=True):
    """Ask these nameservers for names, and no longer those."""

    use: tuple[str, ...]
    drop: tuple[str, ...]


class ListenOn(Struct, frozen=True, tag=True):
    """The program must listen on this address and port."""

    address: str
    port: int


class InProgram(Struct, frozen=True, tag=True):
    """Only the program can be changed; the words say how, the lab runs the changed program."""

    do: str


class InNetwork(Struct, frozen=True, tag=True):
    """Only what lies between can be changed; the words say how, the lab runs it so changed."""

    do: str


Change: TypeAlias = (
    AddAddress
    | AllowSystemCalls
    | CpuBurst
    | CpuQuota
    | CpuSet
    | CpuWeight
    | DefaultRoute
    | EmptyFile
    | FileAccess
    | GrantCapabilities
    | FilterRule
    | HostSysctl
    | HugepageLimit
    | InNetwork
    | InProgram
    | IoLimit
    | IpForward
    | JoinBridge
    | LayerLimit
    | LinkMtu
    | LinkUp
    | ListenOn
    | LogLimit
    | MemoryHigh
    | MemoryLimit
    | NoQueue
    | MountOption
    | Nameservers
    | OnlyCapabilities
    | OpenFiles
    | PidsLimit
    | ProjectQuota
    | RunAsUser
    | SeccompProfile
    | ShmSize
    | StopTimeout
    | SwapLimit
    | Swappiness
    | Sysctl
    | ThawFilesystem
    | Unpause
    | Volume
    | VolumeLimit
    | WithInit
    | WithUserNamespace
)

#: Of interfaces, addresses, routes and filters, in the container or on its node.
OfNetwork: TypeAlias = (
    AddAddress | DefaultRoute | FilterRule | IpForward | JoinBridge | LinkMtu | LinkUp | NoQueue
)
