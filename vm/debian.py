"""Debian packages: those that the host must have installed, and those of any suite, unpacked.

Packages of another suite are fetched with package lists of their own, so the host's apt never
learns of them and nothing is upgraded by accident.
"""

import shutil
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from vm.command import Unavailable, run, say
from vm.kernels import newest

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
TOOLS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "debootstrap": "debootstrap",
    "mke2fs": "e2fsprogs",
    "depmod": "kmod",
    "cpio": "cpio",
    "unshare": "util-linux",
    "setpriv": "util-linux",
    "zstd": "zstd",
}
"""Commands, and the packages they come from."""


def ensure_packages() -> None:
    """Install what is missing; the machine may be a new one."""
    missing = sorted({package for tool, package in TOOLS.items() if shutil.which(tool) is None})
    if missing:
        say(f"installing {', '.join(missing)}")
        update()
        _apt_get("install", "-y", "--no-install-recommends", *missing)


@cache
def update() -> None:
    _apt_get("update", "-qq")


@cache
def mirror() -> str:
    """Where this machine gets Debian from; every other suite is at the same place."""
    lines = run(
        "apt-get",
        "indextargets",
        "--format",
        "$(RELEASE) $(REPO_URI)",
        "Created-By: Packages",
        "Origin: Debian",
    )
    # "bookworm" is in the main archive; "bookworm-security" is in another one.
    uris = [line.split()[1] for line in lines.splitlines() if "-" not in line.split()[0]]
    if not uris:
        raise Unavailable("apt knows no Debian mirror on this machine")
    return uris[0]


def unpack(suite: str, patterns: Sequence[str], root: Path) -> None:
    """Unpack the newest package of `suite` for each pattern into `root`."""
    with tempfile.TemporaryDirectory(prefix="whybox-vm-packages-") as folder:
        scratch = Path(folder)
        options = _lists(suite, scratch)
        known = run("apt-cache", *options, "pkgnames").split()
        names = [_newest(suite, pattern, known) for pattern in patterns]
        run("apt-get", *options, "-qq", "download", *names, cwd=scratch)
        for archive in scratch.glob("*.deb"):
            run("dpkg-deb", "-x", archive, root)


def _newest(suite: str, pattern: str, known: Sequence[str]) -> str:
    name = newest(pattern, known)
    if name is None:
        raise Unavailable(f"Debian {suite} has no package called {pattern}")
    return name


def _lists(suite: str, scratch: Path) -> list[str]:
    """Options that make apt see `suite` alone, whatever the host has configured or installed."""
    update()  # a machine that was never updated does not know its own mirrors' names yet
    for needed in ("lists/partial", "cache/archives/partial"):
        (scratch / needed).mkdir(parents=True)
    source = scratch / "sources.list"
    source.write_text(f"deb [signed-by={KEYRING}] {mirror()} {suite} main\n")
    settings = {
        "Dir::Etc::sourcelist": source,
        "Dir::Etc::sourceparts": "-",
        "Dir::State::lists": scratch / "lists",
        "Dir::State::status": "/dev/null",
        "Dir::Cache": scratch / "cache",
        "APT::Sandbox::User": "root",
    }
    options = [f"-o{name}={value}" for name, value in settings.items()]
    run("apt-get", *options, "-qq", "update")
    return options


def _apt_get(*arguments: str) -> None:
    run(
        "env",
        "DEBIAN_FRONTEND=noninteractive",
        "apt-get",
        "-oDPkg::Lock::Timeout=300",
        *arguments,
    )
