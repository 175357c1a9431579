"""The memory controller: what a group holds, may hold, and how often it was refused.

v1: ``memory.usage_in_bytes`` and friends (admin-guide/cgroup-v1/memory.rst); v2: ``memory.current``
and ``memory.events`` (admin-guide/cgroup-v2.rst). Both become the same record, with ``None`` where
a version has no such counter.
"""

from msgspec import Struct

from whybox.kernel.cgroup import Group, keyed
from whybox.kernel.host import Host

#: v1 prints "no limit" as the largest multiple of a page in a signed 64-bit number.
UNLIMITED_V1 = 1 << 62


class Memory(Struct, frozen=True, kw_only=True):
    """One group's memory counters. Counts are since the group was made."""

    directory: str
    path: str
    version: int
    current_bytes: int | None
    limit_bytes: int | None
    """``None``: no limit here; an ancestor may have one."""
    peak_bytes: int | None
    oom: int | None
    """v2: how often the limit led to an out-of-memory state of this group or one below."""
    oom_kill: int | None
    """Processes *of this group* that any OOM killer ended: on v2 of those below too (measured)."""
    oom_kill_local: int | None
    """v2 ``memory.events.local``; v1's counter is local already."""
    max_events: int | None
    failcnt: int | None
    """v1; not trusted: it stays 0 when the memory+swap limit is equal (measured)."""
    oom_group: bool | None
    kill_disabled: bool | None
    under_oom: bool | None
    events_file: str


def memory(host: Host, group: Group) -> Memory:
    """The counters of one group."""
    return _v1(host, group) if group.version == 1 else _v2(host, group)


def _v1(host: Host, group: Group) -> Memory:
    events_file = group.file("memory.oom_control")
    control = _events(host, events_file)
    limit = host.optional_number(group.file("memory.limit_in_bytes"))
    return Memory(
        directory=group.directory,
        path=group.path,
        version=1,
        current_bytes=host.optional_number(group.file("memory.usage_in_bytes")),
        limit_bytes=None if limit is None or limit >= UNLIMITED_V1 else limit,
        peak_bytes=host.optional_number(group.file("memory.max_usage_in_bytes")),
        oom=None,
        oom_kill=control.get("oom_kill"),
        oom_kill_local=control.get("oom_kill"),
        max_events=None,
        failcnt=host.optional_number(group.file("memory.failcnt")),
        oom_group=None,
        kill_disabled=_flag(control.get("oom_kill_disable")),
        under_oom=_flag(control.get("under_oom")),
        events_file=events_file,
    )


def _v2(host: Host, group: Group) -> Memory:
    events_file = group.file("memory.events")
    events = _events(host, events_file)
    local = _events(host, group.file("memory.events.local"))
    return Memory(
        directory=group.directory,
        path=group.path,
        version=2,
        current_bytes=host.optional_number(group.file("memory.current")),
        limit_bytes=host.optional_number(group.file("memory.max")),
        # memory.peak: since commit 8e20d4b33266 ("mm/memcontrol: export memcg->watermark via
        # sysfs for v2 memcg") (in v5.19).
        peak_bytes=host.optional_number(group.file("memory.peak")),
        oom=events.get("oom"),
        oom_kill=events.get("oom_kill"),
        oom_kill_local=local.get("oom_kill"),
        max_events=events.get("max"),
        failcnt=None,
        oom_group=_flag(host.optional_number(group.file("memory.oom.group"))),
        kill_disabled=None,
        under_oom=None,
        events_file=events_file,
    )


def _events(host: Host, file: str) -> dict[str, int]:
    text = host.optional_text(file)
    return {} if text is None else keyed(file, text)


def _flag(value: int | None) -> bool | None:
    return None if value is None else value == 1
