"""``libbpf.so.1`` by ctypes: the calls that whybox makes, with their types, and what libbpf says.

Only the stable interface of libbpf 1.0 is used, so every distribution's library will do.
"""

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

SONAME = "libbpf.so.1"

_ptr, _int, _text, _size = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t
_u32, _u64 = ctypes.c_uint32, ctypes.c_uint64

#: ``libbpf_print_fn_t``; a ``va_list`` is passed as a pointer on x86-64 and aarch64 alike.
_PRINT = ctypes.CFUNCTYPE(_int, _int, _text, _ptr)

#: ``ring_buffer_sample_fn``.
SAMPLE = ctypes.CFUNCTYPE(_int, _ptr, _ptr, _size)

_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "bpf_object__open_mem": (_ptr, (_ptr, _size, _ptr)),
    "bpf_object__load": (_int, (_ptr,)),
    "bpf_object__close": (None, (_ptr,)),
    "bpf_object__find_map_by_name": (_ptr, (_ptr, _text)),
    "bpf_object__find_program_by_name": (_ptr, (_ptr, _text)),
    "bpf_object__next_program": (_ptr, (_ptr, _ptr)),
    "bpf_program__name": (_text, (_ptr,)),
    "bpf_program__section_name": (_text, (_ptr,)),
    "bpf_program__set_autoload": (_int, (_ptr, ctypes.c_bool)),
    "bpf_program__fd": (_int, (_ptr,)),
    "bpf_program__attach": (_ptr, (_ptr,)),
    "bpf_program__attach_kprobe": (_ptr, (_ptr, ctypes.c_bool, _text)),
    "bpf_program__attach_uprobe": (_ptr, (_ptr, ctypes.c_bool, _int, _text, _size)),
    "bpf_program__attach_iter": (_ptr, (_ptr, _ptr)),
    "bpf_iter_create": (_int, (_int,)),
    "bpf_link__fd": (_int, (_ptr,)),
    "bpf_link__destroy": (_int, (_ptr,)),
    "bpf_map__fd": (_int, (_ptr,)),
    "bpf_map__set_max_entries": (_int, (_ptr, _u32)),
    "bpf_map__max_entries": (_u32, (_ptr,)),
    "bpf_map__key_size": (_u32, (_ptr,)),
    "bpf_map__value_size": (_u32, (_ptr,)),
    "bpf_map__type": (_int, (_ptr,)),
    "bpf_map_lookup_elem": (_int, (_int, _ptr, _ptr)),
    "bpf_map_update_elem": (_int, (_int, _ptr, _ptr, _u64)),
    "bpf_map_delete_elem": (_int, (_int, _ptr)),
    "bpf_map_get_next_key": (_int, (_int, _ptr, _ptr)),
    "bpf_map_lookup_batch": (_int, (_int, _ptr, _ptr, _ptr, _ptr, _ptr, _ptr)),
    "bpf_obj_pin": (_int, (_int, _text)),
    "bpf_obj_get": (_int, (_text,)),
    "bpf_obj_get_info_by_fd": (_int, (_int, _ptr, _ptr)),
    "bpf_prog_test_run_opts": (_int, (_int, _ptr)),
    "bpf_prog_get_next_id": (_int, (_u32, _ptr)),
    "bpf_prog_get_fd_by_id": (_int, (_u32,)),
    "bpf_enable_stats": (_int, (_int,)),
    "ring_buffer__new": (_ptr, (_int, SAMPLE, _ptr, _ptr)),
    "ring_buffer__consume": (_int, (_ptr,)),
    "ring_buffer__free": (None, (_ptr,)),
    "libbpf_num_possible_cpus": (_int, ()),
    "libbpf_set_print": (_ptr, (_PRINT,)),
}


class Unavailable(OSError):
    """The library is not on this machine."""


@cache
def library() -> ctypes.CDLL:
    """The loaded library; raises ``Unavailable``."""
    try:
        found = ctypes.CDLL(SONAME, use_errno=True)
    except OSError:
        raise Unavailable(2, f"{SONAME} is not installed (Debian: libbpf1)", SONAME) from None
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(found, name)
        function.restype, function.argtypes = result, arguments
    # Before anything is called: libbpf would print to standard error.
    found.libbpf_set_print(_printer)
    return found


def call(name: str, *arguments: Any) -> int:
    """A call that answers with a number; raises OSError with the errno that the kernel gave."""
    result = int(getattr(library(), name)(*arguments))
    if result < 0:
        _raise(name)
    return result


def made(name: str, *arguments: Any) -> int:
    """A call that answers with a pointer; raises OSError when it is NULL."""
    result = getattr(library(), name)(*arguments)
    if not result:
        _raise(name)
    return int(result)


def _raise(name: str) -> None:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number), name)


_said: list[str] = []
_listening = False


def _vsnprintf() -> Callable[..., int]:
    function = ctypes.CDLL(None).vsnprintf
    function.argtypes = [_ptr, _size, _text, _ptr]
    return function


_format = _vsnprintf()


def _heard(level: int, format: bytes, arguments: int) -> int:
    if _listening:
        # The verifier's log can be long; its end tells what was wrong.
        text = _room()
        _format(ctypes.addressof(text), len(text), format, arguments)
        _said.append(text.value.decode("utf-8", "backslashreplace"))
    return 0


@cache
def _room() -> "ctypes.Array[ctypes.c_char]":
    """For one message: libbpf gives the verifier 16 MiB at most. Unused memory costs nothing."""
    import mmap

    return (ctypes.c_char * _LONGEST).from_buffer(mmap.mmap(-1, _LONGEST))


_LONGEST = 16 << 20


#: Kept for ever: libbpf calls it.
_printer = _PRINT(_heard)


@contextmanager
def listening() -> Iterator[list[str]]:
    """What libbpf says meanwhile, the verifier's log included."""
    global _listening
    _said.clear()
    _listening = True
    try:
        yield _said
    finally:
        _listening = False
