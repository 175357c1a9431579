"""A cure in the words of the target's own runtime: what is printed for the change that is proved.

Diagnosing prints these lines and runs none of them.
"""

from msgspec import structs

from whybox.change import (
    AddAddress,
    AllowSystemCalls,
    Change,
    CpuQuota,
    CpuSet,
    CpuWeight,
    DefaultRoute,
    EmptyFile,
    FileAccess,
    FilterRule,
    GrantCapabilities,
    HostSysctl,
    HugepageLimit,
    InNetwork,
    InProgram,
    IoLimit,
    IpForward,
    JoinBridge,
    LayerLimit,
    LinkMtu,
    LinkUp,
    ListenOn,
    LogLimit,
    MemoryHigh,
    MemoryLimit,
    MountOption,
    Nameservers,
    NoQueue,
    OnlyCapabilities,
    OpenFiles,
    PidsLimit,
    ProjectQuota,
    RunAsUser,
    SeccompProfile,
    ShmSize,
    StopTimeout,
    SwapLimit,
    Sysctl,
    ThawFilesystem,
    Volume,
    VolumeLimit,
    WithInit,
    WithUserNamespace,
)
from whybox.kernel.host import Host
from whybox.kernel.target import Target
from whybox.model import Cure, Diagnosis, Finding, Report
from whybox.runtimes import (
    commands_docker,
    commands_kernel,
    commands_kubernetes,
    commands_rights,
    commands_systemd,
)
from whybox.runtimes.shell import line


def commands(target: Target, change: Change, host: Host) -> tuple[str, ...]:
    """Shell lines, or none where no command can do it: then the advice must."""
    match change:
        case ListenOn() | InNetwork() | InProgram():
            return ()
        case (
            AddAddress()
            | DefaultRoute()
            | FilterRule()
            | IpForward()
            | JoinBridge()
            | LinkMtu()
            | LinkUp()
            | NoQueue()
        ):
            return commands_kernel.network(target, change)
        case HostSysctl() | ThawFilesystem() | EmptyFile() | ProjectQuota():
            return commands_kernel.machine(change)
        case FileAccess() | GrantCapabilities() | AllowSystemCalls() | MountOption():
            return commands_rights.commands(target, change)
        case OnlyCapabilities() | SeccompProfile():
            return commands_rights.commands(target, change)
        case (
            CpuQuota(cgroup=str())
            | MemoryLimit(cgroup=str())
            | MemoryHigh(cgroup=str())
            | SwapLimit(cgroup=str())
            | HugepageLimit(cgroup=str())
            | CpuWeight(cgroup=str())
            | IoLimit(cgroup=str())
            | CpuSet(cgroup=str())
            | PidsLimit(cgroup=str())
        ):
            # An ancestor is not this container's, nor its engine's, to speak of.
            return commands_kernel.limit(target, change, host)
        case _:
            return _spoken(target, change, host)


def _spoken(target: Target, change: commands_docker.Setting, host: Host) -> tuple[str, ...]:
    if commands_kubernetes.manages(target):
        return commands_kubernetes.commands(target, change, host)
    if target.runtime in ("docker", "podman"):
        return commands_docker.commands(target, change, host)
    if target.runtime == "systemd":
        return commands_systemd.commands(target, change, host)
    match change:
        case OpenFiles():
            return commands_kernel.open_files(target, change)
        case Sysctl():
            return commands_kernel.sysctl(target, change)
        case WithInit() | RunAsUser() | WithUserNamespace() | Volume() | ShmSize() | StopTimeout():
            return ()  # nobody here makes containers from options
        case LogLimit() | LayerLimit() | VolumeLimit():
            return ()  # as little
        case Nameservers():
            return ()  # nor writes their files
        case _ if target.runtime == "self":
            return ()  # from inside the files are read-only
        case _:
            return commands_kernel.limit(target, change, host)


def with_commands(report: Report, host: Host) -> Report:
    """The report with the commands of every cure, and one that shows whether it helped."""
    return structs.replace(
        report, targets=tuple(_with_commands(diagnosis, host) for diagnosis in report.targets)
    )


def _with_commands(diagnosis: Diagnosis, host: Host) -> Diagnosis:
    target = diagnosis.target
    findings = tuple(
        structs.replace(
            found, cures=tuple(_cure(cure, found, target, host) for cure in found.cures)
        )
        for found in diagnosis.findings
    )
    return structs.replace(diagnosis, findings=findings)


def _cure(cure: Cure, found: Finding, target: Target, host: Host) -> Cure:
    lines = cure.commands
    if not lines and cure.change is not None:
        lines = commands(target, cure.change, host)
    to = () if host.to is None or not found.hops else ("--to", _endpoint(*host.to))
    again = line("whybox", "diagnose", word(target), "--case", found.case, *to)
    return structs.replace(cure, commands=lines, verify=cure.verify or again)


def _endpoint(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def word(target: Target) -> str:
    """What to type for this target."""
    match target.runtime:
        case "self":
            return "self"
        case "process":
            return f"pid://{target.id}"
        case "cgroup":
            return f"cgroup://{target.id}"
        case "systemd":
            return f"unit://{target.name}"
        case _ if target.short_id == target.id:
            return f"{target.runtime}://{target.id}"  # a box may have any name, even self
        case _:
            return target.short_id if target.name == target.id else target.name
