"""Which of the files that landed in an upper directory were copied, and not merely marked.

A file that is truncated on opening gets the mark of a copy too, although nothing was copied
(``ovl_copy_up_one`` leaves the contents out for O_TRUNC), and what a program writes into it then
looks like a copy of the same size. The accounts of the processes tell the two apart.
"""

from msgspec import Struct

from whybox.kernel.surplus import Written
from whybox.kernel.upper import WORTH_BYTES, CopiedUp, Watched

#: Where nobody has a copy on his account, it must have lasted at least so long, and not have been
#: faster than this (measured: truncating 0 to 8 ms; copying up to 3 bytes a nanosecond).
CERTAIN_NS = 20_000_000
PLAUSIBLE_BYTES_A_NS = 4


class Copies(Struct, frozen=True, kw_only=True):
    """The copies of one mount in this window that cost something, the largest first."""

    watched: Watched
    files: tuple[CopiedUp, ...]
    count: int
    accounted: bool
    """Whether the accounts of the processes show what was copied."""

    @property
    def copied_bytes(self) -> int:
        """In all."""
        return sum(f.contents_bytes for f in self.files)

    @property
    def took_ns(self) -> int:
        """In all; those whose birth is not known count nothing."""
        return sum(f.took_ns or 0 for f in self.files)

    @property
    def large(self) -> tuple[CopiedUp, ...]:
        """Files whose contents were felt, not only their number."""
        return tuple(f for f in self.files if f.contents_bytes >= WORTH_BYTES)


def copied(watched: Watched, written: Written) -> Copies:
    """Its copies, without the files that were truncated on opening or written anew."""
    after = watched.after
    if after is None:
        return Copies(watched=watched, files=(), count=0, accounted=False)
    every = (*after.files, *after.unmarked)
    accounted = 2 * written.surplus_bytes >= sum(f.contents_bytes for f in every)
    files = every if accounted else tuple(f for f in after.files if _plausible(f, written))
    files = tuple(f for f in files if not f.metacopy)
    count = after.count - len(after.files) + len(files)
    return Copies(watched=watched, files=files, count=count, accounted=accounted)


def _plausible(file: CopiedUp, written: Written) -> bool:
    """Whether the contents were copied, and not replaced by a program."""
    contents, took = file.contents_bytes, file.took_ns
    if contents < WORTH_BYTES or took is None:
        return True
    possible = took >= CERTAIN_NS and contents <= took * PLAUSIBLE_BYTES_A_NS
    return possible and contents > written.wchar and contents <= file.size_bytes
