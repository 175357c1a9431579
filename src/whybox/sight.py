"""What this kernel and these rights let whybox see, each gap with its reason."""

import os
from collections.abc import Callable

from msgspec import Struct

from whybox.kernel import capability, cgroup, kmsg, task, tracefs
from whybox.kernel.bpf import ability
from whybox.kernel.cgroup import UNIFIED
from whybox.kernel.host import Host
from whybox.kernel.namespace import FIRST_NET, INITIAL, host_namespaces, namespace


class Sight(Struct, frozen=True, kw_only=True):
    """One thing that cases read."""

    what: str
    lets: str
    """What is judged by it."""
    gap: str | None = None
    """Why it cannot be seen, or ``None``."""
    says: str = ""


def sights(host: Host) -> tuple[Sight, ...]:
    """All of them, in the order in which a diagnosis needs them."""
    return tuple(look(host) for look in _LOOKS)


def _rights(host: Host) -> Sight:
    own = task.status(host, "self")
    missing = capability.names(~own.cap_eff & _WANTED)
    return Sight(
        what="rights",
        lets="other users' tasks, other namespaces, the kernel log",
        gap=f"without {', '.join(missing)}: run it as root" if missing else None,
        says=f"uid {own.uid[1]}, {len(capability.names(own.cap_eff))} capabilities",
    )


def _bits(*names: str) -> int:
    return sum(1 << capability.NAMES.index(name) for name in names)


_WANTED = _bits("SYS_ADMIN", "SYS_PTRACE", "DAC_READ_SEARCH", "SYSLOG", "NET_ADMIN")


def _place(host: Host) -> Sight:
    inside = namespace(host, "self", "pid") != INITIAL["pid"]
    return Sight(
        what="place",
        lets="every container of the machine",
        gap="inside a container: only `self` can be judged, and the host's side is out of sight"
        if inside
        else None,
        says="the host",
    )


def _groups(host: Host) -> Sight:
    trees = cgroup.hierarchies(host)
    versions = {tree.version for tree in trees}
    names = sorted(name for tree in trees for name in tree.controllers if name)
    layout = {frozenset({1}): "v1", frozenset({2}): "v2", frozenset({1, 2}): "hybrid"}
    return Sight(
        what="control groups",
        lets="limits, throttling, memory, pids",
        gap=None if trees else "no cgroup tree is mounted here",
        says=f"{layout.get(frozenset(versions), 'none')} {', '.join(names)}".strip(),
    )


def _pressure(host: Host) -> Sight:
    trees = {name: tree for tree in cgroup.hierarchies(host) for name in tree.controllers}
    tree = trees.get(UNIFIED)
    gap = None
    if not host.exists("/proc/pressure/cpu"):
        gap = "this kernel has no pressure stall information (CONFIG_PSI, or boot with psi=1)"
    elif tree is None:
        gap = "no unified cgroup tree is mounted, so pressure is known for the host only"
    return Sight(what="pressure", lets="time lost to CPU, memory and IO", gap=gap, says="per group")


def _log(host: Host) -> Sight:
    reach = kmsg.log(host).reach
    says = "whole since the boot" if reach.complete else "older records were overwritten"
    lets = "who was OOM-killed, by whose limit"
    return Sight(what="kernel log", lets=lets, gap=reach.reason, says=says)


def _tracing(host: Host) -> Sight:
    why = tracefs.why_not(host)
    return Sight(
        what="tracepoints", lets="what became of a signal", gap=why, says="own tracing instance"
    )


def _programs(host: Host) -> Sight:
    lets = "signals, OOM kills and copy-ups as they happen; whybox trace"
    gap = ability.why_not(host)
    return Sight(what="BPF", lets=lets, gap=gap, says="types and libbpf are there")


def _probes(host: Host) -> Sight:
    there = host.exists(ability.KPROBES)
    gap = None if there else "this kernel has none (CONFIG_KPROBES): tracepoints are used alone"
    return Sight(what="kprobes", lets="whybox trace functions", gap=gap, says="there")


def _namespaces(host: Host) -> Sight:
    known = host_namespaces(host)
    gap = None
    if "net" not in known:
        gap = "the host's own namespaces cannot be told from here"
    elif not os.access(host.path(FIRST_NET), os.R_OK):
        gap = "other network namespaces cannot be entered: run it as root"
    return Sight(what="namespaces", lets="the path of a packet, hop by hop", gap=gap, says="open")


_LOOKS: tuple[Callable[[Host], Sight], ...] = (
    _rights,
    _place,
    _groups,
    _pressure,
    _namespaces,
    _log,
    _tracing,
    _programs,
    _probes,
)
