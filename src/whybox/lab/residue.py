"""What a lab may leave behind: groups, mounts, files, interfaces, processes, swap, tracing, BPF."""

import os
import re
import time

from whybox.kernel import cgroup, task
from whybox.kernel.host import Host
from whybox.kernel.mountinfo import mounts
from whybox.kernel.swap import devices

#: A killed task and its group are gone a moment after they were told to go, not at once.
PATIENCE_SECONDS = 5.0

#: A box is called ``whybox-NAME-PID-NUMBER``, and its parent group ``pod-…``.
_OWNER = re.compile(r"-(\d+)-\d+(?:/|$)")
DIRECTORY = os.environ.get("TMPDIR", "/var/tmp")
INTERFACES = frozenset(("veth0", "br0", "up0"))

INSTANCES = ("/sys/kernel/tracing/instances", "/sys/kernel/debug/tracing/instances")


def traces() -> frozenset[str]:
    """Everything of ours that is there now."""
    host = Host()
    return frozenset(
        [
            *_groups(host),
            *_mounts(host),
            *_directories(host),
            *_interfaces(host),
            *_swaps(host),
            *_children(host),
            *_instances(host),
            *_programs(host),
        ]
    )


def left_behind(before: frozenset[str]) -> tuple[str, ...]:
    """What is there now and was not before, once it has had time to go."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (more := traces() - before) and time.monotonic() < deadline:
        time.sleep(0.05)
    return tuple(sorted(more))


def _groups(host: Host) -> list[str]:
    found = []
    for tree in cgroup.hierarchies(host):
        names = host.directories(tree.mountpoint)
        found += [f"cgroup {tree.mountpoint}/{n}" for n in names if _is_ours(host, n)]
    return found


def _is_ours(host: Host, name: str) -> bool:
    """Whether a box of this process has that name, or one whose process is gone.

    Others may prove, or start containers, on the same machine at the same time.
    """
    if "whybox-" not in name:
        return False
    owner = _OWNER.search(name)
    return owner is None or int(owner[1]) == os.getpid() or not host.exists(f"/proc/{owner[1]}")


def _mounts(host: Host) -> list[str]:
    seen = mounts(host, "self")
    return [f"mount {m.mountpoint}" for m in seen if _is_ours(host, m.mountpoint)]


def _directories(host: Host) -> list[str]:
    """What the boxes' root file systems lie in."""
    names = host.names(DIRECTORY) if host.exists(DIRECTORY) else ()
    return [f"directory {DIRECTORY}/{name}" for name in names if _is_ours(host, name)]


def _interfaces(host: Host) -> list[str]:
    """A box's wires are in namespaces of its own: these names on the host have got away."""
    return [f"interface {name}" for name in host.names("/sys/class/net") if name in INTERFACES]


def _swaps(host: Host) -> list[str]:
    """A lab's swap file has its process in its name; compressed memory has no owner."""
    there = [device.path for device in devices(host) or ()]
    ours = [path for path in there if "zram" in path or _is_ours(host, path)]
    return [f"swap {path}" for path in ours]


def _children(host: Host) -> list[str]:
    mine = os.getpid()
    found = []
    for pid in task.pids(host):
        try:
            stat = task.stat(host, pid)
        except OSError:
            continue
        if stat.ppid == mine:
            found.append(f"process {pid} {stat.comm}")
    return found


def _programs(host: Host) -> list[str]:
    """What this process holds of BPF: a program lives as long as somebody holds it."""
    held = [link.partition(":")[2] for link in task.descriptors(host, os.getpid())]
    return [f"BPF {what}" for what in held if what.strip("[]").startswith(("bpf", "perf_event"))]


def _instances(host: Host) -> list[str]:
    # The second is looked for only without the first: debugfs mounts it when it is touched.
    there = next((directory for directory in INSTANCES if host.exists(directory)), None)
    return [] if there is None else [f"tracing instance {name}" for name in host.names(there)]
