"""Changes in Kubernetes' words: a patch of whatever made the pod, which the kernel does not name.

What is changed behind the kubelet's back, it changes back; so only what it has no word for is
written to the kernel's files.
"""

from typing import Any, assert_never

from msgspec import json

from whybox.change import (
    CpuBurst,
    CpuQuota,
    MemoryLimit,
    RunAsUser,
    Volume,
    WithInit,
    WithUserNamespace,
)
from whybox.kernel.host import Host
from whybox.kernel.target import Target
from whybox.runtimes import commands_kernel
from whybox.runtimes.commands_docker import Setting
from whybox.runtimes.shell import quoted


def manages(target: Target) -> bool:
    """Whether the kubelet made the groups, through whichever engine."""
    return any("/kubepods" in path for path in target.cgroups.values())


def commands(target: Target, change: Setting, host: Host) -> tuple[str, ...]:
    """A strategic merge patch, with the words in capitals for the reader to fill in."""
    match change:
        case CpuQuota(cores=cores):
            limit = None if cores is None else f"{round(cores * 1000)}m"
            return _container(target, {"resources": {"limits": {"cpu": limit}}})
        case MemoryLimit():
            return _container(target, {"resources": {"limits": {"memory": _size(change.bytes)}}})
        case CpuBurst():
            return commands_kernel.limit(target, change, host)
        case WithInit():
            # The pause process is PID 1 of a shared namespace, and reaps.
            return _pod(target, {"shareProcessNamespace": True})
        case RunAsUser():
            who = {"runAsUser": change.uid, "runAsGroup": change.gid}
            return _container(target, {"securityContext": who})
        case WithUserNamespace():
            return _pod(target, {"hostUsers": False})
        case Volume():
            return _volume(target, change.path)
        case _:
            assert_never(change)


def _volume(target: Target, path: str) -> tuple[str, ...]:
    mount = {"name": "CONTAINER", "volumeMounts": [{"name": "data", "mountPath": path}]}
    return _pod(target, {"volumes": [{"name": "data", "emptyDir": {}}], "containers": [mount]})


def _container(target: Target, settings: dict[str, Any]) -> tuple[str, ...]:
    return _pod(target, {"containers": [{"name": "CONTAINER", **settings}]})


def _pod(target: Target, spec: dict[str, Any]) -> tuple[str, ...]:
    patch = json.encode({"spec": {"template": {"spec": spec}}}).decode()
    where = f"# whose it is: crictl ps --id {quoted(target.short_id)}"
    return (f"kubectl patch deployment DEPLOYMENT --patch {quoted(patch)}  {where}",)


def _size(size: int) -> str:
    return f"{size >> 20}Mi" if size % (1 << 20) == 0 else str(size)
