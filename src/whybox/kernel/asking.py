"""Watching a container's lookups, and asking for one name where a person wants it."""

import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

from whybox.kernel import dns, resolvconf
from whybox.kernel.dnswatch import Caught, Watch, questions
from whybox.kernel.host import Host
from whybox.kernel.lookups import Observation
from whybox.kernel.netns import call_in
from whybox.kernel.netpath import counters
from whybox.kernel.resolvconf import NOBODY, ResolvConf
from whybox.kernel.target import Target


class Asking:
    """From here on; ``close`` gives back what it holds."""

    def __init__(self, host: Host, target: Target) -> None:
        self._host, self._target = host, target
        self._closing = ExitStack()
        self.pid = "self" if target.runtime == "self" or target.init is None else target.init.pid
        self.config: ResolvConf | None = None
        self.unread: str | None = None
        self.unseen: str | None = None
        self._watch: Watch | None = None
        self._read()
        self._open()
        self._sockets, self._unsent = self._connected(), self._count_unsent()
        self.started_ns = time.time_ns()
        self.asked = host.asked.get("lookup")
        if self.asked is not None and self._watch is not None:
            self._ask(self.asked)

    def _read(self) -> None:
        if not self._host.live:
            self.unread = "a tree of files has no root directory to look into"
            return
        self._host.reads += 1
        try:
            # In a thread with a time limit, since the file may lie on a server that is gone.
            place = f"/proc/{self.pid}/ns/net"
            self.config = call_in(place, lambda: resolvconf.read(f"/proc/{self.pid}/root"))
        except OSError as error:
            self.unread = f"{resolvconf.PATH}: {error.strerror or error}"

    def _open(self) -> None:
        if not self._host.live:
            self.unseen = "a tree of files has no packets"
            return
        # Docker's own nameserver is moved to a port of its own by a rule (127.0.0.11).
        own = [s for s in self._servers() if s.startswith("127.") and _is_ipv4(s)]
        try:
            self._watch = call_in(f"/proc/{self.pid}/ns/net", lambda: Watch(own))
        except OSError as error:
            self.unseen = f"its packets may not be seen from here ({error.strerror or error})"
            return
        self._closing.callback(self._watch.close)

    def _servers(self) -> tuple[str, ...]:
        return (self.config and self.config.nameservers) or (NOBODY,)

    def _ask(self, name: str) -> None:
        """As it is of every server, and with the search list of the first."""
        search = () if self.config is None or name.endswith(".") else self.config.search
        first, *others = self._servers()
        wanted = [(first, name), *((server, name) for server in others)]
        wanted += [(first, f"{name}.{domain}") for domain in search]
        for server, form in wanted:
            if dns.is_name(form):
                call_in(f"/proc/{self.pid}/ns/net", partial(self._send, server, form))

    def _send(self, server: str, name: str) -> None:
        family = socket.AF_INET6 if ":" in server else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        # Kept open: an answer to a closed socket would be refused.
        self._closing.callback(sock.close)
        try:
            sock.sendto(dns.query(name, int.from_bytes(os.urandom(2), "big")), (server, dns.PORT))
        except OSError as error:
            self.unseen = f"asking {server} fails at once: {error.strerror or error}"

    def observed(self) -> Observation:
        """At the end of the window."""
        caught: list[Caught] = []
        lost = 0
        if self._watch is not None:
            caught, lost = self._watch.caught()
        answers = (c.packet for c in caught if c.inward and c.packet.unreachable is None)
        heard = {p.source for p in answers if p.message is not None and p.message.response}
        return Observation(
            own=self._target.own("net"),
            inside=self._target.runtime == "self",
            config=self.config,
            unread=self.unread,
            unseen=self.unseen,
            questions=questions(caught, self.started_ns),
            heard=tuple(sorted(heard)),
            opened=tuple(sorted({server for server, _ in self._sockets})),
            held=tuple(sorted({server for server, _ in self._sockets & self._connected()})),
            lost=lost,
            unsent=self._count_unsent() - self._unsent,
            serves=any(self._serves(file) for file in ("udp", "udp6")),
            asked=self.asked,
            window_ns=time.time_ns() - self.started_ns,
        )

    def _serves(self, file: str) -> bool:
        return serves(self._host.optional_text(f"/proc/{self.pid}/net/{file}") or "")

    def _count_unsent(self) -> int:
        found = counters(self._host.optional_text(f"/proc/{self.pid}/net/snmp") or "")
        return found.get("Ip.OutDiscards", 0) + found.get("Ip.OutNoRoutes", 0)

    def _connected(self) -> frozenset[tuple[str, str]]:
        texts = (self._host.optional_text(f"/proc/{self.pid}/net/{f}") for f in ("udp", "udp6"))
        return frozenset(each for text in texts if text is not None for each in connected(text))

    def close(self) -> None:
        """Give the sockets back."""
        self._closing.close()


def serves(text: str) -> bool:
    """Whether a socket is bound to port 53 (``/proc/net/udp``).

    >>> serves("sl local_address\\n  7: 0100007F:0035 00000000:0000 07 0:0 0:0 0 0 0 9\\n")
    True
    """
    words = (line.split() for line in text.splitlines()[1:])
    return any(len(w) > 1 and w[1].endswith(f":{dns.PORT:04X}") for w in words)


def connected(text: str) -> Iterator[tuple[str, str]]:
    """Sockets that are connected to port 53: to whom, and their inodes (``/proc/net/udp``).

    >>> list(connected("sl local_address\\n  7: 0200630A:9C40 0900630A:0035 01 0:0 0:0 0 0 0 9\\n"))
    [('10.99.0.9', '9')]
    """
    for line in text.splitlines()[1:]:
        words = line.split()
        if len(words) > 9 and words[2].endswith(f":{dns.PORT:04X}"):
            yield _address(words[2].partition(":")[0]), words[9]


def _address(text: str) -> str:
    """Words of four bytes, each in the machine's order."""
    parts = (text[at : at + 8] for at in range(0, len(text), 8))
    packed = b"".join(int(part, 16).to_bytes(4, sys.byteorder) for part in parts)
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


def _is_ipv4(address: str) -> bool:
    try:
        return bool(socket.inet_pton(socket.AF_INET, address))
    except (OSError, ValueError):
        return False
