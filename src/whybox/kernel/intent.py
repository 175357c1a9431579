"""What a call wants of a file: of the last component of its path, and of the directory above.

>>> intent("mkdir", (0, 0o755), "/data/x").what
'create'
>>> intent("open", (0, 0o2), "/etc/passwd").of_file == R | W
True
"""

import os
from collections.abc import Iterable, Sequence

from msgspec import Struct, structs

from whybox.kernel.access import R, W, X


def words(text: str) -> frozenset[str]:
    """The words of a text, as a set of names."""
    return frozenset(text.split())


#: include/uapi/asm-generic/fcntl.h
_ACCMODE, _O_PATH = 0o3, 0o10000000
_MODES = {0: R, 1: W, 2: R | W, 3: R | W}

#: The place of the flags, or of the mode that is asked about, among the arguments.
_FLAGS = {"open": 1, "openat": 2, "access": 1, "faccessat": 2, "faccessat2": 2}
_LOOKS = words(
    "stat lstat newfstatat statx readlink readlinkat statfs getxattr lgetxattr listxattr "
    "llistxattr name_to_handle_at"
)
_MAKES = words("mkdir mkdirat mknod mknodat symlink symlinkat link linkat creat bind")
_REMOVES = words("unlink unlinkat rmdir rename renameat renameat2")
_OWNERS = words(
    "chmod fchmod fchmodat fchmodat2 chown lchown fchown fchownat utime utimes utimensat futimesat"
)
_WRITES = words(
    "truncate setxattr lsetxattr removexattr lremovexattr connect write pwrite64 writev ftruncate "
    "fallocate"
)
_NO_FOLLOW = words("lstat readlink readlinkat lchown symlink unlink unlinkat rmdir")


class Intent(Struct, frozen=True, kw_only=True):
    """What one call wanted."""

    what: str
    """``read``, ``write``, ``execute``, ``create``, ``remove``, ``look``, ``ask``, ``enter``,
    ``own``, ``list``; ``other``: nothing of a file."""
    of_file: int = 0
    """A mask of R, W, X."""
    of_parent: int = 0
    follow: bool = True
    creates: bool = False
    """It makes the file where there is none."""


def intent(call: str, arguments: Sequence[int], path: str) -> Intent:
    """What a call with these arguments wanted."""
    if call in ("open", "openat", "openat2", "creat"):
        return _opened(call, arguments)
    if call in ("access", "faccessat", "faccessat2"):
        return Intent(what="ask", of_file=arguments[_FLAGS[call]] & 7)
    follow = call not in _NO_FOLLOW
    for names, what in _INTENTS:
        if call in names:
            return structs.replace(what, follow=what.follow and follow)
    return Intent(what="other")


_INTENTS: tuple[tuple[frozenset[str], Intent], ...] = (
    (words("execve execveat"), Intent(what="execute", of_file=X)),
    (_LOOKS, Intent(what="look")),
    (_MAKES, Intent(what="create", of_parent=W | X, follow=False, creates=True)),
    (_REMOVES, Intent(what="remove", of_parent=W | X, follow=False)),
    (words("chdir fchdir chroot"), Intent(what="enter", of_file=X)),
    (words("inotify_add_watch getdents64 read pread64"), Intent(what="read", of_file=R)),
    (_OWNERS, Intent(what="own")),
    (_WRITES, Intent(what="write", of_file=W)),
)


def _opened(call: str, arguments: Sequence[int]) -> Intent:
    if call == "openat2":  # its flags lie in the program's memory
        return Intent(what="read", of_file=R)
    flags = os.O_CREAT | os.O_WRONLY | os.O_TRUNC if call == "creat" else arguments[_FLAGS[call]]
    if flags & _O_PATH:
        return Intent(what="look")
    wanted = _MODES[flags & _ACCMODE] | (W if flags & os.O_TRUNC else 0)
    creates = bool(flags & os.O_CREAT)
    if wanted & W or creates:
        exclusive = creates and bool(flags & os.O_EXCL)
        return Intent(
            what="create" if exclusive else "write",
            of_file=wanted,
            of_parent=W | X if creates else 0,
            follow=not exclusive,
            creates=creates,
        )
    listing = bool(flags & os.O_DIRECTORY)
    return Intent(what="list" if listing else "read", of_file=wanted)


def ids_of(call: str, arguments: Sequence[int]) -> tuple[int, ...]:
    """The ids that a call names, but for "leave it as it is".

    >>> ids_of("chown", (0, 1000, 0xFFFFFFFF)), ids_of("setgroups", (1, 0))
    ((1000,), ())
    """
    first = {"chown": 1, "lchown": 1, "fchown": 1, "fchownat": 2}.get(call, 0)
    count = 3 if call.startswith("setres") else 2 if call.startswith("setre") or first else 1
    if call == "setgroups":
        return ()
    found: Iterable[int] = (one & 0xFFFFFFFF for one in arguments[first : first + count])
    return tuple(one for one in found if one != 0xFFFFFFFF)
