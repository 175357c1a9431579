r"""What is mounted where: ``/proc/PID/mountinfo`` (Documentation/filesystems/proc.rst, 3.5).

>>> line = r"36 35 98:0 /mnt1 /mnt\0402 rw,noatime master:1 - ext3 /dev/root rw,errors=continue"
>>> parse(line)[0].mountpoint
'/mnt 2'
"""

import re

from msgspec import Struct

from whybox.kernel.host import Host, ParseError

_ESCAPE = re.compile(r"\\([0-7]{3})")


class Mount(Struct, frozen=True, kw_only=True):
    """One line of mountinfo."""

    mount_id: int
    parent_id: int
    device: str
    """``MAJOR:MINOR``."""
    root: str
    """The directory of the file system that is shown at the mount point."""
    mountpoint: str
    options: tuple[str, ...]
    fstype: str
    source: str
    super_options: tuple[str, ...]

    def option(self, name: str) -> str | None:
        """The value of ``name=value`` among the superblock options."""
        prefix = name + "="
        for option in self.super_options:
            if option.startswith(prefix):
                return option.removeprefix(prefix)
        return None


def parse(text: str, file: str = "/proc/PID/mountinfo") -> tuple[Mount, ...]:
    """Every mount, in the order of the file: of two at one place, the later is on top."""
    return tuple(_mount(file, line) for line in text.splitlines())


def _mount(file: str, line: str) -> Mount:
    fields, separator, rest = line.partition(" - ")
    left = fields.split(" ")
    right = rest.split(" ")
    if not separator or len(left) < 6 or len(right) < 3:
        raise ParseError(file, line)
    return Mount(
        mount_id=int(left[0]),
        parent_id=int(left[1]),
        device=left[2],
        root=_unescape(left[3]),
        mountpoint=_unescape(left[4]),
        options=tuple(left[5].split(",")),
        fstype=right[0],
        source=_unescape(right[1]),
        super_options=tuple(_unescape(o) for o in right[2].split(",")),
    )


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda m: chr(int(m[1], 8)), text)


def mounts(host: Host, pid: int | str) -> tuple[Mount, ...]:
    """The mounts that a task sees."""
    file = f"/proc/{pid}/mountinfo"
    return parse(host.text(file), file)


def root_mount(seen: tuple[Mount, ...]) -> Mount | None:
    """The mount at ``/``: the container's root file system."""
    return next((m for m in reversed(seen) if m.mountpoint == "/"), None)
