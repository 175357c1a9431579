"""Whether a container is paused: ``freezer.state`` on v1, ``cgroup.events`` on v2.

A frozen task looks like one that sleeps (v2) or is blocked (v1), and does nothing until thawed.
"""

from whybox.kernel import cgroup
from whybox.kernel.host import Host
from whybox.kernel.target import Target


def frozen(host: Host, target: Target) -> bool | None:
    """Whether its groups are frozen; ``None``: none of them can be seen."""
    said = [_v1(host, target), _v2(host, target)]
    return None if said == [None, None] else True in said


def _v1(host: Host, target: Target) -> bool | None:
    group = target.group(host, "freezer")
    if group is None or group.version != 1:
        return None
    state = host.optional_text(group.file("freezer.state"))
    return None if state is None else state.strip() == "FROZEN"


def _v2(host: Host, target: Target) -> bool | None:
    group = cgroup.unified(host, target.cgroups)
    events = None if group is None else host.optional_text(group.file("cgroup.events"))
    # Since Linux kernel commit 76f969e8948d ("cgroup: cgroup v2 freezer") (in v5.2).
    return None if events is None else "frozen 1" in events.splitlines()
