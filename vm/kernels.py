"""The kernels that whybox is tried on: data, one entry each, with the reason it is there.

The full flavour is taken, not the cloud one, which has fewer of the modules that labs need.
"""

import re
from collections.abc import Iterable

from msgspec import Struct


class Kernel(Struct, frozen=True, kw_only=True):
    """One kernel series as Debian packages it."""

    version: str
    """What a person types."""
    suite: str
    packages: tuple[str, ...]
    """Patterns of package names; of each, the newest that the suite has is taken."""
    qemu: int
    """The oldest major version of QEMU that boots it."""
    reason: str


KERNELS = (
    Kernel(
        version="5.10",
        suite="bullseye",
        packages=(r"linux-image-5\.10\.0-\d+-amd64",),
        qemu=10,
        reason="the oldest: before cgroup.kill (5.14), memory.peak (5.19), irq.pressure (6.1)",
    ),
    Kernel(
        version="6.1",
        suite="bookworm",
        packages=(r"linux-image-6\.1\.0-\d+-amd64",),
        qemu=10,  # in QEMU 7.2 it stood still in long runs, both CPUs in a soft lockup (seen)
        reason="Debian 12: pure cgroup v2 with kprobes, netem, IPVS and iocost",
    ),
    Kernel(
        version="6.12",
        suite="bookworm-backports",
        packages=(r"linux-image-6\.12\.\d+\+deb12-amd64",),
        qemu=10,  # QEMU 7.2 double-faults in it, in kmem_cache_alloc
        reason="Debian 13: EEVDF in the place of CFS (6.6)",
    ),
    Kernel(
        version="7.3",
        suite="trixie-backports",
        packages=tuple(  # linux-image itself is empty here
            rf"linux-{part}-7\.3\.\d+\+deb13-amd64" for part in ("base", "binary", "modules")
        ),
        qemu=10,
        reason="the newest that Debian builds for its stable release",
    ),
)


def find(version: str) -> Kernel | None:
    return next((kernel for kernel in KERNELS if kernel.version == version), None)


def newest(pattern: str, names: Iterable[str]) -> str | None:
    """The name that matches all of `pattern` and has the highest numbers: 6.1.0-56 beats -9."""
    matching = [name for name in names if re.fullmatch(pattern, name)]
    return max(matching, key=_numbers, default=None)


def table() -> str:
    """The table as `python -m vm --list` prints it."""
    return "\n".join(f"{kernel.version:6} {kernel.suite:20} {kernel.reason}" for kernel in KERNELS)


def _numbers(name: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", name)]
