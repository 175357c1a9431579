"""Changes in Kubernetes' words: a patch of whatever made the pod, which the kernel does not name.

What is changed behind the kubelet's back, it changes back; so only what it has no word for is
written to the kernel's files.
"""

from typing import Any, assert_never

from msgspec import json

from whybox.change import (
    CpuBurst,
    CpuQuota,
    CpuSet,
    CpuWeight,
    HugepageLimit,
    IoLimit,
    LayerLimit,
    LogLimit,
    MemoryHigh,
    MemoryLimit,
    Nameservers,
    OpenFiles,
    PidsLimit,
    RunAsUser,
    ShmSize,
    StopTimeout,
    SwapLimit,
    Swappiness,
    Sysctl,
    Unpause,
    Volume,
    VolumeLimit,
    WithInit,
    WithUserNamespace,
)
from whybox.kernel.host import Host
from whybox.kernel.target import Target
from whybox.runtimes import commands_kernel
from whybox.runtimes.commands_docker import DiskLimit, Setting
from whybox.runtimes.shell import quoted


def manages(target: Target) -> bool:
    """Whether the kubelet made the groups, through whichever engine."""
    return any("/kubepods" in path for path in target.cgroups.values())


def commands(target: Target, change: Setting, host: Host) -> tuple[str, ...]:
    """A strategic merge patch, with the words in capitals for the reader to fill in."""
    match change:
        case (
            CpuBurst()
            | CpuSet()
            | IoLimit()
            | MemoryHigh()
            | PidsLimit()
            | SwapLimit()
            | Swappiness()
            | Unpause()
        ):
            return commands_kernel.limit(target, change, host)
        case OpenFiles():
            return commands_kernel.open_files(target, change)
        case CpuQuota() | MemoryLimit() | HugepageLimit() | CpuWeight():
            return _container(target, {"resources": _resources(change)})
        case RunAsUser():
            who = {"runAsUser": change.uid, "runAsGroup": change.gid}
            return _container(target, {"securityContext": who})
        case LogLimit() | LayerLimit() | VolumeLimit():
            return _bounded(target, change)
        case Volume():
            return _volume(target, change.path, {})
        case ShmSize():
            memory = {"medium": "Memory", "sizeLimit": _size(change.bytes)}
            return _volume(target, "/dev/shm", memory)
        case _:
            return _pod(target, _spec(change))


def _bounded(target: Target, change: DiskLimit) -> tuple[str, ...]:
    match change:
        case LayerLimit():
            # The kubelet counts the layer, the log and emptyDir volumes, and evicts the pod.
            limit = {"limits": {"ephemeral-storage": _size(change.bytes)}}
            return _container(target, {"resources": limit})
        case LogLimit():
            return ()  # the kubelet's own containerLogMaxSize, in its configuration
        case VolumeLimit():
            limited = {"name": change.name, "emptyDir": {"sizeLimit": _size(change.bytes)}}
            return _pod(target, {"volumes": [limited]})
        case _:
            assert_never(change)


def _resources(change: CpuQuota | MemoryLimit | HugepageLimit | CpuWeight) -> dict[str, Any]:
    match change:
        case CpuQuota(cores=cores):
            return {"limits": {"cpu": None if cores is None else f"{round(cores * 1000)}m"}}
        case MemoryLimit():
            return {"limits": {"memory": _size(change.bytes)}}
        case HugepageLimit():
            return {"limits": {f"hugepages-{_size(change.page_bytes)}": _size(change.bytes)}}
        case CpuWeight():
            # The kubelet makes 1024 shares of one requested core.
            return {"requests": {"cpu": f"{change.shares * 1000 // 1024}m"}}
        case _:
            assert_never(change)


def _spec(
    change: WithInit | WithUserNamespace | StopTimeout | Sysctl | Nameservers,
) -> dict[str, Any]:
    match change:
        case WithInit():
            # The pause process is PID 1 of a shared namespace, and reaps.
            return {"shareProcessNamespace": True}
        case WithUserNamespace():
            return {"hostUsers": False}
        case StopTimeout():
            return {"terminationGracePeriodSeconds": change.seconds}
        case Sysctl():
            # The kubelet must allow it: --allowed-unsafe-sysctls.
            each = [{"name": key, "value": value} for key, value in change.pairs]
            return {"securityContext": {"sysctls": each}}
        case Nameservers(use=use):
            return {"dnsPolicy": "None", "dnsConfig": {"nameservers": list(use)}}
        case _:
            assert_never(change)


def _volume(target: Target, path: str, kind: dict[str, str]) -> tuple[str, ...]:
    mount = {"name": "CONTAINER", "volumeMounts": [{"name": "data", "mountPath": path}]}
    return _pod(target, {"volumes": [{"name": "data", "emptyDir": kind}], "containers": [mount]})


def _container(target: Target, settings: dict[str, Any]) -> tuple[str, ...]:
    return _pod(target, {"containers": [{"name": "CONTAINER", **settings}]})


def of_container(target: Target, settings: dict[str, Any]) -> tuple[str, ...]:
    """A patch of the container's own settings."""
    return _container(target, settings)


def _pod(target: Target, spec: dict[str, Any]) -> tuple[str, ...]:
    patch = json.encode({"spec": {"template": {"spec": spec}}}).decode()
    where = f"# whose it is: crictl ps --id {quoted(target.short_id)}"
    return (f"kubectl patch deployment DEPLOYMENT --patch {quoted(patch)}  {where}",)


def _size(size: int) -> str:
    return f"{size >> 20}Mi" if size % (1 << 20) == 0 else str(size)
