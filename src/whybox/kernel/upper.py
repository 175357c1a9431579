"""Which files of an overlay mount were copied up: read from its upper directory.

A file of a lower layer that is opened for writing (or renamed, or given another mode) is first
copied into the upper directory, whole (Documentation/filesystems/overlayfs.rst, "Non-directories").
The copy is an unnamed file of the work directory until it is complete and synced; only then is it
linked into its place (``ovl_copy_up_tmpfile``). So the copy's birth is the moment when the copying
began, and the change that the link makes to its directory's ctime is the moment when it ended
(measured: 611 ms between the two for a call of 616 ms).

Every copy carries the file handle of its source in the xattr ``trusted.overlay.origin``
(``ovl_set_origin``), and a file that was written here first does not. One exception: a lower file
with several names is not marked, unless the mount has ``index=on`` (measured).
"""

import os
import stat
import time
from collections.abc import Iterator

from msgspec import Struct

from whybox.kernel.host import Host, printable
from whybox.kernel.overlay import Overlay, obstacle, origin_inode
from whybox.kernel.statx import Statx, open_beneath, statx
from whybox.kernel.walk import Directory, joined, walking

#: A smaller file is copied so quickly that only their number can hurt.
WORTH_BYTES = 1 << 20
#: So many files are compared with their lower ones: the largest.
MOST_COMPARED = 32
MOST_LAYERS = 500
#: So many files are described, the largest.
MOST_FILES = 1000

#: include/uapi/linux/time.h; Python has no name for it.
CLOCK_REALTIME_COARSE = 5


class CopiedUp(Struct, frozen=True, kw_only=True):
    """One file of the upper directory that came from a lower layer."""

    path: str
    """Below the mount point, harmless to print."""
    size_bytes: int
    """Now: it may have grown since."""
    lower_bytes: int | None
    """What there was to copy; ``None`` where the lower file was not found again."""
    metacopy: bool
    """Only its inode was copied, not its contents (mount option ``metacopy=on``)."""
    btime_ns: int | None
    """When the copying began, since 1970; ``None``: the file system does not keep it."""
    landed_ns: int
    """The latest moment when it can have ended."""

    @property
    def took_ns(self) -> int | None:
        """How long the copying took at most."""
        return None if self.btime_ns is None else max(0, self.landed_ns - self.btime_ns)

    @property
    def contents_bytes(self) -> int:
        """What there was to copy, as far as it is known."""
        if self.metacopy:
            return 0
        return self.size_bytes if self.lower_bytes is None else self.lower_bytes


class Upper(Struct, frozen=True, kw_only=True):
    """What one walk through an upper directory saw."""

    began_ns: int
    count: int = 0
    """Copied files."""
    files: tuple[CopiedUp, ...] = ()
    """The largest of them, the largest first."""
    unmarked: tuple[CopiedUp, ...] = ()
    """Large files without a mark over a lower file with several names: copied, or written anew."""
    incomplete: str | None = None
    """Why some of it was not seen."""
    free_bytes: int
    """Left on its file system: a copy takes room before it has a name."""


class Survey(Struct, frozen=True, kw_only=True):
    """What was in an upper directory: ``landed`` tells what came after it."""

    upper: Upper
    """Of its copied files the large ones."""
    inodes: frozenset[int]


class Watched(Struct, frozen=True, kw_only=True):
    """One overlay mount over a window."""

    mount: Overlay
    reason: str | None = None
    """Why its upper directory could not be watched, as a sentence."""
    before: Upper | None = None
    """The large files that had been copied before."""
    after: Upper | None = None
    """The files that were copied in the window; ``None`` where it had no length."""


def begin(host: Host, mount: Overlay) -> Survey | str:
    """Survey a mount's upper directory, or say why that cannot be done."""
    reason = obstacle(host, mount)
    if reason is not None:
        return reason
    try:
        return survey(host, mount)
    except OSError as error:
        return _refused(mount, error)


def end(host: Host, mount: Overlay, begun: Survey | str) -> Watched:
    """What has landed there since."""
    if isinstance(begun, str):
        return Watched(mount=mount, reason=begun)
    if host.window_seconds == 0:
        return Watched(mount=mount, before=begun.upper)
    try:
        after = landed(host, mount, begun)
    except OSError as error:
        return Watched(mount=mount, before=begun.upper, reason=_refused(mount, error))
    return Watched(mount=mount, before=begun.upper, after=after)


def _refused(mount: Overlay, error: OSError) -> str:
    return f"its upper directory {printable(mount.upperdir)}: {error.strerror or error}"


def now_ns() -> int:
    """The clock that file systems stamp with: it moves once a tick, never ahead of theirs."""
    return time.clock_gettime_ns(CLOCK_REALTIME_COARSE)


def survey(host: Host, overlay: Overlay) -> Survey:
    """All that is in the upper directory, and its large copied files."""
    began, inodes, marked = now_ns(), set[int](), list[_Found]()
    with walking(host.path(overlay.upperdir)) as walk:
        for directory in walk.directories():
            for entry in directory.files:
                if entry.inode() in inodes:
                    continue  # another name of one that was told
                inodes.add(entry.inode())
                if _size_bytes(entry) >= WORTH_BYTES:
                    found = _found(overlay, directory, entry.name)
                    marked.extend(one for one in found if one.origin is not None)
    seen = Upper(
        began_ns=began,
        count=len(marked),
        files=_described(host, overlay, marked),
        incomplete=walk.incomplete,
        free_bytes=_free_bytes(host, overlay),
    )
    return Survey(upper=seen, inodes=frozenset(inodes))


def landed(host: Host, overlay: Overlay, since: Survey) -> Upper:
    """The files that were linked into the upper directory after a survey of it."""
    began, marked, unmarked = now_ns(), list[_Found](), list[_Found]()
    told = set[int]()
    with walking(host.path(overlay.upperdir)) as walk:
        for directory in walk.directories():
            # Linking a file moves its directory's ctime, and nobody can set that back.
            if directory.ctime_ns < since.upper.began_ns:
                continue
            for name in walk.while_time(_new(directory, since)):
                for one in _found(overlay, directory, name):
                    # link(2) copies once, and makes two names of it.
                    if one.statx.ino in told:
                        continue
                    told.add(one.statx.ino)
                    if one.origin is not None:
                        marked.append(one)
                    elif _may_be_copy(host, overlay, one):
                        unmarked.append(one)
    return Upper(
        began_ns=began,
        count=len(marked),
        files=_described(host, overlay, marked),
        unmarked=_described(host, overlay, unmarked),
        incomplete=walk.incomplete or since.upper.incomplete,
        free_bytes=_free_bytes(host, overlay),
    )


def look(host: Host, overlay: Overlay, path: str, written_bytes: int) -> CopiedUp | None:
    """The file of that path below the mount point, if it is a copy.

    One without a mark is a copy if the call that made it had the kernel write so many bytes.
    """
    try:
        top = os.open(host.path(overlay.upperdir), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        found = list(_looked_at(overlay, top, path))
    finally:
        os.close(top)
    copies = [
        one
        for one in found
        if one.origin is not None
        or (_may_be_copy(host, overlay, one) and 2 * written_bytes >= one.statx.size_bytes)
    ]
    return next(iter(_described(host, overlay, copies)), None)


def _looked_at(overlay: Overlay, top: int, path: str) -> "Iterator[_Found]":
    where, name = os.path.split(path)
    try:
        # To be opened for reading, not by its path alone: its attributes are asked for.
        descriptor = open_beneath(top, where or ".", os.O_RDONLY | os.O_DIRECTORY)
    except (OSError, ValueError):  # it is gone, or no path
        return
    try:
        ctime_ns = os.fstat(descriptor).st_ctime_ns
        directory = Directory(path=where or ".", descriptor=descriptor, ctime_ns=ctime_ns, files=())
        yield from (one for one in _found(overlay, directory, name) if stat.S_ISREG(one.statx.mode))
    finally:
        os.close(descriptor)


def _free_bytes(host: Host, overlay: Overlay) -> int:
    said = os.statvfs(host.path(overlay.upperdir))
    return said.f_bfree * said.f_frsize


class _Found(Struct, frozen=True, kw_only=True):
    """A file of the upper directory."""

    path: str
    statx: Statx
    directory_ctime_ns: int
    origin: bytes | None
    metacopy: bool


def _size_bytes(entry: "os.DirEntry[str]") -> int:
    try:
        return entry.stat(follow_symlinks=False).st_size
    except OSError:
        return 0  # removed while we walked


def _new(directory: Directory, since: Survey) -> Iterator[str]:
    """The names that a survey did not see, or whose inode was born since."""
    for entry in directory.files:
        if entry.inode() not in since.inodes and since.upper.incomplete is None:
            yield entry.name
            continue
        try:
            born = statx(directory.descriptor, entry.name).btime_ns
        except OSError:
            continue
        if born is not None and born >= since.upper.began_ns:
            yield entry.name


def _found(overlay: Overlay, directory: Directory, name: str) -> Iterator[_Found]:
    """The file, unless it was removed while we walked."""
    try:
        seen = statx(directory.descriptor, name)
    except OSError:
        return
    yield _Found(
        path=joined(directory.path, name),
        statx=seen,
        directory_ctime_ns=directory.ctime_ns,
        origin=_xattr(directory, name, overlay.xattr + "origin"),
        metacopy=_xattr(directory, name, overlay.xattr + "metacopy") is not None,
    )


def _xattr(directory: Directory, name: str, attribute: str) -> bytes | None:
    try:
        return os.getxattr(
            f"/proc/self/fd/{directory.descriptor}/{name}", attribute, follow_symlinks=False
        )
    except OSError:
        return None


def _described(host: Host, overlay: Overlay, found: list[_Found]) -> tuple[CopiedUp, ...]:
    found.sort(key=lambda one: -one.statx.size_bytes)
    return tuple(
        CopiedUp(
            path=printable(one.path),
            size_bytes=one.statx.size_bytes,
            lower_bytes=_lower_bytes(host, overlay, one) if rank < MOST_COMPARED else None,
            metacopy=one.metacopy,
            btime_ns=one.statx.btime_ns,
            # Writing moves the file's own ctime, a neighbour's landing that of the directory.
            landed_ns=min(one.statx.ctime_ns, one.directory_ctime_ns),
        )
        for rank, one in enumerate(found[:MOST_FILES])
    )


def _lower_bytes(host: Host, overlay: Overlay, one: _Found) -> int | None:
    """What the file has in the layer it was copied from: the copy may have grown since."""
    origin = None if one.origin is None else origin_inode(one.origin)
    for lower in _lower_files(host, overlay, one.path):
        if origin is None or lower.st_ino == origin:
            return min(lower.st_size, lower.st_blocks * 512)  # holes are not copied
    return None


def _may_be_copy(host: Host, overlay: Overlay, one: _Found) -> bool:
    """Whether a file without a mark may be a copy: of a lower file with several names."""
    if one.statx.size_bytes < WORTH_BYTES:
        return False
    lower = next(_lower_files(host, overlay, one.path), None)
    return lower is not None and lower.st_nlink > 1 and lower.st_size >= WORTH_BYTES


def _lower_files(host: Host, overlay: Overlay, path: str) -> Iterator[os.stat_result]:
    """The regular files of that name in the layers, the topmost first."""
    for layer in overlay.lowerdirs[:MOST_LAYERS]:
        try:
            found = _look_at(host.path(layer), path)
        except OSError:
            continue
        if stat.S_ISREG(found.st_mode):
            yield found


def _look_at(layer: str, path: str) -> os.stat_result:
    top = os.open(layer, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        descriptor = open_beneath(top, path, os.O_PATH)
    finally:
        os.close(top)
    try:
        return os.fstat(descriptor)
    finally:
        os.close(descriptor)
