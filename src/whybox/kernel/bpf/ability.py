"""What the running kernel can attach a program to: asked of the kernel, never of its version.

A program says by its section what it hooks: ``tp_btf/sched_switch``, ``kprobe/cap_capable``.
"""

import errno
import struct
from functools import cache

from whybox.kernel import capability, task, tracefs
from whybox.kernel.host import Host
from whybox.kernel.namespace import INITIAL, namespace

BTF = "/sys/kernel/btf/vmlinux"
_HEADER = struct.Struct("=HBBIIIII")
SYMBOLS = "/proc/kallsyms"
LOCKDOWN = "/sys/kernel/security/lockdown"
KPROBES = "/sys/bus/event_source/devices/kprobe/type"


def why_not(host: Host) -> str | None:
    """Why no BPF program at all can be loaded here, or ``None``. Loading one is the full test."""
    if not host.live:
        return "a recorded tree runs no programs"
    if namespace(host, "self", "pid") not in (None, INITIAL["pid"]):
        return "BPF programs name the host's pids: run whybox on the host, not in a container"
    if not may(task.status(host, "self").cap_eff):
        return "BPF programs need CAP_BPF and CAP_PERFMON: run whybox as root on the host"
    if not host.exists(BTF):
        return "this kernel tells no types (CONFIG_DEBUG_INFO_BTF), and BPF programs need them"
    return _no_library()


def may(capabilities: int) -> bool:
    """CAP_BPF with CAP_PERFMON, or CAP_SYS_ADMIN, which was both before Linux 5.8."""
    held = set(capability.names(capabilities))
    return "SYS_ADMIN" in held or {"BPF", "PERFMON"} <= held


def explained(error: OSError) -> str:
    """A refusal to load or attach, as a reason with the way out where there is one."""
    if error.errno in (errno.EPERM, errno.EACCES):
        lockdown = _lockdown()
        if lockdown not in (None, "none"):
            return f"the kernel is locked down ({lockdown}), see kernel_lockdown(7)"
    return str(error.strerror or error)


def _lockdown() -> str | None:
    try:
        with open(LOCKDOWN, encoding="ascii") as file:
            return file.read().partition("[")[2].partition("]")[0]
    except OSError:
        return None


@cache
def _no_library() -> str | None:
    from whybox.kernel.bpf import libbpf

    try:
        libbpf.library()
    except libbpf.Unavailable as error:
        return str(error.strerror)
    return None


def missing(host: Host, section: str) -> str | None:
    """What this kernel lacks for a program of that section, or ``None``."""
    kind, _, place = section.partition("/")
    if kind in ("tp_btf", "raw_tp"):
        return None if knows_type(f"btf_trace_{place}") else f"no tracepoint {place}"
    if kind == "syscall":
        # Since commit 79a7f8bdb159 ("bpf: Introduce bpf_sys_bpf() helper and program type.")
        # (v5.14).
        there = knows_type("bpf_prog_test_run_syscall")
        return None if there else "no programs that are run by a system call"
    if kind == "iter":
        return None if knows_type(f"bpf_iter__{place}") else f"no iterator over {place}s"
    if kind in ("tracepoint", "tp"):
        return _no_event(host, place)
    if kind in ("kprobe", "kretprobe"):
        return _no_kprobe(host, place)
    return None  # perf_event and the like: every kernel with BPF has them


def knows_type(name: str) -> bool:
    """Whether the kernel's type information has that name."""
    return b"\0" + name.encode() + b"\0" in _names()


@cache
def _names() -> bytes:
    """All the names of the type information: its last part, a quarter of the whole.

    ``struct btf_header`` (Documentation/bpf/btf.rst) tells where that is.
    """
    with open(BTF, "rb") as file:
        _, _, _, length, _, _, at, size = _HEADER.unpack(file.read(_HEADER.size))
        file.seek(length + at)
        return file.read(size)


def _no_event(host: Host, place: str) -> str | None:
    try:
        there = tracefs.has_event(host, place)
    except OSError as error:
        return tracefs.explained(error)
    return None if there else f"no tracepoint {place}"


def _no_kprobe(host: Host, function: str) -> str | None:
    if not host.exists(KPROBES):
        return "no kprobes (CONFIG_KPROBES)"
    if not function:
        return None  # it is chosen later, by ``Object.attach_kprobe``
    return None if function in functions() else f"no function {function} to probe"


@cache
def functions() -> frozenset[str]:
    """The names of the kernel's functions, without those of modules' data."""
    names = set()
    with open(SYMBOLS, encoding="ascii", errors="replace") as file:
        for line in file:
            parts = line.split()
            if parts[1] in "tTwW":
                names.add(parts[2])
    return frozenset(names)
