"""On which CPUs tasks may run: ``Cpus_allowed_list`` and the files of the cpuset controller.

What a thread may use is the meet of its group's set and of its own affinity (cpuset(7),
sched_setaffinity(2)), and that is what ``/proc/PID/status`` says. Lists, as the kernel writes them:

>>> parse("0-3,8"), parse(""), listed((0, 1, 2, 5))
((0, 1, 2, 3, 8), (), '0-2,5')
"""

from collections.abc import Iterable

from whybox.kernel.cgroup import Group
from whybox.kernel.host import Host, ParseError

#: More CPUs than any kernel is built for (CONFIG_NR_CPUS is 8192 at most).
_MOST_CPUS = 1 << 14

#: What the group may really use, the newest name first (admin-guide/cgroup-v2.rst, "Cpuset").
_EFFECTIVE = ("cpuset.cpus.effective", "cpuset.effective_cpus")


def parse(text: str, file: str = "a list of CPUs") -> tuple[int, ...]:
    """The CPUs that a list names, in order."""
    found: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, dash, last = part.partition("-")
        try:
            low, high = int(first), int(last if dash else first)
        except ValueError:
            raise ParseError(file, text) from None
        if not 0 <= low <= high < _MOST_CPUS:
            raise ParseError(file, text)
        found.update(range(low, high + 1))
    return tuple(sorted(found))


def listed(cpus: Iterable[int]) -> str:
    """The same CPUs as a list of the kernel's."""
    runs: list[list[int]] = []
    for cpu in sorted(set(cpus)):
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def online(host: Host) -> tuple[int, ...]:
    """The CPUs that the machine runs on; empty where that cannot be seen."""
    file = "/sys/devices/system/cpu/online"
    text = host.optional_text(file)
    return () if text is None else parse(text, file)


def allowed(host: Host, tid: int) -> tuple[int, ...] | None:
    """Where a task may run; ``None`` when it is gone."""
    file = f"/proc/{tid}/status"
    for line in (host.optional_text(file) or "").splitlines():
        name, _, value = line.partition(":")
        if name == "Cpus_allowed_list":
            return parse(value, file)
    return None


def effective(host: Host, group: Group | None) -> tuple[int, ...] | None:
    """The CPUs of a group's cpuset; ``None`` where there is no such controller."""
    for name in _EFFECTIVE if group is not None else ():
        assert group is not None
        text = host.optional_text(group.file(name))
        if text is not None:
            return parse(text, group.file(name))
    return None
