"""System calls that Python 3.11 has no words for, by the names of the C library.

Each raises OSError with the errno that the kernel gave and the path, or the call, it was about.
"""

import ctypes
import os
from collections.abc import Iterable

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

# include/uapi/linux/mount.h
MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000

MNT_DETACH = 0x2

# include/uapi/linux/prctl.h
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_NAME = 15
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38

SFD_CLOEXEC = 0o2000000

# include/uapi/linux/fs.h
SYNC_FILE_RANGE_WRITE = 0x2

#: include/uapi/linux/capability.h: the version whose sets are two words of 32 bits.
_LINUX_CAPABILITY_VERSION_3 = 0x20080522

_WORD_BITS = 8 * ctypes.sizeof(ctypes.c_ulong)
#: ``sigset_t`` of the C library: 1024 bits, though the kernel has only 64 signals.
_SignalSet = ctypes.c_ulong * (1024 // _WORD_BITS)
_CapabilityHeader = ctypes.c_uint32 * 2
_CapabilityData = ctypes.c_uint32 * 6

_int, _text, _ulong = ctypes.c_int, ctypes.c_char_p, ctypes.c_ulong
_offset = ctypes.c_int64

_libc = ctypes.CDLL(None, use_errno=True)
_libc.unshare.argtypes = [_int]
_libc.setns.argtypes = [_int, _int]
_libc.mount.argtypes = [_text, _text, _text, _ulong, _text]
_libc.umount2.argtypes = [_text, _int]
_libc.pivot_root.argtypes = [_text, _text]
_libc.prctl.argtypes = [_int, _ulong, _ulong, _ulong, _ulong]
_libc.sethostname.argtypes = [_text, ctypes.c_size_t]
_libc.signalfd.argtypes = [_int, ctypes.POINTER(_SignalSet), _int]
_libc.sync_file_range.argtypes = [_int, _offset, _offset, ctypes.c_uint]
_libc.capset.argtypes = [ctypes.POINTER(_CapabilityHeader), ctypes.POINTER(_CapabilityData)]


def _checked(result: int, about: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), about)
    return result


def _encoded(text: str | None) -> bytes | None:
    return None if text is None else os.fsencode(text)


def unshare(flags: int) -> None:
    """New namespaces for this task; with CLONE_NEWPID for its next child."""
    _checked(_libc.unshare(flags), f"unshare({flags:#x})")


def setns(descriptor: int, flags: int = 0) -> None:
    """Move this task into a namespace, or with a pidfd (Linux 5.8) into several of a process'."""
    _checked(_libc.setns(descriptor, flags), f"setns({flags:#x})")


def mount(
    source: str | None,
    target: str,
    fstype: str | None = None,
    flags: int = 0,
    data: str | None = None,
) -> None:
    """``mount(2)``."""
    given = _encoded(source), os.fsencode(target), _encoded(fstype), flags, _encoded(data)
    _checked(_libc.mount(*given), target)


def umount2(target: str, flags: int = 0) -> None:
    """``umount2(2)``."""
    _checked(_libc.umount2(os.fsencode(target), flags), target)


def pivot_root(new_root: str, put_old: str) -> None:
    """``pivot_root(2)``; ("." and ".") stacks the old root on the new one, see its man page."""
    _checked(_libc.pivot_root(os.fsencode(new_root), os.fsencode(put_old)), new_root)


def prctl(option: int, argument: int = 0) -> int:
    """``prctl(2)`` with a number."""
    return _checked(_libc.prctl(option, argument, 0, 0, 0), f"prctl({option})")


def set_name(name: str) -> None:
    """The ``comm`` of this task; the kernel keeps 15 bytes."""
    text = ctypes.create_string_buffer(os.fsencode(name))
    prctl(PR_SET_NAME, ctypes.addressof(text))


def sethostname(name: str) -> None:
    """The host name of this task's UTS namespace."""
    encoded = os.fsencode(name)
    _checked(_libc.sethostname(encoded, len(encoded)), f"sethostname({name})")


def signalfd(signals: Iterable[int]) -> int:
    """A descriptor from which these signals are read while they are blocked."""
    mask = _SignalSet()
    for signum in signals:
        word, bit = divmod(signum - 1, _WORD_BITS)
        mask[word] |= 1 << bit
    return _checked(_libc.signalfd(-1, ctypes.byref(mask), SFD_CLOEXEC), "signalfd()")


def sync_file_range(descriptor: int, offset: int, bytes: int, flags: int) -> None:
    """``sync_file_range(2)``; with SYNC_FILE_RANGE_WRITE what is dirty there is sent off."""
    result = _libc.sync_file_range(descriptor, offset, bytes, flags)
    _checked(result, f"sync_file_range({descriptor})")


def capset(capabilities: int) -> None:
    """Hold exactly these capabilities: permitted and effective, none of them inheritable."""
    words = capabilities & 0xFFFFFFFF, capabilities >> 32
    header = _CapabilityHeader(_LINUX_CAPABILITY_VERSION_3, 0)
    data = _CapabilityData(words[0], words[0], 0, words[1], words[1], 0)
    _checked(_libc.capset(ctypes.byref(header), ctypes.byref(data)), "capset()")
