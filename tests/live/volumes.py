"""A volume of Docker tests: a file system on a disk of its own."""

import itertools
import os
from collections.abc import Iterator

import pytest

from tests.live.conftest import require
from whybox.kernel.host import Host
from whybox.kernel.mountinfo import mounts
from whybox.lab import disk
from whybox.lab.disk import Disk

_numbers = itertools.count(1)


@pytest.fixture
def volume() -> Iterator[Disk]:
    """Mounted at its ``mountpoint``."""
    require(disk.missing(Host()))
    made = Disk(f"docker-{os.getpid()}-{next(_numbers)}", mib=64)
    yield made
    made.remove()


def device(volume: Disk) -> str:
    """The file of its disk."""
    (source,) = (m.source for m in mounts(Host(), "self") if m.mountpoint == volume.mountpoint)
    return source
