"""Why the kernel drops a packet: the names behind its numbers, which differ from kernel to kernel.

They are the enumerators of ``enum skb_drop_reason`` (include/net/dropreason-core.h) in the type
information of the running kernel. Reasons are told since commit c504e5c2f964 ("net: skb:
introduce kfree_skb_reason()") (in v5.17); a kernel before has none.
"""

import struct
import sys
from collections.abc import Iterator

BTF = "/sys/kernel/btf/vmlinux"

_PREFIXES = ("SKB_DROP_REASON_", "SKB_")
_HEADER = struct.Struct("=HBBIIIII")
_WORDS = struct.Struct("=III")
_ENUMERATOR = struct.Struct("=Ii")
_MAGIC, _KIND_ENUM, _MOST = 0xEB9F, 6, 2000

#: The upper half of a reason is the part of the kernel that gave it (``SKB_DROP_REASON_SUBSYS_``).
_SUBSYSTEM_SHIFT = 16
_SUBSYSTEM_PREFIX = "SKB_DROP_REASON_SUBSYS_"


def read() -> dict[int, str]:
    """Number to name, such as ``{2: "NO_SOCKET"}``; empty where the kernel gives no reasons."""
    try:
        with open(BTF, "rb") as file:
            return reasons(file.read(64 << 20))
    except OSError:
        return {}


def read_resets() -> dict[int, str]:
    """The same of resets that are sent (include/net/rstreason.h); empty before v6.10."""
    try:
        with open(BTF, "rb") as file:
            listed = enumerators(file.read(64 << 20), "sk_rst_reason")
    except OSError:
        return {}
    return {number: name.removeprefix("SK_RST_REASON_") for name, number in listed}


def reasons(btf: bytes) -> dict[int, str]:
    """The same of given type information."""
    subsystems = {
        number << _SUBSYSTEM_SHIFT: name.removeprefix(_SUBSYSTEM_PREFIX)
        for name, number in enumerators(btf, "skb_drop_reason_subsys")
        if 0 < number < 1 << _SUBSYSTEM_SHIFT
    }
    return subsystems | {
        number: _short(name)
        for name, number in enumerators(btf, "skb_drop_reason")
        if not name.endswith(("_MAX", "_MASK")) and name != "SKB_NOT_DROPPED_YET"
    }


def name(known: dict[int, str], number: int) -> str | None:
    """One reason; ``None``: this kernel gives none.

    >>> name({2: "NO_SOCKET"}, 2), name({2: "NO_SOCKET"}, 77), name({}, 0)
    ('NO_SOCKET', 'reason 77', None)
    >>> name({3 << 16: "OPENVSWITCH"}, 3 << 16 | 5)
    'OPENVSWITCH 5'
    """
    if not known:
        return None
    within = number & (1 << _SUBSYSTEM_SHIFT) - 1
    if number in known or number == within:
        return known.get(number, f"reason {number}")
    return f"{known.get(number - within, 'reason of subsystem')} {within}"


def _short(name: str) -> str:
    return next((name.removeprefix(p) for p in _PREFIXES if name.startswith(p)), name)


def enumerators(btf: bytes, name: str) -> list[tuple[str, int]]:
    """The enumerators of one enumeration (Documentation/bpf/btf.rst); empty: there is none.

    The types are not walked one by one, which takes long in Python: the one is looked for that
    begins with the place of its name.
    """
    if len(btf) < _HEADER.size or _HEADER.unpack_from(btf)[0] != _MAGIC:
        return []
    _, _, _, header, types_at, types_size, names_at, names_size = _HEADER.unpack_from(btf)
    types = btf[header + types_at :][:types_size]
    names = btf[header + names_at :][:names_size]
    place = names.find(b"\0" + name.encode() + b"\0") + 1
    if not place:
        return []
    for at in _places(types, place):
        _, info, size = _WORDS.unpack_from(types, at)
        if info >> 24 & 31 == _KIND_ENUM and 0 < info & 0xFFFF <= _MOST and size == 4:
            return list(_listed(types, names, at + _WORDS.size, info & 0xFFFF))
    return []


def _places(types: bytes, number: int) -> Iterator[int]:
    """Where a type may begin whose name has that place: words are aligned."""
    raw = number.to_bytes(4, sys.byteorder)
    at = types.find(raw)
    while at >= 0:
        if at % 4 == 0 and at + _WORDS.size <= len(types):
            yield at
        at = types.find(raw, at + 1)


def _listed(types: bytes, names: bytes, at: int, count: int) -> Iterator[tuple[str, int]]:
    for n in range(count):
        if at + (n + 1) * _ENUMERATOR.size > len(types):
            return
        place, number = _ENUMERATOR.unpack_from(types, at + n * _ENUMERATOR.size)
        yield (
            names[place : names.find(b"\0", place)].decode("ascii", "replace"),
            number & 0xFFFFFFFF,
        )
