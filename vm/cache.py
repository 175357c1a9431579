"""Finished pieces of a virtual machine, each in a folder named after a hash of its recipe.

A piece is built in a temporary folder and renamed when it is whole, so an interrupted build
leaves nothing that a later run could take for finished.
"""

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vm.command import say


def directory() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "whybox" / "vm"


def entry(name: str, recipe: Sequence[str], build: Callable[[Path], None]) -> Path:
    """The folder of `name`, built now if none was built from this very recipe."""
    folder = directory() / f"{name}-{digest(recipe)}"
    if not folder.is_dir():
        with _lock():
            if not folder.is_dir():  # another run may have built it while this one waited
                say(f"building {name}, once")
                _build(folder, build)
                _drop_superseded(name, folder)
    return folder


def digest(recipe: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(recipe).encode()).hexdigest()[:16]


def _build(folder: Path, build: Callable[[Path], None]) -> None:
    temporary = Path(tempfile.mkdtemp(prefix=".building-", dir=folder.parent))
    try:
        build(temporary)
        temporary.chmod(0o755)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _drop_superseded(name: str, keep: Path) -> None:
    """Older builds of the same piece, and what killed builds left. A running QEMU keeps its files
    open, so removing them does not disturb it."""
    for pattern in (f"{name}-*", ".building-*"):
        for old in keep.parent.glob(pattern):
            if old != keep:
                shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _lock() -> Iterator[None]:
    """One builder at a time; the kernel lets go of the lock when its holder dies."""
    directory().mkdir(parents=True, exist_ok=True)
    with (directory() / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
