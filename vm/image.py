"""The guest's root: a Debian with Python, Docker and a compiler in an ext4 image."""

import shutil
import sys
import tomllib
from pathlib import Path

from vm import cache, debian
from vm.command import run

SUITE = "bookworm"
PYTHON = "3.11"
"""The Python of SUITE; the host's own may be another."""
PACKAGES = (
    "python3",
    "libbpf1",
    "docker.io",
    "tini",
    "iptables",
    "nftables",
    "ipvsadm",
    "iproute2",
    "procps",
    "kmod",  # dockerd runs modprobe
    "busybox-static",  # what images for containers are made of
    "gcc",
    "libc6-dev",
    "e2fsprogs",
)
CHECKERS = ("mypy", "ruff", "types-", "ziglang")
"""Development dependencies that only read or compile the source: the guest runs it."""
DISK_SIZE = "6G"
"""The file is sparse; the room is for what containers write."""
UNNEEDED = ("usr/share/doc", "usr/share/man", "usr/share/locale", "var/lib/apt/lists")
TREE = Path(__file__).resolve().parent.parent


def root_disk() -> Path:
    source = Path(__file__).read_text()
    return cache.entry("root", (source, *requirements()), _build) / "disk.img"


def requirements() -> list[str]:
    """What whybox and its tests import, from pyproject.toml."""
    project = tomllib.loads((TREE / "pyproject.toml").read_text())["project"]
    wanted: list[str] = project["dependencies"] + project["optional-dependencies"]["dev"]
    return [requirement for requirement in wanted if not requirement.startswith(CHECKERS)]


def _build(folder: Path) -> None:
    root = folder / "root"
    _debian(root)
    _python_packages(root)
    _trim(root)
    run("mke2fs", "-q", "-t", "ext4", "-d", root, folder / "disk.img", DISK_SIZE)
    shutil.rmtree(root)


def _debian(root: Path) -> None:
    """In namespaces of its own, so that neither its mounts nor a daemon started by a package's
    script outlives it, however it ends."""
    policy = root / "usr/sbin/policy-rc.d"
    policy.parent.mkdir(parents=True)
    policy.write_text("#!/bin/sh\nexit 101\n")  # invoke-rc.d: start no service
    policy.chmod(0o755)
    debian.update()
    run(
        *("unshare", "--mount", "--pid", "--fork", "--kill-child"),
        *("debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}"),
        *(SUITE, root, debian.mirror()),
    )


def _python_packages(root: Path) -> None:
    """Into the folder that Debian's Python searches anyway, compiled there: compiling at each
    first import would take seconds under emulation."""
    site = f"usr/local/lib/python{PYTHON}/dist-packages"
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-compile")
    guest = ("--python-version", PYTHON, "--implementation", "cp", "--only-binary=:all:")
    abi = ("--abi", f"cp{PYTHON.replace('.', '')}", "--abi", "abi3", "--abi", "none")
    run(*pip, *guest, *abi, "--target", root / site, *requirements())
    run("chroot", root, "python3", "-m", "compileall", "-q", f"/{site}")


def _trim(root: Path) -> None:
    for name in UNNEEDED:
        shutil.rmtree(root / name)
    for archive in (root / "var/cache/apt/archives").glob("*.deb"):
        archive.unlink()
