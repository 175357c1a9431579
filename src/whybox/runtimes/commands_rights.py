"""Changes of what a container may do, in the words of each runtime."""

from typing import TypeAlias, assert_never

from msgspec import json

from whybox.change import (
    AllowSystemCalls,
    FileAccess,
    GrantCapabilities,
    MountOption,
    OnlyCapabilities,
    SeccompProfile,
)
from whybox.kernel.target import Target
from whybox.runtimes import commands_docker, commands_kubernetes, commands_systemd
from whybox.runtimes.shell import line, write

Right: TypeAlias = (
    FileAccess
    | GrantCapabilities
    | OnlyCapabilities
    | AllowSystemCalls
    | SeccompProfile
    | MountOption
)

#: The engine's default profile with what is missing, for the reader to write.
PROFILE = "profile.json"


def commands(target: Target, change: Right) -> tuple[str, ...]:
    """Shell lines; none where nobody here makes containers from options."""
    if isinstance(change, FileAccess):
        return _file(target, change)
    if isinstance(change, MountOption) and target.runtime not in ("docker", "podman"):
        return _remounted(target, change)
    written = (_profile(change),) if isinstance(change, SeccompProfile) else ()
    if commands_kubernetes.manages(target):
        return written + _kubernetes(target, change)
    if target.runtime in ("docker", "podman"):
        return (*written, commands_docker.run(target, *_options(change)))
    if target.runtime == "systemd":
        return _systemd(target, change)
    return ()


def _file(target: Target, change: FileAccess) -> tuple[str, ...]:
    """From the host, which has the right to: a container may have lost it."""
    if target.init is None or target.runtime == "self":
        return ()
    path = f"/proc/{target.init.pid}/root{change.path}"
    lines = []
    if change.uid is not None or change.gid is not None:
        ids = ("" if one is None else str(one) for one in (change.uid, change.gid))
        lines.append(line("chown", "-h", ":".join(ids), path))
    if change.mode is not None:
        lines.append(line("chmod", f"{change.mode:04o}", path))
    return tuple(lines)


def _remounted(target: Target, change: MountOption) -> tuple[str, ...]:
    if target.init is None or target.runtime == "self":
        return ()
    options = f"remount,bind,{change.option}"
    enter = ("nsenter", "-t", str(target.init.pid), "-m", "-p")
    return (line(*enter, "mount", "-o", options, change.mountpoint),)


def _profile(change: SeccompProfile) -> str:
    """In the form that Docker, podman, containerd and the kubelet read."""
    allowed = {"names": list(change.names), "action": "SCMP_ACT_ALLOW"}
    profile = {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "syscalls": [allowed]}
    return write(json.encode(profile).decode(), PROFILE)


Option: TypeAlias = (
    GrantCapabilities | OnlyCapabilities | AllowSystemCalls | SeccompProfile | MountOption
)


def _options(change: Option) -> tuple[str, ...]:
    match change:
        case GrantCapabilities(names=names):
            return _each("--cap-add", names)
        case OnlyCapabilities(names=names, devices=devices):
            dropped = ("--cap-drop", "ALL", *_each("--cap-add", names))
            return (*dropped, *_each("--device", devices))
        case AllowSystemCalls() | SeccompProfile():
            return ("--security-opt", f"seccomp={PROFILE}")
        case MountOption(option="rw", mountpoint=path):
            return ("-v", f"SOURCE:{path}:rw")
        case MountOption(option=option, mountpoint=path):
            return ("--tmpfs", f"{path}:{option}")
        case _:
            assert_never(change)


def _each(option: str, values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(word for value in values for word in (option, value))


def _kubernetes(target: Target, change: Right) -> tuple[str, ...]:
    match change:
        case GrantCapabilities(names=names):
            context: dict[str, object] = {"capabilities": {"add": list(names)}}
        case OnlyCapabilities(names=names):
            only = {"drop": ["ALL"], "add": list(names)}
            context = {"privileged": False, "capabilities": only}
            if "SYS_ADMIN" not in names:  # the API server takes both for a contradiction
                context["allowPrivilegeEscalation"] = False
        case AllowSystemCalls() | SeccompProfile():
            profile = {"type": "Localhost", "localhostProfile": PROFILE}
            context = {"seccompProfile": profile}
        case _:
            return ()
    return commands_kubernetes.of_container(target, {"securityContext": context})


def _systemd(target: Target, change: Right) -> tuple[str, ...]:
    match change:
        case GrantCapabilities(names=names):
            words = " ".join(f"CAP_{name}" for name in names)
            return commands_systemd.edited(target, f"AmbientCapabilities={words}")
        case OnlyCapabilities(names=names):
            words = " ".join(f"CAP_{name}" for name in names)
            return commands_systemd.edited(target, f"CapabilityBoundingSet={words}")
        case AllowSystemCalls(names=names) | SeccompProfile(names=names):
            return commands_systemd.edited(target, f"SystemCallFilter={' '.join(names)}")
        case _:
            return ()
