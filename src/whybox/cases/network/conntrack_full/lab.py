"""A box that opens more connections than the table of its node has room for.

The largest size is the machine's, so it is made small while the lab runs; what others have open
stays far below it.
"""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from whybox.change import HostSysctl
from whybox.kernel import conntrack, task
from whybox.kernel.host import Host
from whybox.kernel.libc import CLONE_NEWNET, unshare
from whybox.kernel.netns import call_in
from whybox.lab import machine, packetfilter, workload
from whybox.lab.box import Box, Network, Program
from whybox.lab.lab import Lab, Scenario
from whybox.lab.network import switch_loopback_on
from whybox.model import Finding

MAX = "net.netfilter.nf_conntrack_max"
LARGEST = 2000
REMOTE = "10.99.1.2"
#: From here on ports are new ones for those that come after the table is full.
FIRST_PORT, MORE_PORTS = 10_000, 40_000

Act = Callable[[], None]


def opening(count: int, more_every_s: float | None, to: str = REMOTE) -> Program:
    """So many datagrams to as many ports, each an entry; then one more again and again."""

    def sender() -> None:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            send(sock, to, range(FIRST_PORT, FIRST_PORT + count))
            port = MORE_PORTS
            while True:
                time.sleep(more_every_s or 60)
                if more_every_s is not None:
                    send(sock, to, range(port, port + 1))
                    port = port + 1 if port < 65_000 else MORE_PORTS

    return sender


def send(sock: socket.socket, to: str, ports: range) -> None:
    """One byte to each; where the table is full a local sender is told (EPERM)."""
    for port in ports:
        with suppress(OSError):
            sock.sendto(b"x", (to, port))


def node(box: Box) -> str:
    """The namespace that stands for the host."""
    return f"/proc/{task.stat(Host(), box.pid).ppid}/ns/net"


def small_table(box: Box, largest: int = LARGEST) -> None:
    """Until the box is closed."""
    machine.set_sysctl(HostSysctl(MAX, str(largest)), box.closing)


def followed(rule: Act) -> None:
    """Follow connections, and forget none of them while it is looked: 30 s are soon over."""
    rule()
    with open("/proc/sys/net/netfilter/nf_conntrack_udp_timeout", "w", encoding="ascii") as file:
        file.write("600")


def until_entries(place: str, at_least: int) -> None:
    """Wait for so many entries; an emulated machine takes seconds."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        table = call_in(place, conntrack.table)
        if table is not None and table.entries >= at_least:
            return
        time.sleep(0.05)
    raise TimeoutError(f"fewer than {at_least} entries in {place}")


def tracked(
    program: Program, *, entries: int, rule: Act = lambda: packetfilter.track("prerouting")
) -> Scenario:
    """A box whose node follows connections; back when there are so many entries."""

    def scenario(box: Box) -> None:
        box.network(Network())
        box.start(_after_marker(program))
        call_in(node(box), lambda: followed(rule), 20)
        small_table(box)
        _mark(box)
        until_entries(node(box), entries)

    return scenario


#: The lab says by this file that rules and sizes are set.
_MARKER = "/tmp/whybox-go"


def _mark(box: Box) -> None:
    with open(f"/proc/{box.pid}/root{_MARKER}", "w", encoding="ascii"):
        pass


def _after_marker(program: Program) -> Program:
    def waiting() -> object:
        while not os.path.exists(_MARKER):
            time.sleep(0.02)
        return program

    return waiting


def its_own_is_full(box: Box) -> None:
    """The container's own namespace follows connections, and its node does not."""
    box.network(Network())
    box.start(_after_marker(opening(LARGEST + 100, 0.1)))
    place = f"/proc/{box.pid}/ns/net"
    call_in(place, lambda: followed(lambda: packetfilter.track("output")), 20)
    small_table(box)
    _mark(box)
    until_entries(place, LARGEST - 20)


def a_neighbour_fills_it(box: Box) -> None:
    """Somebody else on the node holds the entries, and the box has opened a few."""
    tracked(opening(5, 0.1), entries=1, rule=_both)(box)

    def fill() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            send(sock, REMOTE, range(FIRST_PORT, FIRST_PORT + LARGEST + 100))

    call_in(node(box), fill, 30)
    until_entries(node(box), LARGEST - 20)


def _both() -> None:
    packetfilter.track("prerouting")
    packetfilter.track("output")


def a_rule_drops(box: Box) -> None:
    """The node drops what the box sends, and the table has room."""
    tracked(opening(50, 0.1), entries=0, rule=lambda: packetfilter.drop_all("forward"))(box)


def another_namespace_is_full(box: Box) -> None:
    """A table that nothing of the box passes."""
    tracked(opening(50, 0.1), entries=50)(box)
    done, ready = threading.Event(), threading.Event()

    def elsewhere() -> None:
        unshare(CLONE_NEWNET)
        switch_loopback_on()
        packetfilter.track("output")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            send(sock, "127.0.0.1", range(FIRST_PORT, FIRST_PORT + LARGEST + 100))
            ready.set()
            done.wait(60)

    thread = threading.Thread(target=elsewhere, daemon=True)
    box.closing.callback(thread.join, 10)
    box.closing.callback(done.set)
    thread.start()
    ready.wait(30)


def full_in_the_past(box: Box) -> None:
    """It was full, packets were dropped, and now there is more room."""
    tracked(opening(LARGEST + 100, None), entries=LARGEST - 20)(box)
    small_table(box, 4 * LARGEST)


def untracked(box: Box) -> None:
    """Nobody follows connections here."""
    box.network(Network())
    box.start(opening(50, 0.1))


def trackable(host: Host) -> str | None:
    """Whether connections can be followed here at all, tried in a namespace of its own."""
    reasons: list[str | None] = []

    def look() -> None:
        unshare(CLONE_NEWNET)
        reasons.append(packetfilter.missing())

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(30)
    return reasons[0] if reasons else "a rule of nftables could not be tried"


def numbers(finding: Finding) -> str | None:
    """The table's size is the lab's, and who holds it."""
    said = finding.summary
    if f"of {LARGEST} entries" not in said:
        return f"no table of {LARGEST} entries in: {said}"
    if "It holds" not in said and "10.99.1.1 holds" not in said:
        return f"nobody is named who holds it: {said}"
    return None


FULL = LARGEST - 20

LAB = Lab(
    healthy=tracked(opening(50, 0.1), entries=50),
    reproduce=tracked(opening(LARGEST + 100, 0.1), entries=FULL),
    variants={
        "full and quiet": tracked(opening(LARGEST + 100, None), entries=FULL),
        "a neighbour fills it": a_neighbour_fills_it,
        "the container's own namespace": its_own_is_full,
    },
    look_alikes={
        "three quarters of the room": tracked(opening(1500, 0.1), entries=1500),
        "a rule drops its packets": a_rule_drops,
        "another namespace is full": another_namespace_is_full,
        "full in the past": full_in_the_past,
        "connections that nobody follows": untracked,
        "an idle box": tracked(workload.idle(), entries=0),
    },
    numbers=numbers,
    needs=(trackable,),
    window_seconds=1.0,
)
