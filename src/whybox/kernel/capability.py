"""Capabilities by name, in the order of their bits (include/uapi/linux/capability.h).

>>> names(0xA80425FB)[:3], len(names(0xA80425FB))
(('CHOWN', 'DAC_OVERRIDE', 'FOWNER'), 14)
"""

from collections.abc import Iterable

NAMES = (
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
)

#: What Docker and containerd give by default (measured: CapEff of `docker run`).
DEFAULT = 0xA80425FB


def names(mask: int) -> tuple[str, ...]:
    """The capabilities in a mask; a bit that has no name here yet is named by its number."""
    return tuple(
        NAMES[bit] if bit < len(NAMES) else f"CAP_{bit}"
        for bit in range(mask.bit_length())
        if mask >> bit & 1
    )


def mask(names: Iterable[str]) -> int:
    """The mask of capabilities by their names.

    >>> hex(mask(["CHOWN", "SYS_ADMIN"])), names(mask(["CAP_63"]))
    ('0x200001', ('CAP_63',))
    """
    bits = (NAMES.index(n) if n in NAMES else int(n.removeprefix("CAP_")) for n in names)
    return sum(1 << bit for bit in bits)
