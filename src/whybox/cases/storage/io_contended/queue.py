"""One disk's queue in the window: the container's own part of it, and the others'."""

from msgspec import Struct

from whybox.kernel.iocontention import Contention, Disk
from whybox.kernel.iorivals import Rival


class Queue(Struct, frozen=True, kw_only=True):
    """What is judged of one disk."""

    disk: Disk
    elapsed_ns: int
    own_bytes: int
    own_count: int
    own_wait_ns: int
    """What its IO waited in the queue and in the device, summed over all of it."""
    own_device_ns: int
    """Of that, in the device: what waits for room in its queue is in nobody's account of it."""
    held_ns: int
    """What a limit held it back before."""

    @property
    def wait_share(self) -> float:
        """Of the window; more than one where several IOs waited at once."""
        return self.own_wait_ns / max(self.elapsed_ns, 1)

    @property
    def each_ns(self) -> float:
        """What one of its IOs waited."""
        return self.own_wait_ns / max(self.own_count, 1)

    @property
    def held_share(self) -> float:
        """Of all that its IO waited."""
        return self.held_ns / max(self.held_ns + self.own_wait_ns, 1)

    @property
    def others(self) -> float:
        """The others' share of all that the disk moved."""
        return max(1 - self.own_bytes / max(self.disk.work.bytes, 1), 0.0)

    @property
    def others_queue(self) -> float:
        """How many IOs of others were with the disk at a time, on average."""
        own_ms = self.own_device_ns / 1e6
        return max(self.disk.work.waited_ms - own_ms, 0.0) * 1e6 / max(self.elapsed_ns, 1)

    @property
    def disk_each_ns(self) -> float:
        """What one IO of anybody took."""
        return self.disk.work.waited_ms * 1e6 / max(self.disk.work.count, 1)

    def share(self, rival: Rival) -> float:
        """A neighbour's share of all that the disk moved."""
        # v1 counts what comes to the throttle, and not what has come to the disk.
        return min(rival.bytes / max(self.disk.work.bytes, 1), self.others)


def queue(seen: Contention, disk: Disk) -> Queue:
    """By what the sensor saw of its own IO; without it, by the counters of its group."""
    kinds = [one for one in seen.waits.kinds if one.device == disk.device]
    return Queue(
        disk=disk,
        elapsed_ns=seen.elapsed_ns,
        own_bytes=sum(one.bytes for one in kinds) if kinds else disk.own_bytes,
        own_count=sum(one.count for one in kinds) if kinds else disk.own_count,
        own_wait_ns=sum(one.queued_ns + one.device_ns for one in kinds),
        own_device_ns=sum(one.device_ns for one in kinds),
        held_ns=sum(one.held_ns for one in kinds),
    )
