"""A box on a wire of its own, for what is asked about packets: it sends, others do not listen."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from tests.live.conftest import require
from tests.live.tracing import PATIENCE_SECONDS
from whybox.kernel import task
from whybox.kernel.host import Host
from whybox.kernel.netcounters import read
from whybox.kernel.netns import call_in
from whybox.kernel.symbols import KernelSymbols
from whybox.lab import workload
from whybox.lab.box import Box, Network

MANY = 31
PORT = 7777

#: Of a network of this process alone: others may run the same tests at the same time.
_NET = f"10.{64 + os.getpid() % 128}"
INSIDE, GATEWAY = f"{_NET}.0.2", f"{_NET}.0.1"
UPLINK, REMOTE, NOBODY = f"{_NET}.1.1", f"{_NET}.1.2", f"{_NET}.1.99"


def wired(*, forward: bool = True) -> Network:
    return Network(
        address=f"{INSIDE}/24",
        gateway=GATEWAY,
        uplink=f"{UPLINK}/24",
        remote=f"{REMOTE}/24",
        forward=forward,
    )


@contextmanager
def boxed(*, forward: bool = True) -> Iterator[Box]:
    with Box("trace-packets") as box:
        box.network(wired(forward=forward))
        box.start(workload.idle())
        yield box


_symbols: dict[frozenset[str], KernelSymbols] = {}


def symbols(host: Host) -> KernelSymbols:
    """Read once for all tests, as long as no module comes or goes: emulated, it takes seconds."""
    modules = (Host().optional_text("/proc/modules") or "").splitlines()
    loaded = frozenset(line.split()[0] for line in modules)
    return _symbols.setdefault(loaded, KernelSymbols(host))


def node(box: Box) -> str:
    """The namespace that stands for the host."""
    return f"/proc/{task.stat(Host(), box.pid).ppid}/ns/net"


def inside(box: Box) -> str:
    return f"/proc/{box.pid}/ns/net"


def inode(path: str) -> int:
    return os.stat(path).st_ino


def run(place: str, *words: str) -> None:
    require(None if shutil.which(words[0]) else f"{words[0]} is not installed")
    subprocess.run(["nsenter", f"--net={place}", *words], check=True, capture_output=True)


def counted(box: Box, name: str) -> int:
    return read(Host(), box.pid).get(name, 0)


def until(true: Callable[[], object], what: str) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def send(box: Box, address: str, port: int = PORT, many: int = MANY) -> None:
    """So many datagrams from the box, of ten bytes each; back when all are sent."""

    def sending() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for _ in range(many):
                with suppress(PermissionError):  # a firewall says so
                    sock.sendto(b"x" * 10, (address, port))
                time.sleep(0.001)

    call_in(inside(box), sending, PATIENCE_SECONDS)
