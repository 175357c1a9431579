"""Compiles the BPF programs when whybox is built: every ``*.bpf.c`` to a ``*.bpf.o`` beside it.

The compiler is the clang inside ``ziglang``, a package like any other, so a wheel is built by pip
alone. ``python hatch_build.py [SOURCE…]`` compiles what is stale in this checkout.
"""

import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).parent
SOURCES = ROOT / "src" / "whybox"
TESTS = ROOT / "tests" / "live" / "bpf"
HEADERS = SOURCES / "kernel" / "bpf" / "include"

#: v2: kernel 5.10's verifier refuses what zig's default brings.
FLAGS = (
    *("-target", "bpfel-freestanding", "-mcpu=v2", "-O2", "-g", "-std=gnu2x"),
    *("-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-Wno-unused-variable"),
    *("-Wno-sign-compare", "-Wno-unused-function"),
    *("-fno-asynchronous-unwind-tables", "-fno-unwind-tables", "-ffile-prefix-map=.=whybox"),
)


class BpfHook(BuildHookInterface[Any]):
    """Makes the objects a part of the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before the files of the wheel are gathered."""
        build_data["artifacts"] += [f"/{made.relative_to(ROOT)}" for made in compile_all()]


def compile_all(sources: Sequence[Path] = ()) -> list[Path]:
    """Compile what is older than its source or a header, of all sources or these; the objects."""
    objects = []
    for source in sorted(sources or SOURCES.rglob("*.bpf.c")):
        target = source.with_suffix(".o")
        headers = (*HEADERS.glob("*.h"), *source.parent.glob("*.h"), Path(__file__))
        newest = max(file.stat().st_mtime_ns for file in (source, *headers))
        if not target.exists() or target.stat().st_mtime_ns <= newest:
            _compile(source, target)
        objects.append(target)
    return objects


def _compile(source: Path, target: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="whybox-bpf-") as scratch:
        made = Path(scratch, target.name)
        subprocess.run(
            [sys.executable, "-m", "ziglang", "cc", *FLAGS, *_includes(), "-c", source, "-o", made],
            check=True,
            # The compiler keeps what it makes: not in the home of whoever builds.
            env={**os.environ, "ZIG_GLOBAL_CACHE_DIR": scratch, "ZIG_LOCAL_CACHE_DIR": scratch},
        )
        whole = target.with_suffix(f".{os.getpid()}")
        whole.write_bytes(stripped(made.read_bytes()))
        whole.rename(target)  # two builds may share the tree


def _includes() -> Iterator[str]:
    """Our own headers, and Linux's, which the compiler brings for every architecture."""
    zig = find_spec("ziglang")
    assert zig is not None
    assert zig.submodule_search_locations is not None
    linux = Path(zig.submodule_search_locations[0], "lib/libc/include")
    yield f"-I{HEADERS}"
    yield f"-isystem{linux / 'any-linux-any'}"
    yield f"-isystem{linux / 'x86-linux-any'}"


_HEADER, _SECTION = struct.Struct("<16sHHIQQQIHHHHHH"), struct.Struct("<IIQQQQIIQQ")
_NULL = 0


def stripped(elf: bytes) -> bytes:
    """A relocatable object without its DWARF: libbpf reads BTF, which stays.

    Sections keep their numbers, for symbols and relocations name them by these; those that go
    become empty ones of the type NULL.
    """
    header = _HEADER.unpack_from(elf)
    table, size, count, names = header[6], header[11], header[12], header[13]
    sections = [list(_SECTION.unpack_from(elf, table + n * size)) for n in range(count)]
    strings = elf[sections[names][4] :]
    kept, body = [], bytearray(_HEADER.size)
    for section in sections:
        name = strings[section[0] :].split(b"\0", 1)[0]
        if name.startswith((b".debug", b".rel.debug", b".llvm_addrsig")):
            section = [section[0], _NULL, 0, 0, 0, 0, 0, 0, 0, 0]
        elif section[1] != _NULL:
            body += bytes(-len(body) % 8)
            data = elf[section[4] : section[4] + section[5]]
            section[4] = len(body)
            body += data
        kept.append(section)
    body += bytes(-len(body) % 8)
    fields = [*header[:6], len(body), *header[7:]]
    body[: _HEADER.size] = _HEADER.pack(*fields)
    return bytes(body) + b"".join(_SECTION.pack(*section) for section in kept)


if __name__ == "__main__":
    compile_all([Path(name).resolve() for name in sys.argv[1:]])
    compile_all([*TESTS.glob("*.bpf.c")])
