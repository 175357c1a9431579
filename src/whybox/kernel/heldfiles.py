"""Files of disks that processes hold open or mapped, above all those that have no name any more.

A removed file keeps its blocks until the last who holds it lets go (``iput_final``). ``du`` is
blind to it, ``df`` is not. Links of ``/proc/PID/fd`` are looked at only where the file's mount
(``mnt_id`` of ``fdinfo``) is known to lie on a disk: a dead network mount would keep us waiting.
"""

import os
import stat as modes
from collections.abc import Iterable, Iterator, Mapping, Sequence

from msgspec import Struct, structs

from whybox.kernel import task
from whybox.kernel.host import Host, ParseError, printable
from whybox.kernel.reading import fields, mapped

#: So many processes, descriptors of each and links in all are looked at.
MOST_PROCESSES = 512
MOST_DESCRIPTORS = 1024
MOST_LINKS = 20_000
MOST_MAP_BYTES = 1 << 20
MOST_TOLD = 16
#: A smaller file takes nobody's room.
LEAST_BYTES = 64 << 10

DELETED = " (deleted)"
_O_ACCMODE = 3


class Held(Struct, frozen=True, kw_only=True):
    """One file that a process holds."""

    pid: int
    comm: str
    """Harmless to print, as the path."""
    descriptor: int | None
    """``None``: it is mapped, and not open."""
    path: str
    device: str
    """``MAJOR:MINOR`` of the file system beneath."""
    bytes: int
    named: bool
    writing: bool
    """Whether it is open for writing."""
    growing: bool
    mount_id: int | None = None
    """Of the mount that it was opened through; ``None``: it is mapped."""
    holders: int = 1
    """So many processes hold it."""

    @property
    def link(self) -> str | None:
        """What opens it, as long as the process has it."""
        return None if self.descriptor is None else f"/proc/{self.pid}/fd/{self.descriptor}"


class Looked(Struct, frozen=True, kw_only=True):
    """The files that some processes hold, the largest first."""

    files: tuple[Held, ...] = ()
    bytes: int = 0
    """Of all those, told of or not."""
    count: int = 0
    incomplete: str | None = None


def held(
    host: Host,
    pids: Sequence[int],
    devices: Mapping[str, str],
    *,
    named: bool = False,
    since_ns: int = 0,
    maps: bool = True,
    least: int = LEAST_BYTES,
) -> Looked:
    """What processes hold on some file systems; ``named`` ones too, if they are written to.

    ``devices`` has the file system beneath for each mount's id, and for each mount's device.
    """
    search = _Search(host, devices, named=named, since_ns=since_ns, least=least)
    for pid in pids[:MOST_PROCESSES]:
        search.look(pid, maps=maps)
    if len(pids) > MOST_PROCESSES:
        search.incomplete = f"only {MOST_PROCESSES} of {len(pids)} processes were looked at"
    return search.result()


class _Search:
    def __init__(
        self,
        host: Host,
        devices: Mapping[str, str],
        *,
        named: bool,
        since_ns: int,
        least: int,
    ) -> None:
        self.host, self.devices = host, devices
        self.named, self.since_ns, self.least = named, since_ns, least
        self.incomplete: str | None = None
        self._links = MOST_LINKS
        self._found: dict[tuple[str, int], Held] = {}

    def look(self, pid: int, *, maps: bool) -> None:
        try:
            comm = printable(task.stat(self.host, pid).comm)
            numbers = self.host.names(f"/proc/{pid}/fd")
        except (OSError, ParseError):
            return
        if len(numbers) > MOST_DESCRIPTORS or self._links <= 0:
            self.incomplete = "not every descriptor was looked at"
        mine: set[tuple[str, int]] = set()
        for number in numbers[: min(MOST_DESCRIPTORS, max(0, self._links))]:
            self._links -= 1
            self._descriptor(pid, comm, number, mine)
        if maps:
            for span, path in self._mapped(pid):
                link = f"/proc/{pid}/map_files/{span}"
                self._add(pid, comm, None, link, path, mine, writing=False)

    def _descriptor(self, pid: int, comm: str, number: str, mine: set[tuple[str, int]]) -> None:
        link = f"/proc/{pid}/fd/{number}"
        try:
            path = self.host.link(link)
        except OSError:
            return
        if not path.startswith("/") or not (self.named or path.endswith(DELETED)):
            return
        told = fields(self.host.optional_text(f"/proc/{pid}/fdinfo/{number}") or "")
        if told.get("mnt_id", "") not in self.devices:
            return
        writing = int(told.get("flags", "0"), 8) & _O_ACCMODE != os.O_RDONLY
        if writing or path.endswith(DELETED):
            device = self.devices[told["mnt_id"]]
            mount_id = int(told["mnt_id"])
            self._add(pid, comm, int(number), link, path, mine, writing, device, mount_id)

    def _mapped(self, pid: int) -> Iterator[tuple[str, str]]:
        devices = [device for device in self.devices if ":" in device]
        try:
            with open(self.host.path(f"/proc/{pid}/maps"), "rb") as maps:
                raw = maps.read(MOST_MAP_BYTES)
        except OSError:
            return
        lines = [line for line in raw.splitlines() if line.endswith(DELETED.encode())]
        yield from mapped(lines, devices)

    def _add(
        self,
        pid: int,
        comm: str,
        number: int | None,
        link: str,
        path: str,
        mine: set[tuple[str, int]],
        writing: bool,
        device: str | None = None,
        mount_id: int | None = None,
    ) -> None:
        try:
            said = os.stat(self.host.path(link))
        except OSError:
            return
        own = f"{os.major(said.st_dev)}:{os.minor(said.st_dev)}"
        device = device or self.devices.get(own)
        deleted = said.st_nlink == 0
        taken = said.st_blocks * 512
        if device is None or not modes.S_ISREG(said.st_mode) or taken < self.least:
            return
        if not deleted and not (self.named and writing):
            return
        key = device, said.st_ino
        known = self._found.get(key)
        if known is not None:
            if key not in mine:
                self._found[key] = _also(known)
        else:
            self._found[key] = Held(
                pid=pid,
                comm=comm,
                descriptor=number,
                path=printable(path.removesuffix(DELETED) if deleted else path),
                device=device,
                bytes=taken,
                named=not deleted,
                writing=writing,
                growing=said.st_mtime_ns >= self.since_ns,
                mount_id=mount_id,
            )
        mine.add(key)

    def result(self) -> Looked:
        files = sorted(self._found.values(), key=lambda one: -one.bytes)
        return Looked(
            files=tuple(files[:MOST_TOLD]),
            bytes=sum(one.bytes for one in files),
            count=len(files),
            incomplete=self.incomplete,
        )


def _also(known: Held) -> Held:
    return structs.replace(known, holders=known.holders + 1)


def beneath(mounts: Iterable[tuple[int | None, str, str]]) -> dict[str, str]:
    """For ``held``: of each mount its id and its device, with the device beneath it.

    >>> beneath([(61, "0:58", "8:1")])
    {'61': '8:1', '0:58': '8:1', '8:1': '8:1'}
    """
    found: dict[str, str] = {}
    for id, mounted, device in mounts:
        if id is not None:
            found[str(id)] = device
        found[mounted] = found[device] = device
    return found
