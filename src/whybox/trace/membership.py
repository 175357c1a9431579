"""Whose a task is, where a sensor cannot tell: by its control groups, remembered."""

from whybox.kernel import cgroup
from whybox.kernel.host import Host
from whybox.kernel.namespace import namespace
from whybox.kernel.target import Target, place

#: So many pids are remembered; a storm of new ones makes it forget the old.
MOST_REMEMBERED = 20_000


class Membership:
    """Which tasks are a container's. A task that was gone when asked about is nobody's."""

    def __init__(self, host: Host, target: Target) -> None:
        self._host = host
        self._places = [target]
        self._known: dict[int, bool] = {}

    def add(self, target: Target) -> None:
        """This one's tasks count as well."""
        self._places.append(target)
        self._known.clear()

    def __contains__(self, pid: int) -> bool:
        if pid not in self._known:
            if len(self._known) >= MOST_REMEMBERED:
                self._known.clear()
            self._known[pid] = any(self._is_in(pid, target) for target in self._places)
        return self._known[pid]

    def _is_in(self, pid: int, target: Target) -> bool:
        mine = place(self._host, target.cgroups)
        if mine is None or target.runtime == "process":
            inode = target.namespaces.get("pid")
            return inode is not None and namespace(self._host, pid, "pid") == inode
        try:
            paths = cgroup.membership(self._host.text(f"/proc/{pid}/cgroup"))
        except OSError:
            return False
        theirs = cgroup.group(self._host, paths, mine.controller)
        return theirs is not None and f"{theirs.directory}/".startswith(f"{mine.directory}/")
