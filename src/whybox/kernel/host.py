"""Where the kernel is read from: the live machine, or a tree of files that looks like one.

A ``Host`` remembers what it read until ``next_moment``, so a kernel file is read once however many
cases ask for it, and all cases of a run see the same moment.
"""

import errno
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar, cast

_T = TypeVar("_T")

#: No kernel text file that we read is larger; a longer one is refused rather than read in part.
READ_LIMIT_BYTES = 8 << 20

#: Root's home, on the host as in a container (hier(7)).
ROOT_HOME = "/root"

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


class ParseError(ValueError):
    """A kernel file said something that its format does not allow."""

    def __init__(self, file: str, line: str) -> None:
        super().__init__(f"{file} has a line that could not be understood: {line[:120]!r}")
        self.file = file
        self.line = line


def decode(raw: bytes) -> str:
    r"""Text from the kernel or a container, with every byte that is not UTF-8 made visible.

    >>> decode(b"caf\xc3\xa9 \xff")
    'café \\xff'
    """
    return raw.decode("utf-8", "backslashreplace")


def c_string(raw: bytes) -> str:
    r"""The text in a room of fixed length, which ends with a zero where it is shorter.

    >>> c_string(b"init\0\0rest"), c_string(b"full")
    ('init', 'full')
    """
    return decode(raw.split(b"\0", 1)[0])


def printable(text: str) -> str:
    r"""The same text, harmless to a terminal: control and direction characters are spelled out.

    >>> printable("a\x1b[31mb\nc")
    'a\\x1b[31mb\\nc'
    """
    shown = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return _CONTROL.sub(lambda m: m[0].encode("unicode_escape").decode("ascii"), shown)


class Host:
    """The kernel's files under ``root`` (``""`` is this machine).

    ``window_seconds`` is how long the present run watches: sensors are not attached for a window
    of zero, in which nothing can happen. ``to`` is an address and a TCP port that a person asked
    to try from the container: nothing is ever sent for anybody else.
    """

    def __init__(
        self,
        root: str = "",
        *,
        window_seconds: float = 0.0,
        asked: Mapping[str, str] = {},
        to: tuple[str, int] | None = None,
    ) -> None:
        self.root = root.rstrip("/")
        self.window_seconds = window_seconds
        self.asked = asked
        """What a person wants to know besides, by the option's word: ``sysctl``, ``lookup``."""
        self.to = to
        self.reads = 0
        self._kept: dict[str, bytes] = {}
        self._memory: dict[str, object] = {}
        self._sensors: dict[str, tuple[int, AbstractContextManager[Any], Any]] = {}

    @classmethod
    def recorded(cls, files: Mapping[str, bytes]) -> "Host":
        """A host that knows these files and nothing else, as a capture kept them."""
        host = cls("/nonexistent")
        host._kept = dict(files)
        host.next_moment()
        return host

    @property
    def live(self) -> bool:
        """Whether this is the running machine, not a recorded tree."""
        return self.root == ""

    def path(self, path: str) -> str:
        """Where ``path``, absolute as the kernel names it, is found."""
        return self.root + path

    def next_moment(self) -> None:
        """Forget all that was read: what is asked from now on is read anew."""
        self._memory = {f"read {path}": raw for path, raw in self._kept.items()}
        for path in self._kept:
            parts = path.split("/")
            self._memory |= {f"inode {'/'.join(parts[:n])}": 0 for n in range(2, len(parts) + 1)}

    def said(self) -> dict[str, bytes]:
        """Every file that was read in this moment, by its path: what ``recorded`` takes."""
        files = {key.removeprefix("read "): raw for key, raw in self._memory.items()}
        return {
            path: raw for path, raw in files.items() if isinstance(raw, bytes) and path[0] == "/"
        }

    def read(self, path: str) -> bytes:
        """The whole file, at most ``READ_LIMIT_BYTES`` long."""
        return self._remembered("read", path, _read)

    def text(self, path: str) -> str:
        """The whole file as text, without the last line end."""
        return decode(self.read(path)).rstrip("\n")

    def number(self, path: str) -> int | None:
        """A file that holds one number; ``max`` is ``None``: unlimited."""
        said = self.text(path).strip()
        if said == "max":
            return None
        try:
            return int(said)
        except ValueError:
            raise ParseError(path, said) from None

    def link(self, path: str) -> str:
        """The text of a symbolic link, such as ``pid:[4026531836]``."""
        return decode(self._remembered("link", path, _link))

    def names(self, path: str) -> tuple[str, ...]:
        """The names in a directory, sorted, as file-system strings (``os.fsdecode``)."""
        return self._remembered("names", path, _names)

    def directories(self, path: str) -> tuple[str, ...]:
        """The names of the directories in a directory, sorted; links are not followed."""
        return self._remembered("directories", path, _directories)

    def inode(self, path: str) -> int:
        """The inode number behind ``path``; of a cgroup directory, the cgroup's id."""
        return self._remembered("inode", path, _inode)

    def exists(self, path: str) -> bool:
        """Whether the path is there and may be looked at."""
        try:
            self.inode(path)
        except OSError:
            return False
        return True

    def optional_text(self, path: str) -> str | None:
        """``text``, or ``None`` where there is no such file or it may not be read."""
        try:
            return self.text(path)
        except OSError:
            return None

    def optional_number(self, path: str) -> int | None:
        """``number``, or ``None`` where there is no such file or it may not be read."""
        try:
            return self.number(path)
        except OSError:
            return None

    def monotonic_ns(self) -> int:
        """The clock for rates: a case that divides by time takes its own stamps."""
        return time.monotonic_ns()

    def _remembered(self, kind: str, path: str, read: Callable[[str], _T]) -> _T:
        return self.remembered(f"{kind} {path}", lambda: self._counted(read, path))

    def _counted(self, read: Callable[[str], _T], path: str) -> _T:
        self.reads += 1
        return read(self.root + path)

    def remembered(self, key: str, find: Callable[[], _T]) -> _T:
        """What ``find`` returns or refuses with, asked once a moment.

        A refusal is remembered like an answer: what was not there for one case of this moment must
        not be there for the next.
        """
        if key not in self._memory:
            try:
                self._memory[key] = find()
            except OSError as error:
                self._memory[key] = error
        said = self._memory[key]
        if isinstance(said, OSError):
            raise said.with_traceback(None)
        return cast(_T, said)

    @contextmanager
    def sensor(self, name: str, attach: Callable[[], AbstractContextManager[Any]]) -> Iterator[Any]:
        """One attached sensor of that name, shared by every case and target that asks for it.

        The first who asks attaches it, the last who leaves detaches it.
        """
        known = self._sensors.get(name)
        if known is None:
            manager = attach()
            known = (0, manager, manager.__enter__())
        users, manager, value = known
        self._sensors[name] = (users + 1, manager, value)
        try:
            yield value
        finally:
            users, manager, value = self._sensors.pop(name)
            if users > 1:
                self._sensors[name] = (users - 1, manager, value)
            else:
                manager.__exit__(None, None, None)


def _read(path: str) -> bytes:
    # O_NONBLOCK: a FIFO or a device that somebody put in the way must not hold us up.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        parts = []
        size = 0
        while part := os.read(descriptor, 1 << 16):
            parts.append(part)
            size += len(part)
            if size > READ_LIMIT_BYTES:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), path)
        return b"".join(parts)
    except OSError as error:
        # read(2) knows no name; a refusal without one helps nobody.
        raise OSError(error.errno, error.strerror, path) from None
    finally:
        os.close(descriptor)


def _link(path: str) -> bytes:
    return os.readlink(os.fsencode(path))


def _names(path: str) -> tuple[str, ...]:
    return tuple(sorted(os.listdir(path)))


def _directories(path: str) -> tuple[str, ...]:
    with os.scandir(path) as entries:
        return tuple(sorted(e.name for e in entries if e.is_dir(follow_symlinks=False)))


def _inode(path: str) -> int:
    return os.stat(path).st_ino
