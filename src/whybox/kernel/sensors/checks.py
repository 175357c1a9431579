"""The kernel's checks for capabilities: where they were made, and which of them mean nothing.

What ``checks.h`` is to the programs, this is to those who read their maps.
"""

import struct
import time
from collections.abc import Sequence

from whybox.kernel.bpf.objects import Object
from whybox.kernel.sensors.meter import counted
from whybox.kernel.symbols import KernelSymbols

_MOST_SLOTS = 0xFF
_ZERO, _WORD = struct.pack("=I", 0), struct.Struct("=Q")

#: What a check passes through on its way to cap_capable() (kernel/capability.c,
#: security/security.c, net/core/sock.c, net/netlink/af_netlink.c): none of it says what for.
_THROUGH = """
    cap_capable cap_capable_helper security_capable capable capable_noaudit ns_capable
    ns_capable_common ns_capable_noaudit ns_capable_setid has_capability has_ns_capability
    has_capability_noaudit has_ns_capability_noaudit file_ns_capable capable_wrt_inode_uidgid
    bpf_capable perfmon_capable sk_capable sk_ns_capable sk_net_capable netlink_capable
    netlink_ns_capable __netlink_ns_capable netlink_net_capable ptracer_capable
    checkpoint_restore_ns_capable bpf_token_capable inode_owner_or_capable
"""
_PASSED = frozenset(_THROUGH.split())

#: Every mapping of memory asks whether it may have the last of it (SYS_ADMIN, mm/util.c,
#: __vm_enough_memory()); a refusal changes nothing unless memory is out.
_MEMORY = frozenset(("cap_vm_enough_memory", "security_vm_enough_memory_mm", "__vm_enough_memory"))


def stack(object: Object, number: int | None) -> tuple[int, ...]:
    """The addresses of a stack that was kept, the innermost first; empty: it was not kept."""
    if number is None or number < 0:
        return ()
    raw = object.map("stacks").get(struct.pack("=I", number)) or b""
    return tuple(address for (address,) in _WORD.iter_unpack(raw) if address)


def path(symbols: KernelSymbols, addresses: Sequence[int]) -> tuple[str, ...]:
    """The functions from the one that asked for the capability outwards."""
    frames = [symbols.frame(address - 1) for address in addresses]
    names = [frame.name.split(".", 1)[0] for frame in frames if frame.named]
    return asking(names)


def asking(names: Sequence[str]) -> tuple[str, ...]:
    """Of the functions of a stack those from the one that asked for the capability outwards.

    >>> asking(["bpf_prog_5_on_check", "cap_capable", "ns_capable", "chown_common", "do_fchownat"])
    ('chown_common', 'do_fchownat')
    >>> asking(["__vm_enough_memory", "mmap_region"])
    ('__vm_enough_memory', 'mmap_region')
    """
    passed = [nth for nth, name in enumerate(names) if name in _PASSED]
    return tuple(names[passed[-1] + 1 :] if passed else names)


def is_memory(path: Sequence[str]) -> bool:
    """Whether it was asked for a reserve of memory.

    >>> is_memory(("security_vm_enough_memory_mm", "mmap_region")), is_memory(("__do_sys_mount",))
    (True, False)
    """
    return not _MEMORY.isdisjoint(path[:3])


def is_overlay(path: Sequence[str]) -> bool:
    """Whether overlayfs asked. For SYS_ADMIN that is for its own attributes, ``trusted.overlay.*``.

    >>> is_overlay(("cap_inode_setxattr", "ovl_do_setxattr")), is_overlay(("do_mknodat",))
    (True, False)
    """
    return any(name.startswith("ovl_") for name in path[:6])


def begin_epoch(object: Object) -> None:
    """Have the programs look up anew who is watched: a container was added."""
    # They count it on by one; no count of theirs comes to where the time is.
    epoch = time.monotonic_ns() >> 10
    object.map("epoch").set(_ZERO, _WORD.pack(epoch))


def told_apart(slot: int) -> None:
    """Raises OSError where the programs cannot tell this container from another: they remember
    whose the last task was in eight bits."""
    if slot > _MOST_SLOTS:
        raise OSError(7, f"more than {_MOST_SLOTS} containers cannot be watched so at once")


def runs(object: Object) -> int:
    """How often it was asked who is watched: once for each run of a program."""
    return counted(object, "last_seen", _WORD.size)
