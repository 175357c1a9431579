"""The time that the kernel's BPF programs take, whoever loaded them."""

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from whybox.kernel.bpf import libbpf
from whybox.kernel.bpf.objects import run_info

_RUN_TIME = 0  # include/uapi/linux/bpf.h, enum bpf_stats_type


@contextmanager
def timed() -> Iterator[Callable[[], int | None]]:
    """Have the kernel time them; what is yielded tells the ns so far, ``None``: it does not."""
    try:
        descriptor = libbpf.call("bpf_enable_stats", _RUN_TIME)
    except OSError:
        yield lambda: None
        return
    before = _total_ns()
    try:
        yield lambda: _total_ns() - before
    finally:
        os.close(descriptor)


def _total_ns() -> int:
    return sum(_run_ns(number) for number in _numbers())


def _numbers() -> Iterator[int]:
    found = ctypes.c_uint32(0)
    while True:
        try:
            libbpf.call("bpf_prog_get_next_id", found, ctypes.byref(found))
        except OSError:
            return
        yield found.value


def _run_ns(number: int) -> int:
    try:
        descriptor = libbpf.call("bpf_prog_get_fd_by_id", number)
    except OSError:
        return 0  # it was unloaded just now
    try:
        return run_info(descriptor)[0]
    finally:
        os.close(descriptor)
