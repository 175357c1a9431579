"""A program that looks up one name again and again, and the nameservers that it is given."""

import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress

from whybox.kernel import dns
from whybox.kernel.dns import Message
from whybox.lab import nameserver, resolver, workload
from whybox.lab.box import Box, Network, Program
from whybox.lab.lab import Lab, Scenario
from whybox.lab.nameserver import Said, Zone
from whybox.model import Finding

NAME = "web.lab.test"
GOOD, SILENT = "10.99.0.1", "10.99.0.9"
SEARCH = "search one.test two.test three.test\n"
_MARK = "# whybox lab\n"
A, SERVFAIL = 1, 2

Act = Callable[[], None]


def again_and_again(act: Act, every_s: float = 0.2) -> Program:
    """``act`` once and once more, as soon as the lab has written its resolv.conf."""

    def lookups() -> None:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        while not _is_ready():
            time.sleep(0.02)
        while True:
            act()
            time.sleep(every_s)

    return lookups


def _is_ready() -> bool:
    with suppress(OSError), open("/etc/resolv.conf", encoding="ascii") as file:
        return _MARK in file.read()
    return False


def look_up(name: str = NAME) -> Act:
    """By the C library, as programs do."""

    def act() -> None:
        with suppress(socket.gaierror):
            socket.getaddrinfo(name.encode("ascii"), 80, type=socket.SOCK_STREAM)

    return act


def ask_all() -> None:
    """As musl does: every server at once, and the first answer counts."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(2)
        for server in (SILENT, GOOD):
            sock.sendto(dns.query(NAME, int(time.monotonic() * 1000) & 0xFFFF), (server, dns.PORT))
        with suppress(TimeoutError):
            sock.recv(512)


def send_metrics() -> None:
    """To a port that never answers, and that is not meant to."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"requests:1|c", (SILENT, 8125))


def known(question: Message) -> Said | None:
    """The name has one address of IPv4 and none of IPv6; no other name exists."""
    if question.name != NAME:
        return dns.NXDOMAIN, 0, 0.0
    return dns.NOERROR, int(question.qtype == A), 0.0


def late(seconds: float) -> Zone:
    """The same, after a while."""

    def zone(question: Message) -> Said | None:
        code, records, _ = known(question) or (SERVFAIL, 0, 0.0)
        return code, records, seconds

    return zone


def failing(question: Message) -> Said | None:
    """It cannot."""
    return SERVFAIL, 0, 0.0


def silent(question: Message) -> Said | None:
    """It is there and says nothing."""
    return None


def asking(
    conf: str, good: Zone | None = known, act: Act | None = None, *, every_s: float = 0.2
) -> Scenario:
    """A box with this resolv.conf; ``good`` is who answers at the gateway, if anybody does."""

    def scenario(box: Box) -> None:
        box.network(Network())
        box.start(again_and_again(act or look_up(), every_s))
        nameserver.add_address(box, SILENT)
        nameserver.serve(box, SILENT, silent)
        if good is not None:
            nameserver.serve(box, GOOD, good)
        resolver.write(box.pid, _MARK + conf)

    return scenario


def idle(box: Box) -> None:
    """It has no nameserver, and looks up nothing."""
    box.network(Network())
    box.start(workload.idle())
    resolver.write(box.pid, _MARK)


def servers(*addresses: str) -> str:
    """The lines that name them."""
    return "".join(f"nameserver {address}\n" for address in addresses)


def numbers(finding: Finding) -> str | None:
    """Names, addresses and the time that resolv.conf gives."""
    said = finding.summary
    wanted = (
        f"{SILENT} does not answer" in said and ("1.0 s" in said or "waits 1 s" in said),
        f"{GOOD} refuses" in said,
        "127.0.0." in said and "within the container itself" in said,
        f"{GOOD} answers SERVFAIL for {NAME}" in said,
        # At least the second that it waits; an emulated machine adds its own.
        f"{GOOD} is slow" in said and "questions took up to 1." in said,
        f"names of {NAME}, one after the other" in said,
        "no name nobody.lab.test" in said and "4 forms" in said,
    )
    return None if any(wanted) else f"not what the lab did: {said}"


#: A host sends ICMP errors to one address six at once and then one a second (icmp_ratelimit): who
#: asks more often than that is refused in silence.
QUICK = "options timeout:1 attempts:1\n"

LAB = Lab(
    healthy=asking(servers(GOOD) + SEARCH),
    reproduce=asking(servers(SILENT, GOOD) + QUICK),
    variants={
        "one nameserver, and it is silent": asking(servers(SILENT) + QUICK),
        "nobody listens at port 53": asking(servers(GOOD) + QUICK, None, every_s=1),
        "a nameserver that only the host has": asking(
            servers("127.0.0.53") + QUICK, None, every_s=1
        ),
        "it answers SERVFAIL": asking(servers(GOOD), failing),
        "a slow nameserver": asking(servers(GOOD) + "options timeout:3\n", late(1.0)),
        "a long search list": asking(servers(GOOD) + SEARCH + "options ndots:5\n", late(0.47)),
        "a name that does not exist": asking(
            servers(GOOD) + SEARCH, act=look_up("nobody.lab.test")
        ),
    },
    look_alikes={
        "a search list that is gone through at once": asking(
            servers(GOOD) + SEARCH + "options ndots:5\n"
        ),
        "both are asked at once, and one answers": asking(servers(SILENT, GOOD), act=ask_all),
        "the first refuses and the second answers": asking(
            servers("10.99.1.1", GOOD) + QUICK, every_s=2
        ),
        "datagrams that are no questions": asking(servers(SILENT), act=send_metrics),
        "no nameserver, and no lookup": idle,
    },
    numbers=numbers,
    window_seconds=2.4,
)
