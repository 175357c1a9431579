"""QEMU: the one that is installed, or a newer one beside it where a kernel needs that."""

import re
from pathlib import Path

from msgspec import Struct

from vm import cache, debian
from vm.command import run

PROGRAM = "qemu-system-x86_64"
SUITE = "bookworm-backports"
"""Its QEMU 10 runs with the libraries of the installed QEMU 7.2."""
PACKAGES = ("qemu-system-x86", "qemu-system-data", "seabios")


class Emulator(Struct, frozen=True, kw_only=True):
    """A QEMU, and where its firmware is if not in the usual place."""

    program: str
    firmware: tuple[Path, ...] = ()


def emulator(oldest: int) -> Emulator:
    """A QEMU of the major version `oldest` or later."""
    if major_version(run(PROGRAM, "--version")) >= oldest:
        return Emulator(program=PROGRAM)
    folder = cache.entry("qemu", (Path(__file__).read_text(),), _build)
    return Emulator(
        program=str(folder / "usr/bin" / PROGRAM),
        firmware=(folder / "usr/share/qemu", folder / "usr/share/seabios"),
    )


def major_version(text: str) -> int:
    """
    >>> major_version("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)")
    7
    """
    found = re.search(r"version (\d+)", text)
    return int(found[1]) if found else 0


def _build(folder: Path) -> None:
    debian.unpack(SUITE, PACKAGES, folder)
