"""The small C programs which the live tests run in real containers, one trouble or health each.

They are static, so that they run in an image which holds nothing else.
"""

import hashlib
import os
import subprocess
from pathlib import Path

COMMAND = ("gcc", "-static", "-O1", "-pthread")


def cache() -> Path:
    """Where what the live tests build is kept from one run to the next."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "whybox"


def build(directory: Path) -> dict[str, Path]:
    """Compile every program into `directory`, unless that very source is compiled there already."""
    directory.mkdir(parents=True, exist_ok=True)
    sources = sorted(Path(__file__).parent.glob("*.c"))
    return {source.stem: _compiled(source, directory) for source in sources}


def _compiled(source: Path, directory: Path) -> Path:
    digest = hashlib.sha256(" ".join(COMMAND).encode() + source.read_bytes()).hexdigest()
    program = directory / f"{source.stem}-{digest[:16]}"
    if not program.exists():
        # Renamed when whole: two test runs may share the cache.
        partial = program.with_suffix(f".{os.getpid()}")
        subprocess.run([*COMMAND, "-o", str(partial), str(source)], check=True)
        partial.rename(program)
    return program
