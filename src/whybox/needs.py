"""What a case may need: functions that return the missing reason, or ``None``.

Never a kernel version, always the thing itself. The reason is a sentence with the way out.
"""

from whybox.kernel.host import Host
from whybox.kernel.target import Target
from whybox.model import Need


def living(host: Host, target: Target) -> str | None:
    """A process to look at."""
    return None if target.alive else "it is not running, so there is nothing to watch"


def own_group(controller: str) -> Need:
    """A group of its own under a controller: the host's root group is nobody's container."""

    def missing(host: Host, target: Target) -> str | None:
        group = target.group(host, controller)
        if group is None or not host.exists(group.directory):
            return f"the {controller} control group of it cannot be seen from here"
        if group.path == "/" and target.runtime != "self":
            return f"it has no {controller} control group of its own"
        return None

    return missing
