"""The services of IPVS (``/proc/net/ip_vs``): addresses and ports in hexadecimal.

>>> text = '''IP Virtual Server version 1.2.1 (size=4096)
... Prot LocalAddress:Port Scheduler Flags
...   -> RemoteAddress:Port Forward Weight ActiveConn InActConn
... TCP  0A000001:1F90 rr
...   -> AC110002:0050      Masq    1      0          0
... '''
>>> services(text)
(Service(protocol='tcp', address='10.0.0.1', port=8080, servers=('172.17.0.2:80',)),)
"""

import socket
from contextlib import suppress

from msgspec import Struct, structs

from whybox.kernel.host import ParseError

FILE = "/proc/thread-self/net/ip_vs"
LIMIT_BYTES = 8 << 20


class Service(Struct, frozen=True, kw_only=True):
    """One virtual service and the servers behind it."""

    protocol: str
    address: str
    port: int
    servers: tuple[str, ...]


def services(text: str) -> tuple[Service, ...]:
    """IPv4 and IPv6 services; one by firewall mark has no address, and is left out."""
    found: list[Service] = []
    for line in text.splitlines()[3:]:
        words = line.split()
        if len(words) < 2:
            continue
        try:
            if words[0] == "->" and found:
                server = ":".join(map(str, _endpoint(words[1])))
                found[-1] = structs.replace(found[-1], servers=(*found[-1].servers, server))
            elif words[0] in ("TCP", "UDP", "SCTP"):
                address, port = _endpoint(words[1])
                found.append(
                    Service(protocol=words[0].lower(), address=address, port=port, servers=())
                )
        except ValueError:
            raise ParseError(FILE, line) from None
    return tuple(found)


def _endpoint(word: str) -> tuple[str, int]:
    address, _, port = word.rpartition(":")
    if address.startswith("["):
        return address[1:-1], int(port, 16)
    return socket.inet_ntoa(bytes.fromhex(address)), int(port, 16)


def read() -> tuple[Service, ...]:
    """Of the namespace that the running thread is in; none where there is no IPVS."""
    with suppress(FileNotFoundError), open(FILE, encoding="ascii") as file:
        return services(file.read(LIMIT_BYTES))
    return ()
