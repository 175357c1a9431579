"""A server that asks for a queue of 1024 and gets one of 4, and 14 clients that come at once."""

import os
import signal
import socket
import time
from collections.abc import Callable

from whybox.kernel import netlink, sock_diag
from whybox.kernel.netpath import counters
from whybox.kernel.sock_diag import Listener
from whybox.lab import outside, workload
from whybox.lab.box import Box, Network
from whybox.lab.lab import Lab, Scenario
from whybox.lab.process import Program
from whybox.model import Finding

PORT = 8080
ROOM, BURST = 4, 14
#: Longer than between two clients of a burst, on the slowest machine; short against the time
#: between two bursts.
TAKES_SECONDS = 0.02
EVERY_SECONDS = 0.6
PATIENCE_SECONDS = 10.0


def taking(backlog: int = 1024, takes_s: float = TAKES_SECONDS) -> Program:
    """Accepts one connection after the other, and each takes a while."""

    def program() -> None:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        with socket.create_server(("0.0.0.0", PORT), backlog=backlog) as server:
            while True:
                server.accept()[0].close()
                time.sleep(takes_s)

    return program


def taking_when_told(backlog: int) -> Program:
    """Accepts nothing before SIGUSR1, and then everything."""

    def program() -> None:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        with socket.create_server(("0.0.0.0", PORT), backlog=backlog) as server:
            signal.sigwait({signal.SIGUSR1})
            while True:
                server.accept()[0].close()

    return program


def two_listeners() -> None:
    """Two of one port (SO_REUSEPORT); one accepts and one does not, as a worker that hangs."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    hanging, serving = (
        socket.create_server(("0.0.0.0", PORT), backlog=ROOM, reuse_port=True) for _ in range(2)
    )
    with hanging, serving:
        while True:
            serving.accept()[0].close()


def wired(program: Program, network: Network | None = None, **sysctls: int) -> Scenario:
    """A box with its own network that runs it; a sysctl's dots are underscores twice."""

    def scenario(box: Box) -> None:
        box.network(network)
        for key, value in sysctls.items():
            box.sysctl(key.replace("__", "."), str(value))
        box.start(program)
        until(lambda: bool(listeners(box)))

    return scenario


def until(condition: Callable[[], bool]) -> None:
    """Wait for a state, not for a time."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("what the lab waits for did not come")
        time.sleep(0.02)


def listeners(box: Box) -> tuple[Listener, ...]:
    """Who listens in the box."""

    def ask() -> tuple[Listener, ...]:
        with netlink.Socket(netlink.NETLINK_SOCK_DIAG) as sock:
            return sock_diag.listeners(sock)

    return outside.opened(f"/proc/{box.pid}/ns/net", ask)


def waiting(box: Box) -> int:
    """How many wait to be accepted."""
    return sum(one.ack_backlog for one in listeners(box))


def counted(box: Box, file: str, name: str) -> bool:
    """Whether a counter of its namespace has moved."""
    with open(f"/proc/{box.pid}/net/{file}", encoding="ascii") as opened:
        return counters(opened.read())[name] > 0


def overflowed(box: Box) -> bool:
    """Whether somebody was turned away."""
    return counted(box, "netstat", "TcpExt.ListenOverflows")


def knocked(scenario: Scenario, count: int = BURST, every_s: float = EVERY_SECONDS) -> Scenario:
    """The same, and clients come from the node again and again."""

    def knocking(box: Box) -> None:
        scenario(box)
        outside.keep_connecting(box, outside.node(box), PORT, count=count, every_s=every_s)

    return knocking


def after_first(scenario: Scenario) -> Scenario:
    """The same, after a first burst: when it has come, and those who got in were accepted."""

    def later(box: Box) -> None:
        scenario(box)
        until(lambda: counted(box, "snmp", "Tcp.PassiveOpens") and not waiting(box))

    return later


def after_overflow(scenario: Scenario) -> Scenario:
    """The same, when it has begun."""

    def later(box: Box) -> None:
        scenario(box)
        until(lambda: overflowed(box))

    return later


reproduce = after_first(knocked(wired(taking(), net__core__somaxconn=ROOM)))
never = after_overflow(knocked(wired(workload.listen(port=PORT, backlog=ROOM)), 2, 0.3))
healthy = after_first(knocked(wired(taking(), net__core__somaxconn=128)))


def stopped(box: Box) -> None:
    """The server is a child that was stopped."""
    box.network()
    box.start(workload.idle())
    server = box.run(taking(backlog=ROOM))
    until(lambda: bool(listeners(box)))
    os.kill(server, signal.SIGSTOP)
    knocked(lambda _: None, 2, 0.3)(box)
    until(lambda: overflowed(box))


def paused(box: Box) -> None:
    """The whole of it is frozen, as by ``docker pause``."""
    wired(taking(backlog=ROOM))(box)
    box.pause()
    knocked(lambda _: None, 2, 0.3)(box)
    until(lambda: overflowed(box))


def full_and_quiet(box: Box) -> None:
    """Some were turned away and gave up, those who got in wait; nobody comes any more."""
    wired(workload.listen(port=PORT, backlog=4))(box)
    came = outside.connecting(outside.node(box), (outside.address(box), PORT), 12)
    outside.held(box, came)
    until(lambda: overflowed(box))
    for one in came[5:]:
        one.close()


def to_the_brim(box: Box) -> None:
    """One more than its backlog wait to be accepted, and no more come."""
    wired(workload.listen(port=PORT, backlog=ROOM))(box)
    came = outside.connecting(outside.node(box), (outside.address(box), PORT), ROOM + 1)
    outside.held(box, came)
    until(lambda: waiting(box) == ROOM + 1)


def in_the_past(box: Box) -> None:
    """It overflowed before; now everything is accepted."""
    wired(taking_when_told(4))(box)
    came = outside.connecting(outside.node(box), (outside.address(box), PORT), 12)
    until(lambda: overflowed(box))
    while came:
        came.pop().close()
    box.signal(signal.SIGUSR1)
    until(lambda: waiting(box) == 0)


def no_way_back(box: Box) -> None:
    """Requests come from the remote machine, and the box has no route to answer by."""
    wired(workload.serve(port=PORT), Network(routed=False))(box)
    outside.keep_connecting(box, outside.remote(box), PORT, count=2, every_s=0.3)


def half_open(syncookies: int) -> Scenario:
    """Requests from an address that does not answer: the SYN queue is full, and not the other."""

    def scenario(box: Box) -> None:
        wired(taking(backlog=ROOM), net__ipv4__tcp_syncookies=syncookies)(box)
        outside.keep_half_opening(box, "10.99.1.77", PORT, count=50, every_s=0.5)

    return scenario


def anothers(box: Box) -> None:
    """Somebody else's listener overflows in the same network namespace, as in a pod."""
    wired(workload.serve(port=PORT + 1))(box)

    def listening() -> socket.socket:
        return socket.create_server(("0.0.0.0", PORT), backlog=4)

    outside.held(box, [outside.opened(f"/proc/{box.pid}/ns/net", listening)])
    knocked(lambda _: None, 2, 0.3)(box)
    until(lambda: overflowed(box))


def numbers(finding: Finding) -> str | None:
    """The room of the queue, and whose it is."""
    if f"{ROOM} + 1 may" not in finding.summary:
        return f"{ROOM} + 1 may is not in: {finding.summary}"
    if f"port {PORT}" not in finding.summary or "(pid " not in finding.summary:
        return f"neither port {PORT} nor a process is named in: {finding.summary}"
    return None


LAB = Lab(
    healthy=healthy,
    reproduce=reproduce,
    variants={
        "the program accepts none": never,
        "it accepts too slowly": after_overflow(knocked(wired(taking(ROOM, 0.3)), 8, 0.7)),
        "the program's own backlog": after_overflow(knocked(wired(taking(ROOM)))),
        "one of two listeners hangs": after_overflow(knocked(wired(two_listeners), 10, 0.7)),
        "it is stopped": stopped,
        "it is paused": paused,
        "full, and nobody comes any more": full_and_quiet,
    },
    look_alikes={
        "full, and nobody was turned away": to_the_brim,
        "it overflowed in the past": in_the_past,
        "no way back to who asks": no_way_back,
        "half-open connections, with cookies": half_open(1),
        "half-open connections, without cookies": half_open(0),
        "another's listener in its network": anothers,
    },
    numbers=numbers,
    window_seconds=1.0,
)
