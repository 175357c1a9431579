"""``memory.stat``: of what kind the memory of a group is, and what was pushed out and came back.

v1 (admin-guide/cgroup-v1/memory.rst) and v2 (admin-guide/cgroup-v2.rst) as one record, each with
the groups below it. Sizes are bytes now, counts are pages or events since the group was made.

>>> parse("cache 8192\\ntotal_cache 8192\\ntotal_shmem 4096\\ntotal_rss 1", version=1).file_bytes
4096
>>> parse("anon 1\\nfile 8192\\nshmem 4096\\nworkingset_refault_file 3", version=2).refault_file
3
"""

from msgspec import Struct

from whybox.kernel.cgroup import Group, keyed
from whybox.kernel.host import Host


class MemoryStat(Struct, frozen=True, kw_only=True):
    """What one group and those below it hold. ``None``: this kernel does not say."""

    file: str
    anon_bytes: int
    """Heap, stack and other memory without a file; on v1 with what is in the swap cache."""
    shmem_bytes: int
    """tmpfs, /dev/shm, System V and shared anonymous memory: without swap it cannot give way."""
    file_bytes: int
    """Page cache of files on a disk."""
    evictable_bytes: int
    """Of the page cache what is on the lists of reclaim: neither locked nor shmem."""
    locked_bytes: int
    """Page cache that mlock(2) or a ramfs keeps in memory."""
    dirty_bytes: int
    """Page cache that must be written first, or is being written."""
    kernel_bytes: int | None
    """What the kernel itself keeps for the group: page tables, stacks, names of files, sockets."""
    slab_reclaimable_bytes: int | None
    """Of that the caches that give way: names (dentries) and inodes. v1 does not say."""
    swap_bytes: int | None
    """v1: what of it is in swap; v2 has ``memory.swap.current`` instead."""
    refault_file: int | None
    """Pages of files that were read again after they had been pushed out."""
    refault_anon: int | None
    """Pages that came back from swap."""
    majfault: int | None
    """Faults that had to wait for a read."""

    @property
    def needed_bytes(self) -> int:
        """What cannot be given up without swap."""
        kernel = (self.kernel_bytes or 0) - (self.slab_reclaimable_bytes or 0)
        return self.anon_bytes + self.shmem_bytes + self.locked_bytes + max(kernel, 0)

    @property
    def reclaimable_bytes(self) -> int:
        """What gives way at once when somebody asks for memory: clean page cache, and names."""
        clean = max(self.evictable_bytes - self.dirty_bytes, 0)
        return clean + (self.slab_reclaimable_bytes or 0)


def stat(host: Host, group: Group) -> MemoryStat | None:
    """``memory.stat`` of one group; ``None`` where the controller is not switched on."""
    file = group.file("memory.stat")
    text = host.optional_text(file)
    if text is None:
        return None
    kernel = None
    if group.version == 1:
        kernel = host.optional_number(group.file("memory.kmem.usage_in_bytes"))
    return parse(text, version=group.version, file=file, kernel_bytes=kernel)


def parse(
    text: str, *, version: int, file: str = "memory.stat", kernel_bytes: int | None = None
) -> MemoryStat:
    """Parse ``memory.stat``; v1 keeps kernel memory in a file of its own."""
    said = keyed(file, text)
    if version == 1:
        # ``total_`` counts the groups below as well; without use_hierarchy there is none.
        said |= {name.removeprefix("total_"): n for name, n in said.items() if "total_" in name}
    return _stat(said, version, file, kernel_bytes)


def _stat(said: dict[str, int], version: int, file: str, kernel_bytes: int | None) -> MemoryStat:
    anon, cache = ("rss", "cache") if version == 1 else ("anon", "file")
    dirty = ("dirty", "writeback") if version == 1 else ("file_dirty", "file_writeback")
    shmem = said.get("shmem", 0)
    return MemoryStat(
        file=file,
        anon_bytes=said.get(anon, 0),
        shmem_bytes=shmem,
        file_bytes=max(said.get(cache, 0) - shmem, 0),
        evictable_bytes=said.get("inactive_file", 0) + said.get("active_file", 0),
        locked_bytes=_locked(said, said.get(anon, 0) + shmem),
        dirty_bytes=sum(said.get(name, 0) for name in dirty),
        kernel_bytes=kernel_bytes if version == 1 else _kernel(said),
        slab_reclaimable_bytes=said.get("slab_reclaimable"),
        swap_bytes=said.get("swap") if version == 1 else None,
        refault_file=said.get("workingset_refault_file"),
        refault_anon=said.get("workingset_refault_anon"),
        majfault=said.get("pgmajfault"),
    )


def _locked(said: dict[str, int], anon: int) -> int:
    """Of what is unevictable the part that is not anonymous or shmem, which count by themselves."""
    evictable = said.get("inactive_anon", 0) + said.get("active_anon", 0)
    return max(said.get("unevictable", 0) - max(anon - evictable, 0), 0)


def _kernel(said: dict[str, int]) -> int | None:
    """Newer kernels say it as one number, older ones in its parts."""
    if "kernel" in said:
        return said["kernel"]
    parts = ("kernel_stack", "pagetables", "percpu", "sock", "slab")
    return sum(said.get(name, 0) for name in parts) if "slab" in said else None
