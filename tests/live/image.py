"""The image of the live tests, made without a registry: a static busybox and our programs.

Besides `/bin` its layer holds what copy-up is measured with: `/big`, one file of 64 MiB, and
`/many`, 300 small ones.
"""

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

from tests.live.engine import Engine
from tests.live.programs import build, cache

NAME = "whybox-test:1"
BUSYBOX = Path("/bin/busybox")
BIG_BYTES = 64 << 20
MANY_FILES = 300

_DIRECTORIES = ("bin", "data", "dev", "etc", "many", "proc", "root", "sys", "tmp")
_TEXTS = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
}


def missing() -> str | None:
    """Why the image cannot be made here."""
    absent = [name for name in (str(BUSYBOX), "gcc") if not shutil.which(name)]
    lack = f"no {', '.join(absent)}: run python -m tests.live.packages"
    return lack if absent else None


def load(engine: Engine) -> str:
    """Import the image into `engine`, and return its name."""
    changes = ("--change", "ENV PATH=/bin", "--change", 'CMD ["sh"]')
    engine.docker("import", *changes, str(archive(cache())), NAME)
    return NAME


def archive(directory: Path) -> Path:
    """The root filesystem as a tar file, named after what goes into it."""
    programs = build(directory / "programs")
    digest = hashlib.sha256(Path(__file__).read_bytes() + BUSYBOX.read_bytes())
    digest.update("\n".join(sorted(path.name for path in programs.values())).encode())
    path = directory / f"image-{digest.hexdigest()[:16]}.tar"
    if not path.exists():
        partial = path.with_suffix(f".{os.getpid()}")
        _write(partial, programs)
        for superseded in directory.glob("image-*.tar"):
            superseded.unlink(missing_ok=True)
        partial.rename(path)
    return path


def _write(path: Path, programs: dict[str, Path]) -> None:
    with tarfile.open(path, "w") as tar:
        for name in _DIRECTORIES:
            _add(tar, name, type=tarfile.DIRTYPE, mode=0o1777 if name == "tmp" else 0o755)
        _add(tar, "bin/busybox", BUSYBOX.read_bytes(), mode=0o755)
        for applet in _applets() - programs.keys():
            _add(tar, f"bin/{applet}", type=tarfile.SYMTYPE, linkname="busybox")
        for name, program in programs.items():
            _add(tar, f"bin/{name}", program.read_bytes(), mode=0o755)
        for name, text in _TEXTS.items():
            _add(tar, name, text.encode())
        for number in range(MANY_FILES):
            _add(tar, f"many/{number:03}", b"x" * 4096)
        # Not zeros: a hole would not have to be copied up.
        _add(tar, "big", b"whybox\n\0" * (BIG_BYTES // 8))


def _add(
    tar: tarfile.TarFile,
    name: str,
    data: bytes = b"",
    *,
    mode: int = 0o644,
    type: bytes = tarfile.REGTYPE,
    linkname: str = "",
) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), mode
    member.type, member.linkname = type, linkname
    tar.addfile(member, io.BytesIO(data))


def _applets() -> set[str]:
    """Every name of busybox but its own, which would become a link to itself."""
    listed = subprocess.run([str(BUSYBOX), "--list"], check=True, capture_output=True, text=True)
    return set(listed.stdout.split()) - {"busybox"}
