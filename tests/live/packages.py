"""Installs what the live tests need: `python -m tests.live.packages`, as root on Debian.

It starts no service: the tests start what they need themselves.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

# Each package with the command it is wanted for; another package may have brought that.
PACKAGES: dict[str, str | None] = {
    "docker.io": "dockerd",
    "docker-cli": "docker",  # a package of its own since Debian 13
    "iptables": "iptables",
    "iproute2": "ip",
    "busybox-static": None,
    "tini": "docker-init",
    "gcc": "gcc",
    "libc6-dev": None,
    "libbpf1": None,
}
#: Those that the benchmarks compare with.
PEERS: dict[str, str | None] = {
    "bpftrace": "bpftrace",
    "libbpf-tools": None,
    "linux-perf": "perf",
}
POLICY = Path("/usr/sbin/policy-rc.d")


def ensure(packages: Mapping[str, str | None] = PACKAGES) -> None:
    """Install what is lacking, if anything is."""
    lacking = [package for package, command in packages.items() if not _there(package, command)]
    if not lacking:
        return
    if not all(_known(package) for package in lacking if package != "docker-cli"):
        _apt("update", "--quiet")
    known = [package for package in lacking if _known(package)]
    with _no_services():
        _apt("install", "--yes", "--quiet", "--no-install-recommends", *known)


def _there(package: str, command: str | None) -> bool:
    if command and shutil.which(command):
        return True
    query = ["dpkg-query", "--show", "--showformat", "${db:Status-Status}", package]
    return subprocess.run(query, capture_output=True, text=True).stdout == "installed"


def _known(package: str) -> bool:
    shown = subprocess.run(["apt-cache", "show", package], capture_output=True, text=True)
    return shown.returncode == 0


def _apt(command: str, *arguments: str) -> None:
    options = ("-o", "DPkg::Lock::Timeout=300")
    environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive", RUNLEVEL="1")
    subprocess.run(["apt-get", command, *options, *arguments], check=True, env=environment)


@contextmanager
def _no_services() -> Iterator[None]:
    """invoke-rc.d asks this file whether it may start a service; 101 is no."""
    if POLICY.exists():
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink()


if __name__ == "__main__":
    ensure()
