"""BPF maps as Python sees them: keys and values are bytes; whoever knows the layout unpacks."""

import ctypes
import errno
import mmap
import os
from collections.abc import Iterator
from functools import cache

from msgspec import Struct, structs

from whybox.kernel.bpf import libbpf

#: Types whose value is one for each possible CPU (include/uapi/linux/bpf.h, enum bpf_map_type).
_PERCPU = frozenset((5, 6, 10, 21))

#: The kernel's own errno for "not supported" (include/linux/errno.h), which libc does not know.
_ENOTSUPP = 524

#: So many entries are asked for at once.
_BATCH = 4096


@cache
def possible_cpus() -> int:
    """How many values a per-CPU map has for a key."""
    return libbpf.call("libbpf_num_possible_cpus")


class Map(Struct, frozen=True, kw_only=True):
    """One map of a loaded object."""

    fd: int
    name: str
    key_size: int
    value_size: int
    max_entries: int
    percpu: bool

    @property
    def _room(self) -> int:
        """Bytes that a value takes in user space."""
        return (self.value_size + 7 & ~7) * possible_cpus() if self.percpu else self.value_size

    def get(self, key: bytes) -> bytes | None:
        """The value, of a per-CPU map those of all CPUs one after the other; ``None``: none."""
        value = ctypes.create_string_buffer(self._room)
        try:
            libbpf.call("bpf_map_lookup_elem", self.fd, key, value)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        return value.raw

    def per_cpu(self, key: bytes) -> tuple[bytes, ...]:
        """The values of all CPUs."""
        return self.split(self.get(key) or b"")

    def split(self, value: bytes) -> tuple[bytes, ...]:
        """A per-CPU map's value, CPU by CPU."""
        step = self.value_size + 7 & ~7
        return tuple(value[at : at + self.value_size] for at in range(0, len(value), step))

    def memory(self) -> mmap.mmap:
        """A ``BPF_F_MMAPABLE`` array's values as memory: to be read without a system call."""
        size = (self.value_size + 7 & ~7) * self.max_entries
        pages = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        return mmap.mmap(self.fd, pages, mmap.MAP_SHARED, mmap.PROT_READ)

    def pin(self, path: str) -> None:
        """Give it a name in a bpf file system: it outlives this process, until that is unlinked."""
        libbpf.call("bpf_obj_pin", self.fd, os.fsencode(path))

    def set(self, key: bytes, value: bytes) -> None:
        """Set it; raises OSError (E2BIG) when there is no more room."""
        libbpf.call("bpf_map_update_elem", self.fd, key, value, 0)

    def delete(self, key: bytes) -> None:
        """Remove it, if it is there."""
        try:
            libbpf.call("bpf_map_delete_elem", self.fd, key)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise

    def items(self) -> tuple[tuple[bytes, bytes], ...]:
        """All of it; what a program changes meanwhile is there or not."""
        try:
            return tuple(self._batches())
        except OSError as error:
            # Before commit 057996380a42 ("bpf: Add batch ops to all htab bpf map") (v5.6), and
            # where a bucket alone is larger than a batch.
            if error.errno not in (errno.EINVAL, _ENOTSUPP, errno.EOPNOTSUPP, errno.ENOSPC):
                raise
        return tuple(self._one_by_one())

    def _batches(self) -> Iterator[tuple[bytes, bytes]]:
        size = min(_BATCH, self.max_entries)
        cursor, first = ctypes.create_string_buffer(max(self.key_size, 8)), True
        keys = ctypes.create_string_buffer(size * self.key_size)
        values = ctypes.create_string_buffer(size * self._room)
        found, ended = [], False
        while not ended:
            count = ctypes.c_uint32(size)
            given = None if first else cursor
            arguments = (self.fd, given, cursor, keys, values, ctypes.byref(count), None)
            try:
                libbpf.call("bpf_map_lookup_batch", *arguments)
            except OSError as error:
                if error.errno != errno.ENOENT:  # ENOENT: that was the last of them
                    raise
                ended = True
            first = False
            found += self._cut(keys.raw, values.raw, count.value)
        yield from found

    def _cut(self, keys: bytes, values: bytes, count: int) -> list[tuple[bytes, bytes]]:
        key, room = self.key_size, self._room
        return [
            (keys[n * key : (n + 1) * key], values[n * room : (n + 1) * room]) for n in range(count)
        ]

    def _one_by_one(self) -> Iterator[tuple[bytes, bytes]]:
        key: bytes | None = None
        for _ in range(self.max_entries):
            following = ctypes.create_string_buffer(self.key_size)
            try:
                libbpf.call("bpf_map_get_next_key", self.fd, key, following)
            except OSError as error:
                if error.errno == errno.ENOENT:
                    return
                raise
            key = following.raw
            value = self.get(key)
            if value is not None:
                yield key, value


def pinned(path: str, like: Map) -> Map:
    """A map that somebody pinned, of the same kind as another; close its ``fd`` after use."""
    return structs.replace(like, fd=libbpf.call("bpf_obj_get", os.fsencode(path)))


def located(object: int, name: str) -> Map:
    """A map of a loaded object by its name in C."""
    pointer = libbpf.made("bpf_object__find_map_by_name", object, name.encode())
    kind = libbpf.call("bpf_map__type", pointer)
    return Map(
        fd=libbpf.call("bpf_map__fd", pointer),
        name=name,
        key_size=libbpf.call("bpf_map__key_size", pointer),
        value_size=libbpf.call("bpf_map__value_size", pointer),
        max_entries=libbpf.call("bpf_map__max_entries", pointer),
        percpu=kind in _PERCPU,
    )


class Ring:
    """A ring buffer: events in the order in which they happened.

    A reader that is slower than the kernel loses what is too much; the programs count it.
    """

    #: At most so many at once: a storm must not hold up its reader for ever.
    MOST = 20_000

    def __init__(self, ring: Map) -> None:
        self._taken: list[bytes] = []
        # Kept as long as the ring: libbpf calls it.
        self._callback = libbpf.SAMPLE(self._take)
        self._ring: int | None = libbpf.made(
            "ring_buffer__new", ring.fd, self._callback, None, None
        )

    def _take(self, context: int, data: int, size: int) -> int:
        self._taken.append(ctypes.string_at(data, size))
        return -errno.EAGAIN if len(self._taken) >= self.MOST else 0

    def read(self) -> list[bytes]:
        """The events since the last call, at most ``MOST``."""
        if self._ring is None:
            return []
        libbpf.library().ring_buffer__consume(self._ring)
        taken, self._taken = self._taken, []
        return taken

    def close(self) -> None:
        """Give its memory back."""
        if self._ring is not None:
            libbpf.library().ring_buffer__free(self._ring)
            self._ring = None
