"""What a Docker engine leaves on its machine, and how that is taken away.

Several engines may run at once, for several test runs. The first one in notes what was there, the
last one out removes what was not. The note of a run that was killed stays valid for the next one.
"""

import ctypes
import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from whybox.kernel.netns import call_in

# Not in /tmp: overlay2 refuses a tmpfs as the place of its layers.
PLACE = Path("/var/tmp")
PREFIX = "whybox-engine-"
NOTE = Path("/run/whybox-live-engines.json")
# Made by dockerd 20.10 and containerd 1.6 wherever their own directories are.
LEFT = (
    *("/etc/docker/key.json", "/run/docker/plugins", "/run/docker", "/run/containerd/s"),
    *("/run/containerd", "/opt/containerd/bin", "/opt/containerd/lib", "/opt/containerd"),
)
CLONE_NEWNET = 0x40000000  # <linux/sched.h>

_T = TypeVar("_T")

_libc = ctypes.CDLL(None, use_errno=True)


class Note(msgspec.Struct, frozen=True, kw_only=True):
    boot_id: str
    there: list[str]  # which of the paths that engines make were there before
    users: list[int]  # pids of the test runs which have an engine, once for each


@contextmanager
def restored() -> Iterator[None]:
    """Around an engine's life."""
    with _locked():
        note = _read() or _look()
        if not note.users:
            _sweep()
        _write(msgspec.structs.replace(note, users=[*note.users, os.getpid()]))
    try:
        yield
    finally:
        with _locked():
            _leave()


#: The network namespace that the tests were started in, from which packages can be fetched.
_home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def at_home(function: Callable[[], _T], seconds: float) -> _T:
    """What ``function`` returns in the network that the tests were started in."""
    return call_in(f"/proc/self/fd/{_home}", function, timeout_sec=seconds)


@contextmanager
def network() -> Iterator[None]:
    """A network namespace for this thread and what it starts: bridges and rules go with it.

    A daemon that starts flushes the DOCKER chains which it finds, with the published ports of
    every other daemon in that namespace (measured on 20.10). So none may share one. That the
    tests are in it too makes it the host's network to all they start and look at.
    """
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _must(_libc.unshare(CLONE_NEWNET))
        _run("ip", "link", "set", "lo", "up")
        yield
    finally:
        _must(_libc.setns(before, CLONE_NEWNET))
        os.close(before)


@contextmanager
def directory() -> Iterator[Path]:
    """Where an engine keeps everything; whatever still runs or is mounted there ends with it."""
    path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=PLACE))
    try:
        yield path
    finally:
        _clear(path)


def processes(directory: Path) -> list[int]:
    """The daemons and shims which have `directory` in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if os.fsencode(directory) in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def mounts(directory: Path) -> list[str]:
    """The mount points below `directory`, in the order of their mounting."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = (line.split()[4] for line in lines)
    return [point for point in points if point.startswith(f"{directory}/")]


def cgroups(name: str) -> list[Path]:
    """The cgroup of that name in every hierarchy which has it."""
    return [path for root in _hierarchies() if (path := root / name).is_dir()]


def made() -> list[Path]:
    """The paths which an engine makes, the inner ones first."""
    return [*(Path(path) for path in LEFT), *(root / "docker" for root in _hierarchies())]


def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether the condition came true in time."""
    end = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < end:
        time.sleep(0.02)
    return met


@contextmanager
def _locked() -> Iterator[None]:
    # The directory is locked and not the note, so that the note can be removed.
    directory = os.open(NOTE.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def _look() -> Note:
    there = [str(path) for path in made() if path.exists()]
    return Note(boot_id=_boot_id(), there=there, users=[])


def _read() -> Note | None:
    """The note of this boot, with those of its users who are alive."""
    try:
        note = msgspec.json.decode(NOTE.read_bytes(), type=Note)
    except FileNotFoundError:
        return None
    alive = [pid for pid in note.users if Path(f"/proc/{pid}").exists()]
    return msgspec.structs.replace(note, users=alive) if note.boot_id == _boot_id() else None


def _write(note: Note) -> None:
    partial = NOTE.with_suffix(".partial")
    partial.write_bytes(msgspec.json.encode(note))
    partial.rename(NOTE)


def _leave() -> None:
    note = _read() or _look()
    users = list(note.users)
    users.remove(os.getpid())
    if users:
        _write(msgspec.structs.replace(note, users=users))
        return
    for path in made():
        if str(path) not in note.there:
            _remove(path)
    NOTE.unlink()


def _sweep() -> None:
    """Take away what is left of test runs which were killed."""
    for path in PLACE.glob(f"{PREFIX}*"):
        _clear(path)


def _clear(directory: Path) -> None:
    """End what the engine of that directory could not end itself, and remove it."""
    if not until(lambda: not processes(directory), 5.0):
        _kill(processes(directory))
    for address in directory.glob("exec/containerd/daemon/*/*/*/address"):
        # The socket of a shim which was killed: "unix:///run/containerd/s/…".
        Path(address.read_text().removeprefix("unix://")).unlink(missing_ok=True)
    for container in directory.glob("data/containers/*"):
        for cgroup in cgroups(f"docker/{container.name}"):
            _kill(_members(cgroup))
            _remove(cgroup)
    for mount in reversed(mounts(directory)):
        _run("umount", "--lazy", mount)
    shutil.rmtree(directory)


def _remove(path: Path) -> None:
    """A file, or directories which are empty: another's container would keep them."""
    if path.is_file():
        path.unlink()
    for directory, _, _ in os.walk(path, topdown=False):
        with suppress(OSError):
            os.rmdir(directory)


def _hierarchies() -> list[Path]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    kinds = ((line.split()[4], line.partition(" - ")[2].split()[0]) for line in lines)
    return [Path(point) for point, kind in kinds if kind in ("cgroup", "cgroup2")]


def _members(cgroup: Path) -> list[int]:
    with suppress(FileNotFoundError):
        return [int(pid) for pid in (cgroup / "cgroup.procs").read_text().split()]
    return []


def _kill(pids: Iterable[int]) -> None:
    """Kill them, and wait until they are gone, or zombies of another parent."""
    for pid in (pids := list(pids)):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    until(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in pids), 10.0)


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _must(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
