"""``perf_event_open(2)``: tracepoints by their number, and a clock that interrupts what runs.

The attribute is ``struct perf_event_attr`` in its first published size
(include/uapi/linux/perf_event.h), which every kernel takes.
"""

import ctypes
import os
import platform
import struct

_NUMBERS = {"x86_64": 298, "aarch64": 241, "riscv64": 241, "s390x": 331, "ppc64le": 319}

_TYPE_SOFTWARE, _TYPE_TRACEPOINT = 1, 2
_COUNT_SW_CPU_CLOCK = 0
_FLAG_FREQUENCY = 1 << 10
_FLAG_FD_CLOEXEC = 1 << 3
_SIZE_VER0 = 64

_IOC_ENABLE, _IOC_SET_BPF = 0x2400, 0x40042408


def tracepoint(number: int) -> int:
    """A descriptor for one tracepoint, to attach a program to: it then runs on every CPU."""
    return _open(_TYPE_TRACEPOINT, number, period=1, cpu=0)


def cpu_clock(frequency_hz: int, cpu: int) -> int:
    """A descriptor that samples whatever runs on one CPU so many times a second.

    It counts CPU time by a timer, so it works where there are no hardware counters (in most
    virtual machines), and it samples no code that runs with interrupts off.
    """
    return _open(_TYPE_SOFTWARE, _COUNT_SW_CPU_CLOCK, period=frequency_hz, cpu=cpu, frequency=True)


def attach(descriptor: int, program: int) -> None:
    """Run a BPF program at each event of the descriptor, until that is closed."""
    import fcntl

    fcntl.ioctl(descriptor, _IOC_SET_BPF, program)
    fcntl.ioctl(descriptor, _IOC_ENABLE, 0)


def online_cpus(text: str) -> tuple[int, ...]:
    """Parse ``/sys/devices/system/cpu/online``.

    >>> online_cpus("0-2,5")
    (0, 1, 2, 5)
    """
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return tuple(found)


def _open(kind: int, config: int, *, period: int, cpu: int, frequency: bool = False) -> int:
    flags = _FLAG_FREQUENCY if frequency else 0
    attribute = struct.pack("=IIQQQQQIIQ", kind, _SIZE_VER0, config, period, 0, 0, flags, 0, 0, 0)
    number = _NUMBERS.get(platform.machine())
    if number is None:
        raise OSError(38, f"perf_event_open is not known on {platform.machine()}")
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.restype = ctypes.c_long
    arguments = (ctypes.c_int(-1), ctypes.c_int(cpu), ctypes.c_int(-1))
    result = int(
        call(ctypes.c_long(number), attribute, *arguments, ctypes.c_ulong(_FLAG_FD_CLOEXEC))
    )
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "perf_event_open")
    return result
