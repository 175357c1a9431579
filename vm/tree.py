"""The disk that changes with every run: a tar of the source tree and of the command."""

import io
import shlex
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from vm.command import run

FOLDER = "whybox"
"""Where the tree is in the guest, below /."""
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
    "PYTHONPATH": f"/{FOLDER}/src",
    "PYTHONUNBUFFERED": "1",  # the output is a pipe, and is wanted as it comes
    "WHYBOX_LIVE": "1",  # an unmet need of a live test is a failure here, not a skip
    "WHYBOX_VM": "1",  # labs that can harm the machine may run
}


def pack(tree: Path, command: Sequence[str], disk: Path) -> None:
    """The files that git knows or would add, as they are now: uncommitted changes are tried too."""
    with tarfile.open(disk, "w") as archive:
        for name in files(tree):
            archive.add(tree / name, f"{FOLDER}/{name}", recursive=False, filter=_owned_by_root)
        script = command_script(command, ENVIRONMENT).encode()
        member = tarfile.TarInfo("whybox-command")
        member.size, member.mode = len(script), 0o755
        archive.addfile(member, io.BytesIO(script))


def files(tree: Path) -> list[str]:
    """What git knows or would add, and the compiled BPF programs, which it ignores: the guest has
    no compiler for them."""
    objects = (*tree.glob("src/**/*.bpf.o"), *tree.glob("tests/**/*.bpf.o"))
    built = (str(file.relative_to(tree)) for file in objects)
    return sorted({*sources(tree), *built})


def sources(tree: Path) -> list[str]:
    """What git knows or would add."""
    git = ("git", "-c", "safe.directory=*", "-C", tree)  # the tree may be another user's
    listed = run(*git, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    names = sorted(set(listed.split("\0")) - {""})
    return [name for name in names if (tree / name).is_symlink() or (tree / name).is_file()]


def command_script(command: Sequence[str], environment: Mapping[str, str]) -> str:
    """
    >>> print(command_script(["echo", "a b"], {"HOME": "/root"}), end="")
    #!/bin/sh
    export HOME=/root
    cd /whybox
    exec echo 'a b'
    """
    exports = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    lines = ["#!/bin/sh", *exports, f"cd /{FOLDER}", f"exec {shlex.join(command)}"]
    return "\n".join(lines) + "\n"


def _owned_by_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member
