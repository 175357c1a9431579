"""Changes of what a container may do, in the words of each runtime."""

from typing import TypeAlias, assert_never

from whybox.change import AllowSystemCalls, FileAccess, GrantCapabilities, MountOption
from whybox.kernel.target import Target
from whybox.runtimes import commands_docker, commands_kubernetes, commands_systemd
from whybox.runtimes.shell import line

Right: TypeAlias = FileAccess | GrantCapabilities | AllowSystemCalls | MountOption

#: The engine's default profile with what is missing, for the reader to write.
PROFILE = "profile.json"


def commands(target: Target, change: Right) -> tuple[str, ...]:
    """Shell lines; none where nobody here makes containers from options."""
    if isinstance(change, FileAccess):
        return _file(target, change)
    if isinstance(change, MountOption) and target.runtime not in ("docker", "podman"):
        return _remounted(target, change)
    if commands_kubernetes.manages(target):
        return _kubernetes(target, change)
    if target.runtime in ("docker", "podman"):
        return (commands_docker.run(target, *_options(change)),)
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


def _options(change: GrantCapabilities | AllowSystemCalls | MountOption) -> tuple[str, ...]:
    match change:
        case GrantCapabilities(names=names):
            return tuple(word for name in names for word in ("--cap-add", name))
        case AllowSystemCalls():
            return ("--security-opt", f"seccomp={PROFILE}")
        case MountOption(option="rw", mountpoint=path):
            return ("-v", f"SOURCE:{path}:rw")
        case MountOption(option=option, mountpoint=path):
            return ("--tmpfs", f"{path}:{option}")
        case _:
            assert_never(change)


def _kubernetes(target: Target, change: Right) -> tuple[str, ...]:
    match change:
        case GrantCapabilities(names=names):
            context: dict[str, object] = {"capabilities": {"add": list(names)}}
        case AllowSystemCalls():
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
        case AllowSystemCalls(names=names):
            return commands_systemd.edited(target, f"SystemCallFilter={' '.join(names)}")
        case _:
            return ()
