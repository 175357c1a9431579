r"""How long IPVS is busy with its statistics, and where.

Every two seconds it works out the rates of each service and each real server
(net/netfilter/ipvs/ip_vs_est.c). Before Linux 6.2 a timer does it, ``estimation_timer()``, all of
them in one go in the softirq TIMER; since commit f0be83d54217 ("ipvs: add est_cpulist and est_nice
sysctl vars") and its likes, threads do it, ``ipvs-e:N:N``.
"""

import errno
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from msgspec import Struct

from whybox.kernel.host import Host
from whybox.kernel.symbols import KernelSymbols
from whybox.kernel.target import Target

if TYPE_CHECKING:
    from whybox.kernel.sensors.kept import Kept
    from whybox.kernel.sensors.softirq import Slow

#: The tables of the host's network; kthreadd lives in that.
TABLES = ("/proc/2/net/ip_vs", "/proc/net/ip_vs")
RUN_ESTIMATION = "/proc/sys/net/ipv4/vs/run_estimation"
#: Shorter ones are not told one by one.
FELT_NS = 1_000_000
MOST_KEPT = 2000
TIMER, THREADS = "estimation_timer", "ipvs-e:"

#: The name of the sensor among those that all who watch share.
SENSOR = "softirq for estimation"

_ZERO, _FELT = struct.pack("=I", 0), struct.pack("=Q", FELT_NS)


class Table(Struct, frozen=True, kw_only=True):
    """What IPVS has of the host's network."""

    services: int
    servers: int
    """Real servers, once for each service."""
    more: bool = False
    """There are too many to be read and counted."""


class Long(Struct, frozen=True, kw_only=True):
    """One run of ``estimation_timer`` that was felt."""

    at_ns: int
    """When it began, of the monotonic clock."""
    took_ns: int
    cpu: int
    on_target: bool
    """Whether it interrupted a task of the container."""


class Timer(Struct, frozen=True, kw_only=True):
    """What was seen of ``estimation_timer``, on all CPUs.

    Each network namespace has one, also those without a service, whose runs are short.
    """

    count: int
    longest_ns: int
    longs: tuple[Long, ...] = ()
    """Those of at least ``FELT_NS``, in order."""


class Seen(Struct, frozen=True, kw_only=True):
    """All of it; what was not looked at is ``None``."""

    table: Table | None
    """``None``: there is no IPVS."""
    estimates: bool | None = None
    """``net.ipv4.vs.run_estimation``; ``None``: this kernel cannot switch it off."""
    threads: int = 0
    """Those that work the rates out instead of the timer."""
    timer: Timer | None = None
    reason: str | None = None
    """Why the timer was not watched."""


def table(host: Host) -> Table | None:
    """The host's services; ``None``: no IPVS. Raises OSError where that may not be read."""
    for path in TABLES:
        if host.exists(path):
            try:
                return parse(host.text(path))
            except OSError as error:
                if error.errno != errno.EFBIG:
                    raise
                return Table(services=1, servers=0, more=True)
    return None


def parse(text: str) -> Table:
    r"""Count the lines of ``/proc/net/ip_vs``.

    >>> parse("IP Virtual Server version 1.2.1 (size=4096)\n"
    ...       "Prot LocalAddress:Port Scheduler Flags\n"
    ...       "  -> RemoteAddress:Port Forward Weight\nTCP  0A000001:0050 rr\n"
    ...       "  -> 0A000002:1F90      Masq    1      0          0\nFWM  00000001 rr\n")
    Table(services=2, servers=1, more=False)
    """
    kinds = ("TCP", "UDP", "SCTP", "FWM")
    lines = text.splitlines()
    return Table(
        services=sum(line.startswith(kinds) for line in lines),
        servers=sum(line.startswith("  -> ") and "RemoteAddress" not in line for line in lines),
    )


@contextmanager
def watched(host: Host, target: Target) -> Iterator[Callable[[], Seen]]:
    """Watch the timer, where there is something to estimate and no thread that does it."""
    with ExitStack() as stack:
        try:
            found = table(host)
        except (OSError, ValueError) as error:
            why = f"the table of IPVS could not be read: {error}"
            yield lambda: Seen(table=Table(services=0, servers=0), reason=why)
            return
        known = Seen(
            table=found,
            estimates=_switch(host),
            threads=0 if found is None else _threads(host),
        )
        if found is None or not found.services or known.threads or host.window_seconds <= 0:
            yield lambda: known
            return
        yield _watch(host, target, known, stack)


def _switch(host: Host) -> bool | None:
    with suppress(ValueError):
        said = host.optional_number(RUN_ESTIMATION)
        return None if said is None else bool(said)
    return None


def _threads(host: Host) -> int:
    """The kernel's threads are children of kthreadd."""
    children = host.optional_text("/proc/2/task/2/children") or ""
    names = (host.optional_text(f"/proc/{pid}/comm") or "" for pid in children.split())
    return sum(name.startswith(THREADS) for name in names)


def _watch(host: Host, target: Target, known: Seen, stack: ExitStack) -> Callable[[], Seen]:
    from whybox.kernel.sensors import softirq as sensor  # loads libbpf: only for a window

    try:
        kept = stack.enter_context(host.sensor(SENSOR, lambda: _attached(host)))
        slot = kept.scope.add(host, target)
    except OSError as error:
        reason = str(error.strerror or error)
        return lambda: _with(known, None, reason)

    def look() -> Seen:
        # Read once for all containers: it is long.
        symbols = host.remembered("kernel symbols", lambda: KernelSymbols(host))
        timers = [
            one
            for one in sensor.callees(kept.object)
            if one.kind == "timer" and symbols.frame(one.function).name == TIMER
        ]
        functions = {one.function for one in timers}
        longs = (
            Long(at_ns=e.at_ns, took_ns=e.took_ns, cpu=e.cpu, on_target=e.slot == slot)
            for e in kept.all()
            if e.kind == "timer" and e.function in functions
        )
        timer = Timer(
            count=sum(one.count for one in timers),
            longest_ns=max((one.longest_ns for one in timers), default=0),
            longs=tuple(sorted(longs, key=lambda one: one.at_ns)),
        )
        return _with(known, timer, None)

    return look


def _with(known: Seen, timer: Timer | None, reason: str | None) -> Seen:
    return Seen(
        table=known.table,
        estimates=known.estimates,
        threads=known.threads,
        timer=timer,
        reason=reason,
    )


@contextmanager
def _attached(host: Host) -> "Iterator[Kept[Slow]]":
    from whybox.kernel.bpf.objects import loaded
    from whybox.kernel.sensors import softirq as sensor
    from whybox.kernel.sensors.kept import Kept

    with loaded(host, sensor.SPEC, before={"slower": [(_ZERO, _FELT)]}) as object:
        yield Kept(object, sensor.slow, MOST_KEPT)
