"""How much of a file is in the page cache (mincore(2)), without reading a page of it.

A mapping that nobody touches costs nothing, and through an overlay it shows the pages of the file
below, where the cache is (``ovl_mmap``), which cachestat(2) on the overlay's file does not.
"""

import ctypes
import errno
import mmap
import os
from collections.abc import Iterator

PAGE_BYTES = mmap.PAGESIZE
#: A file of up to so many pages is looked at whole, a larger one in places.
MOST_PAGES = 16384
PLACES = 128

#: include/uapi/asm-generic/mman-common.h
_PROT_READ = 1
_MAP_SHARED = 1
_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    *(ctypes.c_void_p, ctypes.c_size_t),
    *(ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_longlong),
]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]


def cached_bytes(descriptor: int, size: int) -> int:
    """How much of the first ``size`` bytes of an open file is cached, of a large one about.

    Raises OSError. Whoever neither owns the file nor may write to it is told that all of it is
    (``can_do_mincore``), so this is refused to them.
    """
    if os.geteuid() != 0 and os.fstat(descriptor).st_uid != os.geteuid():
        raise OSError(errno.EPERM, "only its owner is told what is cached of a file")
    pages = -(-size // PAGE_BYTES)
    if pages == 0:
        return 0
    address = _libc.mmap(None, size, _PROT_READ, _MAP_SHARED, descriptor, 0)
    if address == _FAILED:
        raise _refusal("mmap()")
    try:
        looked = found = 0
        for first, count in places(pages):
            looked += count
            found += _resident(address + first * PAGE_BYTES, count)
    finally:
        _libc.munmap(address, size)
    return min(found * pages * PAGE_BYTES // looked, size)


def places(pages: int) -> Iterator[tuple[int, int]]:
    """Where to look: the first page and how many of them.

    >>> list(places(5))
    [(0, 5)]
    >>> len(list(places(1 << 20))), sum(count for _, count in places(1 << 20))
    (128, 16384)
    """
    if pages <= MOST_PAGES:
        yield 0, pages
        return
    count = MOST_PAGES // PLACES
    for place in range(PLACES):
        yield place * (pages - count) // (PLACES - 1), count


def _resident(address: int, pages: int) -> int:
    told = ctypes.create_string_buffer(pages)
    if _libc.mincore(address, pages * PAGE_BYTES, told) != 0:
        raise _refusal("mincore()")
    # Only the lowest bit means something.
    return sum(bytes(told.raw).translate(_LOWEST_BIT))


_LOWEST_BIT = bytes(byte & 1 for byte in range(256))


def _refusal(call: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), call)
