"""How busy the disks of a container were in a window, what it did on them itself, and who else."""

from collections.abc import Mapping

from msgspec import Struct

from whybox.kernel import blockio, iorivals, iothrottle, waiting
from whybox.kernel.diskwaits import NOT_WATCHED, Waits
from whybox.kernel.host import Host
from whybox.kernel.iorivals import Moment, Rival
from whybox.kernel.target import Target

Device = tuple[int, int]


class Work(Struct, frozen=True, kw_only=True):
    """What a whole disk has done since the machine was started (admin-guide/iostats.rst)."""

    count: int
    bytes: int
    busy_ms: int
    """While at least one IO was under way."""
    waited_ms: int
    """Summed over all IOs, from their request to their end."""


class Disk(Struct, frozen=True, kw_only=True):
    """One disk in the window."""

    device: Device
    name: str
    work: Work
    """The difference."""
    own_count: int
    own_bytes: int
    rivals: tuple[Rival, ...]


class Contention(Struct, frozen=True, kw_only=True):
    """One window."""

    elapsed_ns: int
    worth: bool
    """Whether its tasks waited for IO lately; if not, nothing more was read."""
    disks: tuple[Disk, ...] = ()
    waits: Waits = NOT_WATCHED
    waited_usec: int | None = None
    """How long a task of it waited for IO (PSI); ``None``: not told here."""

    @property
    def seconds(self) -> float:
        """How long the window was."""
        return max(self.elapsed_ns / 1e9, 1e-9)

    @property
    def waited(self) -> float | None:
        """The share of the window in which a task of it waited for IO."""
        usec = self.waited_usec
        return None if usec is None else usec * 1000 / max(self.elapsed_ns, 1)


class Start(Struct, frozen=True, kw_only=True):
    """The counters before the window."""

    at_ns: int
    moment: Moment | None
    disks: Mapping[Device, Work]
    waited_usec: int | None


def begin(host: Host, target: Target, *, worth: bool) -> Start:
    """Read the counters of all groups and disks, where that is worth it."""
    tree = iorivals.tree(host)
    return Start(
        at_ns=host.monotonic_ns(),
        moment=iorivals.moment(host, tree) if worth and tree is not None else None,
        disks=works(host.optional_text("/proc/diskstats") or "") if worth else {},
        waited_usec=waiting.waited_usec(host, target, "io"),
    )


def end(host: Host, target: Target, start: Start, waits: Waits) -> Contention:
    """Read them again."""
    elapsed = host.monotonic_ns() - start.at_ns
    waited = waiting.waited_usec(host, target, "io")
    both = waited is not None and start.waited_usec is not None
    return Contention(
        elapsed_ns=elapsed,
        worth=start.moment is not None,
        disks=tuple(_disks(host, target, start, waits)) if start.moment is not None else (),
        waits=waits,
        waited_usec=(waited or 0) - (start.waited_usec or 0) if both else None,
    )


def _disks(host: Host, target: Target, start: Start, waits: Waits) -> list[Disk]:
    group, tree = blockio.io_group(host, target), iorivals.tree(host)
    if group is None or tree is None or start.moment is None:
        return []
    after = iorivals.moment(host, tree)
    now = works(host.optional_text("/proc/diskstats") or "")
    found = []
    used = _used(start.moment, after, group.path) | {one.device for one in waits.kinds}
    for device in sorted(used):
        if device not in now:
            continue
        count, size = _own(start.moment, after, group.path, device)
        found.append(
            Disk(
                device=device,
                name=blockio.device_name(host, device) or iothrottle.numbered(device),
                work=between(start.disks.get(device), now[device]),
                own_count=count,
                own_bytes=size,
                rivals=iorivals.rivals(host, tree, group.path, device, start.moment, after),
            )
        )
    return found


def _used(before: Moment, after: Moment, path: str) -> set[Device]:
    then = before.groups.get(path, {})
    return {
        key[0]
        for key, one in after.groups.get(path, {}).items()
        if key not in then or one.count > then[key].count
    }


def _own(before: Moment, after: Moment, path: str, device: Device) -> tuple[int, int]:
    then, count, size = before.groups.get(path, {}), 0, 0
    for key, one in after.groups.get(path, {}).items():
        if key[0] == device:
            was = then.get(key)
            count += one.count - (0 if was is None else was.count)
            size += one.bytes - (0 if was is None else was.bytes)
    return count, size


def works(text: str) -> dict[Device, Work]:
    """Parse ``/proc/diskstats``.

    >>> works("8 0 sda 2 0 8 1 3 0 16 5 0 7 6")[8, 0].busy_ms
    7
    """
    found = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 14 and all(word.isdigit() for word in (*words[:2], *words[3:14])):
            numbers = [int(word) for word in words[3:14]]
            found[int(words[0]), int(words[1])] = Work(
                count=numbers[0] + numbers[4],
                bytes=(numbers[2] + numbers[6]) * 512,
                busy_ms=numbers[9],
                waited_ms=numbers[10],
            )
    return found


def between(before: Work | None, after: Work) -> Work:
    """The difference."""
    if before is None:
        return after
    return Work(
        count=after.count - before.count,
        bytes=after.bytes - before.bytes,
        busy_ms=after.busy_ms - before.busy_ms,
        waited_ms=after.waited_ms - before.waited_ms,
    )
