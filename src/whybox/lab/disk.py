"""A file system of a box's own, on a loop device: what it suffers, no other file system does.

    mounted = disk.mounted(box, "/data")     # before the start
    box.start(...)
    mounted.freeze()

It is thawed and taken away when the box is closed, and also when the lab's process is killed:
tasks that wait for a frozen file system cannot be killed, and nobody else would thaw it.
"""

import os
import shutil
import signal
import subprocess
from contextlib import suppress

from whybox.kernel.fsfreeze import freeze, thaw
from whybox.kernel.host import Host
from whybox.kernel.libc import MNT_DETACH, PR_SET_PDEATHSIG, prctl, umount2
from whybox.lab import quota, rootfs
from whybox.lab.box import Box

_TOOLS = ("mke2fs", "mount")


def missing(host: Host) -> str | None:
    """Why no such file system can be made here, or ``None``."""
    absent = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if absent:
        return f"no {', '.join(absent)} to make a file system with"
    if os.geteuid() != 0:
        return "only root can mount a file system"
    if host.exists("/dev/loop-control") or _loadable(host):
        return None
    return "this kernel has no loop devices"


def _loadable(host: Host) -> bool:
    """Whether they are a module that nobody has asked for yet."""
    known = f"/lib/modules/{os.uname().release}/modules.dep"
    return "/loop.ko" in (host.optional_text(known) or "")


class Disk:
    """One file system, mounted on the host; ``name`` ends in the lab's pid and a number."""

    def __init__(
        self, name: str, *, mib: int = 32, inodes: int | None = None, projects: bool = False
    ) -> None:
        self.base = f"{rootfs.disk()}/whybox-disk-{name}"
        self.mountpoint = f"{self.base}/mounted"
        """Where the host has it."""
        os.mkdir(self.base, 0o711)
        self._guard = _guard(self.base, self.mountpoint)
        try:
            self._mount(mib, inodes, projects=projects)
        except BaseException:
            self.remove()
            raise

    def _mount(self, mib: int, inodes: int | None, *, projects: bool) -> None:
        image = f"{self.base}/image"
        with open(image, "wb") as file:
            file.truncate(mib << 20)
        os.mkdir(self.mountpoint)
        few = () if inodes is None else ("-N", str(inodes))
        features = quota.FEATURES if projects else ()
        _run("mke2fs", "-q", "-F", "-t", "ext4", *few, *features, image)
        if not os.path.exists("/dev/loop-control"):
            _run("modprobe", "loop")
        if projects:
            quota.load()
        options = quota.OPTIONS if projects else "loop"
        _run("mount", "-o", options, image, self.mountpoint)
        os.chmod(self.mountpoint, 0o1777)

    @property
    def device(self) -> str:
        """Its major and minor number, as limits name it."""
        number = os.stat(self.mountpoint).st_dev
        return f"{os.major(number)}:{os.minor(number)}"

    def shorten_queue(self, requests: int) -> None:
        """Let no more IOs be with it at a time; the loop device goes, and that with it."""
        file = f"/sys/dev/block/{self.device}/queue/nr_requests"
        with open(file, "w", encoding="ascii") as opened:
            opened.write(str(requests))

    def fill(self, name: str, bytes: int) -> None:
        """A file that anybody may write over; it is on the disk, and no longer in memory."""
        with open(f"{self.mountpoint}/{name}", "wb") as file:
            os.fchmod(file.fileno(), 0o666)
            for _ in range(bytes >> 20):
                file.write(b"x" * (1 << 20))
            file.flush()
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def freeze(self) -> None:
        """Whoever writes to it waits, as while a snapshot is taken."""
        freeze(self.mountpoint)

    def make_read_only(self) -> None:
        """Nobody can write to it any more (EROFS)."""
        _run("mount", "-o", "remount,ro", self.mountpoint)

    def remove(self) -> None:
        """Thaw it, unmount it; the loop device goes when the last who uses it has gone."""
        _clear(self.base, self.mountpoint)
        os.kill(self._guard, signal.SIGKILL)
        os.waitpid(self._guard, 0)


def mounted(box: Box, path: str, *, mib: int = 32, inodes: int | None = None) -> Disk:
    """A new file system at ``path`` of a box that has not been started."""
    made = Disk(box.name, mib=mib, inodes=inodes)
    box.closing.callback(made.remove)
    box.volume(path, source=made.mountpoint)
    return made


def beneath(box: Box, *, mib: int = 32) -> Disk:
    """A new file system for all that a box which has not been started writes."""
    made = Disk(box.name, mib=mib)
    box.closing.callback(made.remove)
    box.place(made.mountpoint)
    return made


def _run(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    except subprocess.CalledProcessError as error:
        raise OSError(f"{command[0]}: {error.stderr.strip()}") from None


def _clear(base: str, mountpoint: str) -> None:
    with suppress(OSError):
        thaw(mountpoint)
    with suppress(OSError):
        umount2(mountpoint, MNT_DETACH)
    shutil.rmtree(base, ignore_errors=True)


def _guard(base: str, mountpoint: str) -> int:
    """A process that clears up once the one that forked it has died, however it died."""
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        for signum in (signal.SIGINT, signal.SIGHUP):
            signal.signal(signum, signal.SIG_IGN)
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() == parent:
            signal.sigwait({signal.SIGTERM})
        _clear(base, mountpoint)
    finally:
        os._exit(0)
